"""A stream answers as the clip does that is read at the same moment, and forgets each question."""

import json
import re
from contextlib import contextmanager, nullcontext
from unittest import mock

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import FIXATION_TABLES, ROOT, VIDEO_ENCODER, perturb, write_video

from gazeqwen.backbones_gazeqwen import FAMILIES, decoder_of
from gazeqwen.configuration_gazeqwen import GazeQwenConfig
from gazeqwen.evaluation.settings import EvaluationSettings
from gazeqwen.gaze_sources.fixations import detect_fixations
from gazeqwen.gaze_sources.samples import GazeSamples
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.pipeline.answers import answer_tokens, build_prompt, option_logits
from gazeqwen.pipeline.clip_cache import ClipCache
from gazeqwen.processing_gazeqwen import GazeQwenProcessor
from gazeqwen.questions.prompts import chat_message
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.streaming.stream import GazeStream, run_due
from gazeqwen.toyworld.trained import ADAPTER_DIR
from gazeqwen.training.recipe import DataSettings, ModelSettings, Recipe, StageSettings
from gazeqwen.video_gazeqwen import Clip, read_clip, sample_times

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
    processed = [processor.process_clip(clip) for clip in clips]
    for clip, parts in zip(clips, processed, strict=True):
        if "step_times_s" in parts:  # a conversation about one video tells the time since that began
            parts["step_times_s"] += clip.start_s - clips[0].start_s
    inputs = processor.collate([text], processed, scanpaths)
    tokens = answer_tokens(processor.tokenizer, list(ANSWERS))
    return option_logits(model, inputs, [tokens])[0].numpy()


def logits(answer) -> np.ndarray:
    return np.array(list(answer.logits.values()))


def state(stream) -> list[torch.Tensor]:
    """What the decoder has seen."""
    context = stream.context
    cached = [part for layer in context.cache.layers for part in (layer.keys, layer.values)]
    return [*cached, *context.tokens._fields()]


def assert_same_state(stream, other) -> None:
    """What later answers depend on, but for frames and gaze that wait."""
    for own, expected in zip([*state(stream), *stream._windows], [*state(other), *other._windows], strict=True):
        assert torch.equal(own, expected)
    assert stream.context.place == other.context.place and stream._text == other._text


@pytest.mark.parametrize(
    "family, lora", [("qwen2_5_vl", False), *((family, True) for family in FAMILIES if family != "qwen3_vl")]
)
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


