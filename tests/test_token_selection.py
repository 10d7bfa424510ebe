"""Some visual tokens of each temporal step stay in the prompt: which, and that the decoder knows of no others."""

import json
from argparse import Namespace
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from bases import make_clip, scanpath_of, with_gaze
from hypothesis import given, settings
from hypothesis import strategies as st
from support import BACKBONE, VIDEO_ENCODER, perturb, run_here
from test_stream import FPS, OPTIONS, QUESTION, TABLE, clip_at, logits, offline, recording
from test_training_options import OAR, OI_E, trainer_of

from gazeqwen.backbones_gazeqwen import FAMILIES
from gazeqwen.benchmarks.bench_keep_tokens import DOCUMENT, draw_accuracy, measure_accuracy, rows_of, tables
from gazeqwen.evaluation.scoring import read_predictions
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.processing_gazeqwen import GazeQwenProcessor
from gazeqwen.streaming.stream import GazeStream
from gazeqwen.token_selection_gazeqwen import KEEP_RULES, choose_tokens, count_kept, token_changes
from gazeqwen.training.memory import ClipShape, estimate_memory
from gazeqwen.training.planning import model_on_meta
from gazeqwen.training.setup import config_of
from gazeqwen.utils.adapters import load_processor
from gazeqwen.utils.tables import fill

SPANS = torch.tensor([[0.0, 1.0], [1.0, 2.0], [2.0, 3.0]])


# ------------------------------------------------------------------ which tokens
@settings(max_examples=60)
@given(
    rule=st.sampled_from(KEEP_RULES),
    keep=st.one_of(st.floats(0.01, 1.0), st.integers(2, 12)),
    height=st.integers(3, 7),
    width=st.integers(4, 9),
    seed=st.integers(0, 1000),
)
def test_each_step_chooses_alone_and_equally_many(rule, keep, height, width, seed):
    draw = np.random.default_rng(seed)
    grid = (3, height, width)
    table = torch.tensor(
        np.column_stack([draw.random((4, 2)), draw.uniform(0, 3, 4), draw.uniform(0.1, 1, 4)]), dtype=torch.float32
    )
    changes = torch.from_numpy(draw.random((3, height * width)))
    kept = choose_tokens(keep, rule, grid, SPANS, table, changes)
    assert kept.shape == (3, height * width)
    assert (kept.sum(-1) == count_kept(keep, height * width)).all()
    for step in range(3):
        alone = choose_tokens(keep, rule, (1, height, width), SPANS[[step]], table, changes[[step]])
        assert torch.equal(alone[0], kept[step])


def test_what_each_rule_keeps():
    height, width = 6, 8
    rows, columns = np.divmod(np.arange(height * width), width)
    table = torch.tensor([[0.9, 0.2, 0.5, 0.8], [0.1, 0.9, 1.5, 0.8]])  # nothing in the last step
    by_gaze = choose_tokens(12, "gaze", (3, height, width), SPANS, table).numpy()
    for step, (x, y) in enumerate([(0.9, 0.2), (0.1, 0.9)]):
        away = np.hypot(columns + 0.5 - x * width, rows + 0.5 - y * height)
        near = np.argsort(away)[:9]  # 3 of 12 are spread evenly
        assert by_gaze[step][near].all()
    uniform = choose_tokens(12, "uniform", (3, height, width), SPANS)
    assert torch.equal(uniform[2], torch.from_numpy(by_gaze[2])) and not torch.equal(uniform[0], uniform[1])
    for kept in uniform.numpy():  # no token is far from a kept one, around the edges of the grid
        down = abs(rows[:, None] - rows[kept])
        across = abs(columns[:, None] - columns[kept])
        away = np.maximum(np.minimum(down, height - down), np.minimum(across, width - across))
        assert away.min(1).max() <= 2
    centre = choose_tokens(4, "centre", (3, height, width), SPANS)[0].numpy()
    assert set(zip(rows[centre], columns[centre], strict=True)) == {(2, 3), (2, 4), (3, 3), (3, 4)}
    drawn = choose_tokens(12, "random", (3, height, width), SPANS)
    assert not torch.equal(drawn[0], drawn[1])
    pixels = torch.zeros(3 * height * width * 4, 10)
    pixels.view(3, height * width, 4, 10)[1, 7] = 1.0
    changes = token_changes(pixels, 3, height * width)
    kept = choose_tokens(1 / 48, "similarity", (3, height, width), SPANS, changes=changes)
    assert kept[1].nonzero().tolist() == [[7]] and kept[2].nonzero().tolist() == [[7]]


