"""Conditions: whose gaze and how it is given; predictions on disk; a whole evaluation, killed and gone on with."""

import copy
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from forked import PACKAGE_PYTHON, Script
from support import BACKBONE, ROOT, VIDEO_ENCODER, index_frames, perturb, run_here, write_video

from gazeqwen.eval import read_settings
from gazeqwen.evaluation.evaluators import AdapterEvaluator, InputSettings
from gazeqwen.evaluation.prediction_file import Prediction, PredictionFile, load_predictions
from gazeqwen.evaluation.predictions import length_sorted_batches, predict
from gazeqwen.evaluation.settings import EvaluationSettings
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.pipeline.batches import QuestionDataset, prompt_under
from gazeqwen.pipeline.clip_cache import ClipCache
from gazeqwen.pipeline.conditions import Condition
from gazeqwen.pipeline.overlays import gaze_in_words
from gazeqwen.processing_gazeqwen import GazeQwenProcessor
from gazeqwen.questions.centrality import centrality_of_questions
from gazeqwen.questions.dataset import load_questions
from gazeqwen.questions.digest import digest_of_data
from gazeqwen.questions.question import Question
from gazeqwen.questions.release import build
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.toyworld.generate import generate
from gazeqwen.training.recipe import ModelSettings
from gazeqwen.utils.files import write_text
from gazeqwen.utils.settings import read_recipe
from gazeqwen.video_gazeqwen import MAX_FRAMES

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def toy_data(toy_data, tmp_path_factory) -> Path:
    """The toy world with every third question of the test split: what is asked here is asked under many conditions."""
    folder = tmp_path_factory.mktemp("few") / "data"
    shutil.copytree(toy_data, folder, copy_function=os.link)
    table = folder / "default-test.parquet"
    rows = Dataset.from_parquet(str(table), cache_dir=str(folder.parent / "cache"))
    table.unlink()  # a link
    rows.select(range(0, len(rows), 3)).to_parquet(str(table))
    readme = (folder / "README.md").read_text()
    (folder / "README.md").unlink()
    (folder / "README.md").write_text(readme.replace("build ", "build few "))  # its name in the cache of datasets
    questions = load_questions(folder, "test")
    assert len(questions) < len(load_questions(toy_data, "test")) and len({q.video_name for q in questions}) == 4
    return folder


# ---------------------------------------------------------------- settings
MODEL_AND_DATA = {"model": "m", "data": "d"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model=''", "model is empty, expected an id or a folder"),
        ("batch_size=0", "batch_size: got 0, expected at least 1"),
        ("batch_size=many", "batch_size: got 'many', expected .*int"),
        ("num_workers=-1", "num_workers: got -1, expected at least 0"),
        ("permute_options=0", "permute_options: got 0, expected at least 1"),
        ("num_frames=0", "num_frames: got 0, expected at least 1"),
        ("max_frames=1", "max_frames: got 1, expected at least 2"),
        ("snap_s=-.5", r"snap_s: got -0.5, expected 0 or more seconds"),
        ("snap_s=.nan", "snap_s: got nan, expected 0 or more seconds"),
        ("fps=0", "fps: got 0.0, expected a positive number"),
        ("num_frames=8 fps=1", "fps: got 1.0, expected none beside num_frames=8"),
        ("scorer=kind", r"scorer: got 'kind', expected one of \('strict', 'streamgaze'\)"),
        ("scoring=guess", "scoring: got 'guess', expected one of"),
        ("prompt_style=odd", "prompt_style: got 'odd', expected one of"),
        ("without_gaze=maybe", "without_gaze: got 'maybe', expected one of"),
        ("cache=all", "cache: got 'all', expected one of"),
        ("dtype=float7", "dtype: got 'float7', expected one of"),
        ("gaze=none", "gaze: got 'none', expected .*list"),
        ("gaze=[]", r"gaze: got \[\], expected at least one condition"),
        ("gaze=[none,none]", r"gaze: got \['none', 'none'\], expected each condition once"),
        ("gaze=[gase]", "gaze: condition 'gase': unknown words"),
        ("gaze=[1]", "gaze: "),
        ("batchsize=4", "unknown key 'batchsize', did you mean 'batch_size'"),
        ("batch_size", "override 'batch_size', expected section.key=value"),
    ],
)
def test_a_bad_setting_is_refused_naming_field_value_and_what_was_expected(change, message):
    read_recipe(EvaluationSettings, None, ["model=m", "data=d"])
    with pytest.raises(ValueError, match=message):
        read_recipe(EvaluationSettings, None, ["model=m", "data=d", *change.split()])


