"""What a power cut leaves of files and runs, and what the next run makes of it (see benchmarks/bench_power_cut.py)."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_locks import held_elsewhere
from test_resume import checkpoints_path, run_of
from test_training import TASKS
from volatile_disk import VolatileDisk

from gazeqwen.adapter_files_gazeqwen import write_tensors
from gazeqwen.training.checkpoints import last_checkpoint, read_progress
from gazeqwen.training.recipe import Recipe
from gazeqwen.training.trainer import Trainer
from gazeqwen.utils.files import atomic_folder, make_folder, remove_leftovers, write_bytes
from gazeqwen.utils.settings import read_recipe


@pytest.fixture(autouse=True)
def forced_to_the_disk(monkeypatch):
    """Here files and folders are, as for users (see `fork_server.leave_in_memory`)."""
    monkeypatch.setattr(os, "fsync", os.fsync.forced)


def visible(folder: Path) -> dict[str, bytes]:
    """The files of a folder after a power cut, without those that no reader looks at."""
    for part in (folder, *filter(Path.is_dir, folder.iterdir())):
        remove_leftovers(part)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------- files and folders
def test_a_power_cut_leaves_the_old_file_or_the_new_one(tmp_path, monkeypatch):
    folder, tensors = tmp_path / "disk", [{"x": torch.full((3,), value)} for value in (1.0, 2.0)]
    disk = VolatileDisk(folder, monkeypatch)
    make_folder(folder / "a")
    write_bytes(folder / "a" / "f", b"old")
    write_tensors(folder / "a" / "t", tensors[0])
    old, count = visible(folder), len(disk.images)
    write_bytes(folder / "a" / "f", b"new")
    write_tensors(folder / "a" / "t", tensors[1])
    new = visible(folder)
    states = [visible(image.write(tmp_path / f"{number}")) for number, image in enumerate(disk.images[count:])]
    halves = [{**old, "a/f": b"new"}, {**new, "a/f": b"old"}]
    assert old in states and new in states and all(state in (old, new, *halves) for state in states)
    assert states[-1] == new != old


def test_a_power_cut_leaves_the_old_folder_or_the_new_one(tmp_path, monkeypatch):
    folder = tmp_path / "disk"
    disk = VolatileDisk(folder, monkeypatch)
    make_folder(folder)
    for count, content in ((0, b"old"), (1, b"new")):
        with atomic_folder(folder / "a") as files:
            (files / "sub").mkdir()
            (files / "sub" / "f").write_bytes(content)
            (files / content.decode()).write_bytes(content)
        if count == 0:
            old, before = visible(folder), len(disk.images)
    states = [visible(image.write(tmp_path / f"{number}")) for number, image in enumerate(disk.images)]
    new = {"a/sub/f": b"new", "a/new": b"new"}
    assert old == {"a/sub/f": b"old", "a/old": b"old"} and states[-1] == new
    assert all(state in ({}, old) for state in states[:before])
    assert old in states[before:] and all(state in (old, new) for state in states[before:])


# ---------------------------------------------------------------- runs
@pytest.fixture(scope="module")
def whole_run(toy_data, tmp_path_factory):
    """A run that never stopped, and what power cuts at each of its writes would leave of its folder."""
    folder = tmp_path_factory.mktemp("whole")
    data = {"cache_dir": str(folder.parent / "cache"), "tasks": TASKS[-1:]}
    recipe = read_recipe(Recipe, run_of(toy_data, folder, data=data, stage1={"epochs": 1}, keep_checkpoints=3))
    with pytest.MonkeyPatch.context() as monkeypatch:
        disk = VolatileDisk(folder / "out", monkeypatch)
        make_folder(folder / "out")
        Trainer(recipe).run()
    return folder / "r.yaml", disk.images


def outcome(out: Path) -> tuple:
    weights = load_file(checkpoints_path(out) / "trained.safetensors")
    best = json.loads((out / "validation.json").read_text())
    return {name: value.numpy().tobytes() for name, value in weights.items()}, (out / "log.jsonl").read_text(), best


def test_at_every_moment_a_whole_checkpoint_is_there_or_none_was_written(whole_run, tmp_path):
    recipe, images = whole_run
    newest, steps = {True: None, False: None}, set()
    for number, image in enumerate([*images[::9], *images[-2:]]):
        out = image.write(tmp_path / str(number))
        for folder in (out, out / "checkpoints"):
            remove_leftovers(folder)
        checkpoint, damages = last_checkpoint(out)
        assert not damages, image.event
        if (out / "recipe.yaml").exists():
            assert yaml.safe_load((out / "recipe.yaml").read_text())["output_dir"] == str(recipe.parent / "out")
        name = checkpoint and checkpoint.name
        before = newest[image.names_kept]
        assert before is None or (name and name >= before), image.event
        newest[image.names_kept] = name
        if checkpoint:
            steps.add(read_progress(checkpoint)[0].steps)
        shutil.rmtree(out)
    assert newest[False] == newest[True] == checkpoints_path(recipe.parent / "out").name
    assert len(images) > 100 and len(steps) >= 2


@pytest.mark.parametrize("place", [0.4, 0.8])
def test_a_run_whose_power_failed_ends_as_one_that_never_stopped(whole_run, tmp_path, place):
    recipe, images = whole_run
    image = images[int(place * len(images))]
    out = image.write(tmp_path / "out")
    assert last_checkpoint(out)[0] != last_checkpoint(recipe.parent / "out")[0]
    Trainer(read_recipe(Recipe, recipe, [f"output_dir={out}"])).run()
    assert outcome(out) == outcome(recipe.parent / "out")


@pytest.fixture
def stopped(whole_run, tmp_path):
    """A copy of a finished run without its last checkpoint, which says that it is finished: (recipe, folder)."""
    out = shutil.copytree(whole_run[0].parent / "out", tmp_path / "out")
    shutil.rmtree(checkpoints_path(out))
    return read_recipe(Recipe, whole_run[0], [f"output_dir={out}"]), out


@pytest.mark.parametrize("manifest", [True, False], ids=["with digests", "of an older version"])
@pytest.mark.parametrize("file", ["trained.safetensors", "random.safetensors", "progress.json", "log.jsonl"])
def test_a_checkpoint_that_is_not_whole_is_passed_over_by_name(stopped, file, manifest):
    _, out = stopped
    good = checkpoints_path(out)
    last = shutil.copytree(good, good.with_name("stage2-epoch0009-step00000009"))
    if not manifest:
        (last / "files.json").unlink()
    assert last_checkpoint(out) == (last, {})
    content = (last / file).read_bytes()
    damages = {"empty": b"", "cut": content[: len(content) // 2]}
    if manifest:  # without digests nobody can tell
        damages["one bit"] = content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]
    for damage in damages.values():
        (last / file).write_bytes(damage)
        checkpoint, passed_over = last_checkpoint(out)
        assert checkpoint == good and list(passed_over) == [last] and passed_over[last]
        if manifest:
            assert file in passed_over[last]


def test_a_run_goes_on_from_the_checkpoint_before_the_damaged_one(stopped, whole_run, capsys):
    recipe, out = stopped
    damaged = checkpoints_path(out)
    (damaged / "trained.safetensors").write_bytes(b"")
    Trainer(recipe).run()
    assert f"{damaged}: not whole, passed over" in capsys.readouterr().out
    assert outcome(out) == outcome(whole_run[0].parent / "out")


def test_a_run_of_which_nothing_is_whole_is_not_begun_anew_silently(stopped):
    recipe, out = stopped
    for checkpoint in (out / "checkpoints").iterdir():
        (checkpoint / "progress.json").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no checkpoint is whole[\s\S]*progress.json has 0 bytes, expected \d+"):
        Trainer(recipe)
    (out / "recipe.yaml").write_bytes(b"")
    with pytest.raises(ValueError, match=r"recipe.yaml: holds no recipe \(0 bytes\), as after a power cut"):
        Trainer(recipe)


# ---------------------------------------------------------------- kills while folders are replaced
def test_with_one_checkpoint_a_kill_between_the_renames_loses_nothing(stopped, whole_run, capsys):
    recipe, out = stopped
    last = checkpoints_path(out)
    for checkpoint in (out / "checkpoints").iterdir():
        if checkpoint != last:
            shutil.rmtree(checkpoint)
    shutil.copytree(last, last.with_name(f".{last.name}.1.tmp"))
    last.rename(last.with_name(f".{last.name}.1.old"))
    (out / "checkpoints" / ".stage1-epoch0001-step00000001.7f.tmp").mkdir()
    (out / ".log.jsonl.1.tmp").write_text("half")
    Trainer(recipe).run()
    assert "going on after step" in capsys.readouterr().out
    assert outcome(out) == outcome(whole_run[0].parent / "out")
    assert not list(out.rglob(".*"))


def test_a_run_in_whose_folder_another_one_writes_is_refused(stopped):
    recipe, out = stopped
    with held_elsewhere(out) as process, pytest.raises(BlockingIOError, match=rf"out: process {process} on"):
        Trainer(recipe)
