"""Hold what the page's live view shows: a recording that plays, its fixations, alerts, and questions in between."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape

import numpy as np

from gazeqwen.inference.explorer import Explorer, GazeRecording
from gazeqwen.inference.visitors import check_length, checked_texts
from gazeqwen.pipeline.overlays import draw_gaze
from gazeqwen.streaming.alerts import Alert, Watcher
from gazeqwen.streaming.play import play, stream_settings
from gazeqwen.streaming.stream import GazeStream, StreamAnswer
from gazeqwen.streaming.video import VideoSource
from gazeqwen.video_gazeqwen import Clip

_PICTURE_S = 0.2  # of the video: how often a picture is shown
_PICTURE_PX = 480  # smaller frames are enlarged to up to this width


@dataclass(frozen=True)
class LiveMoment:
    """A frame with the fixation under way, (H, W, 3) uint8, when it was, in words, and how the alerts stand (HTML)."""

    picture: np.ndarray
    caption: str
    alerts: str


class LiveRecording:
    """
    Play a recording to a model as if it arrived now. `moments` plays it; meanwhile `ask`, in another thread, answers
    as of the frame that has come last. `note`: what is to be known about how the model is asked.
    """

    def __init__(self, explorer: Explorer, recording: GazeRecording, instructions: str, own_pace: bool = True):
        check_length("instructions", instructions)
        settings, self.note = stream_settings(explorer.model, explorer.processor)
        self.recording, self.own_pace = recording, own_pace
        self._lock = threading.Lock()  # one push or question at a time
        has_gaze = recording.scanpath is not None
        self.stream = GazeStream(explorer.model, explorer.processor, has_gaze=has_gaze, **settings)
        self.watcher = Watcher(self.stream)
        for line in filter(None, map(str.strip, instructions.splitlines())):
            self.watcher.watch(line)
        if has_gaze:
            self.stream.push_fixation(recording.scanpath, until_s=recording.info.end_s)

    def moments(self) -> Iterator[LiveMoment]:
        """Yield what is to be shown, a few times a second of the video."""
        shown_s, played = -_PICTURE_S, play(self.stream, self._frames(), None, self.watcher)
        while True:
            with self._lock:
                moment = next(played, None)
            if moment is None:
                return
            if moment.time_s - shown_s >= _PICTURE_S - 1e-6:
                shown_s = moment.time_s
                yield self._shown(moment.time_s, moment.frame)

    def _frames(self) -> Iterator[tuple[float, np.ndarray]]:
        """Yield the video's frames, and let questions be asked while the next one is waited for."""
        frames = iter(VideoSource(self.recording.video, self.own_pace))
        while True:
            self._lock.release()
            try:
                frame = next(frames, None)
            finally:
                self._lock.acquire()
            if frame is None:
                return
            yield frame

    def _shown(self, time_s: float, frame: np.ndarray) -> LiveMoment:
        """Return what is shown of a frame."""
        scanpath, caption = self.recording.scanpath, f"At {time_s:.1f} s"
        enlarged = max(1, _PICTURE_PX // frame.shape[1])
        frame = frame.repeat(enlarged, axis=0).repeat(enlarged, axis=1)
        if scanpath is not None:
            clip = Clip(frame[None], np.array([time_s]), time_s - 1, time_s)
            (frame,) = draw_gaze(clip, scanpath, {"overlay"}).frames
            index = scanpath.index_at(time_s)
            caption += ": no fixation" if index is None else f": fixation {scanpath.ids[index]}"
        return LiveMoment(frame, caption, alerts_html(self.watcher.alerts))

    def ask(self, question: str, options: str) -> StreamAnswer:
        """Answer as of the last frame. `options`: one to a line. Raises ValueError for what cannot be asked."""
        question, lines = checked_texts(question, options)
        with self._lock:
            if self.stream.now_s is None:
                raise ValueError("Nothing has been seen yet: play a recording first.")
            return self.stream.ask(question, lines)


def alerts_html(alerts: list[Alert]) -> str:
    """Return a list of the instructions that are watched; those that are raised light up."""
    items = []
    for alert in alerts:
        state, now = "", "not asked yet"
        if alert.answer is not None:
            now = f"Yes {100 * alert.probability:.0f} %"
        if alert.raised:
            state, now = ' class="raised"', f"alert since {alert.changed_s:.1f} s, {now}"
        items.append(f"<li{state}>{escape(alert.instruction)} <span>{now}</span></li>")
    return f'<ul class="alerts">{"".join(items)}</ul>' if items else ""


def live_answer_html(question: str, answer: StreamAnswer) -> str:
    """Return a question that was asked in between, with its answer."""
    asked = f"At {answer.time_s:.1f} s: {question.strip()}"
    return (
        f'<section class="answer"><h3>{escape(asked)}</h3><p role="status">{escape(str(answer))}</p>'
        f"<small>{1000 * answer.seconds:.0f} ms</small></section>"
    )
