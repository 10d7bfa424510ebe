"""Scanpath: the fixation table, its readers, its checks, and its clipping. Times are seconds of the source video."""

import csv
import math
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path

import numpy as np

# StreamGaze's fixation tables come with these names (pipeline steps 1, 1.5 and 2.5).
_COLUMN_ALIASES = {
    "start": ("start_time", "start_time_seconds", "episode_start_time"),
    "end": ("end_time", "end_time_seconds", "episode_end_time"),
    "duration": ("duration", "duration_seconds"),
    "x": ("center_x",),
    "y": ("center_y",),
}

# What `float` reads, but for digits of other scripts and underscores.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*(e[+-]?\d+)?|\.\d+(e[+-]?\d+)?|nan|inf(inity)?)", re.ASCII | re.IGNORECASE)
_MOST_COLUMNS = 1000
_WHOLE_NUMBER = re.compile(r"[+-]?\d{1,30}", re.ASCII)


def _warn(text: str) -> None:
    """Warn of what is odd, at the line that called a reader of this module."""
    warnings.warn(text, stacklevel=4)


def number_of(text: str) -> float:
    """Return what `float` makes of a text. Raises ValueError, also for digits of other scripts and underscores."""
    if not _NUMBER.fullmatch(text.strip()):
        raise ValueError(f"{text!r} is no number")
    return float(text)


def whole_number_of(text: str) -> int:
    """Return what `int` makes of a text. Raises as `number_of`."""
    if not _WHOLE_NUMBER.fullmatch(text.strip()):
        raise ValueError(f"{text!r} is no whole number")
    return int(text)


def is_number(value) -> bool:
    """Return whether a setting is a finite number of Python's own: JSON, where settings are kept, has no others."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_whole(value, least: int, most: float = math.inf) -> bool:
    """Return whether a setting is a whole number of Python's own in a range, its ends included."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _check_rows(table: np.ndarray, source: str, row_names: list[str]) -> None:
    """Raise ValueError for the first bad row of an (N, 4) table, naming source, row, value, and what was expected."""

    def refuse(bad: np.ndarray, column: int, name: str, expected: str) -> None:
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise ValueError(f"{source}, {row_names[row]}: {name} is {table[row, column]}, expected {expected}")

    for column, name in enumerate(("x", "y", "time", "duration")):
        refuse(~np.isfinite(table[:, column]), column, name, "a finite number")
    for column, name in enumerate(("x", "y")):
        outside = (table[:, column] < 0) | (table[:, column] > 1)
        refuse(outside, column, name, "0 to 1 (normalised by the frame's size, origin top-left, y down)")
    refuse(table[:, 3] <= 0, 3, "duration", "more than 0 seconds")
    begin = table[:, 2] - table[:, 3] / 2
    refuse(begin < -1e-6, 2, "midpoint", "a fixation that begins at or after 0 seconds of the video")


