"""Controls: training under any condition, LoRA alone, and one snapped gaze for all that it is given by."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from forked import run as run_script
from support import BACKBONE, tiny_model, video_inputs, with_positions, write_video
from test_training import TASKS, recipe_text
from test_training_options import OAR, OI_E, losses, trainer_of

from gazeqwen.evaluation.evaluators import BaselineData, InputSettings
from gazeqwen.evaluation.predictions import predict
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.pipeline import overlays
from gazeqwen.pipeline.batches import QuestionDataset
from gazeqwen.pipeline.clip_cache import ClipCache
from gazeqwen.pipeline.conditions import Condition, assign_scanpaths
from gazeqwen.processing_gazeqwen import GazeQwenProcessor
from gazeqwen.questions.dataset import load_questions
from gazeqwen.questions.question import Question
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.training.planning import plan
from gazeqwen.training.recipe import Recipe
from gazeqwen.utils.provenance import describe_trained_parameters
from gazeqwen.utils.settings import read_recipe

OVERLAY = Condition.parse("overlay+model")
LORA_ALONE = {
    "adapter": {"resampler_type": "none"},
    "model": {"video_encoder": ""},
    "stage1": {"epochs": 0},
    "stage2": {"epochs": 1, "learning_rate": 1e-2, "lora_learning_rate": 1e-2},
}


def recipe_of(folder: Path, *overrides: str) -> Recipe:
    (folder / "r.yaml").write_text(recipe_text(folder / "data", folder / "out"))
    return read_recipe(Recipe, folder / "r.yaml", overrides)


# ---------------------------------------------------------------- training under a condition
@pytest.mark.parametrize(
    ("gaze", "message"),
    [
        ("gase", r"data.gaze: condition 'gase': unknown words \['gase'\]"),
        ("shuffled+zero", "data.gaze: condition 'shuffled\\+zero': expected one source"),
        ("overlay", "nothing can be trained: write 'overlay\\+model'"),
        ("text+shuffled", "write 'text\\+shuffled\\+model'"),
        ("none", "data.gaze: 'none' gives the adapter no gaze.*write 'gaze'"),
        ("text_only", "write 'gaze'"),
    ],
)
def test_a_recipe_names_conditions_that_cannot_be_trained_under(tmp_path, gaze, message):
    with pytest.raises(ValueError, match=message):
        recipe_of(tmp_path, f"data.gaze={gaze}")
    if "write '" in message:
        recipe_of(tmp_path, f"data.gaze={message.split(chr(39))[-2]}".replace("\\", ""))


def test_drawn_scanpaths_that_change_in_each_epoch_are_not_kept(tmp_path):
    for change in ("data.scanpath_noise=0.02", "data.fixation_dropout=0.1"):
        with pytest.raises(ValueError, match="no clip can be kept: leave these out, or set data.cache to 'none'"):
            recipe_of(tmp_path, "data.gaze=saliency+model", change)
        recipe_of(tmp_path, "data.gaze=saliency+model", change, "data.cache=none")
        recipe_of(tmp_path, "data.gaze=shuffled", change)


@pytest.fixture(scope="module")
def shuffled(toy_data, tmp_path_factory):
    """A run with shuffled gaze, and each of its batches: questions, and the scanpaths that the model was given."""
    folder = tmp_path_factory.mktemp("shuffled")
    trainer = trainer_of(toy_data, folder, data={"gaze": "shuffled", "tasks": TASKS}, stage2={"epochs": 0}, seed=3)
    batches, loss = [], trainer._loss

    def looking(model, batch):
        batches.append((batch.indices, batch.inputs["scanpaths"], batch.inputs["scanpath_mask"]))
        return loss(model, batch)

    trainer._loss = looking
    trainer.run()
    return trainer, batches


def test_training_with_shuffled_gaze_is_given_the_scanpaths_of_other_videos(shuffled, toy_data, tmp_path):
    trainer, batches = shuffled
    given = assign_scanpaths(Condition.parse("shuffled"), trainer.questions, seed=3)
    seen, others = [], 0
    for indices, scanpaths, mask in batches:
        for index, table, there in zip(indices, scanpaths, mask, strict=True):
            question, (video, scanpath) = trainer.questions[index], given[index]
            donors = {q.video_name for q in trainer.questions if q.task == question.task} - {question.video_name}
            donors = donors or {q.video_name for q in trainer.questions} - {question.video_name}
            assert video in donors
            expected = torch.tensor(scanpath.clip(question.start_s, question.end_s).table, dtype=torch.float32)
            torch.testing.assert_close(table[there], expected, atol=1e-4, rtol=0)
            own = question.scanpath.clip(question.start_s, question.end_s).table
            others += len(own) != len(expected) or not np.allclose(own, expected, atol=1e-3)
            seen.append(index)
    assert sorted(seen) == list(range(len(trainer.questions))) and others > 0.8 * len(seen)
    plain = trainer_of(toy_data, tmp_path, data={"tasks": TASKS}, stage2={"epochs": 0}, seed=3)
    plain.run()
    assert losses(plain) != pytest.approx(losses(trainer), abs=1e-3)


def test_validation_is_under_the_condition_and_eval_compares_with_it(shuffled, toy_data):
    trainer, _ = shuffled
    out, saved = trainer.folder / "best", trainer.folder / "validation_predictions.jsonl"
    rows = [json.loads(line) for line in saved.read_text().splitlines()]
    assert {row["condition"] for row in rows} == {"shuffled"}
    assert all(row["scanpath_of"] != json.loads(row["key"])[0] for row in rows)
    command = ("eval.py", "--model", out, "--data", toy_data, "--split", "validation", "--compare", saved)
    command = (*command, "--no_cache", "--num_workers", 0, f"tasks=[{','.join(TASKS)}]")
    assert "largest difference" in run_script(*command, "--seed", 3, "--gaze", "shuffled")
    error = run_script(*command, "--seed", 3, "--gaze", "gaze", expect=1)
    assert "holds predictions under ['shuffled'], expected one of those evaluated: ['gaze']" in error
    assert "seed has to be that of the recipe" in run_script(*command, "--gaze", "shuffled", expect=1)


# ---------------------------------------------------------------- LoRA alone
LOOKS = [[(0.2, 0.3, 1.0, 1.0)], [(0.9, 0.8, 0.5, 0.4), (0.1, 0.9, 1.5, 0.9)], []]


def answers(model, scanpath) -> torch.Tensor:
    with torch.no_grad():
        return model(**video_inputs([(2, 2, 2)], [scanpath])).logits


def test_lora_alone_does_not_depend_on_what_the_scanpath_holds():
    alone, adapter = tiny_model(lora=True, resampler_type="none"), tiny_model(lora=True)
    found, control = ([answers(model, scanpath) for scanpath in LOOKS] for model in (alone, adapter))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert not torch.allclose(control[0], control[1], atol=1e-3)  # what is asserted above can be seen to fail
    assert not torch.allclose(found[0], answers(alone, None), atol=1e-3)  # LoRA is on where a scanpath is given
    with alone.gaze_disabled():
        assert torch.equal(answers(alone, LOOKS[0]), answers(alone, None))
    assert describe_trained_parameters(alone).startswith("0 resampler and ") and alone.video_encoder is None


def test_with_neither_resampler_nor_lora_it_is_the_base_model():
    model, inputs = tiny_model(resampler_type="none"), video_inputs([(2, 2, 2)], [None])
    with torch.no_grad():
        base = model.backbone(**with_positions(model, inputs)).logits
    assert torch.equal(answers(model, LOOKS[0]), base) and not model.trained_parameters()
    with pytest.raises(ValueError, match="no video encoder: its resampler_type is 'none'"):
        model.encode_video(torch.zeros(1, 4, 3, 32, 32), inputs["video_grid_thw"])


def test_each_sample_of_a_batch_switches_lora_alone_by_itself():
    model = tiny_model(lora=True, resampler_type="none")
    with torch.no_grad():
        both = model(**video_inputs([(2, 2, 2), (2, 2, 2)], [None, LOOKS[0]], text_lengths=[4, 4])).logits
    torch.testing.assert_close(both[:1], answers(model, None), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(both[1], model(**video_inputs([(2, 2, 2)], [None], seed=1, text_lengths=[4])).logits[0])


def test_a_recipe_of_lora_alone_has_nothing_for_stage_1(tmp_path):
    with pytest.raises(ValueError, match="stage1.epochs: got 1, expected 0: .*stage 1 has nothing to train"):
        recipe_of(tmp_path, "adapter.resampler_type=none")
    with pytest.raises(ValueError, match="compile: there is no resampler"):
        recipe_of(tmp_path, "adapter.resampler_type=none", "stage1.epochs=0", "compile=inductor")
    with pytest.raises(ValueError, match="model.video_encoder is empty"):
        recipe_of(tmp_path, "model.video_encoder=''")


@pytest.mark.parametrize("cache", ["features", "embeddings"])
def test_lora_alone_is_planned_trained_saved_loaded_and_evaluated(toy_data, tmp_path, cache):
    changes = {**LORA_ALONE, "data": {"cache": cache, "cache_dir": str(tmp_path / "cache")}}
    trainer = trainer_of(toy_data, tmp_path, **changes)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    said = plan(trainer.recipe)
    trainer.run()
    trained = trainer.model.trained_parameters()
    assert all("lora_" in name for name in trained) and any(value.abs().max() > 0 for value in trained.values())
    assert said.parameters["resampler"] == said.parameters["video encoder"] == 0 and list(said.stages) == [2]
    assert said.stages[2].trained_parameters == said.parameters["LoRA"] == sum(v.numel() for v in trained.values())
    assert ("no cache on disk" in str(said)) == (cache == "features")
    entries = list((tmp_path / "cache").rglob("*.safetensors"))
    assert (len(entries) == said.cache.clips) == (cache == "embeddings")  # nothing of the encoder's to keep
    assert all("video_encoder_features" not in trainer.cache.read(q) for q in trainer.questions[:2])
    assert not any(name.startswith(("video_encoder", "resampler")) for name in before)

    again = GazeQwenForConditionalGeneration.from_pretrained(trainer.folder / "best")
    assert again.video_encoder is None and again.config.video_encoder_name_or_path is None
    for name, value in trainer.model.lora_state().items():
        assert torch.equal(again.lora_state()[name], value), name
    asked = (Accelerator(), again, trainer.cache, trainer.validation)
    found = {name: [p.logits for p in predict(*asked, name)] for name in ("gaze", "shuffled", "zero", "none")}
    assert found["gaze"] == found["shuffled"] == found["zero"] != found["none"]
    saved = [json.loads(line) for line in (trainer.folder / "validation_predictions.jsonl").read_text().splitlines()]
    assert [row["logits"] for row in saved] == [pytest.approx(logits, abs=1e-5) for logits in found["gaze"]]
    if cache == "embeddings":
        with pytest.raises(ValueError, match="does not fit this model: missing .*resampler"):
            config = json.loads((trainer.folder / "best" / "config.json").read_text())
            encoder = str(BACKBONE.parent / "video_encoder")
            config |= {"resampler_type": "attention", "video_encoder_name_or_path": encoder}
            (trainer.folder / "best" / "config.json").write_text(json.dumps(config))
            GazeQwenForConditionalGeneration.from_pretrained(trainer.folder / "best")


# ---------------------------------------------------------------- questions
def asked(video: str, end_s: float, rows, task: str = OI_E) -> Question:
    return Question(Path(video), video, Scanpath.from_array(rows), task, "Which?", ("a", "b"), 0, 0.0, end_s)


# ---------------------------------------------------------------- one snapped gaze
@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("film") / "film.mp4", np.full((120, 112, 224, 3), 128, np.uint8))


def processor_of(snap_s: float) -> GazeQwenProcessor:
    return GazeQwenProcessor.from_base(str(BACKBONE), video_encoder_size=64, num_frames=8, snap_s=snap_s)


def ring_of(frame: np.ndarray) -> tuple[float, float] | None:
    """Where the ring's middle is, x and y from 0 to 1; None if there is none."""
    red = np.argwhere((frame == (255, 0, 0)).all(-1))
    if not len(red):
        return None
    (top, left), (bottom, right) = red.min(0), red.max(0)
    return (left + right + 1) / 2 / frame.shape[1], (top + bottom + 1) / 2 / frame.shape[0]


