"""GazeStream: ask at any moment while video and gaze arrive, without reading again what was seen."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from gazeqwen.backbones_gazeqwen import unwrap_videos
from gazeqwen.gaze_sources.samples import GazeSamples
from gazeqwen.pipeline.answers import (
    Answer,
    answer_tokens,
    build_prompt,
    check_finite_logits,
    option_logits,
    own_words,
)
from gazeqwen.questions.prompts import chat_message
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.streaming import POLICIES
from gazeqwen.streaming.context import Context, Tokens
from gazeqwen.streaming.fixations import OnlineFixations, PushedFixations
from gazeqwen.streaming.frame_grid import FrameGrid
from gazeqwen.streaming.steps import PlacedStep, Step, append_steps, encode_steps, note_fixated_places, place_steps
from gazeqwen.video_gazeqwen import SAME_TIME_S, Clip


@dataclass(frozen=True)
class StreamAnswer(Answer):
    """
    An answer as of `time_s` of the video. `logits`: of each option, none for an answer in the model's own words;
    `gaze_until_s`: up to when gaze was known; `seconds`: how long it took.
    """

    time_s: float
    logits: dict[str, float]
    gaze_until_s: float
    seconds: float

    __str__ = Answer.__str__


@dataclass
class StreamReport:
    """
    Count what a stream did. `steps`: temporal steps that entered its memory; `questions`; `forgotten`: visual tokens
    that went beyond the budget; `late_gaze`: samples or fixations that came after a step that they belong to, and
    could not change it; `steps_without_gaze`: those whose gaze had not come when the wait for it was over;
    `repeated_frames`: frames of the grid that show an earlier one again.
    """

    steps: int = 0
    questions: int = 0
    forgotten: int = 0
    late_gaze: int = 0
    steps_without_gaze: int = 0
    repeated_frames: int = 0


class GazeStream:
    """
    Watch a video and the wearer's gaze as they arrive, and answer questions at any moment. Each temporal step enters
    the key-value cache of the base model once, with the residuals of the gaze known by its end. A question runs on the
    end of the cache, with what there is of the step that has begun, and leaves no trace. Answers are those about the
    clip from `start_s` to now that is read on a grid (`sampling` `grid`) at the same `fps`.

        with GazeStream(model, processor) as stream:
            stream.push_gaze(samples)
            stream.push(frames, times_s)
            print(stream.ask("What is the wearer looking at?", ["box", "knife"]))

    Args:
        fps: of the grid; default: the processor's.
        start_s: when the stream begins, seconds of the video.
        has_gaze: False: no gaze will come; the answers are the base model's.
        fixations: detects fixations in raw samples, with settings of its own.
        gaze_lag_s: how long a step waits for its gaze, seconds of the video. A question does not wait: it sees the
            gaze that is known, and the step goes on waiting.
        max_gap_s: a frame that comes later than this after the one before is refused.
        budget: most visual tokens in memory; None: all stay. `policy`: which go (`Context.forget`).
        max_pixels: most pixels of a frame, in place of the processor's setting.
        video_encoder_window: temporal steps that the video encoder sees for one, in place of the config's.
        runs_steps: False: steps run in `run_due` alone, for several streams together.

    What fails, be it a ValueError for what cannot be taken or an error of the model, changes nothing; a step that
    failed is run again by the next call. Raises ValueError for a model that cannot be streamed.
    """

    def __init__(
        self,
        model,
        processor,
        fps: float | None = None,
        start_s: float = 0.0,
        has_gaze: bool = True,
        fixations: OnlineFixations | None = None,
        gaze_lag_s: float = 0.5,
        max_gap_s: float = 60.0,
        budget: int | None = None,
        policy: str = "recent",
        max_pixels: int | None = None,
        video_encoder_window: int | None = None,
        runs_steps: bool = True,
    ):
        fps = processor.fps if fps is None else fps
        _check_settings(model, fps, start_s, gaze_lag_s, max_gap_s, budget, policy, has_gaze)
        if processor.keep_tokens is not None and processor.keep_by == "similarity":
            raise ValueError(
                "keep_by: got 'similarity', expected another rule: a stream gives each step to the processor alone"
            )
        model.eval()
        self.model, self.processor, self.has_gaze = model, processor, has_gaze
        self.gaze_lag_s, self.budget, self.policy = gaze_lag_s, budget, policy
        self.max_pixels, self.runs_steps = max_pixels, runs_steps
        self.report = StreamReport()
        self._grid = FrameGrid(fps, start_s, max_gap_s)
        self._gaze: OnlineFixations | PushedFixations | None = fixations
        self._gaze_until_s = self._waited_until_s = -math.inf
        needs_features = has_gaze and model.config.has_video_encoder
        self._window_steps = _window_steps(model, video_encoder_window) if needs_features else 0
        self._gaze_memory_s = _gaze_memory_s(model) if has_gaze else 0.0
        self._windows: tuple[torch.Tensor, ...] = ()  # the encoder's frames of the last steps
        self._settled: tuple[Step, ...] = ()  # those that nothing changes any more, before they run
        self._last: PlacedStep | None = None  # in the cache
        self._context: Context | None = Context(model)
        self._turns: tuple[dict, ...] = ()  # messages of the conversation that the cache holds
        self._text = ""  # the prompt that the cache holds, each video one token
        self._opened = False  # whether what stands before a video is in the cache
        self._open_video()

    # ------------------------------------------------------------ what a stream is
    def __enter__(self) -> GazeStream:
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def close(self) -> None:
        """Let the memory go. Nothing can be pushed or asked any more."""
        self._context, self._windows, self._settled, self._last = None, (), (), None

    @property
    def context(self) -> Context:
        """Return what the decoder has seen. Raises ValueError for a closed stream."""
        self._check_open()
        return self._context

    @property
    def now_s(self) -> float | None:
        """Return the time of the last frame, seconds of the video; None before the first."""
        return self._grid.now_s

    @property
    def steps_until_s(self) -> float:
        """Return when the last temporal step ends whose gaze is settled, seconds of the video: later gaze is late."""
        return self._grid.end_of_steps_s

    @contextmanager
    def _kept(self, on_success: bool) -> Iterator[None]:
        """Keep what this block does to what the stream remembers, `on_success`, or nothing of it (`Context.kept`)."""
        names = ("_gaze", "_windows", "_settled", "_last", "_turns", "_text", "_opened")
        before, done = {name: getattr(self, name) for name in names}, False
        before |= {name: copy.copy(getattr(self, name)) for name in ("_grid", "report")}
        try:
            with self.context.kept(on_success):
                yield
            done = True
        finally:
            if not (done and on_success):
                vars(self).update(before)

    # ------------------------------------------------------------ video and gaze
    def push(self, frames: np.ndarray, times_s) -> None:
        """
        Take frames (F, H, W, 3) uint8 RGB, or one, that came at times (F,), seconds of the video, and run the steps
        that are due. Raises ValueError for frames that cannot be taken, and takes none of them (`FrameGrid.push`).
        """
        self._check_open()
        self._grid.push(frames, times_s)
        self.report.repeated_frames = self._grid.repeated
        self._run_own_steps()

    def wait(self, until_s: float) -> None:
        """
        Take note that it is `until_s`, seconds of the video, and run the steps that have ended by then, the last frame
        being on screen: a question at that time then finds them in memory, where it would run the last one for itself.
        A frame that comes later with an earlier time is on screen from the next time of the grid on. Raises ValueError
        as `ask` for its time.
        """
        self._check_open()
        until_s = self._checked_time(until_s)
        self._waited_until_s = max(self._waited_until_s, until_s)
        self._grid.show_until(until_s)
        self.report.repeated_frames = self._grid.repeated
        self._run_own_steps()

    def push_gaze(self, samples: GazeSamples) -> None:
        """
        Take raw samples, in the order of time, and run the steps that waited for them. Raises ValueError for samples
        that cannot be taken, and takes none of them (`OnlineFixations.push`).
        """
        gaze = self._gaze_by(OnlineFixations)
        gaze.push(samples)
        self._gaze = gaze
        if len(samples):
            self.report.late_gaze += int((samples.times_s <= self._gaze_used_s).sum())
            self._gaze_until_s = max(self._gaze_until_s, float(samples.times_s[-1]))
        self._run_own_steps()

    def push_fixation(self, fixations, until_s: float | None = None) -> None:
        """
        Take fixations, a `Scanpath` or rows (F, 4) `x_norm, y_norm, t_mid_s, duration_s`, and run the steps that
        waited for them. Gaze is then known up to `until_s`, by default the end of the last fixation. They may come
        before their time: a step sees what lies before its end.
        """
        gaze = self._gaze_by(PushedFixations)
        rows = fixations if isinstance(fixations, Scanpath) else Scanpath.from_array(fixations)
        gaze.push(rows)
        self._gaze = gaze
        self.report.late_gaze += int((rows.begin_s < self._gaze_used_s - SAME_TIME_S).sum())
        known = rows.end_s.tolist() if until_s is None else [until_s]
        self._gaze_until_s = max([self._gaze_until_s, *known])
        self._run_own_steps()

    def _check_open(self) -> None:
        """Raise ValueError for a closed stream."""
        if self._context is None:
            raise ValueError("the stream is closed")

    def _gaze_by(self, kind: type):
        """Return what gaze is pushed to. Raises ValueError where gaze comes in another way, or none was to come."""
        self._check_open()
        if not self.has_gaze:
            raise ValueError("the stream was opened without gaze, expected has_gaze=True")
        if self._gaze is not None and not isinstance(self._gaze, kind):
            raise ValueError("gaze came as samples and comes as fixations, or the reverse, expected one of them")
        return kind() if self._gaze is None else self._gaze

    @property
    def _gaze_used_s(self) -> float:
        """Return the time up to which gaze is settled."""
        return self.steps_until_s if self._grid.next_step > self._grid.first_step else -math.inf

    def _known_gaze(self) -> OnlineFixations | PushedFixations | None:
        """Return a fork of the gaze that is known, of what the last step in memory or a later one can see."""
        if not self.has_gaze:
            return None
        begin_s = self._grid.start_s if self._last is None else self._last.step.begin_s
        gaze = self._gaze or PushedFixations()
        gaze = gaze.fork(self._gaze_since_s(begin_s))
        if isinstance(gaze, OnlineFixations) and gaze.frame_size is None:
            gaze.frame_size = self._grid.size[::-1]
        return gaze

    def _gaze_since_s(self, begin_s: float) -> float:
        """Return the time from which on fixations count in a step that begins at `begin_s`."""
        return begin_s - self._gaze_memory_s

    def _with_gaze(self, step: Step, gaze, snap_s: float = 0.0) -> Step:
        """Return a step with the fixations that it sees, the one that begins within `snap_s` of its end snapped."""
        if gaze is None:
            return step
        scanpath = gaze.until(step.end_s + snap_s, self._gaze_since_s(step.begin_s))
        return replace(step, scanpath=scanpath.snap(step.end_s, step.begin_s, snap_s) if snap_s else scanpath)

    # ------------------------------------------------------------ temporal steps
    @property
    def due(self) -> int:
        """Return how many temporal steps are whole and settled, and can be run."""
        return len(self._settled)

    def _settle(self, wait: bool = True) -> None:
        """
        Settle the next steps that are whole, and whose gaze has come or the wait for it is over; without `wait` it is
        over now. What they see stays what it is, also where running them fails.
        """
        if self.now_s is None:
            return
        now_s = max(self.now_s, self._waited_until_s)
        while self._grid.complete(now_s):
            end_s = self._grid.end_of_next_s
            is_known = self._gaze_until_s >= end_s - SAME_TIME_S
            is_over = not wait or now_s >= end_s + self.gaze_lag_s - SAME_TIME_S
            if self.has_gaze and not (is_known or is_over):
                return
            gaze, step = self._known_gaze(), self._process(self._grid.next_clip())
            self._settled += (self._with_gaze(step, gaze),)
            self._windows = step.windows
            self._gaze = gaze if self._gaze is not None else None
            self.report.steps_without_gaze += self.has_gaze and not is_known
            self._grid.advance()

    def _run_own_steps(self) -> None:
        """Settle what can be, and run it."""
        self._settle()
        while self.runs_steps and self.due:
            _run([self])

    def _placed(self, steps: Sequence[Step]) -> list[PlacedStep]:
        """Return steps as the next tokens of the cache, in which a video is then open."""
        if not self._opened:
            self._open_video()
        return place_steps(self.processor, self.context, steps)

    def _next_steps(self, at_once: int) -> list[PlacedStep]:
        """
        Return the settled steps that enter the cache with the next call, `at_once` at most: those after which nothing
        has to be forgotten or moved back, or else the first one alone.
        """
        placed, tokens = self._placed(self._settled[:at_once]), self.context.video_tokens
        for count, each in enumerate(placed):
            tokens += int(each.tokens.is_video.sum())
            if (self.budget is not None and tokens > self.budget) or each.end.next > self.context.range:
                return placed[: max(count, 1)]
        return placed

    def _append_step(self, step: Step) -> None:
        """Run one step on the end of the cache."""
        encode_steps(self.model, [step])
        _append([(self, self._placed([step]))])

    def _process(self, clip: Clip) -> Step:
        """Return a step that is a clip of its own, the next one in the cache."""
        processor, frames_per_step = self.processor, self.processor.video_processor.temporal_patch_size
        processed = processor.process_clip(clip, self._window_steps > 0, self.max_pixels)
        tokens = int(processed["video_grid_thw"].prod()) // processor.video_processor.merge_size**2
        if self.budget is not None and tokens > self.budget:
            raise ValueError(f"budget: got {self.budget}, expected at least the {tokens} visual tokens of a step")
        if processor.family.seconds_in_text:
            times_s = clip.padded(frames_per_step).timestamps_s - self._grid.start_s
            processed["step_times_s"] = processor.step_times_s(times_s)
        windows = ()
        if self._window_steps:
            windows = (*self._windows, processed.pop("video_encoder_pixel_values"))[-self._window_steps :]
        begin_s, end_s = clip.step_spans_s(frames_per_step)[0].tolist()
        processed["scanpath_begin_s"] = self._gaze_since_s(float(processed["step_spans_s"][0, 0]))
        return Step(round(begin_s * clip.grid_fps / frames_per_step), begin_s, end_s, processed, windows)

    def _open_video(self) -> None:
        """Put what stands before a video into the cache: the system prompt, or the begin of a turn."""
        text = self._prompt([*self._turns, _user("", True)]).rpartition(self.processor.video_token)[0]
        with torch.no_grad():
            self._append_text(text)
        self._opened = True

    def _prompt(self, messages: list[dict], answer_follows: bool = False) -> str:
        """Return a conversation's text, each video one token. Raises ValueError where it does not go on as before."""
        text = self.processor.apply_chat_template(messages, add_generation_prompt=answer_follows)
        text = unwrap_videos(self.processor.family, text)
        if not text.startswith(self._text):
            raise ValueError("the chat template writes earlier turns in another way once there is a later one")
        return text

    def _following(self, text: str) -> torch.Tensor:
        """Return the ids (L,) of what a text has beyond the one in the cache."""
        return torch.tensor(self.processor.tokenizer.encode(text[len(self._text) :], add_special_tokens=False))

    def _append_text(self, text: str) -> None:
        """Run what a text has beyond the one in the cache on its end."""
        tokens, place = self.context.text_tokens(self._following(text))
        self.model(**self._call_inputs(tokens), logits_to_keep=1)
        self.context.extend(tokens, place)
        self._text = text

    def _call_inputs(self, tokens: Tokens) -> dict:
        """Return the inputs of `forward` for further tokens on the cache."""
        device = self.model.device
        inputs = {"has_gaze": torch.tensor([self.has_gaze], device=device)} if self.model.has_lora else {}
        return inputs | {
            "input_ids": tokens.ids[None].to(device),
            "position_ids": tokens.positions[:, None].to(device),
            "past_key_values": self.context.cache,
            "use_cache": True,
        }

    # ------------------------------------------------------------ questions
    def ask(
        self,
        question: str,
        options: Sequence[str] | None = None,
        remember: bool = False,
        time_s: float | None = None,
        snap_s: float = 0.0,
        max_new_tokens: int = 128,
    ) -> StreamAnswer:
        """
        Return the answer to a question as of `time_s`, by default the time of the last frame: the most probable of the
        `options`, or without any the model's own words. Afterwards the stream is what it was, unless it is to
        `remember` question and answer: these then stand behind the last step that is whole. `snap_s`: as in
        `Scanpath.snap`, of the gaze that is known. Raises ValueError before the first frame, and for a time before
        the last one.
        """
        prompt, answers = build_prompt(question, list(options or ()), self.processor.prompt_style)
        return self.ask_prompt(prompt, answers, remember, time_s, snap_s, max_new_tokens)

    @torch.no_grad()
    def ask_prompt(
        self,
        prompt: str,
        answers: dict[str, str],
        remember: bool = False,
        time_s: float | None = None,
        snap_s: float = 0.0,
        max_new_tokens: int = 128,
    ) -> StreamAnswer:
        """
        Return the answer to a user's turn as of `time_s`, see `ask`. `answers`: for each answer that it offers, one
        token each, what it stands for; none: the model answers in its own words.
        """
        began = time.perf_counter()
        self._check_open()
        time_s = self._checked_time(time_s)
        tokens = answer_tokens(self.processor.tokenizer, list(answers))
        if remember and self._last is None and not self._settled and not self._grid.complete(self.now_s):
            raise ValueError(f"asked to remember at {time_s} s, before the first step is whole")
        logits: list[float] = []
        with self._kept(on_success=False):
            self._look(time_s, snap_s)
            ids = self._following(self._prompt([*self._turns, _user(prompt, self._in_video)], answer_follows=True))
            if answers:
                inputs = self._call_inputs(self.context.text_tokens(ids)[0])
                offered = option_logits(self.model, inputs, [tokens])[0]
                check_finite_logits(offered)
                logits = offered.tolist()
                reply = list(answers)[int(np.argmax(logits))]
            else:
                reply = self._generate(ids, max_new_tokens)
        if remember:
            self._remember(prompt, reply)
        self.report.questions += 1
        probabilities = torch.tensor(logits).softmax(-1).tolist()
        return StreamAnswer(
            answers.get(reply, reply),
            dict(zip(answers.values(), probabilities, strict=True)),
            time_s,
            dict(zip(answers.values(), logits, strict=True)),
            self._gaze_until_s,
            time.perf_counter() - began,
        )

    @property
    def _in_video(self) -> bool:
        """Return whether the cache ends with a video, to which a question would belong."""
        return self._text.endswith(self.processor.video_token)

    def _checked_time(self, time_s: float | None) -> float:
        """Return when a question is asked, seconds of the video. Raises ValueError where it cannot be."""
        now_s = self.now_s
        if now_s is None:
            raise ValueError("asked before the first frame")
        time_s = now_s if time_s is None else time_s
        if not now_s - SAME_TIME_S <= time_s <= now_s + self._grid.max_gap_s:
            raise ValueError(
                f"time_s: got {time_s}, expected the time of the last frame, {now_s} s, or up to "
                f"{self._grid.max_gap_s:g} s later"
            )
        if self._last is None and not self._settled and not self._grid.clips_until(time_s):
            raise ValueError(f"asked at {time_s} s, before the first frame of the grid")
        return max(time_s, now_s)

    def _look(self, time_s: float, snap_s: float) -> None:
        """Put the steps as they are at a time on the end of the cache; with `snap_s` the last one anew."""
        for step in self._settled:
            self._append_step(step)
        gaze, clips = self._known_gaze(), self._grid.clips_until(time_s)
        if snap_s and not clips and self._last is not None and self._in_video:
            step = self._last.step
            self.context.without_step(step.number, self._last.begin, self._last.end)
            self._append_step(self._with_gaze(step, gaze, snap_s))
        for index, clip in enumerate(clips):
            step = self._process(clip)
            self._windows = step.windows
            is_last = index == len(clips) - 1
            self._append_step(self._with_gaze(step, gaze, snap_s if is_last else 0.0))

    def _generate(self, ids: torch.Tensor, max_new_tokens: int) -> str:
        """Return what the model says after a question's `ids` (L,) on the end of the cache."""
        tokens, _ = self.context.text_tokens(ids)
        past, whole = len(self.context.tokens), torch.cat([self.context.tokens.ids, ids])[None]
        inputs = self._call_inputs(tokens) | {"input_ids": whole.to(self.model.device)}
        positions = torch.nn.functional.pad(inputs["position_ids"], (past, 0))  # `generate` takes the last of them
        inputs |= {"position_ids": positions, "attention_mask": torch.ones_like(inputs["input_ids"])}
        return own_words(self.model, self.processor, inputs, max_new_tokens)

    def _remember(self, prompt: str, reply: str) -> None:
        """Put a turn and its answer on the end of the cache, behind all steps that are whole."""
        with self._kept(on_success=True):
            self._settle(wait=False)
            while self.due:
                _run([self])
            answer = {"role": "assistant", "content": [{"type": "text", "text": reply}]}
            turns = (*self._turns, _user(prompt, self._in_video), answer)
            self._append_text(self._prompt(list(turns)))
            self._turns, self._opened = turns, False