def test_a_file_overrides_and_flags_set_the_same_fields(tmp_path, monkeypatch):
    def settings(*arguments: str) -> EvaluationSettings:
        monkeypatch.setattr("sys.argv", ["eval.py", *arguments])
        return read_settings()

    flags = ("--model", "m", "--data", "d", "--conditions", "none", "gaze", "--batch_size", "4", "--snap_s", "1")
    flags += ("--num_frames", "8", "--revision", "12e5", "--restart", "--no_cache")
    (tmp_path / "e.yaml").write_text(
        "{model: m, data: other, gaze: [none, gaze], batch_size: 2, snap_s: 1, num_frames: 8, revision: '12e5'}"
    )
    by_flags = settings(*flags)
    by_file = settings(str(tmp_path / "e.yaml"), "batch_size=4", "--data", "d", "--restart", "cache=none")
    assert by_flags == by_file and by_flags.gaze == ["none", "gaze"] and by_flags.snap_s == 1.0
    assert (by_flags.cache, by_flags.restart, by_flags.revision, by_flags.max_frames) == ("none", True, "12e5", None)
    assert settings("--model", "m", "--data", "d") == EvaluationSettings(model="m", data="d")
    in_4bit = [settings(*flags, *more).load_in_4bit for more in ([], ["--load_in_4bit"], ["--no-load_in_4bit"])]
    assert in_4bit == [None, True, False]
    with pytest.raises(ValueError, match="expected one file of settings"):
        settings("a.yaml", "b.yaml")
    with pytest.raises(ValueError, match=r"e.yaml: batch_size: got 0, expected at least 1"):
        settings(str(tmp_path / "e.yaml"), "--batch_size", "0")


def test_the_most_frames_of_a_clip_have_one_source():
    settings = EvaluationSettings(**MODEL_AND_DATA)
    assert InputSettings.from_settings(settings).max_frames == ModelSettings().max_frames == MAX_FRAMES
    assert GazeQwenProcessor.from_base(str(BACKBONE)).max_frames == MAX_FRAMES
    assert InputSettings.from_settings(EvaluationSettings(**MODEL_AND_DATA, max_frames=2)).max_frames == 2


# ---------------------------------------------------------------- prompts
def asked(video: str, end_s: float, rows, task: str = "past_scene_recall", start_s: float = 0.0) -> Question:
    scanpath = None if rows is None else Scanpath.from_array(rows)
    return Question(Path(video), video, scanpath, task, "Which?", ("a", "b"), 0, start_s, end_s)


def test_gaze_in_words_stands_before_the_question():
    scanpath = Scanpath.from_array([[0.25, 0.5, 11.0, 2.0], [0.75, 0.125, 14.0, 2.0]])
    question = asked("a", 14.0, scanpath.table, start_s=10.0)
    plain, _ = prompt_under(Condition.parse("gaze"), question, scanpath, "reference")
    told, answers = prompt_under(Condition.parse("text"), question, scanpath, "reference")
    assert told == f"{gaze_in_words(scanpath, 10.0, 14.0)}\n{plain}" and answers == ["A", "B"]


# ---------------------------------------------------------------- on a model
@pytest.fixture(scope="module")
def adapter(tmp_path_factory, toy_processor) -> Path:
    torch.manual_seed(3)
    model = GazeQwenForConditionalGeneration.from_base(str(BACKBONE), str(VIDEO_ENCODER), latent_dim=16, num_latents=8)
    folder = tmp_path_factory.mktemp("adapter")
    perturb(model).save_pretrained(folder)
    toy_processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(adapter):
    return GazeQwenForConditionalGeneration.from_pretrained(adapter)