# The fixation asked about begins .4 s after the query at 8 s; the steps of eight frames last 2 s.
ROWS = [[0.3, 0.5, 3.0, 6.0], [0.7, 0.5, 9.4, 2.0]]


@pytest.mark.parametrize("snap_s", [0.0, 1.0])
def test_adapter_overlay_and_text_see_the_same_snapped_gaze(film, monkeypatch, snap_s):
    question, processor, shown = replace(asked("film", 8.0, ROWS), video=film), processor_of(snap_s), []
    process_clip = processor.process_clip

    def looking(clip, *more):
        shown.append(clip)
        return process_clip(clip, *more)

    monkeypatch.setattr(processor, "process_clip", looking)
    condition = Condition.parse("overlay+text+model")
    data = QuestionDataset(ClipCache(processor), [question], condition)
    batch = data.collate([data[0]])
    inputs, prompt = batch.inputs, processor.tokenizer.decode(batch.inputs["input_ids"][0])
    asked_for = pytest.approx((0.7, 0.5), abs=0.02)
    clips = [shown[0]]
    baseline = BaselineData([question], condition, 0, InputSettings(8, None, 64, "spread", snap_s, "reference"))
    item = baseline[0][2]
    clips.append(item.clip)
    for clip in clips:
        rings = [ring_of(frame) for frame in clip.frames]
        assert len(rings) == 8 and rings[:5] == [pytest.approx((0.3, 0.5), abs=0.02)] * 5
        assert rings[6:] == ([asked_for] * 2 if snap_s else [None] * 2)
    table = inputs["scanpaths"][0].tolist()
    assert table[-1] == pytest.approx([0.7, 0.5, 7.0, 2.0] if snap_s else [0.3, 0.5, 3.0, 6.0], abs=0.1)
    for text in (prompt, item.prompt):
        assert ("(0.70, 0.50)" in text) == bool(snap_s) and "(0.30, 0.50)" in text


