"""Simulated viewers: where somebody looks in a scene, as a fixation table in StreamGaze's columns."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.toyworld.world import FRAME_PX, Scene

_HEADER = (
    "start_time,end_time,center_x,center_y,duration,start_time_seconds,end_time_seconds,fixation_id,duration_seconds"
)
COLUMNS = tuple(_HEADER.split(","))
NOTHING = -1  # the object index of gaze that rests on no object
VERBS = ("take", "move", "wash", "open")


@dataclass(frozen=True)
class Viewer:
    """
    Somebody's habits. `pace`: dwells last so many times as long as usual; shares of dwells; the tracker's noise, in
    pixels of a frame 112 wide.
    """

    pace: float = 1.0
    lost_share: float = 0.2
    off_object_share: float = 0.1
    noise_px: float = 1.5


def make_viewer(rng: np.random.Generator) -> Viewer:
    return Viewer(*(round(float(rng.uniform(*span)), 3) for span in ((0.75, 1.25), (0.1, 0.3), (0.05, 0.2), (0.8, 2))))


@dataclass(frozen=True)
class Fixation:
    """Gaze rests from `start_s` to `end_s`, on an object or on none; (x, y) is its mean place, of the frame's size."""

    start_s: float
    end_s: float
    x_norm: float
    y_norm: float
    object_index: int


@dataclass(frozen=True)
class Dwell:
    """Gaze stays on one object, or on an empty place, for one fixation or several."""

    start_s: float
    end_s: float
    object_index: int


@dataclass(frozen=True)
class Action:
    """The viewer does something with an object, after the dwells `first` to `last` on four different ones."""

    time_s: float
    object_index: int
    verb: str
    first: int
    last: int


@dataclass(frozen=True)
class Recording:
    """What happened in a video: the scene as it came to be, and where its viewer looked."""

    scene: Scene
    viewer: Viewer
    dwells: tuple[Dwell, ...]
    fixations: tuple[Fixation, ...]
    action: Action | None

    @cached_property
    def scanpath(self) -> Scanpath:
        """Return the scanpath as a model is given it; `ids` are indices of `fixations`."""
        rows = [(f.x_norm, f.y_norm, (f.start_s + f.end_s) / 2, f.end_s - f.start_s) for f in self.fixations]
        return Scanpath.from_array(np.array(rows).reshape(-1, 4), "toy viewer")


def _fixation_times_s(rng: np.random.Generator, start_s: float, end_s: float) -> list[tuple[float, float]]:
    """
    Draw the times of fixations of .2 to 4 s that fill a dwell, with small saccades between them and sometimes lost
    gaze.
    """
    times = []
    while end_s - start_s >= 0.2:
        lasts_s = float(np.clip(rng.lognormal(np.log(1.1), 0.7), 0.2, 4.0))
        gap_s = float(rng.uniform(0.2, 0.8) if rng.random() < 0.08 else rng.uniform(0.03, 0.1))
        until_s = start_s + lasts_s
        if until_s + gap_s + 0.2 > end_s:  # no room for another one
            until_s = min(end_s, start_s + 4.0)
        times.append((start_s, until_s))
        start_s = until_s + gap_s
    return times


def _empty_place(rng: np.random.Generator, scene: Scene, time_s: float) -> np.ndarray | None:
    """Draw a place of the frame that is most of a cell away from every object."""
    taken = [scene.objects[i].position_px(time_s) for i in scene.visible(time_s)]
    for _ in range(20):
        place = rng.uniform(6, scene.frame_px - 6, size=2)
        if all(np.linalg.norm(place - other) > 0.9 * scene.cell_px for other in taken):
            return place
    return None