KINDS = {
    "the paper's": {"gaze_encoding": "coord_pe"},
    "fading": {"gaze_encoding": "heatmap_decay"},
    "by duration": {"gaze_encoding": "heatmap_duration"},
    "one vector": {"resampler_type": "heatmap_vector"},
    "LoRA alone": {"resampler_type": "none"},
    "own embeddings": {"resampler_features": "base_model", "video_encoder_window": None},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_adapter_is_streamed(bases, kind):
    base = bases("qwen2_5_vl")
    encoder = None if kind in ("LoRA alone", "own embeddings") else str(VIDEO_ENCODER)
    sizes = {"latent_dim": 16, "num_latents": 4, "video_encoder_window": 2} | KINDS[kind]
    model = GazeQwenForConditionalGeneration.from_base(base.folder, encoder, **sizes)
    if kind == "LoRA alone":
        model.add_lora(rank=2, alpha=4)
    perturb(model)
    frames, times = recording()
    with GazeStream(model, base.processor, fps=FPS) as stream:
        stream.push_fixation(TABLE, until_s=100)
        stream.push(frames, times)
        answer = logits(stream.ask(QUESTION, OPTIONS))
    clip = clip_at(frames, times, times[-1])
    np.testing.assert_allclose(answer, offline(model, base.processor, [clip], TABLE), atol=1e-4)
    assert abs(answer - offline(model, base.processor, [clip], None)).max() > 1e-3


@settings(max_examples=6)
@given(
    seed=st.integers(0, 5),
    lora=st.booleans(),
    window=st.integers(1, 3),
    lag_s=st.sampled_from([0.0, 0.5, 2.0]),
    asked=st.sets(st.integers(2, 39), min_size=1, max_size=4),
    pushes=st.lists(st.integers(1, 6), min_size=40, max_size=40),
    begin_s=st.sampled_from([0.0, 2.0]),
)
def test_questions_at_any_moment_change_nothing(
    streamed, lora_streamed, seed, lora, window, lag_s, asked, pushes, begin_s
):
    """Several streams on one model, their questions mixed; gaze comes with the frames, in pieces of any size."""
    model, processor = lora_streamed if lora else streamed
    model.config.video_encoder_window = window
    frames, times = recording(seed)
    times = times + begin_s
    table = TABLE + np.array([0, 0, begin_s, 0])
    settings_ = {"fps": FPS, "gaze_lag_s": lag_s, "start_s": begin_s}
    stream, silent = (GazeStream(model, processor, **settings_) for _ in range(2))
    known = begin = 0
    for count in pushes:
        part = slice(begin, begin + count)
        if begin >= len(times):
            break
        until_s = times[part][-1]
        begun = table[:, 2] - table[:, 3] / 2 < until_s  # a table tells the end of a fixation with its begin
        for each in (stream, silent):
            each.push_fixation(table[known : begun.sum()], until_s=float(until_s))
            each.push(frames[part], times[part])
        known, begin = int(begun.sum()), begin + count
        if asked & set(range(*part.indices(len(times)))) and until_s > begin_s + 0.25:
            whole = offline(model, processor, [clip_at(frames, times, until_s, begin_s)], table)
            np.testing.assert_allclose(logits(stream.ask(QUESTION, OPTIONS)), whole, atol=1e-4)
    assert_same_state(stream, silent)
    assert stream.report.late_gaze == 0 and silent.report.questions == 0


def test_waiting_runs_the_step_that_has_ended_and_changes_no_answer(streamed):
    """A question then finds the step in memory; frames go on, also one whose time lies before what was waited for."""
    model, processor = streamed
    frames, times = recording()
    waiting, other = (GazeStream(model, processor, fps=FPS) for _ in range(2))
    for stream in (waiting, other):
        stream.push_fixation(TABLE, until_s=100)
        stream.push(frames[times < 4.0], times[times < 4.0])
    waiting.wait(4.0)
    assert waiting.report.steps == other.report.steps + 1 and waiting.steps_until_s == 4.0
    for rest in (times < 4.0, times < 6.3, times < 8.0):
        for stream in (waiting, other):
            new = rest & (times > stream.now_s)
            stream.push(frames[new], times[new])
        moment = max(4.0, waiting.now_s)
        ours, theirs = (logits(stream.ask(QUESTION, OPTIONS, time_s=moment)) for stream in (waiting, other))
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert waiting.report.steps == other.report.steps
    with pytest.raises(ValueError, match="time_s: got 2.0, expected the time of the last frame"):
        waiting.wait(2.0)


def test_waiting_shows_the_last_frame_until_then(streamed):
    """The frame at the grid's last time is the one of 3 s: nothing newer comes to say so."""
    model, processor = streamed
    frames, times = recording()[0], np.arange(10.0)
    stream = GazeStream(model, processor, fps=FPS)
    stream.push_fixation(TABLE, until_s=100)
    for moment, pushed in ((4.0, 4), (7.0, 7)):
        new = slice(stream.report.steps, pushed)
        stream.push(frames[new], times[new])
        stream.wait(moment)
        assert stream.report.steps == moment and not stream._grid.clips_until(moment)
        whole = offline(model, processor, [clip_at(frames, times, moment)], TABLE)
        np.testing.assert_allclose(logits(stream.ask(QUESTION, OPTIONS, time_s=moment)), whole, atol=1e-4)
    assert stream.report.repeated_frames == 7


@pytest.fixture(scope="module")
def lora_streamed(bases):
    return adapter(bases, lora=True)


def test_gaze_that_comes_a_step_late_is_counted_and_changes_the_answer(streamed):
    model, processor = streamed
    frames, times = recording()
    fixation = [[0.2, 0.3, 2.5, 0.9]]
    answers, counts = [], []
    for late_s in (0.0, 0.4, 1.2):  # within the second step, while it waits, and after it ran
        stream = GazeStream(model, processor, fps=FPS, gaze_lag_s=0.5)
        is_pushed = False
        for frame, time_s in zip(frames, times, strict=True):
            if time_s >= 2.95 + late_s and not is_pushed:
                stream.push_fixation(fixation, until_s=3.0)
                is_pushed = True
            stream.push(frame, time_s)
        answers.append(logits(stream.ask(QUESTION, OPTIONS)))
        counts.append((stream.report.late_gaze, stream.report.steps_without_gaze >= 3))
    whole = offline(model, processor, [clip_at(frames, times, times[-1])], fixation)
    np.testing.assert_allclose(answers[:2], [whole, whole], atol=1e-4)
    assert abs(answers[2] - whole).max() > 1e-3
    assert counts == [(0, True), (0, True), (1, True)]


def test_raw_samples_become_fixations_by_what_was_known_at_each_steps_end(streamed):
    model, processor = streamed
    frames, times = recording()
    draw = np.random.default_rng(1)
    moments = np.arange(0, 8, 0.02)
    xy = np.repeat(draw.uniform(0.1, 0.9, (20, 2)), 20, axis=0) + draw.normal(0, 0.002, (400, 2))

    def samples(begin: int, end: int) -> GazeSamples:
        return GazeSamples(moments[begin:end], xy[begin:end], np.zeros(end - begin, np.int8), "gaze", (64, 64))

    stream, told = (GazeStream(model, processor, fps=FPS) for _ in range(2))
    pushed = 0
    for frame, time_s in zip(frames, times, strict=True):
        end = int(np.searchsorted(moments, time_s - 0.1))  # the eye tracker is a little behind
        stream.push_gaze(samples(pushed, end))
        pushed = end
        stream.push(frame, time_s)
        step_s = int(time_s)
        if told.steps_until_s < step_s:  # what an offline clip cut at the step's end would see
            until = int(np.searchsorted(moments, step_s, side="right"))
            told.push_fixation(detect_fixations(samples(0, until)).clip(step_s - 1, step_s), until_s=step_s)
        told.push(frame, time_s)
    assert stream.report.steps == int(moments[-1]) and stream.report.late_gaze == 0  # the next waits for gaze
    assert len(stream._known_gaze().until(times[-1])) < 8  # of old steps nothing is kept
    shared = int(stream.steps_until_s) * 4
    for layer, other in zip(stream.context.cache.layers, told.context.cache.layers, strict=True):
        own, expected = (each.keys[:, :, :shared] for each in (layer, other))
        torch.testing.assert_close(own, expected, atol=1e-5, rtol=0)
    before = stream.report.late_gaze
    late = GazeSamples(np.array([stream._gaze_until_s]), xy[:1], np.zeros(1, np.int8), "gaze", (64, 64))
    stream.push_gaze(late)
    assert stream.report.late_gaze == before + int(late.times_s[0] <= stream.steps_until_s)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_a_remembered_turn_stays_in_the_conversation(bases, family):
    """As asking about two clips, one after the other; the encoder sees single steps, since windows go on."""
    model, processor = adapter(bases, family, window=1)
    frames, times = recording()
    stream = GazeStream(model, processor, fps=FPS)
    stream.push_fixation(TABLE, until_s=100)
    first = times <= 4.3
    stream.push(frames[first], times[first])
    reply = stream.ask(QUESTION, OPTIONS, remember=True, time_s=4.3)
    letter = "ABC"[OPTIONS.index(reply.text[3:])]
    at_once = stream.ask("And now?", OPTIONS)  # of the conversation, without a video of its own
    assert not np.allclose(logits(at_once), logits(reply), atol=1e-3)
    stream.push(frames[~first], times[~first])
    clips = [clip_at(frames, times, 4.0), clip_at(frames, times, times[-1], start_s=4.0)]
    prompts = [PROMPT, build_prompt("And now?", OPTIONS, "reference")[0]]
    whole = offline(model, processor, clips, TABLE, prompts, [letter])
    np.testing.assert_allclose(logits(stream.ask("And now?", OPTIONS)), whole, atol=1e-4)
    np.testing.assert_allclose(logits(stream.ask("And now?", OPTIONS)), whole, atol=1e-4)
    other = "ABC"["ABC".index(letter) - 1]
    assert abs(offline(model, processor, clips, TABLE, prompts, [other]) - whole).max() > 1e-3


def test_a_step_before_a_remembered_turn_is_not_snapped(streamed):
    """The turn was about it; a fixation begins right behind it."""
    model, processor = streamed
    frames, times = recording()
    stream = GazeStream(model, processor, fps=FPS)
    stream.push_fixation([[0.2, 0.3, 4.5, 0.9]], until_s=100)
    stream.push(frames[times <= 4.0], times[times <= 4.0])
    stream.wait(4.0)
    stream.ask(QUESTION, OPTIONS, remember=True, time_s=4.0)
    answers = [logits(stream.ask("And now?", OPTIONS, time_s=4.0, snap_s=snap_s)) for snap_s in (0, 1.0)]
    assert answers[0].tolist() == answers[1].tolist()


def test_an_answer_in_its_own_words_is_that_about_the_clip(streamed):
    model, processor = streamed
    frames, times = recording()
    stream = GazeStream(model, processor, fps=FPS)
    stream.push_fixation(TABLE, until_s=100)
    stream.push(frames, times)
    before = state(stream)
    answer = stream.ask("What is this?", max_new_tokens=5)
    clip = clip_at(frames, times, times[-1])
    text = processor.apply_chat_template(chat_message("What is this?"), add_generation_prompt=True)
    inputs = processor.collate([text], [processor.process_clip(clip)], [Scanpath.from_array(TABLE)])
    output = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    words = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
    assert answer.text == words.strip() and answer.logits == answer.probabilities == {}
    assert all(torch.equal(a, b) for a, b in zip(state(stream), before, strict=True))


@pytest.mark.parametrize("lora", [False, True])
def test_several_streams_run_their_steps_together(bases, lora):
    model, processor = adapter(bases, lora=lora)
    sizes = {"a": 64, "b": 64, "c": 64, "d": 128}
    together, alone = {}, {}
    for name, side in sizes.items():
        arguments = {"fps": FPS, "has_gaze": name != "c", "max_pixels": side**2}
        together[name] = GazeStream(model, processor, **arguments, runs_steps=False)
        alone[name] = GazeStream(model, processor, **arguments)
    for index, (name, side) in enumerate(sizes.items()):
        frames, times = recording(index, 30 + 3 * index, side)
        for stream in (together[name], alone[name]):
            if stream.has_gaze:
                stream.push_fixation(TABLE[: index + 2], until_s=100)
            stream.push(frames, times)
    assert not any(stream.report.steps for stream in together.values())
    batches = []
    while count := run_due(list(together.values())):
        batches.append(count)
    assert max(batches) == 4 and sum(batches) == sum(stream.report.steps for stream in alone.values())
    for name, stream in together.items():
        answers = [logits(each.ask(QUESTION, OPTIONS)) for each in (stream, alone[name])]
        np.testing.assert_allclose(*answers, atol=1e-4)
        assert stream.context.place == alone[name].context.place


def backlog(model, processor, **arguments) -> GazeStream:
    """A stream whose steps of a whole recording are due at once."""
    stream = GazeStream(model, processor, fps=FPS, runs_steps=False, **arguments)
    if stream.has_gaze:
        stream.push_fixation(TABLE, until_s=100)
    stream.push(*recording())
    return stream


def assert_equal_but_for_rounding(stream, other) -> None:
    """The same tokens in the same places, and their keys and values but for the rounding of sums."""
    for own, expected in zip(state(stream), state(other), strict=True):
        torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-5)
    assert stream.context.place == other.context.place and stream.report == other.report
    answers = [logits(each.ask(QUESTION, OPTIONS)) for each in (stream, other)]
    np.testing.assert_allclose(*answers, atol=1e-5)