@pytest.mark.parametrize("name", ["centre", "random_place", "permuted_times"])
def test_adapter_overlay_and_text_are_given_the_place_of_the_control(film, name):
    """On frames wider than high: the same other place by every channel, to adapters and other models, when it was."""
    question, processor = replace(asked("film", 8.0, ROWS), video=film), processor_of(1.0)
    given = {}
    for control in ("gaze", name):
        condition = Condition.parse(f"overlay+text+model+{control}".replace("+gaze", ""))
        data = QuestionDataset(ClipCache(processor), [question], condition, seed=4)
        batch = data.collate([data[0]])
        given[control] = batch.inputs["scanpaths"][0][batch.inputs["scanpath_mask"][0]].tolist()
        item = BaselineData([question], condition, 4, InputSettings(8, None, 64, "spread", 1.0, "reference"))[0][2]
        for (x, y, *_), frame in zip(given[control], (item.clip.frames[0], item.clip.frames[-1]), strict=True):
            if min(x, y) > 0.2 and max(x, y) < 0.8:  # the whole ring is in the frame
                assert ring_of(frame) == pytest.approx((x, y), abs=0.02)
            for text in (item.prompt, processor.tokenizer.decode(batch.inputs["input_ids"][0])):
                assert f"({x:.2f}, {y:.2f})" in text
    own, other = given.values()
    assert [row[2:] for row in own] == [row[2:] for row in other]
    assert all(row[:2] != changed[:2] for row, changed in zip(own, other, strict=True))


