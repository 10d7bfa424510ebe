"""Frozen work once, batches, runs that are killed and go on, and several processes."""

import json
import random
import re
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from forked import Script, run, run_together
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save
from support import run_here
from test_training import TASKS, recipe_text

from gazeqwen.evaluation.predictions import predict
from gazeqwen.pipeline.batches import Augmentation, MicroBatchSampler, QuestionDataset
from gazeqwen.pipeline.clip_cache import ClipCache, digest_of_weights
from gazeqwen.questions.dataset import load_questions
from gazeqwen.questions.question import Question
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.training.checkpoints import RUN_FILES, remove_run
from gazeqwen.training.recipe import Recipe, changed_settings
from gazeqwen.training.trainer import Trainer
from gazeqwen.utils.settings import read_recipe


def question(task: str = "past_scene_recall", answer_text: str | None = None) -> Question:
    return Question(Path("v.mp4"), "v.mp4", None, task, "Which?", ("a", "b"), 0, 0.0, 9.0, answer_text)


# ---------------------------------------------------------------- the cache
@pytest.fixture(scope="module")
def questions(toy_data):
    return load_questions(toy_data, "train")[:6]


@pytest.mark.parametrize("kind", ["features", "embeddings"])
def test_the_cache_gives_the_numbers_of_computing_on_the_fly(toy_model, toy_processor, questions, tmp_path, kind):
    none = ClipCache.from_model(toy_model, toy_processor, "none", tmp_path)
    kept = ClipCache.from_model(toy_model, toy_processor, kind, tmp_path)
    assert kept.fill(Accelerator(), toy_model, questions, batch_size=4) == len(
        {(q.video, q.start_s, q.end_s) for q in questions}
    )
    on_the_fly, cached = (predict(Accelerator(), toy_model, cache, questions) for cache in (none, kept))
    found, expected = (torch.tensor([x for p in of for x in p.logits]) for of in (cached, on_the_fly))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert not list(tmp_path.glob("none*")) and len(list(kept.folder.glob("*.safetensors"))) <= len(questions)
    shown = kept.read(questions[0])
    assert ("pixel_values_videos" in shown) == (kind == "features") and "video_encoder_pixel_values" not in shown


def test_the_size_is_known_beforehand(toy_model, toy_processor, questions, tmp_path):
    cache = ClipCache.from_model(toy_model, toy_processor, "embeddings", tmp_path)
    width, hidden = toy_model.video_encoder.config.hidden_size, toy_model.backbone.config.text_config.hidden_size
    size = cache.size(questions, width, hidden, 4)
    cache.fill(Accelerator(), toy_model, questions)
    entries = [load_file(path) for path in cache.folder.glob("*.safetensors")]
    held = sum(4 * entry[name].numel() for entry in entries for name in ("video_embeds", "video_encoder_features"))
    assert (size.clips, size.bytes) == (len(entries), held)
    assert size.tokens == sum(len(entry["video_embeds"]) for entry in entries)


