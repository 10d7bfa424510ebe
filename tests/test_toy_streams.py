"""The toy backbone that reads streams: how it is trained, and what the committed one was."""

import copy
import json
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText

from gazeqwen.backbones_gazeqwen import decoder_of
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.pipeline.answers import build_prompt
from gazeqwen.questions.prompts import format_alert
from gazeqwen.streaming import POLICIES
from gazeqwen.streaming.context import Context, Tokens
from gazeqwen.streaming.stream import GazeStream
from gazeqwen.toyworld import pretrain_streams
from gazeqwen.toyworld.backbone import BACKBONE_DIR, gazeqwen_processor, make_backbone, save_backbone
from gazeqwen.toyworld.pretrain_streams import (
    NEVER,
    STREAM_BACKBONE_DIR,
    Phase,
    Streams,
    Training,
    stream_forward,
    with_slow_time,
)
from gazeqwen.toyworld.streams import FRAMES_PER_SECOND, MOST_STEPS, STEP_S, STEP_TOKENS, draw_slow_scene, remembered


@pytest.fixture(scope="module")
def backbone():
    model, processor = make_backbone(0)
    return with_slow_time(model), processor


def text_logits(model) -> torch.Tensor:
    return model(input_ids=torch.arange(5, 85)[None]).logits


@torch.no_grad()
def test_slow_time_reads_text_as_before(monkeypatch):
    """With the frequencies that time is given before they are made lower; and not, if they are."""
    model, _ = make_backbone(0)
    before, lowest = text_logits(model), decoder_of(model).rotary_emb.inv_freq[-4:]
    assert (text_logits(with_slow_time(copy.deepcopy(model))) - before).abs().max() > 1e-4
    monkeypatch.setattr(pretrain_streams, "TIME_FREQUENCIES", tuple(lowest.tolist()))
    assert (text_logits(with_slow_time(model)) - before).abs().max() < 1e-5


@torch.no_grad()
def test_packed_streams_equal_a_stream(backbone, tmp_path):
    """Questions after each scene, all in memory, and the answers of a `GazeStream` of the same frames."""
    model, processor = backbone
    save_backbone(tmp_path, model, processor)
    batch = Streams(model, processor, seed=4, gaze_wording=True, jumps=False).draw(Phase(1, 2, 3, 0.0, False))
    ends = torch.tensor([STEP_TOKENS * scene.end for scene in batch["scenes"]])
    batch["seen"] = torch.where(torch.arange(batch["seen"].shape[1]) < ends[:, None], 0.0, NEVER)
    logits, asked = stream_forward(model, batch)[0], iter(batch["asked"])
    adapter = GazeQwenForConditionalGeneration.from_base(str(tmp_path), resampler_type="none").eval()
    prompts = gazeqwen_processor(model.config, processor)
    answered = []
    with GazeStream(adapter, prompts, fps=FRAMES_PER_SECOND, has_gaze=False) as stream:
        for scene in batch["scenes"]:
            stream.push(scene.frames, scene.begin * STEP_S + scene.view.frame_times_s)
            stream.wait(scene.end * STEP_S)
            for _ in range(3):
                q = next(asked)
                is_alert = q.options == ["Yes", "No"]
                style = prompts.prompt_style
                prompt, answers = format_alert(q.text) if is_alert else build_prompt(q.text, q.options, style)
                tokens = [processor.tokenizer.encode(answer)[0] for answer in answers]
                offered = stream.ask_prompt(prompt, {answer: answer for answer in answers}).logits
                answered.append((list(offered.values()), tokens))
    for own, (theirs, tokens) in zip(logits, answered, strict=True):
        assert own[tokens].tolist() == pytest.approx(theirs, abs=1e-5)


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_remembered_is_what_a_stream_keeps(policy):
    scene = draw_slow_scene(np.random.default_rng(3), 0, MOST_STEPS)
    ranks, steps = scene.ranks().flatten(), torch.arange(MOST_STEPS).repeat_interleave(STEP_TOKENS)
    nowhere = torch.zeros(2, len(ranks))
    tokens = Tokens(torch.arange(len(ranks)), nowhere, steps, steps, ranks, nowhere, steps)
    context = SimpleNamespace(tokens=tokens, cache=SimpleNamespace(layers=[]), _replace_cache=lambda tensors: None)
    gone = Context.forget(context, 96, policy)
    stays = remembered(ranks, steps, 96, policy)
    assert gone == len(ranks) - 96 and stays.sum() == 96
    assert torch.equal(context.tokens.ids, stays.nonzero()[:, 0])


def test_training_goes_on_where_it_was(backbone, tmp_path):
    """The decoder learns, the tower does not; a run that was stopped ends like one that was not."""
    ends, phases = [], (Phase(1, 2, 2, 0.5, False), Phase(3, 3, 1, 1.0, True))
    for stops in (False, True):
        model, before = copy.deepcopy(backbone[0]), backbone[0].state_dict()
        training = Training(model, backbone[1], seed=0, phases=phases)
        training.step()
        if stops:
            training.save(tmp_path / "training.safetensors")
            model = copy.deepcopy(backbone[0])
            training = Training(model, backbone[1], seed=0, phases=phases)
            training.resume(tmp_path / "training.safetensors")
        training.step()
        assert training.done == 2 and training.running
        ends.append(model.state_dict())
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name
        learns = not name.startswith("model.visual.")
        assert torch.equal(value, before[name]) != learns or not value.is_floating_point(), name


def test_the_committed_backbone_is_the_scripts():
    record = json.loads((STREAM_BACKBONE_DIR / "pretraining.json").read_text())
    assert record["phases"] == [asdict(phase) for phase in pretrain_streams.PHASES]
    assert record["time_frequencies"] == list(pretrain_streams.TIME_FREQUENCIES)
    assert record["started_from"] == "toyworld/backbone" and record["seed"] == 0
    model, first = (AutoModelForImageTextToText.from_pretrained(path) for path in (STREAM_BACKBONE_DIR, BACKBONE_DIR))
    frequencies = decoder_of(model).rotary_emb.inv_freq
    assert frequencies[:4].tolist() == pytest.approx(list(pretrain_streams.TIME_FREQUENCIES), rel=1e-5)
    assert frequencies[4:].tolist() == pytest.approx(decoder_of(first).rotary_emb.inv_freq[:8].tolist(), rel=1e-5)
    for (name, own), (_, before) in zip(model.state_dict().items(), first.state_dict().items(), strict=True):
        if name.startswith("model.visual."):
            assert torch.equal(own, before), name
    assert record["parameters"] == sum(p.numel() for p in model.parameters())
