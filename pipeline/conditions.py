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

CHANNELS = ("model", "text", "overlay", "ring", "saliency")
SOURCES = ("own", "zero", "shuffled", "shifted")
WORDS = (*CHANNELS, "gaze", "none", *SOURCES[1:], "text_only")

_NOISE = re.compile(r"noise([1-9]\d?|100)")  # in percent


@dataclass(frozen=True)
class Condition:
    """
    `name` is written as words joined by `+`, such as `shuffled` or `overlay+shuffled`.

    How gaze is given: `model` (also `gaze`), to the adapter; `text`, coordinates before the question; `overlay`, disc
    and ring on the frames; `ring`, a plain white ring on them; `saliency`, a heat map on them; `none`. Without `model`
    the adapter is off, so that the base model answers. Whose gaze: the question's own; `zero`, recorded but without a
    fixation; `shuffled`, that of another question of the same task about another video, moved so that both questions'
    times agree; `shifted`, the own, moved around the clip by half its length. How exactly: `noise5`, with normal noise
    of 5 % of the frame (any whole percent from 1 to 100). `text_only`: no video at all.
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
            raise ValueError(f"shuffled gaze needs the scanpaths of at least 2 videos, got {videos}: add videos")
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


__all__ = ["CHANNELS", "WORDS", "Condition", "assign_scanpaths", "moved", "moved_around", "noisy"]