def test_a_question_that_does_not_ask_about_the_fixation_is_not_snapped(film):
    task = "past_object_transition_prediction"
    spans = np.array([[0.0, 2.0], [2.0, 8.0]])
    for name, snapped in ((task, False), (OI_E, True), ("proactive_gaze_triggered_alert", True)):
        question = asked("film", 8.0, ROWS, name)
        assert (question.seen(question.scanpath, spans, 1.0) is not question.scanpath) == snapped
        assert question.seen(question.scanpath, spans, 0.0) is question.scanpath
        assert question.seen(None, spans, 1.0) is None


# ---------------------------------------------------------------- drawn clips kept
@pytest.fixture(scope="module")
def toy_questions(toy_data):
    return load_questions(toy_data, "train")[:6]


@pytest.mark.parametrize("kind", ["features", "embeddings"])
def test_kept_drawn_clips_give_the_numbers_of_computing_on_the_fly(toy_model, toy_questions, tmp_path, kind):
    none = ClipCache.from_model(toy_model, processor := processor_of(1.0), "none", tmp_path)
    kept = ClipCache.from_model(toy_model, processor, kind, tmp_path)
    drawings = QuestionDataset(kept, toy_questions, OVERLAY).drawings
    kept.fill(Accelerator(), toy_model, toy_questions)  # without what is drawn, beside it
    count = kept.fill(Accelerator(), toy_model, toy_questions, drawings=drawings)
    assert 0 < count == kept.size(toy_questions, 1, 1, 1, drawings).clips <= len(toy_questions)
    assert kept.fill(Accelerator(), toy_model, toy_questions, drawings=drawings) == 0
    differs = 0.0
    for question, drawing in zip(toy_questions, drawings, strict=True):
        fresh, found, plain = none.read(question, drawing), kept.read(question, drawing), kept.read(question)
        grid = fresh["video_grid_thw"][None]
        features = toy_model.encode_video(fresh["video_encoder_pixel_values"][None], grid)[0]
        torch.testing.assert_close(found["video_encoder_features"], features, atol=1e-6, rtol=1e-6)
        differs = max(differs, (plain["video_encoder_features"] - features).abs().max().item())
        if kind == "embeddings":
            embeds = toy_model.embed_video(fresh["pixel_values_videos"], grid)
            torch.testing.assert_close(found["video_embeds"], embeds, atol=1e-5, rtol=1e-5)
            assert (plain["video_embeds"] - embeds).abs().max() > 1e-2
        else:
            assert torch.equal(found["pixel_values_videos"], fresh["pixel_values_videos"])
    assert differs > 1e-2
    results = [
        torch.tensor([x for p in predict(Accelerator(), toy_model, cache, toy_questions, name) for x in p.logits])
        for cache, name in ((none, "overlay+model"), (kept, "overlay+model"), (kept, "gaze"))
    ]
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=0)
    assert (results[2] - results[0]).abs().max() > 1e-3


