"""What app.py shows, without the page: a recording to scrub through, a question's answers in words and pictures."""

from __future__ import annotations

import base64
import io
import threading
import warnings
from dataclasses import dataclass
from html import escape
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image

from gazeqwen.inference.answering import Answer, Asked, ask, load_model, load_processor, offer
from gazeqwen.plots.scanpath import draw_moment, draw_step, frames_of_steps, shares_text, span_text
from gazeqwen.plots.style import pixels
from gazeqwen.questions.question import TOY_SOURCE
from gazeqwen.questions.tasks import window_start_s
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.video_gazeqwen import VideoInfo, read_frames, video_info

_catching_warnings = threading.Lock()  # Python's own way is for one thread at a time


@dataclass(frozen=True, eq=False)
class Recording:
    """A video file and the wearer's whole scanpath (None: no gaze). `notes`: what is odd about the fixation table."""

    video: Path
    info: VideoInfo
    scanpath: Scanpath | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def open(cls, video: str | Path | None, table: str | Path | None = None) -> Recording:
        """From a video file and a fixation table (CSV). Raises ValueError or OSError for what is no such thing."""
        if video is None:
            raise ValueError("There is no video yet: upload one, or choose an example.")
        scanpath, notes = (None, ()) if table is None else read_table(table)
        return cls(Path(video), video_info(video), scanpath, notes)

    def __str__(self) -> str:
        said = f"Video: {self.info.end_s:.1f} s, {self.info.width} x {self.info.height} pixels. "
        if self.scanpath is None:
            return said + "No fixation table: the answer will be the base model's."
        said += f"Table: {len(self.scanpath)} fixations"
        if len(self.scanpath):
            begin, end = self.scanpath.begin_s[0], self.scanpath.end_s.max()
            said += f", from {begin:.1f} to {end:.1f} s"
            if begin >= self.info.end_s:
                said += ", all after the video's end. Is it the table of this video?"
        return ". ".join([said, *self.notes])

    def moment(self, time_s: float) -> tuple[np.ndarray, str]:
        """
        The frame at a time (beyond the end: the last one) with the scanpath so far, (H, W, 3) uint8, and in words what
        is looked at.
        """
        time_s = min(time_s, self.info.end_s)
        (frame,), _ = read_frames(self.video, [time_s])
        return pixels(draw_moment(frame, self.scanpath, time_s), dpi=220), self._looked_at(time_s)

    def _looked_at(self, time_s: float) -> str:
        if self.scanpath is None:
            return f"At {time_s:.1f} s"
        now = np.flatnonzero((self.scanpath.begin_s <= time_s) & (self.scanpath.end_s > time_s))
        if not len(now):
            return f"At {time_s:.1f} s: no fixation"
        begin, end = self.scanpath.begin_s[now[-1]], self.scanpath.end_s[now[-1]]
        return f"At {time_s:.1f} s: fixation {self.scanpath.ids[now[-1]]}, from {begin:.1f} to {end:.1f} s"


def read_table(table: str | Path) -> tuple[Scanpath, tuple[str, ...]]:
    """A fixation table (CSV), and what is odd about it. Raises as `Scanpath.from_csv`."""
    with _catching_warnings, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        scanpath = Scanpath.from_csv(table)
    return scanpath, tuple(named(warning.message, table) for warning in caught)


class Explorer:
    """
    A model, loaded to be asked about recordings. `source`: folder or id of an adapter; `name`: what it is called.
    `has_attention`: whether its latents look somewhere; `is_toy`: whether its base model is the toy world's, so that
    its answers about any other video mean nothing.
    """

    def __init__(self, source: str | PathLike, device: str = "cpu", dtype: str = "auto", name: str | None = None):
        self.processor = load_processor(source)
        self.model = load_model(source, device, dtype)
        self.name = name or str(source)
        self.has_attention = self.model.config.resampler_type == "attention"
        self.is_toy = getattr(self.model.backbone.config, "trained_on", None) == TOY_SOURCE

    def ask(
        self,
        recording: Recording,
        question: str,
        options: str,
        time_s: float,
        start_s: float | None = None,
        snap_s: float = 0.0,
    ) -> Asked:
        """
        Ask at `time_s` about the clip since `start_s` (default: 60 s before). `options`: one to a line, none for an
        answer in the model's own words. Raises ValueError for what cannot be asked.
        """
        if not question.strip():
            raise ValueError("There is no question yet: type one.")
        lines = [line.strip() for line in options.splitlines() if line.strip()]
        if len(lines) == 1:
            raise ValueError(f"There is only one option, {lines[0]!r}: give two or more, or none.")
        prompt, answers = offer(question.strip(), lines, self.processor.prompt_style)
        start_s = window_start_s(min(time_s, recording.info.end_s)) if start_s is None else start_s
        clip = self.processor.read_clip(recording.video, start_s, time_s)
        return ask(self.model, self.processor, clip, recording.scanpath, prompt, answers, snap_s, self.has_attention)


