"""GazeStream: ask at any moment while video and gaze arrive, without reading again what was seen."""

from __future__ import annotations

import copy
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from gazeqwen.backbones_gazeqwen import unwrap_videos
from gazeqwen.gaze_sources.samples import GazeSamples
from gazeqwen.pipeline.answers import Answer, answer_tokens, build_prompt, option_logits
from gazeqwen.questions.prompts import chat_message
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.streaming.context import POLICIES, Context, Place, Tokens, merged, split_last
from gazeqwen.streaming.fixations import OnlineFixations
from gazeqwen.streaming.frame_grid import FrameGrid
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


@dataclass(frozen=True)
class _Step:
    """
    Hold a temporal step as what `collate` takes, `processed`. `begin_s`, `end_s`: its span, the end as far as it has
    come; `windows`: the encoder's frames of the steps of its window, its own the last.
    """

    number: int
    begin_s: float
    end_s: float
    processed: dict[str, torch.Tensor]
    windows: tuple[torch.Tensor, ...]


# A step, and the fixations that it sees.
_Seen = tuple[_Step, Scanpath | None]


class _PushedFixations:
    """Hold fixations that are told, in whatever order: `until` cuts them as a clip that ends there does."""

    def __init__(self, table: np.ndarray | None = None):
        self.table = np.zeros((0, 4)) if table is None else table

    def push(self, scanpath: Scanpath) -> None:
        """Take further fixations."""
        table = np.concatenate([self.table, scanpath.table])
        self.table = table[np.argsort(table[:, 2], kind="stable")]

    def fork(self, since_s: float) -> _PushedFixations:
        """Return those that end after `since_s`."""
        return _PushedFixations(self.table[self.table[:, 2] + self.table[:, 3] / 2 > since_s])

    def until(self, time_s: float, since_s: float) -> Scanpath:
        """Return what of them lies between the two times, seconds of the video."""
        return Scanpath(self.table, np.arange(len(self.table))).clip(since_s, time_s)


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
        model.eval()
        self.model, self.processor, self.has_gaze = model, processor, has_gaze
        self.gaze_lag_s, self.budget, self.policy = gaze_lag_s, budget, policy
        self.max_pixels, self.runs_steps = max_pixels, runs_steps
        self.report = StreamReport()
        self._grid = FrameGrid(fps, start_s, max_gap_s)
        self._gaze: OnlineFixations | _PushedFixations | None = fixations
        self._gaze_until_s = self._waited_until_s = -math.inf
        needs_features = has_gaze and model.config.has_video_encoder
        self._window_steps = _window_steps(model, video_encoder_window) if needs_features else 0
        self._gaze_memory_s = _gaze_memory_s(model) if has_gaze else 0.0
        self._windows: tuple[torch.Tensor, ...] = ()  # the encoder's frames of the last steps
        self._settled: tuple[_Seen, ...] = ()  # steps with their gaze, which nothing changes any more, before they run
        self._last: tuple[_Step, Place] | None = None  # the last step in the cache, and the place before it
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
        Take note that it is `until_s`, seconds of the video, and run the steps that have ended by then: a question at
        that time then finds them in memory, where it would run the last one for itself. A frame that comes later with
        an earlier time is on screen from the next time of the grid on. Raises ValueError as `ask` for its time.
        """
        self._check_open()
        self._waited_until_s = max(self._waited_until_s, self._checked_time(until_s))
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
        gaze = self._gaze_by(_PushedFixations)
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

    def _known_gaze(self) -> OnlineFixations | _PushedFixations | None:
        """Return a fork of the gaze that is known, of what the last step in memory or a later one can see."""
        if not self.has_gaze:
            return None
        begin_s = self._grid.start_s if self._last is None else self._last[0].begin_s
        gaze = self._gaze or _PushedFixations()
        gaze = gaze.fork(self._gaze_since_s(begin_s))
        if isinstance(gaze, OnlineFixations) and gaze.frame_size is None:
            gaze.frame_size = self._grid.size[::-1]
        return gaze

    def _gaze_since_s(self, begin_s: float) -> float:
        """Return the time from which on fixations count in a step that begins at `begin_s`."""
        return begin_s - self._gaze_memory_s

    def _seen(self, gaze, step: _Step, snap_s: float = 0.0) -> Scanpath | None:
        """Return the fixations that a step sees of a gaze, the one that begins within `snap_s` of its end snapped."""
        if gaze is None:
            return None
        scanpath = gaze.until(step.end_s + snap_s, self._gaze_since_s(step.begin_s))
        return scanpath.snap(step.end_s, step.begin_s, snap_s) if snap_s else scanpath

    # ------------------------------------------------------------ temporal steps
    @property
    def due(self) -> bool:
        """Return whether a temporal step is whole and settled, and can be run."""
        return self._context is not None and bool(self._settled)

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
            self._settled += ((step, self._seen(gaze, step)),)
            self._windows = step.windows
            self._gaze = gaze if self._gaze is not None else None
            self.report.steps_without_gaze += self.has_gaze and not is_known
            self._grid.advance()

    def _run_own_steps(self) -> None:
        """Settle what can be, and run it."""
        self._settle()
        while self.runs_steps and self.due:
            _run([self])

    def _process(self, clip: Clip) -> _Step:
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
        return _Step(round(begin_s * clip.grid_fps / frames_per_step), begin_s, end_s, processed, windows)

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
                logits = option_logits(self.model, inputs, [tokens])[0].tolist()
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
        for step, scanpath in self._settled:
            _append_steps([(self, step, scanpath)])
        gaze, clips = self._known_gaze(), self._grid.clips_until(time_s)
        if snap_s and not clips and self._last is not None:
            step, place = self._last
            self.context.without_last(int((self.context.tokens.steps == step.number).sum()), place)
            _append_steps([(self, step, self._seen(gaze, step, snap_s))])
        for index, clip in enumerate(clips):
            step = self._process(clip)
            self._windows = step.windows
            is_last = index == len(clips) - 1
            _append_steps([(self, step, self._seen(gaze, step, snap_s if is_last else 0.0))])

    def _generate(self, ids: torch.Tensor, max_new_tokens: int) -> str:
        """Return what the model says after a question's `ids` (L,) on the end of the cache."""
        tokens, _ = self.context.text_tokens(ids)
        past, whole = len(self.context.tokens), torch.cat([self.context.tokens.ids, ids])[None]
        inputs = self._call_inputs(tokens) | {"input_ids": whole.to(self.model.device)}
        positions = torch.nn.functional.pad(inputs["position_ids"], (past, 0))  # `generate` takes the last of them
        inputs |= {"position_ids": positions, "attention_mask": torch.ones_like(inputs["input_ids"])}
        output = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        return self.processor.batch_decode(output[:, whole.shape[1] :], skip_special_tokens=True)[0].strip()

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