@dataclass(frozen=True, eq=False)
class Scanpath:
    """
    Fixations sorted by time: `table` is (N, 4) float64 with columns `x_norm, y_norm, t_mid_s, duration_s`; origin
    top-left, y down. An empty table means that gaze was recorded and there was no fixation; `None` in place of a
    `Scanpath` means that no gaze is given. `ids` (N,) are the fixations' numbers in their source.
    """

    table: np.ndarray
    ids: np.ndarray

    @classmethod
    def from_array(cls, table, source: str = "scanpath", ids=None) -> "Scanpath":
        """
        Return the scanpath of an (N, 4) array, tensor or list, such as a dataset row's `scanpath`: `x_norm, y_norm,
        t_mid_s, duration_s`; `ids` (N,) default to row numbers. Raises ValueError naming the row; warns of rows out of
        order, which are sorted, and of repeated ones, which are left out.
        """
        try:
            table = np.asarray(table, dtype=np.float64)
        except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor that carries gradients
            raise ValueError(
                f"{source}: expected (N, 4) numbers: x_norm, y_norm, t_mid_s, duration_s ({error})"
            ) from None
        if table.shape == (0,):
            table = table.reshape(0, 4)
        if table.ndim != 2 or table.shape[1] != 4:
            raise ValueError(
                f"{source}: got shape {table.shape}, expected (N, 4): x_norm, y_norm, t_mid_s, duration_s"
            )
        numbers = range(len(table)) if ids is None else ids
        try:
            ids = np.array([int(number) for number in numbers], dtype=np.int64)
            are_integers = all(integer == number for integer, number in zip(ids, numbers, strict=True))
        except (TypeError, ValueError, OverflowError):
            are_integers = False
        if not are_integers:
            raise ValueError(f"{source}: ids are {numbers}, expected integers")
        if len(ids) != len(table):
            raise ValueError(f"{source}: got {len(ids)} ids for {len(table)} fixations")
        return cls._sorted(table, ids, source, [f"row {row}" for row in range(len(table))], _warn)

    @classmethod
    def _sorted(cls, table: np.ndarray, ids: np.ndarray, source: str, row_names: list[str], doubt) -> "Scanpath":
        """Return the scanpath of checked rows, sorted by time, each once. Raises as `from_array` does."""
        _check_rows(table, source, row_names)
        order = np.argsort(table[:, 2], kind="stable")
        displaced = int((order != np.arange(len(order))).sum())
        if displaced:
            doubt(f"{source}: {displaced} of {len(table)} fixations are out of order, sorted by time")
        repeated = 1 + np.flatnonzero((np.diff(table[order], axis=0) == 0).all(axis=1))
        if len(repeated):
            rows = ", ".join(row_names[order[row]] for row in repeated)
            doubt(f"{source}: {len(repeated)} fixations repeat an earlier one, left out: {rows}")
            order = np.delete(order, repeated)
        return cls(table[order], ids[order])

    @classmethod
    def from_csv(cls, path: str | PathLike, doubt: Callable[[str], None] | None = None) -> "Scanpath":
        """
        Return the scanpath of a StreamGaze fixation table (`*_fixation_filtered.csv`): center_x, center_y in 0 to 1,
        start_time and end_time (or duration) in seconds, fixation_id optional. Raises ValueError naming file, row and
        value; warns as `from_array` does, or calls `doubt` with each warning, which any thread may.
        """
        return cls.from_rows(*read_rows(path), str(path), doubt)

    @classmethod
    def from_rows(
        cls, columns: list[str], rows: list[tuple[int, dict]], path: str, doubt: Callable[[str], None] | None = None
    ) -> "Scanpath":
        """Return the scanpath of a table's rows as `read_rows` returns them. Raises and warns as `from_csv` does."""
        column_of = {
            quantity: next((name for name in aliases if name in columns), None)
            for quantity, aliases in _COLUMN_ALIASES.items()
        }
        missing = [quantity for quantity in ("start", "x", "y") if column_of[quantity] is None]
        if column_of["end"] is None and column_of["duration"] is None:
            missing.append("end or duration")
        if missing:
            hint = ", separated by commas" if len(columns) == 1 else ""
            raise ValueError(
                f"{path}: no column for {', '.join(missing)} among {columns}, expected {_expected_columns()}{hint}; "
                "of raw gaze, `gazeqwen gaze` makes such a table"
            )

        def number(line: int, row: dict, column: str) -> float:
            try:
                return number_of(row[column])
            except ValueError:
                raise ValueError(f"{path}, line {line}: {column} is {row[column]!r}, expected a number") from None

        table, ids = np.empty((len(rows), 4)), np.arange(len(rows))
        contradictions = []
        for index, (line, row) in enumerate(rows):
            start = number(line, row, column_of["start"])
            if column_of["end"] is not None:
                end = number(line, row, column_of["end"])
                if column_of["duration"] is not None and not (
                    abs(number(line, row, column_of["duration"]) - end + start) <= 0.1
                ):
                    contradictions.append(f"line {line}")
            else:
                end = start + number(line, row, column_of["duration"])
            if end <= start:
                raise ValueError(
                    f"{path}, line {line}: the fixation runs from {start} to {end} s, expected an end after its start"
                )
            x, y = number(line, row, column_of["x"]), number(line, row, column_of["y"])
            table[index] = x, y, (start + end) / 2, end - start
            if "fixation_id" in columns:
                fixation_id = number(line, row, "fixation_id")
                if not fixation_id.is_integer() or abs(fixation_id) >= 2**63:
                    raise ValueError(
                        f"{path}, line {line}: fixation_id is {row['fixation_id']!r}, expected an integer"
                    )
                ids[index] = int(fixation_id)
        if contradictions:
            (doubt or _warn)(
                f"{path}: in {len(contradictions)} rows duration is not end - start, the end counts: "
                f"{', '.join(contradictions)}"
            )
        return cls._sorted(table, ids, path, [f"line {line}" for line, _ in rows], doubt or _warn)

    def to_csv(self) -> str:
        """Return the text of a fixation table that `from_csv` reads: StreamGaze's column names, times in seconds."""
        lines = ["fixation_id,start_time,end_time,center_x,center_y,duration"]
        for index, begin, end, (x, y, _, duration) in zip(self.ids, self.begin_s, self.end_s, self.table, strict=True):
            lines.append(",".join([str(int(index)), *(repr(float(value)) for value in (begin, end, x, y, duration))]))
        return "\n".join(lines) + "\n"

    @property
    def begin_s(self) -> np.ndarray:
        """Return (N,) when each fixation begins, seconds."""
        return self.table[:, 2] - self.table[:, 3] / 2

    @property
    def end_s(self) -> np.ndarray:
        """Return (N,) when each fixation ends, seconds."""
        return self.table[:, 2] + self.table[:, 3] / 2

    def __len__(self) -> int:
        return len(self.table)

    def index_at(self, time_s: float) -> int | None:
        """Return the index of the fixation at a time, of several the last in the table; None: there is none."""
        covering = np.flatnonzero((self.begin_s <= time_s) & (time_s < self.end_s))
        return int(covering[-1]) if len(covering) else None

    def index_to_snap(self, query_s: float, within_s: float = 1.0) -> int | None:
        """
        Return the index of the fixation whose start is nearest to `query_s`, and at most `within_s` from it: the one
        that `snap` brings into view. None: there is none.
        """
        distance = np.abs(self.begin_s - query_s)
        return int(distance.argmin()) if len(self) and distance.min() <= within_s else None

    def clip(self, start_s: float, end_s: float) -> "Scanpath":
        """Return what of the scanpath overlaps `[start_s, end_s)`; fixations across an edge are cut there."""
        return self._with_times(np.maximum(self.begin_s, start_s), np.minimum(self.end_s, end_s))

    def _with_times(self, begin_s: np.ndarray, end_s: np.ndarray) -> "Scanpath":
        """
        Return the fixations with other begins and ends, (N,) seconds, sorted by time: of fixations that overlap, a cut
        can change the order. Those left with less than a nanosecond, which rounding makes at a cut, are left out.
        """
        kept = end_s - begin_s > 1e-9
        table = np.column_stack([self.table[:, :2], (begin_s + end_s) / 2, end_s - begin_s])[kept]
        order = np.argsort(table[:, 2], kind="stable")
        return Scanpath(table[order], self.ids[kept][order])

    def snap(self, query_s: float, last_step_begin_s: float, within_s: float = 1.0) -> "Scanpath":
        """
        Return the scanpath as seen by a question about the fixation at `query_s`, the end of the clip, whose last
        temporal step begins at `last_step_begin_s`. StreamGaze stamps such questions with the rounded start of that
        fixation, so next to nothing of it lies before the query. Here the fixation whose start is nearest to the
        query, and at most `within_s` from it, fills the last step, and the others end where that step begins. If there
        is none, nothing changes. This uses gaze of up to `within_s` after the query: off unless asked for.
        """
        index = self.index_to_snap(query_s, within_s)
        if index is None:
            return self
        begin, end = self.begin_s, np.minimum(self.end_s, last_step_begin_s)
        begin[index], end[index] = min(begin[index], last_step_begin_s), query_s
        return self._with_times(begin, end)