def verdict(asked: Asked) -> str:
    """Whether gaze changed the answer, in a sentence."""
    without = asked.answers["without gaze"]
    if "with gaze" not in asked.answers:
        return f"No gaze was given. The base model says: {without}"
    with_gaze = asked.answers["with gaze"]
    if with_gaze.text != without.text:
        return f"Gaze changed the answer: {with_gaze} instead of {without}"
    if not with_gaze.probabilities:
        return "Gaze did not change the answer"
    before, now = (f"{100 * answer.probabilities[answer.text]:.1f} %" for answer in (without, with_gaze))
    return f"Gaze did not change the answer, {with_gaze.text}. Its probability: {before} without gaze, {now} with it"


def answer_html(name: str, answer: Answer | None) -> str:
    """An answer under its name, with the probability of each option; None: there is none."""
    if answer is None:
        return f'<section class="answer"><h3>{name}</h3><p>No fixation table was given.</p></section>'
    rows = []
    for option, probability in answer.probabilities.items():
        percent = f"{100 * probability:.1f}"
        bar = f'<div style="width: {percent}%"></div>'
        best = ' class="best"' if option == answer.text else ""
        rows.append(f'<tr{best}><th scope="row">{escape(option)}</th><td>{bar}</td><td>{percent} %</td></tr>')
    table = f"<table>{''.join(rows)}</table>" if rows else ""
    return f'<section class="answer"><h3>{name}</h3><p>{escape(answer.text)}</p>{table}</section>'


def steps_html(asked: Asked, attention: np.ndarray | None = None) -> str:
    """
    A picture of each temporal step with the fixations that count in it, and under it their shares. Where `attention`
    (T, H, W) is low, the frame is dark.
    """
    scanpath = Scanpath.from_array([]) if asked.scanpath is None else asked.scanpath
    weights = np.zeros((len(asked.step_spans_s), 0)) if asked.weights is None else asked.weights
    figures = []
    for step, frame in enumerate(frames_of_steps(asked.clip)):
        picture = pixels(draw_step(frame, scanpath, weights[step], None if attention is None else attention[step]))
        span, shares = span_text(*asked.step_spans_s[step]), shares_text(scanpath, weights[step])
        seen = "Fixations" if attention is None else "Where the latents look, and fixations"
        figures.append(
            f'<figure><img src="{_data_url(picture)}" alt="{seen} from {span}: {shares}">'
            f"<figcaption>{span}<br>{shares}</figcaption></figure>"
        )
    return f'<div class="steps">{"".join(figures)}</div>'


def table_html(asked: Asked) -> str:
    """Temporal steps, and which fixations cover which share of each."""
    rows = []
    for number, (begin, end, shares) in enumerate(asked.counted(), start=1):
        counted = ", ".join(f"fixation {fixation}: {100 * share:.0f} %" for fixation, share in shares.items())
        rows.append(f"<tr><td>{number}<td>{begin:.2f} to {end:.2f} s<td>{counted or 'none'}")
    head = "<tr><th>Step<th>Time<th>Fixations and the share of the step that each covers"
    return f'<table class="shares"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'


def named(message, *files: str | Path | None) -> str:
    """A message with the files' names in place of their paths: people know what they uploaded, not where it lies."""
    message = str(message)
    for file in filter(None, files):
        message = message.replace(str(file), Path(file).name)
    return message


def _data_url(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
