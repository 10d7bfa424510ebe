"""Read what recordings come in: text tables with errors that name the line, files below a folder, times of frames."""

import csv
import re
from dataclasses import dataclass
from io import StringIO
from os import PathLike
from pathlib import Path

import numpy as np

from gazeqwen.scanpath_gazeqwen import number_of, whole_number_of
from gazeqwen.video_gazeqwen import frame_times_s, video_info


def read_text(path: str | PathLike) -> str:
    """
    Return a text file in UTF-8 or, with its mark, UTF-16; Windows line ends as they are. Raises FileNotFoundError, or
    ValueError if it is neither.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: {'a folder, expected a file' if path.is_dir() else 'no such file'}")
    data = path.read_bytes()
    try:
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8 or UTF-16 ({error})") from error


@dataclass(frozen=True, eq=False)
class TextTable:
    """A text file's columns, as text, and the line that each row ends on."""

    path: Path
    columns: dict[str, list[str]]
    lines: np.ndarray

    def __contains__(self, column: str) -> bool:
        return column in self.columns

    def rows(self, kept: np.ndarray) -> "TextTable":
        """Return the rows that `kept` (N,) bool marks."""
        indices = np.flatnonzero(kept)
        columns = {name: [texts[index] for index in indices] for name, texts in self.columns.items()}
        return TextTable(self.path, columns, self.lines[kept])

    def numbers(self, column: str, empty_allowed: bool = False, decimal_comma: bool = False) -> np.ndarray:
        """Return (N,) float64, NaN for empty cells where allowed. Raises ValueError naming file, line and value."""
        texts = self.columns[column]
        if empty_allowed:
            texts = [text if text.strip() else "nan" for text in texts]
        if decimal_comma:
            texts = [text.replace(",", ".") for text in texts]
        return np.array(self._parsed(column, texts, number_of, "a number"), dtype=np.float64)

    def integers(self, column: str) -> np.ndarray:
        """Return (N,) int64: exact, where float64 would round nanoseconds. Raises ValueError as `numbers`."""

        def whole(text: str) -> int:
            number = whole_number_of(text)
            if abs(number) >= 2**63:
                raise ValueError
            return number

        return np.array(self._parsed(column, self.columns[column], whole, "a whole number"), dtype=np.int64)

    def flags(self, column: str) -> np.ndarray:
        """Return (N,) bool from true/false or 1/0, in any case. Raises ValueError as `numbers`."""
        words = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}

        def flag(text: str) -> bool:
            if text.strip().lower() not in words:
                raise ValueError
            return words[text.strip().lower()]

        return np.array(self._parsed(column, self.columns[column], flag, "true or false (1 or 0)"), dtype=bool)

    def _parsed(self, column: str, texts: list[str], parse, expected: str) -> list:
        """Return each text as `parse` reads it. Raises ValueError naming the first line where it cannot."""
        try:
            return [parse(text) for text in texts]
        except ValueError:
            pass
        for line, text in zip(self.lines, texts, strict=True):
            try:
                parse(text)
            except ValueError:
                comma = " (a decimal comma?)" if re.fullmatch(r"\s*-?\d+,\d+\s*", text) else ""
                raise ValueError(
                    f"{self.path}, line {line}: {column} is {text!r}{comma}, expected {expected}"
                ) from None


@dataclass(frozen=True)
class TableLayout:
    """What a table's header says: how many fields a row has, and where among them each column stands."""

    path: Path
    fields: int
    positions: dict[str, int]

    @classmethod
    def from_header(cls, path: Path, header: list[str], required, optional=(), delimiter: str = ",") -> "TableLayout":
        """
        Return the places of the `required` columns, and of those of `optional` that there are. Raises ValueError
        naming the file for columns that are missing or there twice.
        """
        header = [name.strip() for name in header]
        if not header:
            raise ValueError(f"{path}: empty, expected a header with {', '.join(required)}")
        missing = [name for name in required if name not in header]
        if missing:
            others = [other for other in ",;\t" if other != delimiter and any(other in name for name in header)]
            hint = f" (fields seem to be separated by {others[0]!r}, not {delimiter!r})" if others else ""
            raise ValueError(f"{path}: no column {', '.join(missing)} among {header}{hint}")
        names = [name for name in (*required, *optional) if name in header]
        repeated = [name for name in names if header.count(name) > 1]
        if repeated:
            raise ValueError(f"{path}: column {repeated[0]} occurs {header.count(repeated[0])} times, expected one")
        return cls(path, len(header), {name: header.index(name) for name in names})

    def table(self, reader, lines_before: int = 0) -> TextTable:
        """
        Return the columns of the rows that a `csv.reader` still has, the file's lines after `lines_before`. Empty
        lines are skipped. Raises ValueError naming file and line for a row with more or fewer fields.
        """
        rows, lines = [], []
        for row in reader:
            line = lines_before + reader.line_num
            if len(row) == self.fields:
                rows.append([row[position] for position in self.positions.values()])
                lines.append(line)
            elif row:
                raise ValueError(
                    f"{self.path}, line {line}: {len(row)} fields, expected {self.fields} as in the header"
                )
        columns = zip(*rows, strict=True) if rows else [[] for _ in self.positions]
        return TextTable(self.path, dict(zip(self.positions, map(list, columns), strict=True)), np.array(lines))


