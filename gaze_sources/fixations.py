"""Detect fixations in gaze samples: by dispersion, or as StreamGaze's pipeline does; and its filter of scenes."""

import math
from dataclasses import dataclass

import numpy as np

from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.video_gazeqwen import read_frames

from .samples import GazeSamples

# StreamGaze's per-frame tables: assumed frames per second, and radius in frame widths (absent: 96 pixels).
ASSUMED_FPS = {"egtea": 24.0, "egoexolearn": 30.0, "holoassist": 24.46, "ego4d": 30.0}
_STREAMGAZE_RADIUS = {"egtea": 0.15, "ego4d": 0.088}
_STREAMGAZE_RADIUS_PX, _STREAMGAZE_MIN_DURATION_S = 96, 2.0

# Its filter of scenes: fixations below this duration pass; mean grey below this is black, in most of so many frames.
_UNCHECKED_BELOW_S, _BLACK_LEVEL, _BLACK_SAMPLES = 1.5, 10.0, 5
SCENE_THRESHOLDS = {"holoassist": 0.5}  # by source
DEFAULT_SCENE_THRESHOLD = 0.9
_FRAMES_AT_ONCE = 16


@dataclass(frozen=True)
class Dropped:
    """A fixation, or a part of one, that is not in a scanpath, and why."""

    begin_s: float
    end_s: float
    x_norm: float
    y_norm: float
    reason: str

    def __str__(self) -> str:
        where = f"({self.x_norm:.3f}, {self.y_norm:.3f})"
        return f"{self.begin_s:.3f} to {self.end_s:.3f} s at {where}: {self.reason}"


def checked_scanpath(
    begin_s, end_s, xy, source: str, video_start_s: float = 0.0, video_end_s: float = math.inf
) -> tuple[Scanpath, list[Dropped]]:
    """
    Return the fixations (times (N,), positions (N, 2)) with a position in the frame, cut to the video's extent, and
    what that leaves out. `ids` are the row numbers in what is passed.
    """
    table, ids, dropped = [], [], []
    for index, (begin, end, (x, y)) in enumerate(zip(begin_s, end_s, xy, strict=True)):
        if not (math.isfinite(x) and math.isfinite(y)):
            dropped.append(Dropped(begin, end, x, y, "its position is not finite"))
        elif not (0 <= x <= 1 and 0 <= y <= 1):
            dropped.append(Dropped(begin, end, x, y, "its position lies outside the frame"))
        else:
            first, last = max(begin, video_start_s), min(end, video_end_s)
            if begin < video_start_s:
                dropped.append(Dropped(begin, min(end, video_start_s), x, y, "before the video begins"))
            if end > video_end_s:
                dropped.append(Dropped(max(begin, video_end_s), end, x, y, "after the video ends"))
            if last > first:
                table.append((x, y, (first + last) / 2, last - first))
                ids.append(index)
    checked = Scanpath.from_array(np.array(table, dtype=np.float64).reshape(-1, 4), source)
    return Scanpath(checked.table, np.array(ids, dtype=np.int64)[checked.ids]), dropped


# ------------------------------------------------------------------ by dispersion
def check_positive(**parameters: float) -> None:
    """Raise ValueError naming the first parameter that is not more than 0."""
    for name, value in parameters.items():
        if not value > 0:
            raise ValueError(f"{name} is {value}, expected more than 0")


