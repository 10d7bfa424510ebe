"""
Read any table of gaze samples with a header: a time, x, y and, if there is one, a confidence per row.

Units and origin have no defaults, because a wrong guess gives fixations that look right. `time_unit`: s, ms, us or ns.
`coordinates`: `normalised` by the frame's size, or `pixels` of the frame. `origin`: `top-left` (y down), `bottom-left`
(y up) or `centre` (x to the right, y up, from the frame's middle). `offset_s` is the gaze clock's time, in seconds, at
which the video begins. Empty and NaN positions, and confidences below `min_confidence`, are untracked.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .files import TextTable, find_path, frame_size_of, read_text_table, required_frame_size
from .samples import GazeSamples

TIME_UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
COORDINATES = ("normalised", "pixels")
ORIGINS = ("top-left", "bottom-left", "centre")


def find(root, stem: str) -> Path | None:
    """Return where the recording of the video `stem`.mp4 lies below `root`, or None."""
    return find_path(root, f"{stem}.csv", f"{stem}.tsv", f"{stem}.txt")


def read(
    path,
    video=None,
    *,
    time_unit: str,
    coordinates: str,
    origin: str,
    offset_s: float = 0.0,
    min_confidence: float = 0.0,
    time_column: str = "time",
    x_column: str = "x",
    y_column: str = "y",
    confidence_column: str = "confidence",
    delimiter: str | None = None,
    frame_size: tuple[int, int] | None = None,
) -> GazeSamples:
    """
    Return the samples of a table (`delimiter`: tab for .tsv, else a comma). Raises FileNotFoundError, or ValueError
    naming file, line, value and what was expected.
    """
    if delimiter is None:
        delimiter = delimiter_of(path)
    if coordinates == "pixels":
        size = required_frame_size(path, video, frame_size)
    else:
        size = frame_size_of(video, frame_size)
    columns = Columns(
        time_unit,
        coordinates,
        origin,
        offset_s,
        min_confidence,
        time_column,
        x_column,
        y_column,
        confidence_column,
        size,
    )
    table = read_text_table(path, columns.required, (confidence_column,), delimiter)
    xy = columns.positions(table)
    finite = np.isfinite(xy).all(axis=1)
    if coordinates == "pixels" and finite.any() and np.abs(xy[finite]).max() <= 1:
        raise ValueError(f"{path}: all positions lie within 1 pixel of the origin: are they normalised?")
    return columns.samples(table)


def delimiter_of(path) -> str:
    """Return what separates the fields of a table, by its name: tab for .tsv, else a comma."""
    return "\t" if Path(path).suffix.lower() == ".tsv" else ","


@dataclass(frozen=True)
class Columns:
    """Say what the columns of a table of gaze mean, as `read` does; `frame_size` is (width, height) in pixels."""

    time_unit: str
    coordinates: str
    origin: str
    offset_s: float = 0.0
    min_confidence: float = 0.0
    time_column: str = "time"
    x_column: str = "x"
    y_column: str = "y"
    confidence_column: str = "confidence"
    frame_size: tuple[int, int] | None = None

    def __post_init__(self):
        for name, known in (("time_unit", tuple(TIME_UNITS)), ("coordinates", COORDINATES), ("origin", ORIGINS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r}, expected one of {', '.join(known)}")

    @property
    def required(self) -> tuple[str, str, str]:
        """Return the columns that a table has to have."""
        return self.time_column, self.x_column, self.y_column

    def positions(self, table: TextTable) -> np.ndarray:
        """Return (N, 2) x and y as a table has them, NaN where it is empty."""
        return np.column_stack([table.numbers(name, empty_allowed=True) for name in (self.x_column, self.y_column)])

    def in_frame(self, xy: np.ndarray) -> np.ndarray:
        """Return (N, 2) positions normalised by the frame's size, origin top-left, from recorded ones."""
        if self.coordinates == "pixels":
            xy = xy / self.frame_size
        if self.origin == "bottom-left":
            xy = np.column_stack([xy[:, 0], 1 - xy[:, 1]])
        elif self.origin == "centre":
            xy = np.column_stack([0.5 + xy[:, 0], 0.5 - xy[:, 1]])
        return xy

    def samples(self, table: TextTable) -> GazeSamples:
        """Return the samples of a table's rows. Raises ValueError naming file, line and value."""
        times_s = _seconds(table, self.time_column, self.time_unit, self.offset_s)
        xy = self.in_frame(self.positions(table))
        tracked, notes = np.ones(len(xy), bool), []
        if self.confidence_column in table:
            tracked = table.numbers(self.confidence_column, empty_allowed=True) >= self.min_confidence
            if not tracked.all():
                notes.append(
                    f"{(~tracked).sum()} samples with a confidence below {self.min_confidence} (or none) are untracked"
                )
        elif self.min_confidence > 0:
            raise ValueError(f"{table.path}: no column {self.confidence_column}, which a minimum confidence needs")
        size = self.frame_size
        return GazeSamples.from_recording(times_s, xy, tracked, table.path, table.lines, notes=notes, frame_size=size)


def _seconds(table, column: str, unit: str, offset_s: float) -> np.ndarray:
    """
    Return times minus the offset, seconds. Whole numbers stay exact until it is gone: nanoseconds since 1970 fill
    float64.
    """
    try:
        ticks = table.integers(column)
    except ValueError:
        return table.numbers(column) / TIME_UNITS[unit] - offset_s
    whole = round(offset_s * TIME_UNITS[unit])
    return (ticks - whole) / TIME_UNITS[unit] - (offset_s - whole / TIME_UNITS[unit])
