"""A simulated viewer: where somebody looks in a scene, as a fixation table in StreamGaze's columns."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gazeqwen.toyworld.world import FRAME_PX, Scene

NOISE_PX = 1.7
_HEADER = (
    "start_time,end_time,center_x,center_y,duration,start_time_seconds,end_time_seconds,fixation_id,duration_seconds"
)
COLUMNS = tuple(_HEADER.split(","))


@dataclass(frozen=True)
class Fixation:
    """Gaze rests on one object from `start_s` to `end_s`; (x, y) is its mean place, normalised by the frame size."""

    start_s: float
    end_s: float
    x_norm: float
    y_norm: float
    object_index: int


def simulate_viewer(
    scene: Scene, rng: np.random.Generator, duration_s: tuple[float, float] = (1.2, 4.0)
) -> list[Fixation]:
    """Fixations of about `duration_s` (least, most), each on an object drawn evenly from those visible all through it.

    Between them lie saccades (0.1 to 0.25 s) and sometimes lost gaze (0.2 to 1.5 s). A moving object is followed, and
    the table holds the mean place. Fixations end within 0.35 s after a whole second, so that StreamGaze's whole-second
    time stamps can lie near the end of a fixation.
    """
    fixations = []
    time_s = float(rng.uniform(0, 0.4))
    while True:
        end_s = round(time_s + float(rng.uniform(*duration_s))) + float(rng.uniform(0.02, 0.35))
        start_s, end_s = round(time_s, 3), round(end_s, 3)
        if end_s > scene.duration_s:
            return fixations
        candidates = scene.visible(start_s, end_s)
        if end_s - start_s < 1.0 or not candidates:
            time_s += 0.2
            continue
        target = candidates[int(rng.integers(len(candidates)))]
        places = scene.objects[target].position_px(np.linspace(start_s, end_s, 33))
        x, y = (places.mean(axis=0) + rng.normal(0, NOISE_PX, size=2)).clip(0, FRAME_PX - 1) / FRAME_PX
        fixations.append(Fixation(start_s, end_s, round(float(x), 5), round(float(y), 5), target))
        lost = rng.random() < 0.25
        time_s = end_s + float(rng.uniform(0.2, 1.5) if lost else rng.uniform(0.1, 0.25))


def write_fixations(path: str | Path, fixations: list[Fixation]) -> None:
    """Write the table that StreamGaze calls `<stem>_fixation_filtered.csv` (times in seconds, places in [0, 1])."""
    with open(path, "w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        for number, f in enumerate(fixations):
            duration_s = round(f.end_s - f.start_s, 3)
            rows.writerow([f.start_s, f.end_s, f.x_norm, f.y_norm, duration_s, f.start_s, f.end_s, number, duration_s])