def detect_fixations(
    samples: GazeSamples,
    max_dispersion_deg: float = 3.0,
    min_duration_s: float = 0.1,
    max_gap_s: float = 0.1,
    horizontal_fov_deg: float = 90.0,
) -> Scanpath:
    """
    Detect fixations by a threshold of dispersion (I-DT, Salvucci and Goldberg 2000) in samples at any times.

    A fixation is the longest run of samples whose horizontal plus vertical extent is at most `max_dispersion_deg`,
    that lasts `min_duration_s` or more from its first to its last sample, and in which no two neighbours are more than
    `max_gap_s` apart. Untracked samples and those out of frame or before the video are left out beforehand: they are
    no positions, and what they leave open is a gap. Fixations do not share samples; a position is the samples' mean.

    Degrees are pixels times `horizontal_fov_deg` / frame width, in both directions. The defaults fit a head-worn
    camera: 3 degrees leave room for the eye's counter-movement to a turning head (for a still head 1 is usual), 0.1 s
    is a short fixation, and a gap of 0.1 s is one missing frame at 24 frames per second.

    Raises ValueError if the frame's aspect is unknown or a parameter is not positive.
    """
    check_positive(
        max_dispersion_deg=max_dispersion_deg,
        min_duration_s=min_duration_s,
        max_gap_s=max_gap_s,
        horizontal_fov_deg=horizontal_fov_deg,
    )
    if samples.frame_size is None:
        raise ValueError(f"{samples.source}: the frame's aspect is unknown: give the video, or the frame size")
    width, height = samples.frame_size
    used = samples.in_frame & (samples.times_s >= 0)
    times, xy = samples.times_s[used], np.ascontiguousarray(samples.recorded_xy[used])  # rows are summed in order
    x, y = (xy * (horizontal_fov_deg, horizontal_fov_deg * height / width)).T

    # The shortest run from each sample on that is a fixation: which exist, hold together, and lie close enough?
    shortest = np.searchsorted(times, times + (min_duration_s - 1e-9))
    run = np.concatenate([[0], np.cumsum(np.diff(times) > max_gap_s)]) if len(times) else np.empty(0, int)
    starts = np.flatnonzero(shortest < len(times))
    starts = starts[run[starts] == run[shortest[starts]]]
    extent = _extent(x, starts, shortest[starts]) + _extent(y, starts, shortest[starts])
    starts = starts[extent <= max_dispersion_deg]

    table, end = [], -1
    xs, ys, runs = x.tolist(), y.tolist(), run.tolist()
    for start in starts.tolist():
        if start <= end:
            continue
        end = int(shortest[start])
        low_x, high_x = min(xs[start : end + 1]), max(xs[start : end + 1])
        low_y, high_y = min(ys[start : end + 1]), max(ys[start : end + 1])
        while end + 1 < len(xs) and runs[end + 1] == runs[start]:
            low_x, high_x = min(low_x, xs[end + 1]), max(high_x, xs[end + 1])
            low_y, high_y = min(low_y, ys[end + 1]), max(high_y, ys[end + 1])
            if high_x - low_x + high_y - low_y > max_dispersion_deg:
                break
            end += 1
        centre = np.clip(xy[start : end + 1].mean(axis=0), 0, 1)  # a mean can round out of the frame
        table.append((*centre, (times[start] + times[end]) / 2, times[end] - times[start]))
    return Scanpath.from_array(np.array(table).reshape(-1, 4), samples.source)


