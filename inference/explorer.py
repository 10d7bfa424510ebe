"""Hold what app.py shows, without the page: a video with gaze to scrub through, an answer in words and pictures."""

from __future__ import annotations

import base64
import io
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from html import escape
from os import PathLike
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from gazeqwen.gaze_sources import SOURCES, guess_source, guessed_scanpath
from gazeqwen.inference.answering import Comparison, ask, scanpath_doubts
from gazeqwen.inference.visitors import MAX_CLIP_S, checked_texts
from gazeqwen.pipeline.answers import Answer, build_prompt
from gazeqwen.plots.scanpath import draw_moment, draw_step, shares_text, span_text
from gazeqwen.plots.style import pixels
from gazeqwen.questions.tasks import window_start_s
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.utils.adapters import is_in_4bit, load_model, load_processor
from gazeqwen.video_gazeqwen import VideoInfo, read_frames, video_info

_SHORT = 120  # characters of an answer that a sentence can repeat


@dataclass(frozen=True, eq=False)
class GazeRecording:
    """A video file and the wearer's whole scanpath (None: no gaze). `notes`: what is to be known about the gaze."""

    video: Path
    info: VideoInfo
    scanpath: Scanpath | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def open(cls, video: str | Path | None, table: str | Path | None = None) -> GazeRecording:
        """
        Open a video file and its fixation table (CSV) or raw gaze. Raises ValueError or OSError for what is no such
        thing.
        """
        if video is None:
            raise ValueError("There is no video yet: upload one, or choose an example.")
        scanpath, notes = (None, ()) if table is None else read_gaze(table, video)
        info = video_info(video)
        if scanpath is not None:
            notes = (*notes, *scanpath_doubts(scanpath, info.end_s))
        return cls(Path(video), info, scanpath, notes)

    def __str__(self) -> str:
        text = f"Video: {self.info.end_s:.1f} s, {self.info.width} x {self.info.height} pixels. "
        if self.scanpath is None:
            return text + "No gaze: the answer will be the base model's."
        text += f"Gaze: {len(self.scanpath)} fixations"
        if len(self.scanpath):
            text += f", from {self.scanpath.begin_s[0]:.1f} to {self.scanpath.end_s.max():.1f} s"
        return ". ".join([text, *self.notes])

    def moment(self, time_s: float) -> tuple[np.ndarray, str]:
        """
        Return the frame at a time (beyond the end: the last one) with the scanpath so far, (H, W, 3) uint8, and in
        words what is looked at.
        """
        time_s = min(time_s, self.info.end_s)
        (frame,), _ = read_frames(self.video, [time_s])
        return pixels(draw_moment(frame, self.scanpath, time_s), dpi=220), self._fixation_text(time_s)

    def _fixation_text(self, time_s: float) -> str:
        """Return in words which fixation there is at a time."""
        if self.scanpath is None:
            return f"At {time_s:.1f} s"
        index = self.scanpath.index_at(time_s)
        if index is None:
            return f"At {time_s:.1f} s: no fixation"
        begin, end = self.scanpath.begin_s[index], self.scanpath.end_s[index]
        return f"At {time_s:.1f} s: fixation {self.scanpath.ids[index]}, from {begin:.1f} to {end:.1f} s"


def read_gaze(table: str | Path, video: str | Path | None) -> tuple[Scanpath | None, tuple[str, ...]]:
    """
    Return the scanpath of a fixation table (CSV) or of raw gaze, whose source is guessed, and what is to be known
    about it. Raw gaze without its video has no scanpath yet. Raises ValueError or OSError naming file, line and value.
    """
    doubts: list[str] = []
    try:
        source, sign = guess_source(table)
    except ValueError:  # of no known source: the error of what reads tables says more
        source, sign = "generic", ""
    if source == "generic":
        scanpath = Scanpath.from_csv(table, doubts.append)
    else:
        doubts.append(f"Raw gaze of the source {source}, guessed from {sign}")
        scanpath = None if video is None else _fixations(table, video, source, doubts)
    return scanpath, tuple(with_file_names(doubt, table, video) for doubt in doubts)


def _fixations(table: str | Path, video: str | Path, source: str, doubts: list[str]) -> Scanpath:
    """Return the fixations in raw gaze. Raises ValueError that says what the file was taken for."""
    try:
        return guessed_scanpath(SOURCES[source], table, video, doubts.append)
    except (ValueError, OSError, ImportError) as error:
        raise ValueError(
            f"{error}. It was read as the source {source}; `gazeqwen gaze` takes another, folders, and settings, and "
            "makes a fixation table to be uploaded here"
        ) from None


class Explorer:
    """
    A model, loaded to be asked about recordings. `source`: folder or id of an adapter; `name`: what it is called.
    `has_attention`: whether its latents look somewhere.
    """

    def __init__(
        self,
        source: str | PathLike,
        device: str | None = "cpu",
        dtype: str = "auto",
        name: str | None = None,
        trust_remote_code: bool = False,
        load_in_4bit: bool | None = None,
    ):
        self.processor = load_processor(source, trust_remote_code=trust_remote_code)
        self.model = load_model(source, device, dtype, trust_remote_code=trust_remote_code, load_in_4bit=load_in_4bit)
        self.name = (name or str(source)) + (", its base model in 4 bits" if is_in_4bit(self.model) else "")
        self.has_attention = self.model.config.resampler_type == "attention"

    def ask(
        self,
        recording: GazeRecording,
        question: str,
        options: str,
        time_s: float,
        start_s: float | None = None,
        snap_s: float | None = None,
        turn: AbstractContextManager | None = None,
    ) -> Comparison:
        """
        Ask at `time_s` about the clip since `start_s` (default: 60 s before). `options`: one to a line, none for an
        answer in the model's own words. `snap_s`: seconds, default as the adapter was trained. `turn` is entered for
        the time that the model is needed. Raises ValueError for what cannot be asked.
        """
        if snap_s is None:
            snap_s = self.processor.snap_s
        question, lines = checked_texts(question, options)
        prompt, answers = build_prompt(question, lines, self.processor.prompt_style)
        start_s = window_start_s(min(time_s, recording.info.end_s)) if start_s is None else start_s
        if time_s - start_s > MAX_CLIP_S:
            raise ValueError(f"The clip is {time_s - start_s:g} s long, expected at most {MAX_CLIP_S:g} s.")
        clip = self.processor.read_clip(recording.video, start_s, time_s)
        gaze, explains = recording.scanpath, self.has_attention
        with turn or nullcontext():
            return ask(self.model, self.processor, clip, gaze, prompt, answers, snap_s, explains)