def run_due(streams: Sequence[GazeStream], at_once: int = 1) -> int:
    """
    Run the next temporal step of each of several streams of one model that is due, all in one batch, and return how
    many were. Their steps may be of different sizes, their caches of different lengths. `at_once`: of each stream so
    many steps in one call of the model, as they are there when a file is read; fewer where the memory is full, since
    each step sees what those before it have left.
    """
    due = [stream for stream in streams if stream.due]
    if len({id(stream.model) for stream in due}) > 1:
        raise ValueError("the streams are of several models, expected one")
    return _run(due, at_once) if due else 0


@torch.no_grad()
def _run(streams: list[GazeStream], at_once: int = 1) -> int:
    """Run the first settled steps of each stream, and return how many; if anything fails, none."""
    forgotten = []
    with ExitStack() as stack:
        for stream in streams:
            stack.enter_context(stream._kept(on_success=True))
        encode_steps(streams[0].model, [step for stream in streams for step in stream._settled[:at_once]])
        rows = [(stream, stream._next_steps(at_once)) for stream in streams]
        _append(rows)
        for stream, placed in rows:
            budget = stream.budget
            if (
                budget is not None and stream.policy == "taper"
            ):  # the one that asks: all that is remembered is searched
                note_fixated_places(stream.context, placed)
            forgotten.append(0 if budget is None else stream.context.forget(budget, stream.policy))
            stream.context.move_back()
            stream._settled = stream._settled[len(placed) :]
    for (stream, placed), count in zip(rows, forgotten, strict=True):
        stream.report.steps += len(placed)
        stream.report.forgotten += count
    return sum(len(placed) for _, placed in rows)