@pytest.mark.parametrize(
    "family, lora, has_gaze",
    [
        ("qwen2_5_vl", False, False),
        ("qwen2_5_vl", True, True),
        *((family, False, True) for family in list(FAMILIES)[1:]),
    ],
)
def test_steps_that_are_due_at_once_run_in_one_call(bases, family, lora, has_gaze):
    """As one after the other; a call that fails in the middle leaves nothing behind."""
    model, processor = adapter(bases, family, lora)
    stream, other = (backlog(model, processor, has_gaze=has_gaze) for _ in range(2))
    assert stream.due == 8
    assert [run_due([stream], at_once=3)] == [3]
    before = state(stream)
    with broken(model, 2), pytest.raises(RuntimeError, match="out of memory"):
        run_due([stream], at_once=3)
    assert all(torch.equal(a, b) for a, b in zip(state(stream), before, strict=True)) and stream.due == 5
    assert [run_due([stream], at_once=3) for _ in range(3)] == [3, 2, 0]
    assert [run_due([other]) for _ in range(9)] == [1] * 8 + [0]
    assert_equal_but_for_rounding(stream, other)


def test_steps_of_several_streams_run_in_one_call(streamed):
    """Of one stream fewer are due than of the other, so that they are padded and grouped."""
    model, processor = streamed
    streams, others = ([backlog(model, processor, max_pixels=side**2) for side in (64, 64, 128)] for _ in range(2))
    run_due([streams[0]], at_once=6)
    assert run_due(streams, at_once=4) == 2 + 4 + 4 and run_due(streams, at_once=4) == 4 + 4
    for stream, other in zip(streams, others, strict=True):
        while run_due([other]):
            pass
        assert_equal_but_for_rounding(stream, other)