def test_every_condition_reaches_the_model(loaded, toy_processor, toy_data, tmp_path):
    questions, found = load_questions(toy_data, "test"), {}
    cache = ClipCache.from_model(loaded, toy_processor, "embeddings", tmp_path)
    cache.fill(Accelerator(), loaded, questions)
    names = ("gaze", "none", "zero", "shuffled", "shifted", "centre", "random_place", "permuted_times")
    names += ("text", "overlay", "saliency", "text_only")
    for name in (*names, "overlay+shuffled", "overlay+model"):
        drawn = Condition.parse(name).draws
        clips = ClipCache(toy_processor) if drawn else cache
        predictions = predict(Accelerator(), loaded, clips, questions, name, batch_size=8)
        found[name] = [prediction.logits for prediction in predictions]
        assert [prediction.key for prediction in predictions] == [question.key for question in questions]
        assert {prediction.condition for prediction in predictions} == {name}
    for first in found:
        for second in found:
            assert (found[first] == found[second]) == (first == second), (first, second)
    with loaded.gaze_disabled():  # without the channel `model` the adapter is off, exactly
        for name in ("none", "text", "overlay", "saliency", "text_only"):
            drawn = Condition.parse(name).draws
            clips = ClipCache(toy_processor) if drawn else cache
            again = predict(Accelerator(), loaded, clips, questions, name, batch_size=8)
            assert [prediction.logits for prediction in again] == found[name], name


def test_what_training_cached_is_not_encoded_again_for_the_saved_adapter(toy_data, tmp_path):
    """`fill` returns how many clips it encoded: all for the new model, none for the same one saved and loaded."""
    torch.manual_seed(3)
    model = GazeQwenForConditionalGeneration.from_base(str(BACKBONE), str(VIDEO_ENCODER), latent_dim=16, num_latents=8)
    processor = GazeQwenProcessor.from_base(str(BACKBONE), video_encoder_size=64, num_frames=8)
    questions = load_questions(toy_data, "test")
    trained = ClipCache.from_model(model, processor, "features", tmp_path / "cache")
    assert trained.fill(Accelerator(), model, questions) > 0
    model.save_pretrained(tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    settings = EvaluationSettings(model=str(tmp_path / "adapter"), data="d", cache_dir=str(tmp_path / "cache"))
    evaluator = AdapterEvaluator(settings, Accelerator())
    assert evaluator.cache.folder == trained.folder
    assert evaluator.cache.fill(Accelerator(), evaluator.model, questions) == 0
    evaluator.processor.video_processor.size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28}
    other = ClipCache.from_model(evaluator.model, evaluator.processor, "features", tmp_path / "cache")
    assert other.folder != trained.folder  # what does change numbers is another cache


def test_every_end_of_a_window_is_another_cache_key(toy_processor, tmp_path):
    video = tmp_path / "v.mp4"
    video.write_bytes(b"not decoded here")
    cache = ClipCache(toy_processor, "embeddings", root=tmp_path)

    def question(start_s: float, end_s: float, wording: str = "Which?") -> Question:
        return Question(video, "v", None, "past_scene_recall", wording, ("a", "b"), 0, start_s, end_s)

    windows = [(0.0, 10.0), (2.0, 10.0), (2.0, 12.0), (0.0, 12.0)]
    questions = [question(*window) for window in windows]
    assert (
        len({cache.path(question) for question in questions}) == len(cache.missing((q, None) for q in questions)) == 4
    )
    assert cache.path(question(2.0, 10.0, "Where?")) == cache.path(questions[1])
    assert len(cache.missing([(questions[1], None), (question(2.0, 10.0, "Where?"), None)])) == 1
    before = cache.path(questions[0])
    video.write_bytes(b"another as large")
    os.utime(video, ns=(1, 1))  # another time of change, whatever the disk's clock counts in
    assert cache.path(questions[0]) != before