def test_what_is_drawn_otherwise_is_another_entry(toy_model, toy_questions, tmp_path, monkeypatch):
    cache = ClipCache.from_model(toy_model, processor_of(0.0), "embeddings", tmp_path)
    snapping = ClipCache.from_model(toy_model, processor_of(1.0), "embeddings", tmp_path)
    question = replace(toy_questions[0], task=OI_E)
    other = replace(question, task="past_object_transition_prediction")
    table = question.scanpath.table.copy()
    table[0, 0] = (table[0, 0] + 0.5) % 1
    names = [
        cache.path(question),
        cache.path(question, OVERLAY.drawing(question.scanpath)),
        cache.path(question, OVERLAY.drawing(Scanpath(table, question.scanpath.ids))),
        cache.path(question, Condition.parse("saliency").drawing(question.scanpath)),
        cache.path(question, Condition.parse("saliency+overlay").drawing(question.scanpath)),
        cache.path(question, Condition.parse("ring").drawing(question.scanpath)),
        snapping.path(question, OVERLAY.drawing(question.scanpath)),
    ]
    assert len(set(names)) == len(names)
    again = Scanpath(question.scanpath.table.copy(), question.scanpath.ids)
    assert cache.path(question, Condition.parse("overlay").drawing(again)) == names[1]  # the channel that is drawn
    assert snapping.path(other, OVERLAY.drawing(again)) == names[1]  # not snapped
    monkeypatch.setattr(overlays, "_RING", 0.1)
    assert cache.path(question, OVERLAY.drawing(question.scanpath)) not in names
    assert OVERLAY.drawing(None) is None and Condition.parse("gaze").drawing(question.scanpath) is None


def test_a_truncated_drawn_entry_is_never_served(toy_model, toy_questions, tmp_path):
    cache = ClipCache.from_model(toy_model, processor_of(0.0), "embeddings", tmp_path)
    question, drawing = toy_questions[0], OVERLAY.drawing(toy_questions[0].scanpath)
    with pytest.raises(ValueError, match="cannot be read"):
        cache.read(question, drawing)
    cache.fill(Accelerator(), toy_model, [question], drawings=[drawing])
    path = cache.path(question, drawing)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read"):
        cache.read(question, drawing)
    assert cache.fill(Accelerator(), toy_model, [question], drawings=[drawing]) == 1 and path.read_bytes() == whole


def test_training_on_drawn_gaze_decodes_each_clip_once_and_learns_the_same(toy_data, tmp_path, monkeypatch):
    settings = {"stage1": {"epochs": 2}, "stage2": {"epochs": 0}}
    drawn = {"gaze": "overlay+model", "tasks": [OI_E, OAR], "cache_dir": str(tmp_path / "cache")}
    fresh = trainer_of(toy_data, tmp_path / "none", data={**drawn, "cache": "none"}, **settings)
    fresh.run()
    kept = trainer_of(toy_data, tmp_path / "kept", data={**drawn, "cache": "embeddings"}, **settings)
    decoded, read_clip = [], GazeQwenProcessor.read_clip
    monkeypatch.setattr(GazeQwenProcessor, "read_clip", lambda *given: (decoded.append(given), read_clip(*given))[1])
    expected = plan(kept.recipe).cache.clips
    kept.run()
    clips = {(q.video, q.start_s, q.end_s) for q in kept.questions + kept.validation}
    assert len(decoded) == len(clips) == expected
    assert losses(kept) == pytest.approx(losses(fresh), abs=1e-5)
    plain = trainer_of(toy_data, tmp_path / "plain", data={"tasks": drawn["tasks"]}, **settings)
    plain.run()
    assert losses(plain) != pytest.approx(losses(fresh), abs=1e-3)