def test_a_snapped_fixation_fills_the_last_step(streamed):
    """As `Scanpath.snap`, where the question comes at the end of a step that is in memory, and within one."""
    model, processor = streamed
    frames, times = recording()
    stream = GazeStream(model, processor, fps=FPS)
    stream.push_fixation(TABLE, until_s=100)
    for moment in (3.0, 5.6):
        first = times <= moment
        stream.push(frames[first & (times > (stream.now_s or -1))], times[first & (times > (stream.now_s or -1))])
        before = state(stream)
        answer = stream.ask(QUESTION, OPTIONS, time_s=moment, snap_s=1.0)
        clip = clip_at(frames, times, moment)
        last = clip.step_spans_s()[-1]
        table = Scanpath.from_array(TABLE).snap(last[1], last[0], 1.0).table
        np.testing.assert_allclose(logits(answer), offline(model, processor, [clip], table), atol=1e-4)
        assert abs(logits(answer) - offline(model, processor, [clip], TABLE)).max() > 1e-3
        assert all(torch.equal(a, b) for a, b in zip(state(stream), before, strict=True))


@pytest.mark.parametrize("table", FIXATION_TABLES, ids=lambda path: path.name)
def test_a_recording_is_streamed_as_it_is_read(streamed, tmp_path, table):
    """An mp4 file, decoded frame by frame, and a fixation table of the release, or one like it; at each step."""
    model, processor = streamed
    frames, _ = recording(count=200)
    path = write_video(tmp_path / "v.mp4", frames, times_s=np.concatenate([[0], 29.5 + np.arange(199) / 20]))
    scanpath, moments, answers = Scanpath.from_csv(table), [*np.arange(31.0, 40), 39.25], []
    with av.open(str(path)) as container, GazeStream(model, processor, fps=FPS, start_s=30.0) as stream:
        stream.push_fixation(scanpath, until_s=1e4)
        for frame in container.decode(video=0):
            time_s = float(frame.pts * frame.time_base)
            while len(answers) < len(moments) and time_s > moments[len(answers)]:
                answers.append(logits(stream.ask(QUESTION, OPTIONS, time_s=moments[len(answers)])))
            stream.push(frame.to_ndarray(format="rgb24"), time_s)
    text = processor.apply_chat_template(chat_message(PROMPT), add_generation_prompt=True)
    tokens = answer_tokens(processor.tokenizer, list(ANSWERS))
    for moment, answer in zip(moments, answers, strict=True):
        processed = processor.process_clip(read_clip(path, 30.0, moment, fps=FPS, sampling="grid"))
        looks = []
        for seen in (scanpath, Scanpath.from_array(np.zeros((0, 4)))):
            inputs = processor.collate([text], [dict(processed)], [seen])
            with torch.no_grad():
                looks.append(option_logits(model, inputs, [tokens])[0].numpy())
        np.testing.assert_allclose(answer, looks[0], atol=1e-4)
        begin_s = scanpath.begin_s[scanpath.begin_s >= 30.0].min()
        assert (abs(looks[0] - looks[1]).max() > 1e-3) == (moment > begin_s + 0.01)  # the first within the clip


# ---------------------------------------------------------------- what cannot be taken, and what fails
def frame(side: int = 64) -> np.ndarray:
    return np.zeros((side, side, 3), np.uint8)