def test_what_makes_the_numbers_is_another_cache(toy_processor, tmp_path):
    """Weights of the frozen networks and sizes; not the weights of the resampler, which is trained."""
    torch.manual_seed(3)
    model = GazeQwenForConditionalGeneration.from_base(str(BACKBONE), str(VIDEO_ENCODER), latent_dim=16, num_latents=8)
    processor = GazeQwenProcessor.from_base(str(BACKBONE), video_encoder_size=64, num_frames=8)

    def folder(kind: str) -> Path:
        return ClipCache.from_model(model, processor, kind, tmp_path).folder

    def nudge(module) -> None:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.01)

    folders = [folder("features"), folder("embeddings")]
    nudge(model.resampler)
    assert [folder("features"), folder("embeddings")] == folders
    nudge(model.backbone.model.visual)
    assert folder("features") == folders[0] and folder("embeddings") != folders[1]
    nudge(model.video_encoder)
    folders += [folder("embeddings"), folder("features")]
    processor.video_encoder_size = 80
    folders += [folder("features")]
    assert len(set(folders)) == 5


def test_clips_of_different_sizes_encoded_together_are_what_each_is_alone(loaded, toy_processor, tmp_path):
    """More frames, and frames of another shape: no entry holds what pads it, or the embeddings of another clip."""
    processor, questions = copy.deepcopy(toy_processor), []
    processor.num_frames, processor.fps = None, 1.0
    processor.video_processor.size = {"shortest_edge": 28 * 28, "longest_edge": 112 * 112}
    for name, height, width, end_s in (("a.mp4", 56, 84, 2.0), ("b.mp4", 84, 56, 6.0), ("c.mp4", 56, 56, 4.0)):
        video = write_video(tmp_path / name, index_frames(60, height, width))
        questions.append(Question(video, name, None, "past_scene_recall", "Which?", ("a", "b"), 0, 0.0, end_s))
    together = ClipCache.from_model(loaded, processor, "embeddings", tmp_path / "together")
    assert together.fill(Accelerator(), loaded, questions, batch_size=3) == 3
    alone = ClipCache.from_model(loaded, processor, "embeddings", tmp_path / "alone")
    assert alone.fill(Accelerator(), loaded, questions, batch_size=1) == 3
    grids = set()
    for question in questions:
        one, other = together.read(question), alone.read(question)
        assert one.keys() == other.keys()
        for name in one:
            torch.testing.assert_close(one[name], other[name], atol=1e-5, rtol=1e-5)
        grids.add(tuple(one["video_grid_thw"].tolist()))
    assert len(grids) == 3


def test_prompts_are_padded_on_the_left_whatever_the_tokenizer_does(toy_processor, toy_data):
    processor = copy.deepcopy(toy_processor)
    processor.tokenizer.padding_side = "right"
    questions = load_questions(toy_data, "test")
    data = QuestionDataset(ClipCache(processor), [min(questions, key=lengths), max(questions, key=lengths)])
    mask = data.collate([data[0], data[1]]).inputs["attention_mask"]
    assert mask[:, -1].all() and not mask[:, 0].all()


def lengths(question: Question) -> int:
    return len(question.prompt("reference")[0])


def test_text_only_shows_no_video(loaded, toy_processor, toy_data):
    (question,) = load_questions(toy_data, "test")[:1]
    data = QuestionDataset(ClipCache(toy_processor), [question], condition=Condition.parse("text_only"))
    batch = data.collate([data[0]])
    assert set(batch.inputs) == {"input_ids", "attention_mask", "mm_token_type_ids"}
    assert loaded.backbone.config.video_token_id not in batch.inputs["input_ids"]


# ---------------------------------------------------------------- predictions on disk
def prediction(key: str, condition: str = "gaze") -> Prediction:
    return Prediction(key, "v", "past_scene_recall", 0, ["a", "b"], [1.0, 0.0], condition=condition)