def verdict(comparison: Comparison) -> str:
    """Return in a sentence whether gaze changed the answer. Long answers in own words are not repeated in it."""
    without = comparison.answers["without gaze"]
    texts = [answer.text for answer in comparison.answers.values()]
    is_short = max(map(len, texts)) <= _SHORT
    if "with gaze" not in comparison.answers:
        return "No gaze was given. The base model" + (f" says: {without}" if is_short else "'s answer is below")
    with_gaze = comparison.answers["with gaze"]
    if with_gaze.text != without.text:
        return "Gaze changed the answer" + (f": {with_gaze} instead of {without}" if is_short else "")
    if not with_gaze.probabilities:
        return "Gaze did not change the answer"
    before, now = (f"{100 * answer.probabilities[answer.text]:.1f} %" for answer in (without, with_gaze))
    answer = f", {with_gaze.text}" if is_short else ""
    return f"Gaze did not change the answer{answer}. Its probability: {before} without gaze, {now} with it"


def truth_html(answer: str) -> str:
    """Return the right answer of an example, in a paragraph."""
    return f'<p class="note">The right answer of this example: <b>{escape(answer)}</b>.</p>'


def player_html(video: str | Path | None) -> str:
    """Return a player for a video that Gradio serves; a browser that cannot play the file says so. None: no player."""
    if video is None:
        return ""
    sorry = "This browser cannot play the file. It is read here all the same."
    address = f"gradio_api/file={quote(str(video))}"
    return f'<video controls preload="metadata" src="{address}" onerror="this.outerHTML=\'<p>{sorry}</p>\'"></video>'


def answer_html(name: str, answer: Answer | None) -> str:
    """Return an answer under its name, with the probability of each option; None: there is none."""
    if answer is None:
        return f'<section class="answer"><h3>{name}</h3><p>No gaze was given.</p></section>'
    rows = []
    for option, probability in answer.probabilities.items():
        percent = f"{100 * probability:.1f}"
        bar = f'<div style="width: {percent}%"></div>'
        best = ' class="best"' if option == answer.text else ""
        rows.append(f'<tr{best}><th scope="row">{escape(option)}</th><td>{bar}</td><td>{percent} %</td></tr>')
    table = f"<table>{''.join(rows)}</table>" if rows else ""
    return f'<section class="answer"><h3>{name}</h3><p>{escape(answer.text)}</p>{table}</section>'


def snap_html(comparison: Comparison) -> str:
    """Return what snapping changed, in a paragraph; empty where it changed nothing."""
    return "" if comparison.snap is None else f'<p class="note">Gaze was {escape(str(comparison.snap))}.</p>'


def step_frames(recording: GazeRecording, comparison: Comparison) -> np.ndarray:
    """Return (T, H, W, 3), for each temporal step the video's frame at the moment that stands for it."""
    return read_frames(recording.video, comparison.moments_s())[0]


def steps_html(comparison: Comparison, frames: np.ndarray, attention: np.ndarray | None = None) -> str:
    """
    Return a picture of each temporal step with the fixations that count in it, on `frames` (T, H, W, 3) as of
    `step_frames`, and under it their shares. Where `attention` (T, H, W) is low, the frame is dark.
    """
    scanpath = Scanpath.from_array([]) if comparison.scanpath is None else comparison.scanpath
    weights = np.zeros((len(frames), 0)) if comparison.weights is None else comparison.weights
    figures = []
    for step, frame in enumerate(frames):
        snapped = comparison.snapped_in(step)
        step_attention = None if attention is None else attention[step]
        picture = pixels(draw_step(frame, scanpath, weights[step], step_attention, snapped))
        span = span_text(*comparison.step_spans_s[step])
        shares = shares_text(scanpath, weights[step], snapped)
        subject = "Fixations" if attention is None else "Where the latents look, and fixations"
        figures.append(
            f'<figure><img src="{_data_url(picture)}" alt="{subject} from {span}: {shares}">'
            f"<figcaption>{span}<br>{shares}</figcaption></figure>"
        )
    return f'<div class="steps">{"".join(figures)}</div>'


def table_html(comparison: Comparison) -> str:
    """Return a table of the temporal steps: which fixations cover which share of each."""
    rows = []
    for number, step in enumerate(comparison.steps(), start=1):
        rows.append(f"<tr><td>{number}<td>{step.begin_s:.2f} to {step.end_s:.2f} s<td>{step}")
    head = "<tr><th>Step<th>Time<th>Fixations and the share of the step that each covers"
    return f'<table class="shares"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'


def with_file_names(message, *files: str | Path | None) -> str:
    """Return a message with files' names in place of their paths: people know what they uploaded, not where it is."""
    message = str(message)
    for file in filter(None, files):
        message = message.replace(str(file), Path(file).name)
    return message


def _data_url(picture: np.ndarray) -> str:
    """Return a picture (H, W, 3) uint8 as the address of a WebP image that HTML can hold."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
