"""A stream answers as the clip does that is read at the same moment, and forgets each question."""

import numpy as np
import pytest
import torch

from gazeqwen.backbones_gazeqwen import FAMILIES
from gazeqwen.pipeline.answers import answer_tokens, build_prompt, option_logits
from gazeqwen.questions.prompts import chat_message
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.streaming.stream import GazeStream
from gazeqwen.video_gazeqwen import Clip, sample_times

FPS = 2.0  # of the grid: a temporal step lasts a second
QUESTION, OPTIONS = "Which object?", ["box", "knife", "cup"]
PROMPT, ANSWERS = build_prompt(QUESTION, OPTIONS, "reference")
TABLE = np.array(
    [[0.2, 0.3, 0.4, 0.8], [0.7, 0.6, 1.6, 1.0], [0.5, 0.1, 3.5, 1.5], [0.9, 0.9, 5.0, 0.5], [0.1, 0.8, 6.5, 2]]
)


def recording(seed: int = 0, count: int = 40, side: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Frames of noise at uneven times."""
    draw = np.random.default_rng(seed)
    times = np.round(np.cumsum(draw.uniform(0.05, 0.35, count)), 3) - 0.05
    return draw.integers(0, 255, (count, side, side, 3), dtype=np.uint8), times


def adapter(bases, family: str = "qwen2_5_vl", lora: bool = False, window: int = 2):
    """A model of one's own, and its processor."""
    base = bases(family)
    model = base.adapter()
    model.config.video_encoder_window = window
    if lora:
        model.add_lora(rank=2, alpha=4)
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "lora_" in name:
                    value.copy_(0.1 * torch.randn_like(value))
    return model.eval(), base.processor


@pytest.fixture(scope="module")
def streamed(bases):
    return adapter(bases)


def clip_at(frames, times, time_s: float, start_s: float = 0.0) -> Clip:
    """The clip that `read_clip` reads of a file with these frames on the grid."""
    taken_at = sample_times(start_s, time_s, fps=FPS, max_frames=1000, sampling="grid")
    shown = [max(int(np.searchsorted(times, moment + 1e-6, side="right")) - 1, 0) for moment in taken_at]
    return Clip(frames[shown], times[shown], start_s, time_s, grid_fps=FPS)


@torch.no_grad()
def offline(model, processor, clips, table, prompts=(PROMPT,), replies=()) -> np.ndarray:
    """The option logits of a conversation about clips, asked anew."""
    messages = []
    for index, prompt in enumerate(prompts):
        messages += chat_message(prompt)
        if index < len(replies):
            messages.append({"role": "assistant", "content": [{"type": "text", "text": replies[index]}]})
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    scanpaths = None if table is None else [Scanpath.from_array(table)] * len(clips)
    inputs = processor.collate([text], [processor.process_clip(clip) for clip in clips], scanpaths)
    tokens = answer_tokens(processor.tokenizer, list(ANSWERS))
    return option_logits(model, inputs, [tokens])[0].numpy()


def logits(answer) -> np.ndarray:
    return np.array(list(answer.logits.values()))


def state(stream) -> list[torch.Tensor]:
    """All that later answers depend on, but for frames and gaze that wait."""
    context = stream.context
    cached = [part for layer in context.cache.layers for part in (layer.keys, layer.values)]
    return [*cached, *context.tokens._fields(), *stream._windows]


def assert_same_state(stream, other) -> None:
    for own, expected in zip(state(stream), state(other), strict=True):
        assert torch.equal(own, expected)
    assert stream.context.place == other.context.place and stream._text == other._text


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("lora", [False, True])
def test_a_stream_answers_as_the_clip_so_far_does(bases, family, lora):
    model, processor = adapter(bases, family, lora)
    frames, times = recording()
    differences = []
    with (
        GazeStream(model, processor, fps=FPS) as stream,
        GazeStream(model, processor, fps=FPS, has_gaze=False) as bare,
    ):
        stream.push_fixation(TABLE, until_s=100)
        for index, time_s in enumerate(times):
            for each in (stream, bare):
                each.push(frames[index], time_s)
            if index % 8 == 7:
                clip = clip_at(frames, times, time_s)
                whole = offline(model, processor, [clip], TABLE)
                np.testing.assert_allclose(logits(stream.ask(QUESTION, OPTIONS)), whole, atol=1e-4)
                base = offline(model, processor, [clip], None)
                np.testing.assert_allclose(logits(bare.ask(QUESTION, OPTIONS)), base, atol=1e-4)
                differences.append(abs(whole - base).max())
    assert stream.report.steps == int(times[-1]) and min(differences) > 1e-2  # gaze made a difference
    assert stream.report.late_gaze == stream.report.steps_without_gaze == 0