def test_a_torn_line_and_repeated_predictions_are_repaired_and_counted(tmp_path):
    file = PredictionFile(tmp_path / "p.jsonl", {"seed": 0})
    file.start()
    file.append(0, [prediction("1"), prediction("2")])
    file.append(1, [prediction("2"), prediction("3"), prediction("1", "none")])
    part = tmp_path / "p.part-1.jsonl"
    part.write_text(part.read_text()[:-20])
    repaired = PredictionFile(tmp_path / "p.jsonl", {"seed": 0})
    repaired.start()
    assert set(repaired.read()) == {("gaze", "1"), ("gaze", "2"), ("gaze", "3")}
    assert any("torn last line" in line for line in repaired.repairs)
    assert any("1 predictions were there twice" in line for line in repaired.repairs)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.jsonl", "p.settings.json"]
    (tmp_path / "p.jsonl").write_text('{"key": "1"}\n' + (tmp_path / "p.jsonl").read_text())
    with pytest.raises(ValueError, match=r"p.jsonl, line 1: no prediction"):
        repaired.read()


def test_a_disk_that_is_full_is_named(tmp_path):
    """A real limit of the operating system on how large a file may grow."""
    file = PredictionFile(tmp_path / "p.jsonl", {"seed": 0})
    file.start()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        for write, name in (
            (lambda: file.append(0, [prediction("1")]), "p.part-0.jsonl"),
            (lambda: write_text(tmp_path / "a.txt", "a" * 200), "a.txt"),
        ):
            with pytest.raises(OSError, match=f"{tmp_path / name}"):
                write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "a.txt").exists()


def test_a_character_of_several_bytes_may_be_torn(tmp_path):
    file = PredictionFile(tmp_path / "p.jsonl", {"seed": 0})
    file.start()
    file.append(0, [prediction("1"), prediction("über")])
    part = tmp_path / "p.part-0.jsonl"
    part.write_bytes(part.read_bytes()[: part.read_bytes().index("ü".encode()) + 1])
    assert set(PredictionFile(tmp_path / "p.jsonl", {"seed": 0}).read()) == {("gaze", "1")}
    part.write_bytes(part.read_bytes() + b"\n")
    for read in (file.read, lambda: load_predictions(part, ["gaze"])):
        with pytest.raises(ValueError, match=r"p.part-0.jsonl, line 2: no prediction"):
            read()


def test_predictions_of_other_settings_are_refused_and_named(tmp_path):
    file = PredictionFile(tmp_path / "p.jsonl", {"seed": 0, "split": "test"})
    file.start()
    file.append(0, [prediction("1")])
    with pytest.raises(ValueError, match=r"other settings[\s\S]*seed: 0 before, 1 now"):
        PredictionFile(tmp_path / "p.jsonl", {"seed": 1, "split": "test"}).start()
    again = PredictionFile(tmp_path / "p.jsonl", {"seed": 0, "split": "test"})
    again.start()
    assert again.read().keys() == {("gaze", "1")}
    fresh = PredictionFile(tmp_path / "p.jsonl", {"seed": 1, "split": "test"})
    fresh.start(restart=True)
    assert fresh.read() == {}
    assert "delete" in EvaluationSettings.__dataclass_fields__["restart"].metadata["help"]


DATA = {"questions": "2, 0a", "gaze": "1, 0b", "videos": "1, 0c"}


def answered(path: Path, settings: dict) -> PredictionFile:
    file = PredictionFile(path, settings)
    file.start()
    file.append(0, [prediction("1"), prediction("2")])
    file.merge()
    return PredictionFile(path, settings)


def test_predictions_of_other_data_are_refused_and_named(tmp_path, capsys):
    settings = {"seed": 0, "data_digest": DATA}
    answered(tmp_path / "p.jsonl", settings).start()
    other = {"seed": 0, "data_digest": DATA | {"gaze": "1, ff"}}
    with pytest.raises(ValueError, match=r"other settings[\s\S]*data_digest.gaze: '1, 0b' before, '1, ff' now"):
        PredictionFile(tmp_path / "p.jsonl", other).start()
    PredictionFile(tmp_path / "p.jsonl", other).start(restart=True)
    assert not capsys.readouterr().out
    answered(tmp_path / "old.jsonl", {"seed": 0})  # as earlier versions wrote them
    old = PredictionFile(tmp_path / "old.jsonl", settings)
    old.start()
    assert "nobody can tell" in capsys.readouterr().out and len(old.read()) == 2
    with pytest.raises(ValueError, match="seed: 0 before, 1 now"):
        PredictionFile(tmp_path / "old.jsonl", settings | {"seed": 1}).start()