BAD = {
    "a frame of an earlier time": (
        lambda s: s.push(frame(), 1.0),
        "frame 0: its time is 1.0 s.*expected a later time",
    ),
    "a frame of the same time": (lambda s: s.push(frame(), s.now_s), "expected a later time"),
    "frames out of order": (lambda s: s.push(np.stack([frame()] * 3), [9, 9.2, 9.1]), "frame 2: its time is 9.1"),
    "a clock hours ahead": (lambda s: s.push(frame(), 7200.0), "at most 60 s later"),
    "no time": (lambda s: s.push(frame(), np.nan), "expected a finite time"),
    "another size": (lambda s: s.push(frame(96), 9.0), "frames are 96x96 pixels, expected 64x64 as before"),
    "frames of floats": (lambda s: s.push(frame() / 255, 9.0), "float64.*expected uint8"),
    "fewer times": (lambda s: s.push(np.stack([frame()] * 2), [9.0]), "times for 2 frames"),
    "gaze outside the frame": (lambda s: s.push_fixation([[1.2, 0.5, 9, 1]]), "x is 1.2, expected 0 to 1"),
    "gaze of two kinds": (lambda s: s.push_gaze(GazeSamples(*SAMPLE, "gaze", (64, 64))), "expected one of them"),
    "a question about the past": (lambda s: s.ask(QUESTION, OPTIONS, time_s=1.0), "time_s: got 1.0, expected"),
    "a question about the far future": (lambda s: s.ask(QUESTION, OPTIONS, time_s=1e5), "up to 60 s later"),
    "one option": (lambda s: s.ask(QUESTION, ["box"]), "got 1 options"),
}
SAMPLE = np.array([9.0]), np.array([[0.5, 0.5]]), np.zeros(1, np.int8)


def watched(model, processor, **arguments) -> GazeStream:
    """A stream that has seen a whole recording."""
    stream = GazeStream(model, processor, fps=FPS, **arguments)
    stream.push_fixation(TABLE, until_s=100)
    stream.push(*recording())
    return stream


def test_what_cannot_be_taken_is_named_and_changes_nothing(streamed):
    stream = watched(*streamed)
    before, answer = state(stream), logits(stream.ask(QUESTION, OPTIONS))
    for name, (operation, message) in BAD.items():
        with pytest.raises(ValueError, match=message):
            operation(stream)
        assert all(torch.equal(a, b) for a, b in zip(state(stream), before, strict=True)), name
    assert (logits(stream.ask(QUESTION, OPTIONS)) == answer).all()
    stream.push(frame(), 9.0)
    other = watched(*streamed)
    other.push(frame(), 9.0)
    assert_same_state(stream, other)


def test_a_question_before_the_first_frame_and_after_the_end(streamed):
    model, processor = streamed
    with GazeStream(model, processor, fps=FPS) as stream:
        with pytest.raises(ValueError, match="asked before the first frame"):
            stream.ask(QUESTION, OPTIONS)
        stream.push(frame(), 0.1)
        with pytest.raises(ValueError, match="asked at 0.1 s, before the first frame of the grid"):
            stream.ask(QUESTION, OPTIONS)
        with pytest.raises(ValueError, match="asked to remember at 0.3 s, before the first step is whole"):
            stream.ask(QUESTION, OPTIONS, time_s=0.3, remember=True)
        assert len(stream.ask(QUESTION, OPTIONS, time_s=0.3).logits) == 3
    for operation in (
        lambda: stream.ask(QUESTION),
        lambda: stream.push(frame(), 9.0),
        lambda: stream.push_fixation([]),
    ):
        with pytest.raises(ValueError, match="the stream is closed"):
            operation()
    with (
        GazeStream(model, processor, fps=FPS, has_gaze=False) as stream,
        pytest.raises(ValueError, match="opened without gaze"),
    ):
        stream.push_fixation(TABLE)


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"fps": None}, "fps: got None, expected frames per second"),
        ({"fps": -1}, "fps: got -1"),
        ({"gaze_lag_s": -0.1}, "gaze_lag_s: got -0.1"),
        ({"policy": "oldest"}, "policy: got 'oldest', expected one of"),
        ({"policy": "gaze", "has_gaze": False}, "the stream has no gaze"),
        ({"budget": 0}, "budget: got 0"),
        ({"start_s": np.nan}, "start_s: got nan"),
    ],
)
def test_settings_are_checked(streamed, setting, message):
    with pytest.raises(ValueError, match=message):
        GazeStream(*streamed, **{"fps": FPS, **setting})


def test_models_that_cannot_be_streamed_are_refused(bases):
    model, processor = adapter(bases, window=None)
    with pytest.raises(ValueError, match="video_encoder_window: got None, expected a number of temporal steps"):
        GazeStream(model, processor, fps=FPS)
    GazeStream(model, processor, fps=FPS, has_gaze=False)  # which asks nothing of the encoder
    model.config.video_encoder_window, model.config.position_convention = 2, "transformers"
    with pytest.raises(ValueError, match="position_convention: got 'transformers', expected 'qwen'"):
        GazeStream(model, processor, fps=FPS)


