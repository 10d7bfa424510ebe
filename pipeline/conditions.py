"""What an evaluated model is told of the gaze: whose, and how. Controls that show whether gaze made the difference."""

import hashlib
import random
import re
from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw

from gazeqwen.questions.streamgaze import Question
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.video_gazeqwen import Clip

CHANNELS = ("model", "text", "overlay", "saliency")
DRAWN = frozenset({"overlay", "saliency"})
SOURCES = ("own", "zero", "shuffled", "shifted")
WORDS = (*CHANNELS, "gaze", "none", *SOURCES[1:], "text_only")

_NOISE = re.compile(r"noise([1-9]\d?|100)")  # in percent

# StreamGaze's overlay, radii in frame widths: a green disc of 8 pixels and a red ring of 100 on a frame of 640.
_DISC, _RING, _LINE = 8 / 640, 0.156, 2 / 640
_SALIENCY_SIGMA, _SALIENCY_OPACITY = 0.06, 0.45  # of the frame's width; of the hottest place


@dataclass(frozen=True)
class Condition:
    """
    `name` is written as words joined by `+`, such as `shuffled` or `overlay+shuffled`.

    How gaze is given: `model` (also `gaze`), to the adapter; `text`, coordinates before the question; `overlay`, disc
    and ring on the frames; `saliency`, a heat map on them; `none`. Without `model` the adapter is off, so that the
    base model answers. Whose gaze: the question's own; `zero`, recorded but without a fixation; `shuffled`, that of
    another question of the same task about another video, moved so that both questions' times agree; `shifted`, the
    own, moved around the clip by half its length. How exactly: `noise5`, with normal noise of 5 % of the frame (any
    whole percent from 1 to 100). `text_only`: no video at all.
    """

    name: str
    channels: frozenset = frozenset({"model"})
    source: str = "own"
    noise: float = 0.0
    text_only: bool = False

    @classmethod
    def parse(cls, name: str) -> "Condition":
        words = name.split("+")
        noises = [int(match[1]) for match in map(_NOISE.fullmatch, words) if match]
        unknown = sorted({word for word in words if word not in WORDS and not _NOISE.fullmatch(word)})
        if unknown:
            raise ValueError(
                f"condition {name!r}: unknown words {unknown}, expected some of {WORDS} and noise1 to noise100, "
                "joined by +"
            )
        channels = {"model" if word == "gaze" else word for word in words if word in (*CHANNELS, "gaze")}
        sources = [word for word in words if word in SOURCES]
        alone = [word for word in words if word in ("none", "text_only")]
        if max(len(sources), len(noises)) > 1 or (alone and len(words) > 1) or len(set(words)) < len(words):
            raise ValueError(
                f"condition {name!r}: expected one source of {SOURCES[1:]} and one noise at most, and 'none' and "
                "'text_only' alone"
            )
        if alone:
            return cls(name, frozenset(), text_only=alone == ["text_only"])
        return cls(name, frozenset(channels or {"model"}), (sources or ["own"])[0], sum(noises) / 100)

    @property
    def draws(self) -> bool:
        """Whether frames are changed."""
        return bool(self.channels & DRAWN)

    def drawing(self, scanpath: Scanpath | None) -> "Drawing | None":
        """What is drawn on the clip of a question that is given this scanpath."""
        return Drawing(self.channels & DRAWN, scanpath) if self.draws and scanpath is not None else None


@dataclass(frozen=True)
class Drawing:
    """Gaze on the frames of a clip: a scanpath, by the `channels` `overlay` and `saliency`."""

    channels: frozenset
    scanpath: Scanpath

    @property
    def digest(self) -> str:
        """Of all that the drawn pixels depend on beside the clip."""
        looks = repr((sorted(self.channels), _DISC, _RING, _LINE, _SALIENCY_SIGMA, _SALIENCY_OPACITY))
        return hashlib.sha256(looks.encode() + np.ascontiguousarray(self.scanpath.table).tobytes()).hexdigest()


def gaze_of(
    condition: Condition, questions: list[Question], seed: int = 0
) -> list[tuple[str | None, Scanpath | None]]:
    """For each question: the video whose gaze is given, and that scanpath; (None, None) where none is."""
    if not condition.channels:
        return [(None, None)] * len(questions)
    given = _shuffled(questions, seed) if condition.source == "shuffled" else _own(questions, condition.source)
    if condition.noise:
        given = [
            (of, None if scanpath is None else noisy(scanpath, condition.noise, _generator(seed, question)))
            for question, (of, scanpath) in zip(questions, given, strict=True)
        ]
    return given


def _generator(seed: int, question: Question) -> np.random.Generator:
    """Random numbers for one question: the same in whichever batch, process, and order of options."""
    return np.random.default_rng([seed, *hashlib.sha256(question.key.encode()).digest()])


def _own(questions: list[Question], source: str) -> list[tuple[str | None, Scanpath | None]]:
    given = []
    for question in questions:
        scanpath = question.scanpath
        if scanpath is not None and source == "zero":
            scanpath = Scanpath.from_array(np.zeros((0, 4)))
        elif scanpath is not None and source == "shifted":
            scanpath = moved_around(scanpath, question.start_s, question.end_s)
        given.append((None if scanpath is None else question.video_name, scanpath))
    return given