def run_due(streams: Sequence[GazeStream]) -> int:
    """
    Run the next temporal step of each of several streams of one model that is due, all in one batch, and return how
    many were. Their steps may be of different sizes, their caches of different lengths.
    """
    due = [stream for stream in streams if stream.due]
    if len({id(stream.model) for stream in due}) > 1:
        raise ValueError("the streams are of several models, expected one")
    if due:
        _run(due)
    return len(due)


@torch.no_grad()
def _run(streams: list[GazeStream]) -> None:
    """Run the first settled step of each stream; if anything fails, of none."""
    forgotten = []
    with ExitStack() as stack:
        for stream in streams:
            stack.enter_context(stream._kept(on_success=True))
        _append_steps([(stream, *stream._settled[0]) for stream in streams])
        for stream in streams:
            budget = stream.budget
            forgotten.append(0 if budget is None else stream.context.forget(budget, stream.policy))
            stream.context.move_back()
            stream._settled = stream._settled[1:]
    for stream, count in zip(streams, forgotten, strict=True):
        stream.report.steps += 1
        stream.report.forgotten += count


def _append_steps(batch: list[tuple[GazeStream, _Step, Scanpath | None]]) -> None:
    """Put a step of each stream, with the fixations that it sees, on the end of its cache."""
    for stream, _, _ in batch:
        if not stream._opened:
            stream._open_video()
    _encode([(stream, step) for stream, step, _ in batch])
    groups = defaultdict(list)
    for entry in batch:
        stream, step, _ = entry
        groups[stream.has_gaze, len(_step_ids(stream, step))].append(entry)
    for group in groups.values():
        _append_group(group)


