"""Feed a stream from its sources, and ask and watch while they play."""

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from gazeqwen.streaming import FPS, WINDOW
from gazeqwen.streaming.alerts import Alert, Watcher
from gazeqwen.streaming.gaze import GazeSource
from gazeqwen.streaming.stream import GazeStream, StreamAnswer
from gazeqwen.video_gazeqwen import QUESTION_ROUNDING_S


@dataclass(frozen=True)
class TimedQuestion:
    """A question to be asked at `time_s` of the video; without `options` the model answers in its own words."""

    time_s: float
    question: str
    options: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "TimedQuestion":
        """Return the question of a text such as `t=12: What is this? | box | knife`. Raises ValueError."""
        match = re.fullmatch(r"\s*t=(\d+(?:\.\d+)?)\s*:(.*)", text, flags=re.DOTALL)
        question, *options = [part.strip() for part in match[2].split("|")] if match else [""]
        if not question or len(options) == 1:
            raise ValueError(f"got the question {text!r}, expected such as 't=12: What is this? | box | knife'")
        return cls(float(match[1]), question, tuple(options))

    def __str__(self) -> str:
        return self.question


@dataclass(frozen=True)
class Moment:
    """
    What a stream did with a frame that came at `time_s`: how many `steps` entered its memory, which took `seconds`;
    the `alerts` that were asked then, and the questions that were due since the frame before, with their answers.
    """

    time_s: float
    frame: np.ndarray
    steps: int
    seconds: float
    alerts: list[Alert]
    answers: list[tuple[TimedQuestion, StreamAnswer]]


def stream_settings(model, processor, fps: float | None = None, window: int | None = None) -> tuple[dict, str]:
    """
    Return the `fps` and the `video_encoder_window` to open a stream with, as the adapter was trained unless told
    otherwise, and a note on what of it was not trained so: adapters of whole clips have no causal window.
    """
    notes = []
    if window is None and model.config.has_video_encoder:
        window = model.config.video_encoder_window
        if window is None:
            window = WINDOW
            notes.append(f"a window of {window} temporal steps")
    if fps is None:
        fps = processor.fps if processor.sampling == "grid" else None
        if fps is None:
            fps = FPS
            notes.append(f"{fps:g} frames per second")
    note = f"not trained on streams: asked with {' and '.join(notes)}" if notes else ""
    return {"fps": fps, "video_encoder_window": window}, note


def play(
    stream: GazeStream,
    video: Iterable[tuple[float, np.ndarray]],
    gaze: GazeSource | None = None,
    watcher: Watcher | None = None,
    questions: Iterable[TimedQuestion] = (),
) -> Iterator[Moment]:
    """
    Push each frame of a video, with the gaze that has come by then, and yield what follows from it. A question is
    asked as of its own time: no frame and no sample after it has been pushed. Questions up to a second after the last
    frame are asked as of the end. Raises ValueError for what a source or the stream cannot take, and for questions
    that are left when the video has ended.
    """
    waiting = sorted(questions, key=lambda question: question.time_s)
    frame = None
    for time_s, frame in video:
        if gaze is not None and stream.now_s is None:
            gaze.begin(time_s)
        answers = []
        while waiting and waiting[0].time_s < time_s:
            answers.append(_answered(stream, gaze, waiting.pop(0)))
        _push_gaze(stream, gaze, time_s)
        began, steps = time.perf_counter(), stream.report.steps
        stream.push(frame, time_s)
        seconds = time.perf_counter() - began
        alerts = watcher.update() if watcher is not None else []
        yield Moment(time_s, frame, stream.report.steps - steps, seconds, alerts, answers)
    answers = []
    while waiting and frame is not None and waiting[0].time_s <= stream.now_s + QUESTION_ROUNDING_S:
        answers.append(_answered(stream, gaze, waiting.pop(0)))
    if answers:
        yield Moment(stream.now_s, frame, 0, 0.0, [], answers)
    if waiting:
        end = "before its first frame" if frame is None else f"at {stream.now_s:.3f} s"
        raise ValueError(
            f"the video ended {end}, before {waiting[0].time_s:g} s, when {waiting[0].question!r} was due"
        )


def _push_gaze(stream: GazeStream, gaze: GazeSource | None, time_s: float) -> None:
    """Push the samples that have come up to a time."""
    for samples in gaze.until(time_s) if gaze is not None else ():
        stream.push_gaze(samples)


def _answered(
    stream: GazeStream, gaze: GazeSource | None, question: TimedQuestion
) -> tuple[TimedQuestion, StreamAnswer]:
    """Return a question with its answer as of its time."""
    _push_gaze(stream, gaze, question.time_s)
    return question, stream.ask(question.question, question.options, time_s=question.time_s)


__all__ = ["FPS", "WINDOW", "Moment", "TimedQuestion", "play", "stream_settings"]