def read_rows(path: str | PathLike) -> tuple[list[str], list[tuple[int, dict]]]:
    """
    Return the header, and rows as (line, {column: text}), of a CSV file. Raises FileNotFoundError, or ValueError
    naming the file, and the line for a row with more or fewer cells than the header.
    """
    path = checked_file(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            columns = next(reader, [])
            rows = [(reader.line_num, cells) for cells in reader if cells]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV text file in UTF-8 ({error})") from error
    if not columns:
        raise ValueError(f"{path}: empty file or first line, expected a header with {_expected_columns()}")
    if len(columns) > _MOST_COLUMNS:
        raise ValueError(f"{path}: {len(columns)} columns, expected at most {_MOST_COLUMNS}")
    repeated = [name for name, count in Counter(columns).items() if count > 1]
    if repeated:
        raise ValueError(f"{path}: the header holds {repeated[0]!r} twice")
    for line, cells in rows:
        if len(cells) != len(columns):
            hint = " (cells are separated by commas, decimals written with a point)"
            if len(cells) < len(columns):
                hint = f": {columns[len(cells)]} is None, expected a number or a text"
            raise ValueError(f"{path}, line {line}: {len(cells)} cells, expected {len(columns)}{hint}")
    return columns, [(line, dict(zip(columns, cells, strict=True))) for line, cells in rows]


def checked_file(path: str | PathLike) -> Path:
    """Return the path of a file that is there. Raises ValueError if it is no path, FileNotFoundError if no file."""
    if not isinstance(path, (str, PathLike)):
        raise ValueError(f"got {' '.join(repr(path).split())[:80]}, expected the path of a file")
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {'a folder, expected a file' if path.is_dir() else 'no such file'}")
    return path


def _expected_columns() -> str:
    """Return the columns of a fixation table in words, for errors."""
    return "center_x, center_y, start_time and end_time (or duration)"


def as_scanpath(value) -> Scanpath | None:
    """
    Return a `Scanpath` from itself, a path to a fixation table, an (N, 4) array, or rows as dicts with the columns of
    a table; `None` stays `None`.
    """
    if value is None or isinstance(value, Scanpath):
        return value
    if isinstance(value, (str, PathLike)):
        return Scanpath.from_csv(fspath(value))
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], dict):
        columns = list(value[0])
        for number, row in enumerate(value):
            if not isinstance(row, dict) or set(row) != set(columns):
                raise ValueError(f"scanpath, row {number}: got {row!r}, expected a dict with the columns {columns}")
        rows = [(number, {name: str(row[name]) for name in columns}) for number, row in enumerate(value)]
        return Scanpath.from_rows(columns, rows, "scanpath")
    return Scanpath.from_array(value)


__all__ = ["Scanpath", "as_scanpath", "checked_file", "number_of", "read_rows", "whole_number_of"]