def _shuffled(questions: list[Question], seed: int) -> list[tuple[str, Scanpath]]:
    by_task, everything = defaultdict(list), [question for question in questions if question.scanpath is not None]
    for question in everything:
        by_task[question.task].append(question)
    draw, given = random.Random(seed), []
    for question in questions:
        for donors in (by_task[question.task], everything):
            donors = [donor for donor in donors if donor.video_name != question.video_name]
            if donors:
                break
        else:
            videos = len({other.video_name for other in everything})
            raise ValueError(f"shuffled gaze needs the scanpaths of at least 2 videos, got {videos}")
        donor = draw.choice(donors)
        given.append((donor.video_name, moved(donor.scanpath, question.end_s - donor.end_s)))
    return given


def noisy(scanpath: Scanpath, noise: float, rng: np.random.Generator) -> Scanpath:
    """With normal noise on x and y, its standard deviation `noise` of the frame's width and height; times stay."""
    table = scanpath.table.copy()
    table[:, :2] = np.clip(table[:, :2] + rng.normal(0, noise, (len(table), 2)), 0, 1)
    return Scanpath(table, scanpath.ids)


def moved(scanpath: Scanpath, by_s: float) -> Scanpath:
    """The scanpath later by so many seconds (earlier, if negative); what would begin before 0 s is cut there."""
    begin, end = np.maximum(scanpath.begin_s + by_s, 0.0), scanpath.end_s + by_s
    kept = end - begin > 1e-6
    table = np.column_stack([scanpath.table[:, :2], (begin + end) / 2, end - begin])[kept]
    return Scanpath(table, scanpath.ids[kept])


def moved_around(scanpath: Scanpath, start_s: float, end_s: float) -> Scanpath:
    """What the scanpath holds of a clip, later by half its length; what then lies behind the end comes first."""
    inside, length = scanpath.clip(start_s, end_s), end_s - start_s
    parts = [(moved(inside, shift).clip(start_s, end_s)) for shift in (length / 2 - length, length / 2)]
    table, ids = (np.concatenate([getattr(part, name) for part in parts]) for name in ("table", "ids"))
    order = np.argsort(table[:, 2], kind="stable")
    return Scanpath(table[order], ids[order])


# ------------------------------------------------------------------ gaze that can be seen or read
def gaze_in_words(scanpath: Scanpath, start_s: float, end_s: float) -> str:
    """The clip's fixations as a sentence: times from the clip's beginning, x and y from 0 to 1."""
    inside = scanpath.clip(start_s, end_s)
    if not len(inside):
        return "The wearer's gaze was recorded; there was no fixation."
    spans = zip(inside.begin_s - start_s, inside.end_s - start_s, inside.table[:, 0], inside.table[:, 1], strict=True)
    listed = "; ".join(f"{begin:.1f} to {end:.1f} s at ({x:.2f}, {y:.2f})" for begin, end, x, y in spans)
    return f"The wearer looked at these places (x, y from 0 to 1, from the upper left corner): {listed}."


def draw_gaze(clip: Clip, scanpath: Scanpath, channels) -> Clip:
    """The clip with the gaze drawn on its frames, each as it was at its time; the clip itself stays as it is."""
    frames = clip.frames.copy()
    for index, (frame, time_s) in enumerate(zip(clip.frames, clip.timestamps_s, strict=True)):
        if "saliency" in channels:
            frame = _with_heat(frame, scanpath.clip(clip.start_s, max(time_s, clip.start_s)))
        if "overlay" in channels:
            frame = _with_disc_and_ring(frame, scanpath, time_s)
        frames[index] = frame
    return replace(clip, frames=frames)


def _with_disc_and_ring(frame: np.ndarray, scanpath: Scanpath, time_s: float) -> np.ndarray:
    """Disc and ring at the fixation under way, none between fixations."""
    active = np.flatnonzero((scanpath.begin_s <= time_s) & (time_s < scanpath.end_s))
    if not len(active):
        return frame
    height, width = frame.shape[:2]
    image = Image.fromarray(frame)
    draw, line = ImageDraw.Draw(image), max(1, round(_LINE * width))
    for x, y in scanpath.table[active, :2] * (width, height):
        for radius, fill, edge in ((_RING, None, (255, 0, 0)), (max(_DISC, 1.5 / width), (0, 255, 0), (0, 0, 0))):
            r = radius * width
            draw.ellipse((x - r, y - r, x + r, y + r), fill=fill, outline=edge, width=line)
    return np.asarray(image)


def _with_heat(frame: np.ndarray, seen: Scanpath) -> np.ndarray:
    """A heat map of the fixations so far, by their durations, over the frame."""
    if not len(seen):
        return frame
    height, width = frame.shape[:2]
    sigma = _SALIENCY_SIGMA * width
    rows = np.exp(-(((np.arange(height) + 0.5)[:, None] - seen.table[:, 1] * height) ** 2) / (2 * sigma**2))
    columns = np.exp(-(((np.arange(width) + 0.5)[:, None] - seen.table[:, 0] * width) ** 2) / (2 * sigma**2))
    heat = (rows * seen.table[:, 3]) @ columns.T
    heat = (heat / heat.max())[..., None]
    colored = colormaps["jet"](heat[..., 0])[..., :3] * 255
    opacity = _SALIENCY_OPACITY * np.minimum(2 * heat, 1)
    return (frame * (1 - opacity) + colored * opacity).round().astype(np.uint8)


__all__ = [
    "CHANNELS",
    "WORDS",
    "Condition",
    "Drawing",
    "draw_gaze",
    "gaze_in_words",
    "gaze_of",
    "moved",
    "moved_around",
    "noisy",
]