def _extent(values: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """
    Return largest minus smallest of `values[first : last + 1]` for each pair, from windows that double in length.
    """
    extent = np.zeros(len(first))
    doublings = np.frexp(last - first + 1)[1] - 1  # the longest window of 2 ** k samples that fits
    low = high = values
    for power in range(doublings.max(initial=-1) + 1):
        selected, length = doublings == power, 2**power
        begin, end = first[selected], last[selected] - length + 1
        extent[selected] = np.maximum(high[begin], high[end]) - np.minimum(low[begin], low[end])
        low, high = np.minimum(low[:-length], low[length:]), np.maximum(high[:-length], high[length:])
    return extent


# ------------------------------------------------------------------ as StreamGaze does
def streamgaze_fixations(samples: GazeSamples, source: str) -> tuple[Scanpath, list[Dropped]]:
    """
    Return the fixations that StreamGaze's pipeline (its step 1) makes of a recording of `source` (egtea, egoexolearn,
    holoassist, ego4d), and those of them that are no valid fixations. As implemented there:
    - times are frame number / assumed frames per second (24, 30, 24.46, 30): the clock of its questions, which is not
      the video's where the video has another rate;
    - every frame counts, tracked or not: frames without a sample lie at (0, 0), for HoloAssist frames without a
      position at (0.5, 0.5), so that untracked stretches become fixations there; untracked samples with a recorded
      position keep it;
    - several samples in a frame: each is averaged with the result of those before (EGTEA, Ego4D);
    - positions are clipped to the frame, except for HoloAssist; a NaN of EgoExoLearn stays, and since no distance to
      it is too large, its fixation has no position;
    - a fixation ends at the first frame further than the radius from the fixation's FIRST frame, in normalised units
      (an ellipse in pixels); its position is the mean of its frames; it lasts 2 s or more. (A tolerance for gaps of up
      to 0.01 s exists and never applies: frames lie further apart.)

    Ego4D positions are those of `samples`: read with `origin="top-left"` to reproduce the pipeline.
    """
    if source not in ASSUMED_FPS:
        raise ValueError(f"source {source!r}, StreamGaze has {', '.join(ASSUMED_FPS)}")
    fps, radius = ASSUMED_FPS[source], _STREAMGAZE_RADIUS.get(source)
    if radius is None:
        if samples.frame_size is None:
            raise ValueError(f"{samples.source}: the frame's width is unknown: give the video, or the frame size")
        radius = _STREAMGAZE_RADIUS_PX / samples.frame_size[0]
    x, y = _streamgaze_table(samples, source).T.tolist()
    times = np.arange(len(x)) / fps
    edges, first = [], 0
    for index in range(1, len(x)):
        if math.sqrt((x[index] - x[first]) ** 2 + (y[index] - y[first]) ** 2) > radius:
            edges.append((first, index))
            first = index
    edges.append((first, len(x)))
    edges = [(first, end) for first, end in edges if times[end - 1] - times[first] >= _STREAMGAZE_MIN_DURATION_S]
    centres = [(np.mean(x[first:end]), np.mean(y[first:end])) for first, end in edges]
    begin_s = [times[first] for first, _ in edges]
    end_s = [times[end - 1] for _, end in edges]
    return checked_scanpath(begin_s, end_s, centres, samples.source)


def _streamgaze_table(samples: GazeSamples, source: str) -> np.ndarray:
    """
    Return (frames, 2) positions by frame number, in float32's precision, as StreamGaze's preprocessing makes them.
    """
    xy, frames = samples.recorded_xy, samples.frame_index
    if source == "ego4d":
        frames = np.floor(samples.times_s * ASSUMED_FPS[source]).astype(np.int64)
    if frames is None:
        raise ValueError(f"{samples.source}: samples carry no frame numbers, which StreamGaze's algorithm needs")
    table = np.zeros((max(int(frames.max(initial=0)), 0) + 1, 2), dtype=np.float32)
    if source == "egoexolearn":
        table[frames] = np.clip(xy, 0, 1)
    elif source == "holoassist":
        table[frames] = np.where(np.isnan(xy).any(axis=1, keepdims=True), 0.5, xy)
    else:
        scale = samples.frame_size if source == "egtea" else (1, 1)
        has_sample = np.zeros(len(table), bool)
        present = (frames >= 0) & np.isfinite(xy).all(axis=1)
        for frame, position in zip(frames[present], xy[present] * scale, strict=True):
            table[frame] = (table[frame] + position) / 2 if has_sample[frame] else position
            has_sample[frame] = True
        table = np.clip(table, 0, np.maximum(np.float32(scale) - 1, 1)) / np.float32(scale)
    return table.astype(np.float64)


# ------------------------------------------------------------------ scenes
def scene_consistent(
    scanpath: Scanpath, video, threshold: float = DEFAULT_SCENE_THRESHOLD
) -> tuple[Scanpath, list[Dropped]]:
    """
    Return, by StreamGaze's filter (its step 1.5), the fixations during which the scene stays the same, and the others.

    Of a fixation of 1.5 s or more, `max(5, 2 per second)` evenly spaced frames, first and last instant included, are
    compared: the correlation of neighbouring frames' histograms of hue and saturation (50 x 60 bins) may nowhere fall
    below `threshold` (there 0.9, for HoloAssist 0.5), and of five evenly spaced frames at most two may be black (mean
    grey below 10). Raises ValueError if the video ends more than a second before a fixation does.
    """
    kept, dropped = np.ones(len(scanpath), bool), []
    for index, (begin, end, (x, y, _, duration)) in enumerate(
        zip(scanpath.begin_s, scanpath.end_s, scanpath.table, strict=True)
    ):
        if duration < _UNCHECKED_BELOW_S:
            continue
        reason = _scene_change(video, begin, end, threshold)
        if reason:
            kept[index] = False
            dropped.append(Dropped(float(begin), float(end), float(x), float(y), reason))
    return Scanpath(scanpath.table[kept], scanpath.ids[kept]), dropped


def _scene_change(video, begin: float, end: float, threshold: float) -> str | None:
    """Return what speaks against one scene from `begin` to `end`, seconds, or None."""
    greys = [grey for frames in _frames_at(video, np.linspace(begin, end, _BLACK_SAMPLES)) for grey in _grey(frames)]
    black = sum(grey < _BLACK_LEVEL for grey in greys)
    if black > _BLACK_SAMPLES // 2:
        return f"{black} of {_BLACK_SAMPLES} frames are black"
    previous, lowest = None, 1.0
    for frames in _frames_at(video, np.linspace(begin, end, max(5, int(2 * (end - begin))))):
        for frame in frames:
            histogram = hue_saturation_histogram(frame)
            if previous is not None:
                lowest = min(lowest, _correlation(previous, histogram))
            previous = histogram
    return f"the scene changes: correlation {lowest:.3f}, below {threshold}" if lowest < threshold else None


def _frames_at(video, times: np.ndarray):
    """Yield the frames on screen at increasing times, a few at a time: a long fixation has more than memory holds."""
    for first in range(0, len(times), _FRAMES_AT_ONCE):
        yield read_frames(video, times[first : first + _FRAMES_AT_ONCE])[0]


def _grey(frames: np.ndarray) -> np.ndarray:
    """Return (n,) the mean grey of frames (n, H, W, 3), 0 to 255."""
    return (frames.reshape(len(frames), -1, 3).mean(axis=1) * (0.299, 0.587, 0.114)).sum(axis=1)


def hue_saturation_histogram(frame: np.ndarray) -> np.ndarray:
    """
    Return (50, 60) counts of hue (0 to 179: halved degrees) by saturation (0 to 255) of an RGB frame (H, W, 3) uint8,
    in the rounding of 8-bit HSV images.
    """
    red, green, blue = np.ascontiguousarray(frame.reshape(-1, 3).T).astype(np.int32)
    value = np.maximum(np.maximum(red, green), blue)
    chroma = value - np.minimum(np.minimum(red, green), blue)
    sixths = np.where(
        value == red, green - blue, np.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma)
    )
    # Fixed point with 12 bits, as 8-bit HSV is defined: the rounding decides which bin a pixel falls in.
    per_value, per_chroma = np.zeros(256, np.int32), np.zeros(256, np.int32)
    per_value[1:] = np.rint((255 << 12) / np.arange(1, 256))
    per_chroma[1:] = np.rint((180 << 12) / (6 * np.arange(1, 256)))
    saturation = (chroma * per_value[value] + (1 << 11)) >> 12
    hue = (sixths * per_chroma[chroma] + (1 << 11)) >> 12
    hue = np.where(hue < 0, hue + 180, hue)
    return np.bincount(hue * 50 // 180 * 60 + saturation * 60 // 256, minlength=50 * 60).reshape(50, 60)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """
    Return the correlation of two histograms, whatever their scale (StreamGaze scales to 0..1); 1 for two flat ones.
    """
    first, second = first - first.mean(), second - second.mean()
    norm = math.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / norm) if norm > 0 else 1.0
