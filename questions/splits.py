"""Divide videos into training, validation and test."""

import random
from collections import Counter, defaultdict
from itertools import chain
from pathlib import Path

from gazeqwen.questions.release_questions import read_json
from gazeqwen.questions.tasks import SPLITS


def published_split(names) -> dict[str, list[str]]:
    """Return the split of the published GazeQwen: sorted video names, shuffled with seed 42, 70 / 15 / 15 percent."""
    names = sorted(set(names))
    random.Random(42).shuffle(names)
    train, validation = int(0.70 * len(names)), int(0.15 * len(names))
    parts = (names[:train], names[train : train + validation], names[train + validation :])
    return {split: sorted(part) for split, part in zip(SPLITS, parts, strict=True)}


def participant_split(groups: dict[str, tuple[str, str]], seed: int = 42) -> dict[str, list[str]]:
    """
    Return a split in which nobody is in two parts. `groups`: {video name: (source, participant)}. Per source,
    participants in random order fill 70, 15 and 15 percent of the videos.
    """
    by_source: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in sorted(groups):
        source, participant = groups[name]
        by_source[source][participant].append(name)
    split: dict[str, list[str]] = {name: [] for name in SPLITS}
    for source in sorted(by_source):
        people = sorted(by_source[source])
        random.Random(f"{seed} {source}").shuffle(people)
        total, placed = sum(map(len, by_source[source].values())), 0
        for person in people:
            middle = (placed + len(by_source[source][person]) / 2) / total
            part = "train" if middle < 0.70 else "validation" if middle < 0.85 else "test"
            split[part] += by_source[source][person]
            placed += len(by_source[source][person])
    return split


def read_splits(path: Path) -> dict[str, list[str]]:
    """
    Read {split: video names} from a JSON file that lists them under train, validation (or val) and test.

    Raises ValueError naming the file for other splits, or a video that is listed twice.
    """
    splits = read_json(path)
    if not isinstance(splits, dict):
        raise ValueError(f"{path}: expected an object of lists of video names")
    if {"val", "validation"} <= set(splits):
        raise ValueError(f"{path}: splits {sorted(splits)}, expected val or validation, not both")
    splits = {"validation" if name == "val" else name: names for name, names in splits.items()}
    if not set(splits) <= set(SPLITS) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in splits.values()
    ):
        raise ValueError(f"{path}: splits {sorted(splits)}, expected lists of video names under {SPLITS}")
    repeated = [name for name, count in Counter(chain.from_iterable(splits.values())).items() if count > 1]
    if repeated:
        raise ValueError(f"{path}: {len(repeated)} videos are listed twice, such as {repeated[0]!r}")
    return {name: splits.get(name, []) for name in SPLITS}
