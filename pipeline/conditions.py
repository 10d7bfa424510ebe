"""What an evaluated model is told of the gaze: whose, and how. Controls that show whether gaze made the difference."""

import hashlib
import random
import re
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from gazeqwen.pipeline.overlays import DRAWN, Drawing
from gazeqwen.questions.question import Question
from gazeqwen.scanpath_gazeqwen import Scanpath

CHANNELS = ("model", "text", "overlay", "ring", "cross", "saliency")
SOURCES = ("own", "zero", "shuffled", "shifted", "centre", "random_place", "permuted_times")
WORDS = (*CHANNELS, "gaze", "none", *SOURCES[1:], "text_only")

_NOISE = re.compile(r"noise([1-9]\d?|100)")  # in percent


@dataclass(frozen=True)
class Condition:
    """
    `name` is written as words joined by `+`, such as `shuffled` or `overlay+shuffled`.

    How gaze is given: `model` (also `gaze`), to the adapter; `text`, coordinates before the question; `overlay`, disc
    and ring on the frames; `ring` and `cross`, a plain white one on them; `saliency`, a heat map on them; `none`.
    Without `model` the adapter is off, so that the base model answers. Whose gaze: the question's own; `zero`,
    recorded but without a fixation; `shuffled`, that of another question of the same task about another video, moved
    so that both questions' times agree; `shifted`, the own, moved around the clip by half its length; `centre`, the
    own with every fixation in the middle of the frame; `random_place`, the own with each fixation at a place drawn
    evenly in the frame; `permuted_times`, the own with the places of the clip's fixations in another order. How
    exactly: `noise5`, with normal noise of 5 % of the frame (any whole percent from 1 to 100). `text_only`: no video
    at all.

    What a control says: as good as `gaze` under `shuffled`, whose gaze it is does not matter; under `centre`, a point
    that never moves explains the answers, as where people look straight ahead; under `random_place`, when somebody
    looked is enough; under `permuted_times`, which places were looked at, in whatever order, for however long. The
    places of the last two are drawn for each question, from the seed, and the times of all three are as recorded.
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


def assign_scanpaths(
    condition: Condition, questions: list[Question], seed: int = 0, snap_s: float = 0.0
) -> list[tuple[str | None, Scanpath | None]]:
    """
    Return for each question the video whose gaze is given, and that scanpath; (None, None) where none is. `snap_s`:
    within how many seconds questions will be snapped (`Question.seen`): the fixation that this brings into view counts
    as one of the clip's. Raises ValueError where no other video has gaze to be shuffled in.
    """
    if not condition.channels:
        return [(None, None)] * len(questions)
    if condition.source == "shuffled":
        given = _shuffled(questions, seed)
    else:
        given = [_own(question, condition.source, seed, snap_s) for question in questions]
    if condition.noise:
        given = [
            (of, None if scanpath is None else noisy(scanpath, condition.noise, _generator(seed, question)))
            for question, (of, scanpath) in zip(questions, given, strict=True)
        ]
    return given


def _generator(seed: int, question: Question, purpose: str = "") -> np.random.Generator:
    """
    Return random numbers for one question: the same in whichever batch, process, and order of options, and others for
    another `purpose`, so that noise does not follow the places that it is added to.
    """
    return np.random.default_rng([seed, *hashlib.sha256((purpose + question.key).encode()).digest()])


def _own(question: Question, source: str, seed: int, snap_s: float) -> tuple[str | None, Scanpath | None]:
    scanpath = question.scanpath
    if scanpath is None:
        return None, None
    if source == "zero":
        scanpath = Scanpath.from_array(np.zeros((0, 4)))
    elif source == "shifted":
        scanpath = moved_around(scanpath, question.start_s, question.end_s)
    elif source == "centre":
        scanpath = with_places(scanpath, np.full((len(scanpath), 2), 0.5))
    elif source == "random_place":
        scanpath = with_places(scanpath, _generator(seed, question, source).random((len(scanpath), 2)))
    elif source == "permuted_times":
        in_view = _in_view(question, snap_s)
        scanpath = with_other_order(scanpath, in_view, _generator(seed, question, source))
    return question.video_name, scanpath


def _in_view(question: Question, snap_s: float) -> np.ndarray:
    """Return (N,) bool: whether the question sees a fixation, which overlaps its clip or is snapped into it."""
    scanpath = question.scanpath
    numbered = Scanpath(scanpath.table, np.arange(len(scanpath)))
    in_view = np.zeros(len(scanpath), bool)
    in_view[numbered.clip(question.start_s, question.end_s).ids] = True
    snapped = scanpath.index_to_snap(question.end_s, snap_s) if question.snapped and snap_s else None
    if snapped is not None:
        in_view[snapped] = True
    return in_view


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
            raise ValueError(f"shuffled gaze needs the scanpaths of at least 2 videos, got {videos}: add videos")
        donor = draw.choice(donors)
        given.append((donor.video_name, moved(donor.scanpath, question.end_s - donor.end_s)))
    return given


def noisy(scanpath: Scanpath, noise: float, rng: np.random.Generator) -> Scanpath:
    """With normal noise on x and y, its standard deviation `noise` of the frame's width and height; times stay."""
    table = scanpath.table.copy()
    table[:, :2] = np.clip(table[:, :2] + rng.normal(0, noise, (len(table), 2)), 0, 1)
    return Scanpath(table, scanpath.ids)


def with_places(scanpath: Scanpath, places: np.ndarray) -> Scanpath:
    """Return the scanpath with its fixations at other places, (N, 2) x and y from 0 to 1; times stay."""
    return Scanpath(np.column_stack([places, scanpath.table[:, 2:]]), scanpath.ids)


def with_other_order(scanpath: Scanpath, chosen: np.ndarray, rng: np.random.Generator) -> Scanpath:
    """
    Return the scanpath with the places of the `chosen` fixations, (N,) bool, in another order, drawn evenly from all
    but the recorded one; times stay. A single fixation, or several at one place, have no other order and stay as they
    are: there the control is the gaze that it is compared with, and says nothing.
    """
    places, rows = scanpath.table[:, :2].copy(), np.flatnonzero(chosen)
    recorded = places[rows]
    if len(rows) and (recorded != recorded[0]).any():
        while (places[rows] == recorded).all():  # half of the draws at most: the recorded order of two fixations
            places[rows] = rng.permutation(recorded)
    return with_places(scanpath, places)


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


__all__ = [
    "CHANNELS",
    "WORDS",
    "Condition",
    "assign_scanpaths",
    "moved",
    "moved_around",
    "noisy",
    "with_other_order",
    "with_places",
]