def test_predictions_whose_settings_are_gone_or_damaged_are_refused(tmp_path):
    file, sidecar = answered(tmp_path / "p.jsonl", {"seed": 0}), tmp_path / "p.settings.json"
    sidecar.write_text("")
    with pytest.raises(ValueError, match=r"p.settings.json: holds no settings"):
        file.start()
    sidecar.unlink()
    with pytest.raises(
        ValueError, match=r"p.jsonl holds predictions whose settings, .*p.settings.json, are not there"
    ):
        file.start()
    file.start(restart=True)
    assert file.read() == {} and sidecar.exists()


@pytest.mark.parametrize("old, new", [('"answer": 0', '"answer": 1'), ("[1.0, 0.0]", "[0.0, 1.0]")])
def test_an_edited_prediction_is_noticed(tmp_path, old, new):
    file = answered(tmp_path / "p.jsonl", {"seed": 0})
    lines = file.path.read_text().splitlines(keepends=True)
    file.path.write_text(lines[0] + lines[1].replace(old, new))
    assert file.path.read_text() != "".join(lines)
    for read in (file.start, lambda: load_predictions(file.path, ["gaze"])):
        with pytest.raises(ValueError, match=r"p.jsonl, line 2: was edited after it was written"):
            read()
    rows = [{name: value for name, value in json.loads(line).items() if name != "digest"} for line in lines]
    file.path.write_text("".join(json.dumps(row) + "\n" for row in rows))  # as earlier versions wrote them
    file.start()
    assert len(file.read()) == 2


def test_batches_do_not_depend_on_what_is_answered():
    questions = [asked("a", end_s, []) for end_s in (9.0, 3.0, 9.0, 1.0, 5.0)]
    assert length_sorted_batches(questions, 2) == [[3, 1], [4, 0], [2]]


# ---------------------------------------------------------------- eval.py, in processes of its own
def evaluation(adapter: Path, data: Path, folder: Path, *more) -> list:
    folder.mkdir(exist_ok=True)
    return [
        *("eval.py", "--model", adapter, "--data", data, "--output", folder / "r.json", "--batch_size", "2"),
        *("--cache_dir", folder.parent / "cache", "--num_workers", "0", *more),
    ]