def _looked_at_longest(dwells: list[Dwell]) -> int | None:
    """The object of by far the longest of the last four dwells, if they are on four objects and within a minute."""
    last = dwells[-4:]
    objects = {d.object_index for d in last}
    if len(objects) < 4 or NOTHING in objects or last[-1].end_s - last[0].start_s > 59:
        return None
    *_, second, longest = sorted(last, key=lambda d: d.end_s - d.start_s)
    clear = longest.end_s - longest.start_s >= 1.8 * (second.end_s - second.start_s)
    return longest.object_index if clear else None


def simulate_viewer(scene: Scene, viewer: Viewer, rng: np.random.Generator) -> Recording:
    """
    About nine dwells, each on an object drawn evenly from those visible all through it, that the viewer has not yet
    looked at: gaze returns to an object when all have had their turn. Some dwells are on nothing, and between dwells
    gaze is sometimes lost. After four dwells of which one was by far the longest, the viewer acts on that object; what
    is taken is gone. A moving object is followed, and the table holds the mean place of each fixation.
    """
    dwells, fixations, action, seen = [], [], None, set()
    usual_s = scene.duration_s / 11 * viewer.pace
    decides = int(rng.integers(3, 6))  # the dwell after which an action is decided on
    long = decides - int(rng.integers(4))  # of the four dwells up to it, the one that is long
    time_s = float(rng.uniform(0, 0.4))
    while True:
        lasts_s = usual_s * rng.lognormal(0, 0.25) * (2.8 if len(dwells) == long else 1)
        start_s, end_s = round(time_s, 3), round(time_s + max(0.8, float(lasts_s)), 3)
        if end_s > scene.duration_s:
            return Recording(scene, viewer, tuple(dwells), tuple(fixations), action)
        candidates = scene.visible(start_s, end_s)
        wanders = not 0 <= decides - len(dwells) < 4 and rng.random() < viewer.off_object_share
        place = _empty_place(rng, scene, start_s) if wanders else None
        if place is not None:
            target, end_s = NOTHING, min(end_s, round(start_s + 2.0, 3))
        elif candidates:
            fresh = [i for i in candidates if i not in seen]
            if not fresh:
                seen = {dwells[-1].object_index}
                fresh = [i for i in candidates if i not in seen] or candidates
            target = fresh[int(rng.integers(len(fresh)))]
            seen.add(target)
        else:
            time_s += 0.2
            continue
        dwells.append(Dwell(start_s, end_s, target))
        for begin_s, until_s in _fixation_times_s(rng, start_s, end_s):
            if target == NOTHING:
                places = np.array([place])
            else:
                places = scene.objects[target].position_px(np.linspace(begin_s, until_s, 17))
            x, y = places.mean(axis=0) + rng.normal(0, viewer.noise_px * scene.frame_px / FRAME_PX, size=2)
            x, y = (round(float(v), 5) for v in np.clip([x, y], 0, scene.frame_px - 1) / scene.frame_px)
            fixations.append(Fixation(round(begin_s, 3), round(until_s, 3), x, y, target))
        if len(dwells) == decides + 1 and (longest := _looked_at_longest(dwells)) is not None:
            acts_s = round(end_s + float(rng.uniform(3.2, 4.5 + 0.1 * scene.duration_s)), 3)
            if acts_s < scene.duration_s - 0.5:
                verb = VERBS[int(rng.integers(len(VERBS)))]
                action = Action(acts_s, longest, verb, len(dwells) - 4, len(dwells) - 1)
                if verb == "take":
                    scene = scene.with_taken(longest, acts_s)
        lost = rng.random() < viewer.lost_share
        time_s = end_s + float(rng.uniform(0.3, 1.5) if lost else rng.uniform(0.05, 0.2))


def write_fixations(path: str | Path, fixations) -> None:
    """Write the table that StreamGaze calls `<stem>_fixation_filtered.csv` (times in seconds, places in [0, 1])."""
    with open(path, "w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        for number, f in enumerate(fixations):
            duration_s = round(f.end_s - f.start_s, 3)
            rows.writerow([f.start_s, f.end_s, f.x_norm, f.y_norm, duration_s, f.start_s, f.end_s, number, duration_s])
