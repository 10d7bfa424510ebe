"""Bring samples onto a video, and turn a file of which nothing is known into fixations."""

import inspect
from collections.abc import Callable

import numpy as np

from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.video_gazeqwen import video_info

from .fixations import checked_scanpath, detect_fixations
from .samples import GazeSamples, Status

MAX_LISTED = 5  # of a long list, so many are shown
_CLOCK_SHARE = 0.05  # warn if more samples than this lie outside the video


def guessed_scanpath(source, path, video, tell: Callable[[str], None]) -> Scanpath:
    """
    Return the fixations of a raw recording, on the clock of a video, as `gazeqwen gaze` finds them by default.
    `source`: a module of this room; `tell` is called with what was left out, assumed, or looks wrong. Raises
    ValueError or OSError naming file, line and value.
    """
    info = video_info(video)
    samples = source.read(path, video)
    for note in samples.notes:
        tell(note)
    samples = inside_video(samples, info.start_s, info.end_s, str(video), tell, tell)
    check_in_frame(samples)
    scanpath = detect_fixations(samples, max_gap_s=largest_gap_s(samples, tell))
    scanpath, dropped = checked_scanpath(
        scanpath.begin_s, scanpath.end_s, scanpath.table[:, :2], path, info.start_s, info.end_s
    )
    if dropped:
        tell(f"left out: {len(dropped)} fixations or parts of them")
    return scanpath


def inside_video(
    samples: GazeSamples,
    start_s: float,
    end_s: float,
    video: str,
    tell: Callable[[str], None],
    warn: Callable[[str], None],
) -> GazeSamples:
    """
    Return the samples within the video's extent; the others are counted and listed to `tell`, and `warn` is called if
    they are many and no tracker that was started before the camera explains them. Raises ValueError if there is none.
    """
    inside = samples.within(start_s, end_s)
    outside = samples.times_s[~inside]
    if not len(outside):
        return samples
    listed = ", ".join(f"{time:.3f}" for time in outside[:MAX_LISTED])
    if len(outside) > MAX_LISTED:
        listed += ", ..."
    tell(f"outside the video ({start_s:.3f} to {end_s:.3f} s), left out: {len(outside)} samples, at {listed} s")
    if not inside.any():
        raise ValueError(
            f"{samples.source}: no sample lies within {video}, {start_s:.3f} to {end_s:.3f} s: the two clocks are "
            "likely not the same"
        )
    kept, share = samples.keep(inside), len(outside) / len(samples)
    begin_s, last_s = samples.times_s[[0, -1]]
    margin_s = _CLOCK_SHARE * (end_s - start_s)
    is_covered = kept.times_s[0] <= start_s + margin_s and kept.times_s[-1] >= end_s - margin_s
    if is_covered and (outside > end_s).sum() <= _CLOCK_SHARE * len(samples):
        if begin_s < start_s:
            tell(f"the tracker was started {start_s - begin_s:.1f} s before the video begins")
    elif is_covered:
        warn(f"the gaze lasts until {last_s:.1f} s, {video} until {end_s:.1f} s: is it this video's, on its clock?")
    elif share > _CLOCK_SHARE:
        warn(f"{100 * share:.1f} % of the samples lie outside {video}: the two clocks are likely not the same")
    return kept


def check_in_frame(samples: GazeSamples) -> None:
    """Raise ValueError where no sample lies in the frame."""
    if not samples.in_frame.any():
        counts = f"{samples.count(Status.OUT_OF_FRAME)} out of frame, {samples.count(Status.UNTRACKED)} untracked"
        raise ValueError(
            f"{samples.source}: none of {len(samples)} samples lies in the frame ({counts}), so there is no fixation "
            "to write: are units, origin and frame size right?"
        )


def largest_gap_s(samples: GazeSamples, tell: Callable[[str], None]) -> float:
    """Return the default of `max_gap_s`, or of a slower recording two and a half of its steps, which is told."""
    default_s = inspect.signature(detect_fixations).parameters["max_gap_s"].default
    step_s = median_step_s(samples)
    if 1.5 * step_s <= default_s:
        return default_s
    tell(f"max_gap_s: {2.5 * step_s:.2f} s, two and a half steps of this recording (default {default_s} s)")
    return 2.5 * step_s


def median_step_s(samples: GazeSamples) -> float:
    """Return the median time from a sample to the next later one, seconds; 0 without one."""
    steps = np.diff(samples.times_s)
    return float(np.median(steps[steps > 0])) if (steps > 0).any() else 0.0
