"""Fixations as they arrive: detected in gaze samples by the same rule as in a whole recording, or told."""

import copy
import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass

import numpy as np

from gazeqwen.gaze_sources.fixations import check_positive
from gazeqwen.gaze_sources.samples import GazeSamples
from gazeqwen.scanpath_gazeqwen import Scanpath


@dataclass
class _Growing:
    """A fixation that the next sample may still lengthen; `low` and `high` are its extent, normalised (x, y)."""

    run: int
    begin_s: float
    end_s: float
    low: tuple[float, float]
    high: tuple[float, float]
    sum_x: float
    sum_y: float
    count: int

    def row(self) -> tuple[float, float, float, float]:
        """Return x_norm, y_norm, t_mid_s, duration_s; a mean can round out of the frame."""
        x, y = (min(max(total / self.count, 0.0), 1.0) for total in (self.sum_x, self.sum_y))
        return x, y, (self.begin_s + self.end_s) / 2, self.end_s - self.begin_s


class OnlineFixations:
    """
    Detect fixations in samples as they arrive: `until(time_s)` returns, bit for bit, what `detect_fixations` gives for
    the recording cut at `time_s`, for times that do not decrease. A fixation that is still under way then is as long
    as it has been so far.

    A sample is looked at once, and once more for each sample of the `min_duration_s` before it; of what is decided
    nothing but the fixations is kept. Samples may be pushed ahead of the time that is asked. Those that come after
    they were asked for count from the next time on; `late` says how many they are, and `repeated_times` how many
    carry the time of the sample before.

    `frame_size` is (width, height) in pixels. None: the first samples that tell it, or whoever sets it. `max_jump_s`:
    a sample that lies further than this after all before it is refused, since its clock must have jumped. The other
    parameters are those of `detect_fixations`; `source` names the samples in errors.
    """

    def __init__(
        self,
        frame_size: tuple[int, int] | None = None,
        max_dispersion_deg: float = 3.0,
        min_duration_s: float = 0.1,
        max_gap_s: float = 0.1,
        horizontal_fov_deg: float = 90.0,
        max_jump_s: float = 3600.0,
        source: str = "gaze",
    ):
        check_positive(
            max_dispersion_deg=max_dispersion_deg,
            min_duration_s=min_duration_s,
            max_gap_s=max_gap_s,
            horizontal_fov_deg=horizontal_fov_deg,
            max_jump_s=max_jump_s,
        )
        self.frame_size, self.source, self.max_jump_s = frame_size, source, max_jump_s
        self.max_dispersion_deg, self.min_duration_s = max_dispersion_deg, min_duration_s
        self.max_gap_s, self.horizontal_fov_deg = max_gap_s, horizontal_fov_deg
        self.samples = self.late = self.repeated_times = 0
        self._asked_s = self._last_s = -math.inf
        # Samples that are not decided, in four columns. `_runs` numbers stretches without a gap.
        self._times: list[float] = []
        self._xs: list[float] = []
        self._ys: list[float] = []
        self._runs: list[int] = []
        self._run, self._last_used_s = 0, -math.inf
        self._growing: _Growing | None = None
        self._rows: list[tuple[float, float, float, float]] = []  # of fixations that no later sample changes
        self._ends: list[float] = []

    def push(self, samples: GazeSamples) -> None:
        """
        Take the samples that have arrived. Raises ValueError naming the sample, counted from the first of all, and
        takes none of them, if a time lies before the one before it or jumps ahead, or the frame has another size.
        """
        if self.frame_size is not None and samples.frame_size not in (None, self.frame_size):
            raise ValueError(
                f"{self.source}, sample {self.samples}: the frame is {samples.frame_size} pixels, "
                f"expected {self.frame_size} as before"
            )
        if not len(samples):
            return
        times = samples.times_s
        before = np.concatenate([[self._last_s], times[:-1]])
        self._check_times(times, before)
        self.frame_size = self.frame_size or samples.frame_size
        self.samples += len(samples)
        self.late += int((times <= self._asked_s).sum())
        self.repeated_times += int((times == before).sum())
        self._last_s = float(times[-1])
        used = samples.in_frame & (times >= 0)
        for time_s, (x, y) in zip(times[used].tolist(), samples.recorded_xy[used].tolist(), strict=True):
            if time_s - self._last_used_s > self.max_gap_s:
                self._run += 1
            self._last_used_s = time_s
            self._times.append(time_s)
            self._xs.append(x)
            self._ys.append(y)
            self._runs.append(self._run)

    def _check_times(self, times: np.ndarray, before: np.ndarray) -> None:
        """Raise ValueError naming the first sample whose time runs back or jumps ahead of the one `before` it."""
        known = max(self._asked_s, 0.0)
        for problem, expected in (
            (times < before, "no step back"),
            (times - np.maximum(before, known) > self.max_jump_s, f"at most {self.max_jump_s:g} s later"),
        ):
            if problem.any():
                index = int(problem.argmax())
                after = f"the one before at {before[index]:.6f} s"
                if not math.isfinite(before[index]) or (before[index] < known and times[index] > known):
                    after = f"{known:.6f} s"
                raise ValueError(
                    f"{self.source}, sample {self.samples + index}: time {times[index]:.6f} s follows {after}, "
                    f"expected {expected}"
                )

    def fork(self, since_s: float = -math.inf) -> "OnlineFixations":
        """
        Return a detector that goes on from here by itself, of the fixations so far with those alone that end after
        `since_s`: to ask about times without their having been asked.
        """
        other = copy.copy(self)
        for name in ("_times", "_xs", "_ys", "_runs"):
            setattr(other, name, list(getattr(self, name)))
        first = bisect_right(self._ends, since_s)
        other._rows, other._ends = self._rows[first:], self._ends[first:]
        other._growing = copy.copy(self._growing)
        return other

    def until(self, time_s: float, since_s: float = -math.inf) -> Scanpath:
        """
        Return the fixations of the samples up to `time_s`, seconds of the video, that end after `since_s`; `ids`
        number all from the first on. Raises ValueError for a time before one that was asked already, or if the
        frame's aspect is unknown.
        """
        if not time_s >= self._asked_s:
            raise ValueError(f"{self.source}: asked until {time_s} s after {self._asked_s} s, expected no step back")
        if self.frame_size is None:
            raise ValueError(f"{self.source}: the frame's aspect is unknown: give the frame size")
        self._asked_s = time_s
        self._advance(bisect_right(self._times, time_s))
        first = bisect_right(self._ends, since_s)
        rows = self._rows[first:]
        if self._growing is not None and self._growing.end_s > since_s:
            rows.append(self._growing.row())
        table = np.array(rows, dtype=np.float64).reshape(-1, 4)
        return Scanpath(table, np.arange(first, first + len(rows)))

    def _advance(self, available: int) -> None:
        """Decide what the first `available` of the waiting samples decide, and let go of them."""
        start = 0
        while start < available:
            if self._growing is None:
                shortest_s = self._times[start] + (self.min_duration_s - 1e-9)
                last = bisect_left(self._times, shortest_s, start, available)
                if last == available:
                    break
                if self._runs[start] == self._runs[last] and self._extent_deg(start, last) <= self.max_dispersion_deg:
                    self._growing = self._begun(start, last)
                    start = last + 1
                else:
                    start += 1
            elif self._lengthened(start):
                start += 1
            else:
                self._rows.append(self._growing.row())
                self._ends.append(self._growing.end_s)
                self._growing = None
        for column in (self._times, self._xs, self._ys, self._runs):
            del column[:start]

    def _degrees(self) -> tuple[float, float]:
        """Return the degrees of a frame's width and height, for normalised x and y."""
        width, height = self.frame_size
        return self.horizontal_fov_deg, self.horizontal_fov_deg * height / width

    def _extent_deg(self, first: int, last: int) -> float:
        """Return the horizontal plus vertical extent of the waiting samples `first` to `last`."""
        across, down = self._degrees()
        xs, ys = self._xs[first : last + 1], self._ys[first : last + 1]
        return (max(xs) * across - min(xs) * across) + (max(ys) * down - min(ys) * down)

    def _begun(self, first: int, last: int) -> _Growing:
        """Return the fixation of the waiting samples `first` to `last`."""
        xs, ys = self._xs[first : last + 1], self._ys[first : last + 1]
        low, high = (min(xs), min(ys)), (max(xs), max(ys))
        times = self._times[first], self._times[last]
        sum_x = sum_y = 0.0
        for x, y in zip(xs, ys, strict=True):  # as numpy adds rows: Python 3.12's `sum` rounds otherwise
            sum_x, sum_y = sum_x + x, sum_y + y
        return _Growing(self._runs[first], *times, low, high, sum_x, sum_y, len(xs))

    def _lengthened(self, index: int) -> bool:
        """Return whether a waiting sample continues the growing fixation, and if so add it."""
        growing, x, y = self._growing, self._xs[index], self._ys[index]
        low = min(growing.low[0], x), min(growing.low[1], y)
        high = max(growing.high[0], x), max(growing.high[1], y)
        across, down = self._degrees()
        extent_deg = high[0] * across - low[0] * across + high[1] * down - low[1] * down
        if self._runs[index] != growing.run or extent_deg > self.max_dispersion_deg:
            return False
        growing.low, growing.high, growing.end_s = low, high, self._times[index]
        growing.sum_x, growing.sum_y, growing.count = growing.sum_x + x, growing.sum_y + y, growing.count + 1
        return True


class PushedFixations:
    """Hold fixations that are told, in whatever order: `until` cuts them as a clip that ends there does."""

    def __init__(self, table: np.ndarray | None = None):
        self.table = np.zeros((0, 4)) if table is None else table

    def push(self, scanpath: Scanpath) -> None:
        """Take further fixations."""
        table = np.concatenate([self.table, scanpath.table])
        self.table = table[np.argsort(table[:, 2], kind="stable")]

    def fork(self, since_s: float) -> "PushedFixations":
        """Return those that end after `since_s`."""
        return PushedFixations(self.table[self.table[:, 2] + self.table[:, 3] / 2 > since_s])

    def until(self, time_s: float, since_s: float) -> Scanpath:
        """Return what of them lies between the two times, seconds of the video."""
        return Scanpath(self.table, np.arange(len(self.table))).clip(since_s, time_s)


__all__ = ["OnlineFixations", "PushedFixations"]