def read_text_table(path: str | PathLike, required, optional=(), delimiter: str = ",") -> TextTable:
    """
    Return the `required` columns of a table with a header, and those of `optional` that it has. Empty lines are
    skipped. Raises FileNotFoundError, or ValueError naming the file, and the line for a row with more or fewer fields.
    """
    path = Path(path)
    reader = csv.reader(StringIO(read_text(path), newline=""), delimiter=delimiter)
    try:
        table = TableLayout.from_header(path, next(reader, []), required, optional, delimiter).table(reader)
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from error
    if not len(table.lines):
        raise ValueError(f"{path}: a header and no rows")
    return table


def find_path(root: str | PathLike, *names: str) -> Path | None:
    """
    Return the file or folder below `root` whose path ends with one of `names` (such as `a/b.txt`), the first that
    exists. Raises ValueError if several do.
    """
    for name in names:
        parts = Path(name).parts
        matches = sorted(
            path
            for path in Path(root).rglob("*")
            if path.name == parts[-1] and path.relative_to(root).parts[-len(parts) :] == parts
        )
        if len(matches) > 1:
            listed = ", ".join(map(str, matches[:5]))
            raise ValueError(f"{root}: {len(matches)} places for {name}: {listed}; expected one")
        if matches:
            return matches[0]
    return None


def frame_size_of(video, frame_size: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return (width, height) in pixels: `frame_size` itself, or else the video's displayed size, or else None."""
    if frame_size is not None:
        width, height = frame_size
        if not (width > 0 and height > 0):
            raise ValueError(f"frame size {frame_size}, expected a positive width and height in pixels")
        return width, height
    if video is None:
        return None
    info = video_info(video)
    return info.width, info.height


def required_frame_size(path, video, frame_size) -> tuple[int, int]:
    """Return what `frame_size_of` does. Raises ValueError if neither a video nor a size is given."""
    size = frame_size_of(video, frame_size)
    if size is None:
        raise ValueError(f"{path}: positions in pixels need the frame's size: give the video, or the frame size")
    return size


def times_of_frames(frame_index: np.ndarray, video, fps: float) -> np.ndarray:
    """
    Return the seconds at which frames are shown, (N,): their true presentation times in `video`, or index / `fps`
    without one. Frames that the video does not have continue after its last one at its mean rate.
    """
    if video is None:
        return frame_index / fps
    times = frame_times_s(video)
    interval_s = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 1 / fps
    beyond = np.maximum(frame_index - (len(times) - 1), 0)
    return times[np.minimum(frame_index, len(times) - 1)] + beyond * interval_s


def video_times_s(device_ns: np.ndarray, frames_ns: np.ndarray, video) -> tuple[np.ndarray, list[str]]:
    """
    Return (N,) seconds of the video at nanoseconds `device_ns` of a device's clock, by those of its frames
    (`frames_ns`, (F,), not decreasing); and notes. Between frames time is interpolated between the true times of the
    video's frames; without the video, or if its number of frames is another, it is the time since the first of them.
    """
    since_first_s, frames_s = (device_ns - frames_ns[0]) / 1e9, (frames_ns - frames_ns[0]) / 1e9
    if video is None:
        return since_first_s, []
    shown_s = frame_times_s(video)
    if len(shown_s) != len(frames_s):
        note = f"{len(frames_s)} frame timestamps for {len(shown_s)} frames of {video}: times count from the first one"
        return shown_s[0] + since_first_s, [note]
    first_shown = np.concatenate([[True], np.diff(frames_ns) > 0])  # a frame that repeats the one before has its time
    times_s = np.interp(since_first_s, frames_s[first_shown], shown_s[first_shown])
    before, after = np.minimum(since_first_s, 0), np.maximum(since_first_s - frames_s[-1], 0)
    return times_s + before + after, []