def test_a_gap_shows_the_last_frame_as_a_file_would(streamed):
    model, processor = streamed
    frames, times = recording()
    times = np.where(times > 4, times + 11.3, times)
    stream = GazeStream(model, processor, fps=FPS)
    stream.push_fixation(TABLE, until_s=100)
    stream.push(frames, times)
    whole = offline(model, processor, [clip_at(frames, times, times[-1])], TABLE)
    np.testing.assert_allclose(logits(stream.ask(QUESTION, OPTIONS)), whole, atol=1e-4)
    assert 20 <= stream.report.repeated_frames <= 24


@contextmanager
def broken(model, layer: int):
    """A model whose decoder fails in the middle: some layers have taken the step into their cache already."""

    def fail(*args):
        raise RuntimeError("out of memory")

    handle = decoder_of(model.backbone).layers[layer].register_forward_pre_hook(fail)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("budget", [None, 14])
def test_an_error_in_the_middle_of_a_step_leaves_nothing_behind(streamed, budget):
    model, processor = streamed
    frames, times = recording()
    stream, whole = (GazeStream(model, processor, fps=FPS, budget=budget) for _ in range(2))
    for each in (stream, whole):
        each.push_fixation(TABLE, until_s=100)
        each.push(frames[:20], times[:20])
    for layer in (0, 2, 3):
        before = state(stream)
        with broken(model, layer):
            for operation in (
                lambda: stream.push(frames[20:30], times[20:30]),
                lambda: stream.ask(QUESTION, OPTIONS),
                lambda: stream.ask(QUESTION, OPTIONS, remember=True),
            ):
                with pytest.raises((RuntimeError, ValueError), match="out of memory|expected a later time"):
                    operation()
        assert all(torch.equal(a, b) for a, b in zip(state(stream), before, strict=True))
    for each, begin in ((stream, 30), (whole, 20)):
        each.push(frames[begin:], times[begin:])
    assert_same_state(stream, whole)
    assert logits(stream.ask(QUESTION, OPTIONS)).tolist() == logits(whole.ask(QUESTION, OPTIONS)).tolist()