def test_what_is_there_is_not_computed_again_and_what_is_broken_is(toy_model, toy_processor, questions, tmp_path):
    cache = ClipCache.from_model(toy_model, toy_processor, "embeddings", tmp_path)
    count = cache.fill(Accelerator(), toy_model, questions)
    files = {path: path.read_bytes() for path in cache.folder.glob("*.safetensors")}
    assert count == len(files) and cache.fill(Accelerator(), toy_model, questions) == 0
    broken = cache.path(questions[0])
    for damage in (b"", files[broken][: len(files[broken]) // 2], b"x" * 100):
        broken.write_bytes(damage)
        assert cache.fill(Accelerator(), toy_model, questions) == 1
        assert broken.read_bytes() == files[broken]
    broken.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{broken.name}: the cache entry of {questions[0].video_name}"):
        cache.read(questions[0])


def test_an_entry_with_other_content_of_the_right_length_is_named_and_redone(
    toy_model, toy_processor, questions, tmp_path
):
    cache = ClipCache.from_model(toy_model, toy_processor, "embeddings", tmp_path)
    cache.fill(Accelerator(), toy_model, questions)
    first, other = questions[0], next(q for q in questions if cache.path(q) != cache.path(questions[0]))
    path, content, values = cache.path(first), cache.path(first).read_bytes(), load_file(cache.path(first))
    changed = values | {"video_embeds": values["video_embeds"].flip(0)}
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    for written in (
        content[:-4] + bytes(4),  # as a power cut leaves a block
        save(changed, header),
        save({name: value.to(torch.float16) for name, value in values.items()}, header),
    ):
        path.write_bytes(written)
        assert cache.fill(Accelerator(), toy_model, questions) == 0
        with pytest.raises(ValueError, match=rf"{path.name}: .*{first.video_name} holds other values .* removed"):
            cache.read(first)
        assert cache.fill(Accelerator(), toy_model, questions) == 1 and path.read_bytes() == content
        cache.read(first)
    for written in (cache.path(other).read_bytes(), save(changed, {"format": "pt"})):  # of another clip, of no writer
        path.write_bytes(written)
        assert cache.fill(Accelerator(), toy_model, questions) == 1 and path.read_bytes() == content


def test_another_video_encoder_or_setting_is_another_entry(toy_model, toy_processor, questions, tmp_path):
    from support import BACKBONE, tiny_model

    from gazeqwen.processing_gazeqwen import GazeQwenProcessor

    cache = ClipCache.from_model(toy_model, toy_processor, "features", tmp_path)
    other = GazeQwenProcessor.from_base(str(BACKBONE), video_encoder_size=64, num_frames=6)
    assert ClipCache.from_model(toy_model, other, "features", tmp_path).folder != cache.folder
    model = tiny_model()
    before = digest_of_weights(model.video_encoder)
    with torch.no_grad():
        next(model.video_encoder.parameters()).view(-1)[0] += 1e-3
    assert digest_of_weights(model.video_encoder) != before
    moved = tmp_path / "copy.mp4"
    moved.write_bytes(questions[0].video.read_bytes())
    same = Question(**{**vars(questions[0]), "video": moved})
    assert cache.path(same) == cache.path(questions[0])
    moved.write_bytes(moved.read_bytes() + b"x")
    assert cache.path(same) != cache.path(questions[0])
    assert cache.path(Question(**{**vars(questions[0]), "end_s": 3.0})) != cache.path(questions[0])


# ---------------------------------------------------------------- batches
@given(
    st.integers(1, 40), st.integers(1, 5), st.integers(1, 3), st.integers(1, 4), st.integers(0, 3), st.integers(0, 9)
)
@settings(max_examples=60, deadline=None)
def test_every_question_counts_once_in_an_epoch(count, batch_size, accumulation, processes, epoch, open_ended):
    asked = [question(answer_text="x" if index < open_ended else None) for index in range(count)]
    lengths = np.random.default_rng(0).integers(1, 9, count).tolist()
    shares = []
    for rank in range(processes):
        batches = MicroBatchSampler(asked, lengths, batch_size, accumulation, 3, False, rank, processes)
        batches.epoch = epoch
        shares.append(batches.micro_batches())
        assert [micro.indices for micro in shares[-1]] == list(batches) and len(batches) == len(shares[-1])
        batches.first = 1
        assert batches.micro_batches() == shares[-1][1:]
    assert len({len(share) for share in shares}) == 1
    held, weight = Counter(), 0.0
    for together in zip(*shares, strict=True):
        assert len({micro.ends_step for micro in together}) == 1
        for micro in together:
            assert 1 <= len(micro.indices) <= batch_size
            assert len({asked[index].answer_text for index in micro.indices}) == 1
            held.update(micro.indices if micro.share else [])
            weight += micro.share
        if together[0].ends_step:
            assert weight == pytest.approx(1.0)
            weight = 0.0
    assert held == Counter(range(count)) and weight == 0.0


def test_a_step_has_the_same_samples_however_they_are_spread():
    lengths = np.random.default_rng(0).integers(1, 9, 50).tolist()

    def steps(batch_size, accumulation, processes):
        found, step = [], set()
        shares = [
            MicroBatchSampler(
                [question()] * 50, lengths, batch_size, accumulation, 0, False, rank, processes
            ).micro_batches()
            for rank in range(processes)
        ]
        for together in zip(*shares, strict=True):
            step |= {index for micro in together if micro.share for index in micro.indices}
            if together[0].ends_step:
                found, step = [*found, step], set()
        return found

    assert steps(8, 1, 1) == steps(1, 8, 1) == steps(4, 1, 2) == steps(2, 1, 4) == steps(1, 2, 4) != steps(4, 1, 1)
    assert [len(step) for step in sorted(steps(8, 1, 1), key=len)] == [2, 8, 8, 8, 8, 8, 8]


def test_clips_of_similar_length_come_together_in_another_order_each_epoch():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 64, 400)
    batches = MicroBatchSampler([question()] * 400, lengths.tolist(), 8)
    orders = []
    for batches.seed, batches.epoch in ((0, 1), (0, 2), (1, 1)):
        orders.append(list(batches))
    assert all(sorted(index for batch in order for index in batch) == list(range(400)) for order in orders)
    assert orders[0] != orders[1] and orders[0] != orders[2]
    means = [lengths[batch].mean() for batch in orders[0]]
    assert means != sorted(means)  # long clips come anywhere in the epoch
    spread = np.mean([np.ptp(lengths[batch]) for batch in orders[0]])
    at_random = np.mean([np.ptp(lengths[part]) for part in np.split(rng.permutation(400), 50)])
    assert spread < 0.2 * at_random


def test_balanced_tasks_are_drawn_equally_often():
    asked = [question("past_scene_recall")] * 900 + [question("present_future_action_prediction")] * 100
    batches = MicroBatchSampler(asked, [1] * 1000, 10, balance_tasks=True)
    drawn = [index for batch in batches for index in batch]
    assert len(drawn) == 1000 and 430 < sum(index < 900 for index in drawn) < 570


def test_augmentation_moves_and_drops_fixations_the_same_way_each_time():
    scanpath = Scanpath.from_array([[0.5, 0.5, 1 + 2 * i, 1.0] for i in range(200)])
    changed = Augmentation(noise=0.02, dropout=0.1)(scanpath, np.random.default_rng(0))
    assert 165 <= len(changed) <= 195
    assert (
        0.015 < changed.table[:, :2].std() < 0.025 and (changed.table[:, 2:] == scanpath.table[changed.ids, 2:]).all()
    )
    again = Augmentation(noise=0.02, dropout=0.1)(scanpath, np.random.default_rng(0))
    assert (again.table == changed.table).all()
    for seed in range(20):
        assert len(Augmentation(dropout=0.99)(scanpath.clip(0, 4), np.random.default_rng(seed))) >= 1
    none = Augmentation()(scanpath, np.random.default_rng(0))
    assert (none.table == scanpath.table).all() and len(Augmentation(0.1, 0.5)(scanpath.clip(0, 0), None)) == 0


def test_augmentation_is_for_training_and_new_in_each_epoch(toy_processor, questions, tmp_path, toy_model):
    cache = ClipCache.from_model(toy_model, toy_processor, "embeddings", tmp_path)
    cache.fill(Accelerator(), toy_model, questions)
    data, plain = (
        QuestionDataset(cache, questions, augmentation=Augmentation(noise=0.1)),
        QuestionDataset(cache, questions),
    )
    first = data[0][2].table
    assert not np.array_equal(first, questions[0].scanpath.table) and np.array_equal(data[0][2].table, first)
    noise = [data[index][2].table[:, :2] - plain[index][2].table[:, :2] for index in range(2)]
    fixations = min(map(len, noise))
    assert np.isclose(noise[0][:fixations], noise[1][:fixations]).mean() < 0.5  # each question has its own
    data.epoch = 1
    assert not np.array_equal(data[0][2].table, first)
    assert plain[0][2] is questions[0].scanpath


# ---------------------------------------------------------------- runs that stop and go on
def run_of(dataset: Path, folder: Path, **changes) -> Path:
    """A recipe file of a small run (10 questions, 3 for validation), with a checkpoint after every optimizer step."""
    folder.mkdir(exist_ok=True)
    data = {"dataset": str(dataset), "cache": "embeddings", "cache_dir": str(folder / "cache"), "tasks": TASKS[-2:]}
    data["num_workers"] = 0
    data |= changes.pop("data", {})
    values = {"checkpoint_every": 1, "keep_checkpoints": 2, "gradient_accumulation_steps": 1, "batch_size": 3}
    values |= {"stage1": {"epochs": 2, "learning_rate": 1e-2}, "data": data} | changes
    recipe = yaml.safe_load(recipe_text(dataset, folder / "out", **values))
    recipe["model"]["num_frames"] = 4
    (folder / "r.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "r.yaml"


def start(recipe: Path, *arguments) -> Script:
    return Script("train.py", recipe, *arguments)


def checkpoints(recipe: Path) -> list[str]:
    return sorted(path.name for path in (recipe.parent / "out" / "checkpoints").glob("stage*"))


def signal_after(recipe: Path, prefix: str, number: int) -> tuple[str, int]:
    """Start a run, and send it a signal as soon as a checkpoint of this or a later name is there."""
    script, until = start(recipe), time.time() + 120
    while script.is_running() and time.time() < until and not any(name >= prefix for name in checkpoints(recipe)):
        time.sleep(0.01)
    script.kill(number)
    return script.wait(60)


def outcome(recipe: Path) -> dict:
    out = recipe.parent / "out"
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    lora = load_file(out / checkpoints_path(out) / "trained.safetensors")
    return {"log": log, "weights": lora, "best": json.loads((out / "validation.json").read_text())}


def checkpoints_path(out: Path) -> Path:
    return sorted((out / "checkpoints").glob("stage*"))[-1]


@pytest.fixture(scope="module")
def uninterrupted(toy_data, tmp_path_factory):
    recipe = run_of(toy_data, tmp_path_factory.mktemp("whole"))
    run("train.py", recipe)
    return recipe, outcome(recipe)


def assert_same(first: dict, second: dict) -> None:
    assert first["log"] == second["log"] and first["best"] == second["best"]
    assert first["weights"].keys() == second["weights"].keys()
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name


def test_a_run_killed_at_random_moments_ends_as_one_that_never_stopped(toy_data, uninterrupted, tmp_path):
    """
    SIGKILL, at any moment: while loading, encoding, training, validating or writing. Bit-equal weights and log. Six
    times, or fewer where a run came to its end within the last tenth of a second.
    """
    recipe, rng = run_of(toy_data, tmp_path), random.Random(0)
    seen = []
    for kill in range(6):
        script, before = start(recipe, f"data.num_workers={kill % 2}"), checkpoints(recipe)[-1:]
        # Two at any moment from the start; four shortly after it got on by a step.
        until = time.time() + (3 * rng.random() if kill in (0, 3) else 120)
        while script.is_running() and time.time() < until and checkpoints(recipe)[-1:] == before:
            time.sleep(0.01)
        time.sleep(0.1 * rng.random())
        script.kill(signal.SIGKILL)
        output, code = script.wait()
        assert code in (-signal.SIGKILL, 0), output
        seen += checkpoints(recipe)[-1:] if code else []
    assert len(set(seen)) >= 4  # it did get on between kills
    run("train.py", recipe)
    assert_same(outcome(recipe), uninterrupted[1])
    assert len(checkpoints(recipe)) == 2


def test_a_run_told_to_stop_saves_says_so_and_goes_on(toy_data, uninterrupted, tmp_path):
    recipe = run_of(toy_data, tmp_path)
    output, code = signal_after(recipe, "stage2-epoch0001-step00000002", signal.SIGTERM)
    assert code == 128 + signal.SIGTERM, output
    assert "stopped by signal 15, saved" in output and "Traceback" not in output
    assert "going on after step" in run("train.py", recipe)
    assert_same(outcome(recipe), uninterrupted[1])


def test_a_checkpoint_holds_what_was_trained_and_no_base(uninterrupted):
    recipe, _ = uninterrupted
    folder = checkpoints_path(recipe.parent / "out")
    assert sorted(path.name for path in folder.iterdir()) == [
        "files.json",
        "log.jsonl",
        "optimizer.safetensors",
        "progress.json",
        "random.safetensors",
        "trained.safetensors",
    ]
    weights = load_file(folder / "trained.safetensors")
    assert all(name.startswith("resampler.") or "lora_" in name for name in weights)
    assert {"exp_avg", "exp_avg_sq", "step"} == {
        name.rpartition("/")[2] for name in load_file(folder / "optimizer.safetensors")
    }


def test_a_finished_run_says_so_and_restart_begins_anew(toy_data, tmp_path):
    cache = {"cache_dir": str(toy_data.parent / "cache"), "tasks": TASKS[-1:]}
    recipe = run_of(toy_data, tmp_path, data=cache, stage1={"epochs": 1}, stage2={"epochs": 0})
    Trainer(read_recipe(Recipe, recipe)).run()
    mark = recipe.parent / "out" / "mark"
    mark.touch()
    log = (recipe.parent / "out" / "log.jsonl").read_text()
    assert "this run is finished" in run_here("train.py", recipe)
    assert (recipe.parent / "out" / "log.jsonl").read_text() == log
    with pytest.raises(FileNotFoundError, match="no such folder"):  # nothing is removed before all was checked
        Trainer(read_recipe(Recipe, recipe, ["data.dataset=./elsewhere"]), restart=True)
    assert (recipe.parent / "out" / "log.jsonl").read_text() == log
    run_here("train.py", recipe, "--restart", "seed=5")
    assert (recipe.parent / "out" / "log.jsonl").read_text() != log and mark.exists()
    assert yaml.safe_load((recipe.parent / "out" / "recipe.yaml").read_text())["seed"] == 5


@pytest.mark.parametrize("provenance", [None, '{"name": "my project"}', "", "[]"])
def test_restart_removes_no_folder_that_is_none_of_a_run(tmp_path, provenance):
    project = tmp_path / "project"
    files = {"recipe.yaml": "soup: tomato", "best/soup.txt": "x", "checkpoints/stage1.txt": "y"}
    if provenance is not None:
        files["provenance.json"] = provenance
    for name, text in files.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    with pytest.raises(ValueError, match=r"holds a recipe.yaml, and no provenance.json of a run"):
        remove_run(project)
    assert all((project / name).read_text() == text for name, text in files.items())
    (project / "recipe.yaml").unlink()
    remove_run(project)
    assert (project / "best" / "soup.txt").exists()


def test_restart_removes_what_a_run_wrote_alone(tmp_path):
    for name in (*RUN_FILES[:3], "notes"):
        (tmp_path / name).mkdir()
    for name in (*RUN_FILES[3:], "notes/n.txt", "best/config.json", "results.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "provenance.json").write_text('{"gazeqwen": "1", "dataset_from_hub": false}')
    remove_run(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["n.txt", "notes", "results.json"]


def test_another_setting_is_refused_and_named(toy_data, tmp_path):
    cache = {"cache_dir": str(toy_data.parent / "cache"), "tasks": TASKS[-1:]}
    recipe = run_of(toy_data, tmp_path, data=cache, stage1={"epochs": 1, "learning_rate": 1e-2}, stage2={"epochs": 0})
    Trainer(read_recipe(Recipe, recipe)).run()
    with pytest.raises(
        ValueError, match=r"other settings[\s\S]*seed: 0 before, 1 now[\s\S]*stage1.learning_rate: 0.01"
    ):
        Trainer(read_recipe(Recipe, recipe, ["seed=1", "stage1.learning_rate=0.1"]))
    Trainer(read_recipe(Recipe, recipe, ["keep_checkpoints=1", "data.num_workers=1"]))
    assert changed_settings({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}) == ["a.c: 'not there' before, 2 now"]


def test_early_stopping_ends_a_stage(toy_data, tmp_path):
    """At so high a rate an epoch soon is worse than one before; the first such one is the last of the stage."""
    # At thirty times this rate the first epoch may end in one constant answer, than which none is worse.
    changes = {"stage1": {"epochs": 6, "learning_rate": 1e-2, "patience": 1}, "stage2": {"epochs": 0}}
    changes["data"] = {"cache_dir": str(toy_data.parent / "cache"), "tasks": TASKS}
    trainer = Trainer(read_recipe(Recipe, run_of(toy_data, tmp_path, **changes)))
    best = trainer.run()
    scores = [line["validation_macro"] for line in trainer.log if "validation_macro" in line]
    assert best["macro"] == max(scores)
    worse = [score < max(scores[: index + 1]) for index, score in enumerate(scores[1:])]
    assert len(scores) < 6 and worse[-1] and not any(worse[:-1])


# ---------------------------------------------------------------- several processes
def test_however_a_step_is_spread_the_losses_are_the_same(toy_data, tmp_path):
    """One process and two (gloo), batch 4 and 1 x 4 accumulated: the same steps, shares of unequal size included."""
    # The cache is filled by two processes and read by one.
    outcomes, data = {}, {"cache_dir": str(tmp_path / "cache")}
    for name, processes, batch_size, accumulation in (("2 x 2", 2, 2, 1), ("4", 1, 4, 1), ("1 x 4", 1, 1, 4)):
        recipe = run_of(
            toy_data,
            tmp_path / name,
            data=data,
            batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            checkpoint_every=2,
            # At ten times these rates training diverges, and what was equal to 1e-6 until then no longer is.
            stage1={"epochs": 1, "learning_rate": 1e-3},
            stage2={"epochs": 1, "learning_rate": 1e-3, "lora_learning_rate": 1e-3},
        )
        printed = run_here("train.py", recipe) if processes == 1 else "".join(run_together(2, "train.py", recipe))
        assert len(re.findall("stage 1: .* steps", printed)) == 1
        outcomes[name] = outcome(recipe)
    assert len(load_questions(toy_data, "train", TASKS[-2:])) == 10  # two steps of 4 and one of 2
    for other in ("1 x 4", "2 x 2"):
        for line, same in zip(outcomes["4"]["log"], outcomes[other]["log"], strict=True):
            assert {name: line[name] for name in ("stage", "epoch", "step")} == {
                name: same[name] for name in ("stage", "epoch", "step")
            }
            if "loss" in line:
                assert same["loss"] == pytest.approx(line["loss"], abs=1e-5), (other, line, same)
        assert outcomes[other]["weights"].keys() == outcomes["4"]["weights"].keys()


def test_two_processes_that_do_not_know_of_each_other_are_refused(toy_data, tmp_path):
    recipe = run_of(toy_data, tmp_path)
    alone = {"ACCELERATE_USE_CPU": "false", "CUDA_VISIBLE_DEVICES": ""}
    for printed in run_together(2, "train.py", recipe, expect=1, **alone):
        assert "WORLD_SIZE is 2, but Accelerate knows of 1 process" in printed


def test_the_run_folder_is_what_yaml_reads(uninterrupted):
    recipe, _ = uninterrupted
    assert yaml.safe_load((recipe.parent / "out" / "recipe.yaml").read_text())["batch_size"] == 3
