"""Data that changed under a run or an evaluation are noticed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from test_resume import run_of
from test_training import TASKS

from gazeqwen.questions.dataset import load_questions
from gazeqwen.questions.digest import digest_of_data
from gazeqwen.questions.question import Question
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.training.recipe import Recipe
from gazeqwen.training.trainer import Trainer
from gazeqwen.utils.settings import read_recipe


def edit(table: Path, change) -> None:
    """Replace the rows of a parquet file by `change` of them."""
    rows = pq.read_table(table)
    pq.write_table(type(rows).from_pylist(change(rows.to_pylist()), rows.schema), table)


def mirrored(rows: list[dict]) -> list[dict]:
    return [row | {"scanpath": [[1 - x, *rest] for x, *rest in row["scanpath"]]} for row in rows]


def test_each_kind_of_change_is_seen_and_a_moved_file_is_none(tmp_path):
    video = tmp_path / "v.mp4"
    video.write_bytes(bytes(range(256)) * 1000)
    scanpath = Scanpath.from_array([[0.5, 0.5, 1.0, 0.2]])
    question = Question(video, "v.mp4", scanpath, "past_scene_recall", "Which?", ("a", "b"), 0, 0.0, 9.0)
    before = digest_of_data([question, replace(question, end_s=8.0)])
    moved = tmp_path / "moved" / "v.mp4"
    moved.parent.mkdir()
    shutil.copy(video, moved)
    assert digest_of_data([replace(question, video=moved), replace(question, end_s=8.0, video=moved)]) == before

    def changed(*questions: Question) -> set[str]:
        now = digest_of_data(questions)
        return {name for name in before if now[name] != before[name]}

    other = Scanpath.from_array([[0.5, 0.5, 1.0, 0.2 + 1e-12]])
    for change in ({"answer": 1}, {"question": "What?"}, {"start_s": 1.0}, {"options": ("a", "c")}, {"task": "x"}):
        assert changed(replace(question, **change), replace(question, end_s=8.0)) == {"questions"}
    assert changed(question) == {"questions"}
    assert changed(*(replace(question, end_s=end_s, scanpath=other) for end_s in (9.0, 8.0))) == {"gaze"}
    assert changed(*(replace(question, end_s=end_s, scanpath=None) for end_s in (9.0, 8.0))) == {"gaze"}
    moved.write_bytes(video.read_bytes()[:-1] + b"x")
    assert changed(*(replace(question, end_s=end_s, video=moved) for end_s in (9.0, 8.0))) == {"videos"}


@pytest.fixture(scope="module")
def begun(toy_data, tmp_path_factory):
    """The recipe of a run that was begun on a dataset of its own, that dataset, and the digests it was begun on."""
    folder = tmp_path_factory.mktemp("begun")
    data = shutil.copytree(toy_data, folder / "data", copy_function=shutil.copy)
    path = run_of(data, folder, data={"cache_dir": str(folder / "cache"), "tasks": TASKS[-2:]})
    trainer = Trainer(read_recipe(Recipe, path))
    trainer._write_settings()
    return read_recipe(Recipe, path), data, json.loads((trainer.folder / "provenance.json").read_text())["data"]


def test_a_run_records_on_what_it_was_begun(begun):
    recipe, data, digests = begun
    for split in ("train", "validation"):
        assert digests[split] == digest_of_data(load_questions(data, split, TASKS[-2:]))
    assert Trainer(recipe).data == digests


def without_one(rows: list[dict]) -> list[dict]:
    last = max(number for number, row in enumerate(rows) if row["task"] == TASKS[-1])
    return rows[:last] + rows[last + 1 :]


@pytest.mark.parametrize("change, what", [(mirrored, "gaze"), (without_one, "questions")])
def test_a_run_does_not_go_on_with_other_data_at_the_same_place(begun, change, what):
    recipe, data, _ = begun
    table = data / "default-train.parquet"
    content = table.read_bytes()
    edit(table, change)
    try:
        with pytest.raises(ValueError, match=rf"on other data[\s\S]* train.{what}: '\d+, \w+' before, '\d+, "):
            Trainer(recipe)
    finally:
        table.write_bytes(content)


def test_a_run_of_an_older_version_goes_on_with_a_note(begun, capsys, tmp_path):
    recipe, _, _ = begun
    out = shutil.copytree(recipe.output_dir, tmp_path / "out")
    older = json.loads((out / "provenance.json").read_text())
    del older["data"]
    (out / "provenance.json").write_text(json.dumps(older))
    recipe = replace(recipe, output_dir=str(out))
    Trainer(recipe)
    assert "provenance.json: of an older version, nobody can tell" in capsys.readouterr().out
    (out / "provenance.json").unlink()
    with pytest.raises(ValueError, match=r"provenance.json: does not say what data the run has"):
        Trainer(recipe)