def test_a_turn_that_could_not_be_remembered_ends_no_wait_for_gaze(streamed):
    """The turn itself fails, behind the answer and the steps that were run for it."""
    model, processor = streamed
    frames, times = recording()
    stream = GazeStream(model, processor, fps=FPS, gaze_lag_s=3.0)
    stream.push(frames[:20], times[:20])
    until_s, without_gaze = stream.steps_until_s, stream.report.steps_without_gaze
    assert until_s < int(times[19])
    stream._append_text = mock.Mock(side_effect=RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        stream.ask(QUESTION, OPTIONS, remember=True)
    del stream._append_text
    assert stream.steps_until_s == until_s and stream.report.steps_without_gaze == without_gaze
    whole = GazeStream(model, processor, fps=FPS, gaze_lag_s=3.0)
    whole.push(frames[:20], times[:20])
    for each in (stream, whole):  # both take gaze for what waited
        each.push_fixation(TABLE, until_s=100)
        each.push(frames[20:], times[20:])
    assert_same_state(stream, whole)
    assert stream.report == whole.report


def test_2000_random_operations_end_where_a_clean_replay_does(streamed):
    """Pushes, questions, late gaze, remembered turns and errors, against what of it was taken alone."""
    model, processor = streamed
    draw = np.random.default_rng(0)
    arguments = {"fps": 0.5, "budget": 30, "policy": "gaze", "gaze_lag_s": 0.7}
    stream = GazeStream(model, processor, **arguments)
    pictures = draw.integers(0, 255, (16, 64, 64, 3), dtype=np.uint8)
    errors = questions = 0
    stream.push_fixation(TABLE[:1])
    now_s = 0.0
    for now_s in (0.4, 1.2):
        stream.push(pictures[0], now_s)
    taken = [("push_fixation", (TABLE[:1],)), ("push", (pictures[0], 0.4)), ("push", (pictures[0], 1.2))]
    for number in range(2000):
        kind = draw.choice(
            ["push", "gaze", "bad", "ask", "remember", "broken"], p=[0.5, 0.25, 0.18, 0.04, 0.005, 0.025]
        )
        if kind in ("push", "broken"):
            now_s += draw.uniform(0.02, 0.5)
            operation = ("push", (pictures[number % 16], now_s))
        elif kind == "gaze":  # now and then of a step that has run
            x, y, mid_s = *draw.uniform(0, 1, 2), max(now_s + draw.uniform(-3, 1), 0.2)
            operation = ("push_fixation", ([[x, y, mid_s, 0.3]],))
        elif kind == "bad":
            name = list(BAD)[int(draw.integers(len(BAD)))]
            try:
                BAD[name][0](stream)
            except ValueError:
                errors += 1
            continue
        else:
            operation = ("ask", (QUESTION, OPTIONS, kind == "remember"))
        try:
            with broken(model, 2) if kind == "broken" else nullcontext():
                getattr(stream, operation[0])(*operation[1])
        except (RuntimeError, ValueError):
            errors += 1
        if operation[0] == "ask":
            questions += 1
        if kind in ("push", "broken", "gaze", "remember"):
            taken.append(operation)
    replay = GazeStream(model, processor, **arguments)
    for name, values in taken:
        try:
            getattr(replay, name)(*values)
        except ValueError:
            errors += 1
    assert_same_state(stream, replay)
    answers = [each.ask(QUESTION, OPTIONS).logits for each in (stream, replay)]
    assert answers[0] == answers[1]
    report = stream.report
    assert errors > 150 and questions > 60 and report.late_gaze > 20 and report.forgotten > 150
    assert len(stream._turns) >= 2 and report.late_gaze == replay.report.late_gaze


# ---------------------------------------------------------------- settings that stream and offline share
def test_the_encoders_window_ends_with_each_step(streamed):
    """Of each step the features as the last of its window, alone, batched or padded; nothing later changes them."""
    model, _ = streamed
    draw = torch.Generator().manual_seed(0)
    frames = torch.randn(2, 12, 3, 64, 64, generator=draw)
    grids = torch.tensor([[6, 4, 4], [4, 4, 4]])
    model.config.video_encoder_window = 3
    features = model.encode_video(frames, grids)
    for video, steps in enumerate((6, 4)):
        for step in range(steps):
            first = max(step - 2, 0)
            alone = model.encode_last_step(frames[video, None, 2 * first : 2 * step + 2], grids[video])
            torch.testing.assert_close(features[video, step], alone[0, 0], atol=1e-5, rtol=0)
    changed = frames.clone()
    changed[0, 8:] += 1  # the last two steps
    moved = (model.encode_video(changed, grids) - features).abs().amax((-1, -2))[0] > 1e-3
    assert moved.tolist() == [False] * 4 + [True] * 2
    model.config.video_encoder_window = None
    assert (
        (model.encode_video(changed, grids) - model.encode_video(frames, grids)).abs().amax((-1, -2))[0] > 1e-3
    ).all()
    with pytest.raises(ValueError, match="video_encoder_window: got 0, expected a positive number of temporal steps"):
        GazeQwenConfig(video_encoder_window=0)


def test_grid_and_window_are_kept_with_the_adapter_and_are_settings(bases, tmp_path):
    model, processor = adapter(bases, window=3)
    kinds = {ClipCache.from_model(model, processor, "features").folder}
    processor = GazeQwenProcessor.from_base(bases("qwen2_5_vl").folder, sampling="grid", fps=2.0)
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    loaded = GazeQwenProcessor.from_pretrained(tmp_path)
    assert (loaded.sampling, loaded.fps) == ("grid", 2.0)
    assert GazeQwenConfig.from_pretrained(tmp_path).video_encoder_window == 3
    kinds.add(ClipCache.from_model(model, loaded, "features").folder)
    model.config.video_encoder_window = None
    kinds.add(ClipCache.from_model(model, loaded, "features").folder)
    assert len(kinds) == 3
    shared = {"data": DataSettings(dataset="d"), "stage1": StageSettings(epochs=1)}
    recipe = Recipe(model=ModelSettings(video_encoder="e", sampling="grid", fps=1.0), **shared)
    assert recipe.adapter.video_encoder_window is None
    with pytest.raises(ValueError, match="sampling 'grid': got num_frames=None and fps=None, expected fps alone"):
        Recipe(model=ModelSettings(video_encoder="e", sampling="grid"), **shared)
    with pytest.raises(ValueError, match="sampling: got 'even', expected one of"):
        EvaluationSettings("m", data="d", sampling="even")


def test_a_model_opens_its_stream(streamed):
    model, processor = streamed
    model.config.video_encoder_window = 2
    with model.open_stream(processor, fps=FPS, has_gaze=False) as stream:
        assert isinstance(stream, GazeStream) and stream.now_s is None


def test_the_documents_snippet_runs(capsys):
    code, _ = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "streaming.md").read_text(), flags=re.DOTALL)
    frames, times = recording(side=112)
    moments = np.arange(0, 9, 0.02)

    def samples(begin_s: float, end_s: float) -> GazeSamples:
        own = moments[(moments > begin_s) & (moments <= end_s)]
        return GazeSamples(own, np.full((len(own), 2), 0.4), np.zeros(len(own), np.int8), "gaze")

    gaze = [samples(*span) for span in zip([-1, *times[:-1]], times, strict=True)]
    exec(code.replace("ADAPTER", str(ADAPTER_DIR)), {"RECORDING": list(zip(frames, times, gaze, strict=True))})
    answer, report = capsys.readouterr().out.splitlines()[-2:]
    assert answer.startswith(("A. lemon (", "B. cheese (")) and "steps=8, questions=1" in report


def test_the_documents_table_is_the_committed_result():
    rows = json.loads((ROOT / "benchmarks" / "results" / "stream_toy_cpu.json").read_text())["rows"]
    shown = "".join(
        f"| {row['minutes']} | {row['tokens']} | {row['stream']['question_s']:.2f} s | "
        f"{row['budget']['question_s']:.2f} s | {row['again_s']:.2f} s | {row['decoder_s']:.2f} s | "
        f"{row['times_faster']:.0f} |\n"
        for row in rows
    )
    assert shown in (ROOT / "docs" / "streaming.md").read_text()
    ten = next(row for row in rows if row["minutes"] == 10)
    assert ten["times_faster"] >= 20 and max(row["largest_difference"] for row in rows) < 1e-4


