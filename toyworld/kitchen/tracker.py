"""
An eye tracker in the kitchen: raw gaze at 60 samples a second, with fixations that drift and tremble, saccades, blinks
and an error of calibration; and the fixations that `gaze_sources` detects in it, as for any recording.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gazeqwen.gaze_sources.fixations import detect_fixations
from gazeqwen.gaze_sources.samples import GazeSamples
from gazeqwen.toyworld.kitchen.scene import FRAME_PX, KitchenScene
from gazeqwen.toyworld.viewer import NOTHING, Fixation, Recording, Viewer, simulate_viewer

RATE_HZ = 60.0
BLINK_EVERY_S, BLINK_S = (2.0, 8.0), (0.1, 0.25)
TREMOR_PX = 0.6  # standard deviation of a sample around where gaze is, times the viewer's noise
OFF_CENTRE = 0.15  # standard deviation of a fixation's place on a thing, of the thing's width
CALIBRATION_PX = 1.5  # standard deviation of a viewer's constant error
SACCADE_S = 0.12  # what lies between two fixations no longer apart than this is a saccade, else gaze is lost


def record_viewer(scene: KitchenScene, viewer: Viewer, rng: np.random.Generator) -> Recording:
    """
    Return what a viewer does in a scene, as an eye tracker has it: the dwells are the simulated ones, the fixations
    those detected in the raw gaze, each with what the dwell that holds its middle is on.
    """
    recording = simulate_viewer(scene, viewer, rng)
    scanpath = detect_fixations(raw_gaze(recording, rng))
    starts = np.array([dwell.start_s for dwell in recording.dwells])
    fixations = []
    for (x, y, middle_s, _), begin_s, end_s in zip(scanpath.table, scanpath.begin_s, scanpath.end_s, strict=True):
        index = int(np.searchsorted(starts, middle_s, side="right")) - 1
        dwell = recording.dwells[index] if index >= 0 else None
        thing = dwell.object_index if dwell and middle_s < dwell.end_s else NOTHING
        times = (round(float(begin_s), 3), round(float(end_s), 3))
        fixations.append(Fixation(*times, round(float(x), 5), round(float(y), 5), thing))
    return replace(recording, fixations=tuple(fixations))


def raw_gaze(recording: Recording, rng: np.random.Generator) -> GazeSamples:
    """Return the samples of an eye tracker, from the video's beginning to its end."""
    scene, side = recording.scene, recording.scene.frame_px
    scale = side / FRAME_PX
    times_s = np.arange(int(scene.duration_s * RATE_HZ)) / RATE_HZ
    places = np.full((len(times_s), 2), np.nan)
    error = rng.normal(0, CALIBRATION_PX * scale, size=2)
    before = None  # the end of the fixation before: time and place
    for fixation in recording.fixations:
        thing = None if fixation.object_index == NOTHING else scene.objects[fixation.object_index]
        off = rng.normal(0, OFF_CENTRE, size=2).clip(-0.4, 0.4) * (thing.size_px if thing else 0)
        still = np.array([fixation.x_norm, fixation.y_norm]) * side

        def gaze_px(at_s, thing=thing, off=off, still=still):
            return thing.position_px(at_s) + off if thing else np.broadcast_to(still, (*np.shape(at_s), 2))

        within = (fixation.start_s <= times_s) & (times_s < fixation.end_s)
        places[within] = gaze_px(times_s[within])
        start_px = gaze_px(np.array(fixation.start_s))
        if before is not None and fixation.start_s - before[0] <= SACCADE_S:
            between = (before[0] <= times_s) & (times_s < fixation.start_s)
            share = (times_s[between] - before[0]) / max(fixation.start_s - before[0], 1e-6)
            done = (10 * share**3 - 15 * share**4 + 6 * share**5)[:, None]  # minimum jerk
            places[between] = before[1] + done * (start_px - before[1])
        before = (fixation.end_s, gaze_px(np.array(fixation.end_s)))
    blinks, time_s = np.zeros(len(times_s), bool), float(rng.uniform(*BLINK_EVERY_S))
    while time_s < scene.duration_s:
        lasts_s = float(rng.uniform(*BLINK_S))
        blinks |= (time_s <= times_s) & (times_s < time_s + lasts_s)
        time_s += lasts_s + float(rng.uniform(*BLINK_EVERY_S))
    places[blinks] = np.nan
    places = places + error + rng.normal(0, TREMOR_PX * scale * recording.viewer.noise_px / 1.5, size=places.shape)
    return GazeSamples.from_recording(
        times_s, places / side, np.isfinite(places).all(axis=1), "kitchen viewer", frame_size=(side, side)
    )