def _encode(steps: list[tuple[GazeStream, _Step]]) -> None:
    """Put what the frozen networks make of steps in the place of their pixels, together for all streams."""
    model = steps[0][0].model
    waiting = [step.processed for _, step in steps if "video_embeds" not in step.processed]
    if waiting:
        grids = torch.stack([processed["video_grid_thw"] for processed in waiting]).to(model.device)
        pixels = torch.cat([processed.pop("pixel_values_videos") for processed in waiting]).to(model.device)
        embeds = model.embed_video(pixels, grids).split(model.token_grids(grids).prod(-1).tolist())
        for processed, own in zip(waiting, embeds, strict=True):
            processed["video_embeds"] = own
    groups = defaultdict(list)
    for _, step in steps:
        if step.windows and "video_encoder_features" not in step.processed:
            groups[len(step.windows), tuple(step.processed["video_grid_thw"].tolist())].append(step)
    for group in groups.values():
        windows = torch.stack([torch.cat(step.windows) for step in group]).to(model.device)
        features = model.encode_last_step(windows, group[0].processed["video_grid_thw"])
        for step, own in zip(group, features, strict=True):
            step.processed["video_encoder_features"] = own


def _step_ids(stream: GazeStream, step: _Step) -> list[int]:
    """Return the ids of a step in a prompt."""
    return stream.processor.tokenizer.encode(stream.processor.video_text(step.processed), add_special_tokens=False)


def _append_group(group: list[tuple[GazeStream, _Step, Scanpath | None]]) -> None:
    """Put steps of equally many tokens, all with gaze or all without, on the ends of their streams' caches."""
    streams = [stream for stream, _, _ in group]
    model, processor = streams[0].model, streams[0].processor
    inputs = processor.collate(
        [processor.video_token] * len(group),
        [step.processed for _, step, _ in group],
        [scanpath for _, _, scanpath in group] if streams[0].has_gaze else None,
    )
    following = []
    for (stream, step, scanpath), ids in zip(group, inputs["input_ids"], strict=True):
        processed, height_width = step.processed, model.token_grids(step.processed["video_grid_thw"][None])[0, 1:]
        seconds, ranks = float(processed["second_per_grid_ts"]), _ranks(scanpath, *height_width.tolist())
        grid = processed["video_grid_thw"]
        following.append(stream.context.step_tokens(ids, grid, seconds, step.number, ranks))
    contexts, length = [stream.context for stream in streams], inputs["input_ids"].shape[1]
    cache, mask = merged(contexts)
    del inputs["mm_token_type_ids"]
    if len(group) == 1:
        del inputs["attention_mask"]
    else:
        inputs["attention_mask"] = torch.cat([mask, inputs["attention_mask"]], dim=1)
    inputs["position_ids"] = torch.stack([tokens.positions for tokens, _ in following], dim=1)
    if model.has_lora:
        inputs["has_gaze"] = torch.full((len(group),), streams[0].has_gaze)
    model(**inputs.to(model.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
    split_last(cache, contexts, length)
    for (stream, step, _), (tokens, place) in zip(group, following, strict=True):
        stream._last = step, stream.context.place
        stream.context.extend(tokens, place)
        if not stream._in_video:
            stream._text += processor.video_token


def _ranks(scanpath: Scanpath | None, height: int, width: int) -> torch.Tensor:
    """
    Return the rank (N,) of a step's visual tokens by their distance from its fixations, 0 the nearest; without any
    fixation that of the farthest.
    """
    count = height * width
    if scanpath is None or not len(scanpath):
        return torch.full((count,), count)
    rows, columns = np.divmod(np.arange(count), width)
    across = columns + 0.5 - scanpath.table[:, 0, None] * width
    down = rows + 0.5 - scanpath.table[:, 1, None] * height
    nearest = torch.from_numpy((across**2 + down**2).min(0))
    return nearest.argsort(stable=True).argsort()


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