def test_every_fixation_of_a_step_has_its_turn():
    """A short glance at the end of a step, and a long fixation before it: the cells of both stay."""
    height = width = 4
    table = torch.tensor([[0.1, 0.1, 0.45, 0.9], [0.9, 0.9, 0.99, 0.02], [0.9, 0.1, 0.92, 0.04]])
    kept = choose_tokens(3 / 16, "gaze", (1, height, width), SPANS[:1], table).view(height, width)
    even = choose_tokens(1 / 16, "uniform", (1, height, width), SPANS[:1]).view(height, width)
    assert int(kept.sum()) == 3 and kept[3, 3] and kept[0, 0] and (kept & even).any()
    assert choose_tokens(4 / 16, "gaze", (1, height, width), SPANS[:1], table).view(height, width)[0, 3]


def test_by_gaze_all_tokens_stay_without_a_scanpath():
    assert choose_tokens(2, "gaze", (3, 2, 3), SPANS).all()
    assert choose_tokens(2, "gaze", (3, 2, 3), SPANS, torch.zeros(0, 4)).sum() == 6  # recorded, without a fixation


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"keep_tokens": 0}, "keep_tokens: got 0, expected a share"),
        ({"keep_tokens": 0.0}, "keep_tokens: got 0.0"),
        ({"keep_tokens": 1.5}, "keep_tokens: got 1.5"),
        ({"keep_tokens": True}, "keep_tokens: got True"),
        ({"keep_tokens": "half"}, "keep_tokens: got 'half'"),
        ({"keep_tokens": 0.5, "keep_by": "saliency"}, "keep_by: got 'saliency', expected one of"),
    ],
)
def test_settings_that_cannot_be_are_named(bases, setting, message):
    base = bases("qwen2_5_vl")
    with pytest.raises(ValueError, match=message):
        GazeQwenProcessor.from_base(base.folder, video_encoder_size=64, **setting)
    with pytest.raises(ValueError, match="keep_tokens: got 5, expected at most 4"):
        with_gaze(pruning(base, 5, "uniform"))


# ------------------------------------------------------------------ what the decoder knows
class Pruned:
    """A base whose processor keeps a part of the tokens."""

    def __init__(self, base, keep_tokens, keep_by: str):
        self.base = base
        self.processor = GazeQwenProcessor.from_base(
            base.folder, video_encoder_size=64, keep_tokens=keep_tokens, keep_by=keep_by
        )

    def __getattr__(self, name):
        return getattr(self.base, name)

    def inputs(self, *args, **kwargs):
        return type(self.base).inputs(self, *args, **kwargs)


def pruning(base, keep_tokens=0.5, keep_by="gaze") -> Pruned:
    return Pruned(base, keep_tokens, keep_by)


@torch.no_grad()
def masked_logits(model, whole: dict, kept: torch.Tensor) -> torch.Tensor:
    """The logits of a whole prompt in which no token may attend to a video token that is not kept, at the others."""
    ids = whole["input_ids"]
    stays = torch.ones_like(ids, dtype=torch.bool)
    stays[ids == model.backbone.config.video_token_id] = kept[kept.new_ones(kept.shape)]
    length = ids.shape[1]
    allowed = torch.ones(length, length, dtype=torch.bool).tril() & (stays[0] | torch.eye(length, dtype=torch.bool))
    mask = torch.zeros(1, 1, length, length).masked_fill(~allowed, torch.finfo(torch.float32).min)
    return model(**{**whole, "attention_mask": mask}).logits[:, stays[0]]


