"""Scanpath: the fixation table, its readers, its checks, and its clipping. Times are seconds of the source video."""

import csv
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


def _check_rows(table: np.ndarray, source: str, row_names: list[str]) -> None:
    """Raise for the first bad row of an (N, 4) table, naming source, row, value, and what was expected."""

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
    def from_array(cls, table, source: str = "scanpath") -> "Scanpath":
        """From an (N, 4) array or tensor: `x_norm, y_norm, t_mid_s, duration_s`. Raises ValueError naming the row."""
        table = np.asarray(table, dtype=np.float64)
        if table.size == 0:
            table = table.reshape(0, 4)
        if table.ndim != 2 or table.shape[1] != 4:
            raise ValueError(
                f"{source}: got shape {table.shape}, expected (N, 4): x_norm, y_norm, t_mid_s, duration_s"
            )
        _check_rows(table, source, [f"row {row}" for row in range(len(table))])
        order = np.argsort(table[:, 2], kind="stable")
        return cls(table[order], np.arange(len(table))[order])

    @classmethod
    def from_csv(cls, path: str | PathLike) -> "Scanpath":
        """
        From a StreamGaze fixation table (`*_fixation_filtered.csv`): center_x, center_y in 0 to 1, start_time and
        end_time (or duration) in seconds, fixation_id optional. Raises ValueError naming file, row and value.
        """
        path = Path(path)
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file)
                columns = reader.fieldnames
                rows = [(reader.line_num, row) for row in reader]
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path}: not a CSV text file in UTF-8 ({error})") from error
        if not columns:
            raise ValueError(f"{path}: empty file, expected a header with {_expected_columns()}")
        found = {
            quantity: next((name for name in aliases if name in columns), None)
            for quantity, aliases in _COLUMN_ALIASES.items()
        }
        missing = [quantity for quantity in ("start", "x", "y") if found[quantity] is None]
        if found["end"] is None and found["duration"] is None:
            missing.append("end or duration")
        if missing:
            raise ValueError(
                f"{path}: no column for {', '.join(missing)} among {columns}, expected {_expected_columns()}"
            )

        def number(line: int, row: dict, column: str) -> float:
            try:
                return float(row[column])
            except (TypeError, ValueError):
                raise ValueError(f"{path}, line {line}: {column} is {row[column]!r}, expected a number") from None

        table, ids = np.empty((len(rows), 4)), np.empty(len(rows), dtype=np.int64)
        for index, (line, row) in enumerate(rows):
            start = number(line, row, found["start"])
            if found["end"] is not None:
                end = number(line, row, found["end"])
            else:
                end = start + number(line, row, found["duration"])
            if end <= start:
                raise ValueError(
                    f"{path}, line {line}: the fixation runs from {start} to {end} s, expected an end after its start"
                )
            table[index] = (
                number(line, row, found["x"]),
                number(line, row, found["y"]),
                (start + end) / 2,
                end - start,
            )
            ids[index] = int(number(line, row, "fixation_id")) if "fixation_id" in columns else index
        _check_rows(table, str(path), [f"line {line}" for line, _ in rows])
        order = np.argsort(table[:, 2], kind="stable")
        return cls(table[order], ids[order])

    def to_csv(self) -> str:
        """The text of a fixation table that `from_csv` reads: StreamGaze's column names, times in seconds."""
        lines = ["fixation_id,start_time,end_time,center_x,center_y,duration"]
        for index, begin, end, (x, y, _, duration) in zip(self.ids, self.begin_s, self.end_s, self.table, strict=True):
            lines.append(",".join([str(int(index)), *(repr(float(v)) for v in (begin, end, x, y, duration))]))
        return "\n".join(lines) + "\n"

    @property
    def begin_s(self) -> np.ndarray:
        return self.table[:, 2] - self.table[:, 3] / 2

    @property
    def end_s(self) -> np.ndarray:
        return self.table[:, 2] + self.table[:, 3] / 2

    def __len__(self) -> int:
        return len(self.table)

    def clip(self, start_s: float, end_s: float) -> "Scanpath":
        """What of the scanpath overlaps `[start_s, end_s)`; fixations across an edge are cut there."""
        begin, end = np.maximum(self.begin_s, start_s), np.minimum(self.end_s, end_s)
        kept = end - begin > 1e-9
        table = np.column_stack([self.table[:, :2], (begin + end) / 2, end - begin])[kept]
        return Scanpath(table, self.ids[kept])


def _expected_columns() -> str:
    return "center_x, center_y, start_time and end_time (or duration)"


def as_scanpath(value) -> Scanpath | None:
    """A `Scanpath` from itself, a path to a fixation table, or an (N, 4) array; `None` stays `None`."""
    if value is None or isinstance(value, Scanpath):
        return value
    if isinstance(value, (str, PathLike)):
        return Scanpath.from_csv(fspath(value))
    return Scanpath.from_array(value)


__all__ = ["Scanpath", "as_scanpath"]