def _append(rows: Sequence[tuple[GazeStream, Sequence[PlacedStep]]]) -> None:
    """Run encoded steps of each stream on the end of its cache."""
    append_steps(rows[0][0].processor, [(stream.context, placed) for stream, placed in rows])
    for stream, placed in rows:
        stream._last = placed[-1]
        if not stream._in_video:
            stream._text += stream.processor.video_token


def _user(text: str, with_video: bool) -> dict:
    """Return a user's turn."""
    return chat_message(text, with_video)[0]


def _window_steps(model, window: int | None) -> int:
    """
    Return how many steps the video encoder sees for one: `window`, or else the config's. Raises ValueError for an
    encoder that sees later ones.
    """
    window = model.config.video_encoder_window if window is None else window
    if window is None and getattr(model.video_encoder, "attends_within_frames", False):
        return 1
    if window is None or window < 1:
        raise ValueError(
            f"video_encoder_window: got {window}, expected a number of temporal steps: the encoder's features of a "
            "whole clip change with every frame that comes. Train with one, or open the stream with one"
        )
    return window


def _gaze_memory_s(model) -> float:
    """Return for how many seconds a fixation counts after its end: one that fades, as long as float32 can tell."""
    if not model.config.has_resampler or model.config.gaze_encoding != "heatmap_decay":
        return 0.0
    return 40 / float(torch.nn.functional.softplus(model.resampler.decay_rate.detach()).min())


def _check_settings(model, fps, start_s, gaze_lag_s, max_gap_s, budget, policy, has_gaze) -> None:
    """Raise ValueError naming a setting, its value and what was expected."""
    convention = model.config.position_convention
    for name, value, valid, expected in (
        ("fps", fps, fps is not None and 0 < fps < math.inf, "frames per second, as the adapter was trained"),
        ("start_s", start_s, 0 <= start_s < math.inf, "0 or more seconds"),
        ("gaze_lag_s", gaze_lag_s, gaze_lag_s >= 0, "0 or more seconds"),
        ("max_gap_s", max_gap_s, 0 < max_gap_s < math.inf, "a positive number of seconds"),
        ("budget", budget, budget is None or budget > 0, "a positive number of visual tokens, or None"),
        ("policy", policy, policy in POLICIES, f"one of {POLICIES}"),
        ("policy", policy, policy != "gaze" or has_gaze, "recent: the stream has no gaze"),
        ("position_convention", convention, convention == "qwen", "'qwen': the library's says nothing of chunks"),
    ):
        if not valid:
            raise ValueError(f"{name}: got {value!r}, expected {expected}")


__all__ = ["GazeStream", "StreamAnswer", "StreamReport", "run_due"]