@pytest.mark.parametrize("family, lora", [("qwen2_5_vl", True), *((family, False) for family in FAMILIES)])
def test_pruned_is_as_if_dropped_tokens_were_masked(bases, family, lora):
    base = bases(family)
    model = base.adapter()
    if lora:
        model.add_lora(rank=2, alpha=4)
        perturb(model)
    part, whole = dict(with_gaze(pruning(base))), dict(with_gaze(base))
    kept = part["kept_tokens"]
    assert kept.shape == (1, 3, 4) and (kept.sum(-1) == 2).all()
    assert whole["input_ids"].shape[1] - part["input_ids"].shape[1] == 6
    with torch.no_grad():
        logits = model(**part).logits
        expected = masked_logits(model, whole, kept)
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
        embeds = model.embed_video(part["pixel_values_videos"], part["video_grid_thw"])
        without_pixels = {name: value for name, value in part.items() if name != "pixel_values_videos"}
        torch.testing.assert_close(model(**without_pixels, video_embeds=embeds).logits, logits, atol=1e-6, rtol=1e-5)
        everything = model(**whole).logits
    assert (everything[:, -1] - logits[:, -1]).abs().max() > 1e-3  # the dropped tokens would have told something


@torch.no_grad()
def test_batches_of_unequal_lengths_labels_and_clips_without_gaze(bases):
    base = bases("qwen2_5_vl")
    pruned, model = pruning(base, 3), base.model
    clips = [make_clip(6), make_clip(4, seed=1), make_clip(6, seed=2)]
    scanpaths = [scanpath_of(clips[0]), scanpath_of(clips[1]), None]
    together = pruned.inputs(clips, scanpaths, padding_side="left")
    assert [int(kept.sum()) for kept in together["kept_tokens"]] == [9, 6, 12]
    logits = model(**together, logits_to_keep=1).logits
    for index, (clip, scanpath) in enumerate(zip(clips, scanpaths, strict=True)):
        alone = model(**pruned.inputs([clip], [scanpath]), logits_to_keep=1).logits
        torch.testing.assert_close(logits[index], alone[0], atol=1e-4, rtol=1e-3)
    one = dict(pruned.inputs(clips[:1], scanpaths[:1]))
    loss = model(**one, labels=one["input_ids"].clone()).loss
    assert torch.isfinite(loss)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("beams", [1, 2])
