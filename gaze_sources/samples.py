"""Hold gaze samples as a recording gives them, on the video's clock and in the video's frame."""

from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np


class Status(IntEnum):
    """What a sample is. UNKNOWN: the gaze is tracked and the recording does not say how the eye moved."""

    UNTRACKED = 0
    FIXATION = 1
    SACCADE = 2
    UNKNOWN = 3
    OUT_OF_FRAME = 4


@dataclass(frozen=True, eq=False)
class GazeSamples:
    """
    N samples of one recording. `times_s` (N,) float64, not decreasing, seconds of the video (negative: before it
    begins). `recorded_xy` (N, 2) float64: the positions that the recording gives, normalised by the displayed frame's
    size, origin top-left, y down, also where they are not to be trusted (NaN where it gives none); `xy` are those to
    trust. `status` (N,) int8, see `Status`.

    `source` names the file. `frame_size` is (width, height) in pixels, or None where nothing tells the frame's aspect.
    `frame_index` (N,) int64 is the frame that each sample was recorded for, where the source says so. `notes` are
    sentences about what the reader left out or assumed.
    """

    times_s: np.ndarray
    recorded_xy: np.ndarray
    status: np.ndarray
    source: str
    frame_size: tuple[int, int] | None = None
    frame_index: np.ndarray | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        count = len(self.times_s)
        shapes = {"times_s": (count,), "recorded_xy": (count, 2), "status": (count,)}
        if self.frame_index is not None:
            shapes["frame_index"] = (count,)
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{self.source}: {name} has shape {getattr(self, name).shape}, expected {shape}")
        check_times(self.times_s, self.source, [])
        inside = ((self.recorded_xy >= 0) & (self.recorded_xy <= 1)).all(axis=1)
        wrong = np.flatnonzero(self.in_frame & ~inside)
        if len(wrong):
            raise ValueError(
                f"{self.source}, sample {wrong[0]}: {self.recorded_xy[wrong[0]]} does not lie in the frame"
            )

    @classmethod
    def from_recording(
        cls, times_s, recorded_xy, tracked, source, lines=(), kinds=None, notes=(), **others
    ) -> "GazeSamples":
        """
        Return samples of which the recording says whether they are `tracked` (N,) and, in `kinds` (N,), how the eye
        moved. Those without a finite position are untracked, those outside 0 to 1 out of frame. `lines` (N,) are the
        samples' lines in the file. Raises ValueError naming file, line and value for times that are not finite or run
        back.
        """
        times_s, recorded_xy = np.asarray(times_s, np.float64), np.asarray(recorded_xy, np.float64).reshape(-1, 2)
        if not len(times_s):
            raise ValueError(f"{source}: no gaze sample")
        check_times(times_s, source, lines)
        status = np.full(len(times_s), Status.UNKNOWN, np.int8) if kinds is None else np.array(kinds, np.int8)
        with np.errstate(invalid="ignore"):
            status[((recorded_xy < 0) | (recorded_xy > 1)).any(axis=1)] = Status.OUT_OF_FRAME
        finite = np.isfinite(recorded_xy).all(axis=1)
        lost = int((np.asarray(tracked, bool) & ~finite).sum())
        if lost:
            notes = (*notes, f"{lost} samples without a finite position count as untracked")
        status[~(tracked & finite)] = Status.UNTRACKED
        return cls(times_s, recorded_xy, status, str(source), notes=tuple(notes), **others)

    def __len__(self) -> int:
        return len(self.times_s)

    @property
    def xy(self) -> np.ndarray:
        """Return (N, 2) positions, NaN where untracked; outside 0 to 1 where out of frame."""
        return np.where((self.status == Status.UNTRACKED)[:, None], np.nan, self.recorded_xy)

    @property
    def in_frame(self) -> np.ndarray:
        """Return (N,) bool: tracked, and inside the frame."""
        return (self.status != Status.UNTRACKED) & (self.status != Status.OUT_OF_FRAME)

    def count(self, status: Status) -> int:
        """Return how many samples have a status."""
        return int((self.status == status).sum())

    @property
    def repeated_times(self) -> int:
        """Return how many samples carry the time of the sample before."""
        return int((np.diff(self.times_s) == 0).sum())

    def within(self, start_s: float, end_s: float) -> np.ndarray:
        """Return (N,) bool: which samples lie in `[start_s, end_s]`."""
        return (self.times_s >= start_s - 1e-6) & (self.times_s <= end_s + 1e-6)

    def keep(self, kept: np.ndarray) -> "GazeSamples":
        """Return the samples that `kept` (N,) bool marks."""
        return replace(
            self,
            times_s=self.times_s[kept],
            recorded_xy=self.recorded_xy[kept],
            status=self.status[kept],
            frame_index=None if self.frame_index is None else self.frame_index[kept],
        )


def check_times(times_s: np.ndarray, source, lines) -> None:
    """Raise ValueError naming the first line (or sample, without `lines`) whose time is not finite or runs back."""

    def place(index: int) -> str:
        return f"{source}, line {lines[index]}" if len(lines) else f"{source}, sample {index}"

    not_finite = np.flatnonzero(~np.isfinite(times_s))
    if len(not_finite):
        raise ValueError(f"{place(not_finite[0])}: time is {times_s[not_finite[0]]}, expected a finite number")
    back = np.flatnonzero(np.diff(times_s) < 0)
    if len(back):
        before, after = times_s[back[0]], times_s[back[0] + 1]
        raise ValueError(f"{place(back[0] + 1)}: time {after:.6f} s follows {before:.6f} s, expected no step back")