def test_the_documents_numbers_of_7b_are_the_committed_result():
    result = json.loads((ROOT / "benchmarks" / "results" / "stream_7b_h200.json").read_text())
    rows = result["rows"]
    assert result["provenance"]["device"] == "NVIDIA H200" and [row["minutes"] for row in rows] == [0.5, 1, 2]

    def listed(values, form: str) -> str:
        *first, last = (format(value, form) for value in values)
        return f"{', '.join(first)} and {last}"

    text = " ".join((ROOT / "docs" / "streaming.md").read_text().split())
    assert f"a question took {listed((row['stream']['question_s'] for row in rows), '.2f')} s in the stream" in text
    assert f"and {listed((row['again_s'] for row in rows), '.1f')} s anew" in text
    assert f"{listed((row['times_faster'] for row in rows), '.0f')} times as long" in text
    assert f"took {listed((row['stream']['step_s'] for row in rows), '.2f')} s; tensors" in text
    for name, where in (("stream_peak_mb", "at most in the stream"), ("again_peak_mb", "anew")):
        assert f"{max(row[name] for row in rows) / 1000:.1f} GB {where}" in text
    assert f"differed by {max(row['largest_difference'] for row in rows):.2f} at most" in text


def test_the_documents_time_of_a_video_is_the_committed_result():
    result = json.loads((ROOT / "benchmarks" / "results" / "stream_evaluation_cpu.json").read_text())
    times_less, streamed_s, anew_s = result["times_less_cpu"], result["streamed"]["cpu_s"], result["anew"]["cpu_s"]
    assert times_less == pytest.approx(anew_s / streamed_s) and times_less >= 5
    assert result["same_answers"] == result["points"] and result["largest_difference"] < 1e-4
    text = " ".join((ROOT / "docs" / "streaming.md").read_text().split())
    assert f"All {result['points']} test points" in text and f"took {times_less:.1f} times less" in text
    assert f"{streamed_s:.1f} s of the processor against {anew_s:.1f} s" in text
    difference = f"{result['largest_difference']:.1e}".replace("e-0", "e-")
    assert f"same {result['same_answers']} answers and logits that differed by {difference} at most" in text


def test_the_documents_accuracies_are_the_committed_result():
    tables = json.loads((ROOT / "benchmarks" / "results" / "stream_accuracy.json").read_text())
    text = (ROOT / "docs" / "streaming.md").read_text()
    for row in tables["window"] + tables["memory"]:
        cells = []
        for group in ("past", "present", "proactive"):
            low, high = row[group]["interval"]
            cells.append(f"{100 * row[group]['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
        assert f"| {row['name']} | {' | '.join(cells)} |\n" in text


def test_the_documents_hour_is_the_committed_result():
    result = json.loads((ROOT / "benchmarks" / "results" / "stream_hour.json").read_text())
    rows, text = result["hour"], (ROOT / "docs" / "streaming.md").read_text()
    assert [row["name"] for row in rows] == ["alone", "all stays", "recent 96", "gaze 96", "taper 96"]
    others = {"last minute": "all stays", "past": "recent 96", "long past": "recent 96"}
    for row in rows:
        cells = []
        for group, other in others.items():
            low, high = row[group]["interval"]
            cells.append(f"{100 * row[group]['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]")
            against = row[group].get(f"against {other}")
            if against:
                low, high = against["interval"]
                cells.append(f"{100 * against['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]")
            else:
                cells.append("")
        assert f"| {row['name']} | {' | '.join(cells)} |\n" in text
    flat, sizes = " ".join(text.split()), {row["name"]: row.get("seconds_and_mb") for row in rows}
    assert all(seconds == 3600 for seconds, _, _ in (held[-1] for held in sizes.values() if held))
    (_, half_mb, _), (_, whole_mb, _) = sizes["gaze 96"][14], sizes["gaze 96"][-1]
    assert half_mb == whole_mb and f"the cache stayed at {whole_mb:.1f} MB" in flat
    assert f"grew to {sizes['all stays'][-1][1]:.1f} MB" in flat
    scenes = result["settings"]["streams"] * result["settings"]["asked_scenes"]
    asked = [rows[0][group]["questions"] for group in ("last minute", "past")]
    assert f"{scenes} scenes, {asked[0]} questions about the last minute and {asked[1]} about the past" in flat
    for name, group, other in (
        *((policy, "last minute", "alone") for policy in ("recent 96", "gaze 96", "taper 96")),
        *((policy, "long past", "recent 96") for policy in ("gaze 96", "taper 96")),
        ("gaze 96", "past", "recent 96"),
    ):
        cell = next(row for row in rows if row["name"] == name)[group][f"against {other}"]
        low, high = cell["interval"]
        assert f"{100 * cell['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]" in flat
    kinds = {row["name"]: row["last minute"]["kinds"] for row in rows}
    for kind in ("alert visible", "not visible", "which"):
        now, alone = (100 * kinds[name][kind] for name in ("all stays", "alone"))
        assert f"{now:.1f} in place of {alone:.1f}" in flat
    share = rows[1]["last minute"]["accuracy"] / rows[0]["last minute"]["accuracy"]
    assert f"is {100 * share:.0f} % as good" in flat
    assert f"{100 * rows[0]['past']['kinds']['longest']:.1f} % of the scene alone" in flat
    for policy in ("recent 96", "gaze 96", "taper 96"):
        assert {f"{mb:,.0f} MB" for _, _, mb in sizes[policy]} <= {"962 MB", "963 MB"} and "at 963 MB" in flat