def test_generate_with_a_part_of_the_tokens(bases, family, beams):
    base = bases(family)
    part = dict(with_gaze(pruning(base)))
    generated = base.model.generate(
        **part, max_new_tokens=3, num_beams=beams, output_logits=True, return_dict_in_generate=True
    )
    length = part["input_ids"].shape[1]
    assert torch.equal(generated.sequences[:, :length], part["input_ids"])
    with torch.no_grad():
        first = base.model(**part).logits[:, -1]
    torch.testing.assert_close(generated.logits[0][:1], first, atol=1e-4, rtol=1e-3)
    if beams == 1:  # what follows, too, is what the whole text gives
        ids = generated.sequences
        again = {**part, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
        again["mm_token_type_ids"] = torch.nn.functional.pad(part["mm_token_type_ids"], (0, ids.shape[1] - length))
        with torch.no_grad():
            logits = base.model(**again).logits[0, length - 1 : -1]
        torch.testing.assert_close(torch.cat(generated.logits), logits, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    "family, rule",
    [("qwen2_5_vl", "gaze"), ("qwen2_5_vl", "random"), ("qwen3_vl", "gaze"), ("qwen3_vl", "uniform")],
)
def test_a_stream_keeps_what_the_clip_keeps(bases, family, rule):
    """Asked in the middle of a step and between two, with gaze; for `gaze` also on a budget that nothing exceeds."""
    base = bases(family)
    model, processor = base.adapter(), pruning(base, 0.5, rule).processor
    model.config.video_encoder_window = 2
    frames, times = recording()
    with GazeStream(model, processor, fps=FPS, budget=500) as stream:
        stream.push_fixation(TABLE, until_s=100)
        for begin, end in ((0, 9), (9, 20), (20, 33)):
            stream.push(frames[begin:end], times[begin:end])
            whole = offline(model, processor, [clip_at(frames, times, times[end - 1])], TABLE)
            np.testing.assert_allclose(logits(stream.ask(QUESTION, OPTIONS)), whole, atol=1e-4)
        assert stream.context.video_tokens == 2 * stream.report.steps
    everything = offline(model, base.processor, [clip_at(frames, times, times[32])], TABLE)
    assert abs(whole - everything).max() > 1e-3


def test_a_stream_does_not_compare_steps(bases):
    base = bases("qwen2_5_vl")
    with pytest.raises(ValueError, match="keep_by: got 'similarity', expected another rule: a stream"):
        GazeStream(base.model, pruning(base, 0.5, "similarity").processor, fps=FPS, video_encoder_window=2)


# ------------------------------------------------------------------ training and evaluation
def test_it_is_trained_at_drawn_budgets_planned_and_evaluated(toy_data, tmp_path):
    changes = {
        "data": {"tasks": [OI_E, OAR], "keep_tokens": [1, 0.5, 0.25], "cache_dir": str(tmp_path / "cache")},
        "model": {"keep_tokens": 0.25},
    }
    trainer = trainer_of(toy_data, tmp_path, **changes)
    tokens = Counter()
    read = trainer.model.forward

    def counting(*args, **kwargs):
        kept, grids = kwargs.get("kept_tokens"), kwargs["video_grid_thw"]
        tokens[4 if kept is None else int(kept.sum()) * 16 // int(grids.prod(-1).sum())] += 1  # of a token's 4 patches
        return read(*args, **kwargs)

    trainer.model.forward = counting
    trainer.run()
    assert set(tokens) == {1, 2, 4}  # all budgets in training; validation is at the model's own
    del trainer.model.forward
    again = load_processor(trainer.folder / "best")
    assert (again.keep_tokens, again.keep_by) == (0.25, "gaze")
    peaks = {}
    for keep_tokens in (None, 0.25):
        model, data = (
            replace(trainer.recipe.model, keep_tokens=keep_tokens),
            replace(trainer.recipe.data, keep_tokens=None),
        )
        recipe = replace(trainer.recipe, model=model, data=data)
        on_meta = model_on_meta(recipe, config_of(recipe))
        peaks[keep_tokens] = estimate_memory(recipe, on_meta, ClipShape(8, 640, 8))["validation"].peak
    assert peaks[0.25] < peaks[None]
    command = ["--model", str(trainer.folder / "best"), "--data", str(toy_data), "--batch_size", "4"]
    command += ["--conditions", "gaze", "--cache_dir", str(tmp_path / "cache"), "--tasks", OI_E]
    results = {}
    for name, more in (("own", []), ("all", ["--keep_tokens", "1"]), ("centre", ["--keep_by", "centre"])):
        run_here("eval.py", *command, *more, "--output", str(tmp_path / f"{name}.json"))
        results[name] = json.loads((tmp_path / f"{name}.json").read_text())
    kept = [
        (results[name]["settings"].get("keep_tokens"), results[name]["settings"].get("keep_by")) for name in results
    ]
    assert kept == [(0.25, "gaze"), (1, "gaze"), (0.25, "centre")]
    answers = [read_predictions(tmp_path / f"{name}.predictions.jsonl")["gaze"] for name in results]
    each = [[item.logits for item in items] for items in answers]
    assert each[0] != each[1] and each[0] != each[2]


def test_the_whole_share_changes_nothing_and_settings_are_kept(bases, tmp_path):
    base = bases("qwen2_5_vl")
    whole, everything = with_gaze(base), with_gaze(pruning(base, 1.0, "similarity"))
    assert "kept_tokens" not in everything and set(whole) == set(everything)
    assert all(torch.equal(whole[name], everything[name]) for name in whole)
    pruning(base, 0.25, "centre").processor.save_pretrained(tmp_path)
    again = GazeQwenProcessor.from_pretrained(tmp_path)
    assert (again.keep_tokens, again.keep_by) == (0.25, "centre")


def test_what_does_not_fit_is_refused(bases):
    base = bases("qwen2_5_vl")
    part = dict(with_gaze(pruning(base)))
    with pytest.raises(ValueError, match=r"video_embeds are \(12, 32\), expected \(6, 32\)"):
        base.model(**{**part, "kept_tokens": torch.ones_like(part["kept_tokens"])})
    with pytest.raises(ValueError, match="kept_tokens in generate need pixel_values_videos"):
        base.model.generate(**{name: part[name] for name in part if name != "pixel_values_videos"}, max_new_tokens=1)
    with pytest.raises(ValueError, match=r"kept_tokens are \(1, 2, 4\)"):
        no_gaze = {
            name: part[name] for name in part if not name.startswith(("scanpath", "has_", "step_", "video_enc"))
        }
        base.model(**{**no_gaze, "kept_tokens": part["kept_tokens"][:, :2]})


# ------------------------------------------------------------------ what was measured
def test_the_document_holds_the_committed_results():
    assert fill(DOCUMENT.read_text(), tables()) == DOCUMENT.read_text()
    rows = rows_of("keep_accuracy.json")
    accuracy = {row["name"]: row for row in rows}
    for group, points in (("what is looked at", 0.2), ("where gaze moved", 0.3)):
        for rule in ("uniform", "random", "centre", "similarity"):
            gain = accuracy["gaze 0.25"][group]["accuracy"] - accuracy[f"{rule} 0.25"][group]["accuracy"]
            assert gain > points, (rule, group)
    assert accuracy["gaze 0.5"]["what is looked at"]["difference"] > -0.05
    trained = {row["name"]: row for row in rows_of("keep_accuracy_trained.json")}
    quarter = trained["gaze 0.25"]["what is looked at"]
    for rule in ("uniform", "random"):
        assert quarter["accuracy"] - trained[f"{rule} 0.25"]["what is looked at"]["accuracy"] > 0.4
    own = {row["name"]: row for row in rows_of("keep_accuracy_own.json")}["gaze 0.25"]["what is looked at"]
    assert own["accuracy"] == quarter["accuracy"] and own["difference"] > -0.02
    for which, against in ((quarter, "adapters that were trained with all"), (own, "the same adapters")):
        low, high = which["difference_interval"]
        lost = f"{-100 * which['difference']:.1f} points below all tokens [{-100 * high:.1f}, {-100 * low:.1f}]"
        assert f"{lost} with {against}" in " ".join(DOCUMENT.read_text().split())
    assert f"comes to {100 * quarter['accuracy']:.1f} %**" in DOCUMENT.read_text()
    rows = [row for scale in ("3b", "7b") for row in rows_of(f"keep_prefill_{scale}_cpu.json")]
    for row in rows:
        assert row["of_all"] <= 1.3 * row["share"]


def test_a_small_measurement(toy_data, tmp_path):
    """The benchmark itself, on two adapters without training and a few questions, and its picture."""
    model = GazeQwenForConditionalGeneration.from_base(str(BACKBONE), str(VIDEO_ENCODER), latent_dim=16, num_latents=8)
    settings_ = {"video_encoder_size": 64, "num_frames": 4}
    for number in range(2):
        perturb(model).save_pretrained(tmp_path / f"{number}" / "best")
        GazeQwenProcessor.from_base(str(BACKBONE), **settings_).save_pretrained(tmp_path / f"{number}" / "best")
    asked = {"data": toy_data, "cache_dir": tmp_path / "cache", "batch_size": 16, "rules": ("gaze", "similarity")}
    asked |= {"adapters": str(tmp_path / "{seed}" / "best"), "seeds": (0, 1), "reference": None}
    rows = measure_accuracy(Namespace(**asked), shares=(0.25,))
    names = ["all tokens", "all tokens, another video's gaze", "gaze 0.25", "similarity 0.25"]
    assert [row["name"] for row in rows] == [*names, "gaze 0.25, another video's gaze"]
    assert all(len(row["all"]["seeds"]) == 2 and row["answers"] > 20 for row in rows)
    asked |= {"adapters": str(tmp_path / "{rule}{seed}"), "seeds": (0,), "rules": ("centre",)}
    asked |= {"reference": str(tmp_path / "0" / "best")}
    (tmp_path / "centre0").symlink_to(tmp_path / "1" / "best")
    own = {row["name"]: row["all"]["seeds"][0] for row in measure_accuracy(Namespace(**asked), shares=())}
    assert own["all tokens"] == rows[0]["all"]["seeds"][0] and own["centre 1"] == rows[0]["all"]["seeds"][1]
    draw_accuracy(tmp_path / "picture.png", {"one": rows, "another": rows})
    assert (tmp_path / "picture.png").stat().st_size > 10_000