def run(command, processes: int = 1, expect: int = 0) -> str:
    launch = [PACKAGE_PYTHON]
    if processes > 1:
        options = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--multi_gpu"]
        launch += ["-m", "accelerate.commands.launch", "--num_processes", str(processes), *options]
    environment = {**ENVIRONMENT, "ACCELERATE_USE_CPU": "true"}
    result = subprocess.run([*launch, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == expect, result.stdout + result.stderr
    return result.stdout if expect == 0 else result.stderr


@pytest.fixture(scope="module")
def whole(adapter, toy_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluations") / "whole"
    printed = run(evaluation(adapter, toy_data, folder, "--permute_options", "2"))
    return folder, printed, json.loads((folder / "r.json").read_text())


def predictions_of(folder: Path) -> dict:
    lines = (folder / "r.predictions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len({(row["condition"], row["key"]) for row in rows}) == len(rows)
    return {(row["condition"], row["key"]): row for row in rows}


def assert_same(found: dict, expected: dict) -> None:
    """The same answers to the same questions; logits to their last bits, which differ from process to process."""
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        same = {"logits": None, "digest": None}
        assert {**found[key], **same} == {**row, **same}
        assert found[key]["logits"] == pytest.approx(row["logits"], abs=1e-5)
        assert np.argmax(found[key]["logits"]) == np.argmax(row["logits"])


def test_the_result_holds_every_setting_and_the_predictions(whole, toy_data):
    folder, printed, result = whole
    questions = load_questions(toy_data, "test")
    assert set(result["scores"]) == {"gaze", "none", "shuffled", "centre"} and result["scorer"] == "strict"
    assert result["gaze_centrality"] == pytest.approx(centrality_of_questions(questions))
    gaze = result["scores"]["gaze"]
    assert gaze["counts"] == {"expected": len(questions), "answered": len(questions), "failed": 0}
    assert gaze["intervals"]["videos"] == 4 and gaze["options_permuted"]["permutations"] == 2
    wanted = ("model", "data", "split", "seed", "num_frames", "fps", "max_frames", "frame_size", "prompt", "dtype")
    assert set(wanted) <= set(result["settings"]) and result["settings"]["adapter"]["gaze_encoding"] == "foveated"
    assert result["settings"]["trust_remote_code"] is False
    assert result["settings"]["data_digest"] == digest_of_data(questions)
    assert len(predictions_of(folder)) == 8 * len(questions) and "gaze given" in printed
    assert result["predictions"] == "r.predictions.jsonl"


def test_killed_three_times_or_on_two_processes_the_predictions_are_identical(whole, adapter, toy_data):
    folder = whole[0]
    expected, scores = predictions_of(folder), whole[2]["scores"]
    two = folder.parent / "two"
    run(evaluation(adapter, toy_data, two, "--permute_options", "2"), processes=2)
    assert_same(predictions_of(two), expected)
    assert json.loads((two / "r.json").read_text())["scores"] == scores

    killed, rng = folder.parent / "killed", random.Random(0)
    command = evaluation(adapter, toy_data, killed, "--permute_options", "2")

    def answered() -> int:
        lines = 0
        for path in killed.glob("r.p*.jsonl"):
            with suppress(FileNotFoundError):  # merged meanwhile
                lines += path.read_bytes().count(b"\n")
        return lines

    kills, seen = 0, [0]
    for _ in range(3):
        script = Script(*command, OMP_NUM_THREADS="1")
        enough = answered() + rng.randint(1, len(expected) // 8)
        while script.is_running() and answered() < enough:
            time.sleep(0.01)
        if script.is_running():
            script.kill(signal.SIGKILL)
            kills += 1
        script.wait()
        seen.append(answered())
    assert kills == 3 and seen == sorted(seen) and seen[-1] < len(expected)
    run(command)
    assert_same(predictions_of(killed), expected)
    assert json.loads((killed / "r.json").read_text())["scores"] == scores


def test_mistakes_end_in_one_line(adapter, toy_data, tmp_path):
    for more, message in [
        (("--gaze", "gase"), "unknown words ['gase']"),
        (("--gaze", "none", "none"), "expected each condition once"),
        (("--batch_size", "0"), "batch_size: got 0, expected at least 1"),
        (("--split", "dev"), "split 'dev'"),
    ]:
        error = run_here(*evaluation(adapter, toy_data, tmp_path / "x", *more), expect=1)
        assert message in error and "Traceback" not in error


def test_conditions_are_checked_before_a_model_is_loaded(adapter, tmp_path):
    """One test video has no other gaze to shuffle in: said at once, with a remedy; the adapter has no weights here."""
    generate(tmp_path / "world", train=0, val=0, test=1, seed=3, per_task=1, progress=False)
    build(tmp_path / "world", tmp_path / "data", progress=False)
    config = tmp_path / "config" / "config.json"
    config.parent.mkdir()
    config.write_text((adapter / "config.json").read_text())
    error = run_here(*evaluation(config.parent, tmp_path / "data", tmp_path / "x"), expect=1)
    assert "condition 'shuffled': shuffled gaze needs the scanpaths of at least 2 videos, got 1: add videos" in error
    assert "or leave this condition out: --gaze gaze none" in error and "Traceback" not in error
    command = evaluation(adapter, tmp_path / "data", tmp_path / "x", "--gaze", "gaze", "none")
    assert "gaze given" in run_here(*command)  # the remedy is one


def test_what_was_answered_is_kept_when_a_later_condition_fails(whole, adapter, toy_data, tmp_path, monkeypatch):
    predict_all, asked_under = AdapterEvaluator.predict, []

    def failing(self, questions, condition, file):
        asked_under.append(condition.name)
        if condition.name == "none":
            raise ValueError("out of memory")
        return predict_all(self, questions, condition, file)

    command = evaluation(adapter, toy_data, tmp_path / "x")
    monkeypatch.setattr(AdapterEvaluator, "predict", failing)
    assert "out of memory" in run_here(*command, expect=1) and asked_under == ["gaze", "none"]
    partial = json.loads((tmp_path / "x" / "r.partial.json").read_text())
    expected = whole[2]["scores"]
    assert partial["scores"].keys() == {"gaze"} and not (tmp_path / "x" / "r.json").exists()
    assert partial["scores"]["gaze"] == {k: v for k, v in expected["gaze"].items() if k != "options_permuted"}
    monkeypatch.undo()
    run_here(*command)
    assert json.loads((tmp_path / "x" / "r.json").read_text())["scores"].keys() == expected.keys()
    assert not (tmp_path / "x" / "r.partial.json").exists()


# ---------------------------------------------------------------- other models
FOREIGN = ("qwen2_5_vl", "llava_onevision", "internvl")


@pytest.fixture(scope="module")
def foreign(foreign_models, toy_data, tmp_path_factory) -> dict[str, Path]:
    """Three families through eval.py, each in a process of its own; one of them answers by generating."""
    folder, running = tmp_path_factory.mktemp("foreign"), {}
    for family in FOREIGN:
        more = ["--gaze", "none", "overlay", "text", "text_only", "--num_frames", "8", "--prompt_style", "reference"]
        more += ["--scoring", "generate"] if family == "internvl" else []
        command = [PACKAGE_PYTHON, *map(str, evaluation(foreign_models[family], toy_data, folder / family, *more))]
        running[family] = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    for family, process in running.items():
        error = process.communicate(timeout=300)[1]
        assert process.returncode == 0, (family, error)
    return {family: folder / family for family in FOREIGN}


@pytest.mark.parametrize("family", FOREIGN)
def test_other_families_are_evaluated_end_to_end(foreign, toy_data, family):
    questions, result = load_questions(toy_data, "test"), json.loads((foreign[family] / "r.json").read_text())
    found = predictions_of(foreign[family])
    assert set(result["scores"]) == {"none", "overlay", "text", "text_only"} and len(found) == 4 * len(questions)
    assert result["settings"]["sources"] == ["toyworld"] and {row["source"] for row in found.values()} == {"toyworld"}
    for score in result["scores"].values():
        counts = score["counts"]
        assert counts["expected"] == len(questions) == counts["answered"] + counts["failed"]
    kind = "response" if family == "internvl" else "logits"
    answers = {
        condition: [found[condition, question.key][kind] for question in questions] for condition in result["scores"]
    }
    assert all(answer is not None for given in answers.values() for answer in given)
    if kind == "logits":
        assert len({str(given) for given in answers.values()}) == 4  # each condition reached the model


def test_a_plain_qwen_is_what_an_adapter_is_without_gaze(foreign, whole, toy_data):
    """Two code paths, one answer: the baseline's processor and model, and the adapter's with gaze off."""
    plain, adapter = predictions_of(foreign["qwen2_5_vl"]), predictions_of(whole[0])
    for question in load_questions(toy_data, "test"):
        ours, theirs = (rows["none", question.key]["logits"] for rows in (adapter, plain))
        assert theirs == pytest.approx(ours, abs=1e-4)


def test_a_model_without_a_place_for_gaze_is_told_so(foreign_models, toy_data, tmp_path):
    error = run(evaluation(foreign_models["qwen2_5_vl"], toy_data, tmp_path / "x", "--gaze", "shuffled"), expect=1)
    assert "condition 'shuffled': " in error and "is no GazeQwen adapter and takes no scanpath" in error
    assert "Traceback" not in error
