"""Gaze samples as they arrive: from a table that grows, a Python iterator, or Lab Streaming Layer."""

import csv
import math
from collections.abc import Iterable
from os import PathLike

import numpy as np

from gazeqwen.gaze_sources.files import TableLayout
from gazeqwen.gaze_sources.generic import Columns, delimiter_of
from gazeqwen.gaze_sources.samples import GazeSamples
from gazeqwen.scanpath_gazeqwen import checked_file


class GazeSource:
    """
    Give samples by the video's clock: `until` returns each once. What has come and lies later is held back. `clock`
    says in words when the video begins on the source's own clock; empty: not known yet, or it has none.
    """

    clock = ""

    def __init__(self):
        self._held: list[GazeSamples] = []

    def begin(self, time_s: float) -> None:
        """Take note that now is `time_s` of the video: for sources on a clock of their own."""

    def until(self, time_s: float) -> list[GazeSamples]:
        """Return the samples up to `time_s`, seconds of the video, that have come and were not returned before."""
        parts, self._held = [*self._held, *self._arrived(time_s)], []
        given = []
        for samples in parts:
            inside = samples.times_s <= time_s
            if inside.any():
                given.append(samples.keep(inside))
            if not inside.all():
                self._held.append(samples.keep(~inside))
        return given

    def _arrived(self, time_s: float) -> Iterable[GazeSamples]:
        """Return what has come since the last call; a source that can wait does so up to `time_s`, no further."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of file or connection."""


class GrowingTable(GazeSource):
    """
    Follow a CSV file (tab-separated if named .tsv) to which rows are appended, columns as `generic.read` takes them. A
    last line counts when its end is written. Raises ValueError naming file, line and value, also where the file has
    become shorter.
    """

    def __init__(self, path: str | PathLike, columns: Columns):
        super().__init__()
        self.path, self.columns = checked_file(path), columns
        self.clock = f"the video begins at {columns.offset_s:g} s of the table's (offset_s)"
        self._delimiter = delimiter_of(self.path)
        self._layout: TableLayout | None = None
        self._bytes = self._lines = 0  # read so far

    def _arrived(self, time_s: float) -> Iterable[GazeSamples]:
        lines = self._new_lines()
        if self._layout is None and lines:
            header, *lines = lines
            fields = next(csv.reader([header.removeprefix("\ufeff")], delimiter=self._delimiter), [])
            columns = self.columns
            self._layout = TableLayout.from_header(
                self.path, fields, columns.required, (columns.confidence_column,), self._delimiter
            )
            self._lines = 1
        if not lines:
            return []
        before, self._lines = self._lines, self._lines + len(lines)
        try:
            table = self._layout.table(csv.reader(lines, delimiter=self._delimiter), before)
        except csv.Error as error:
            raise ValueError(f"{self.path}, after line {before}: {error}") from error
        return [self.columns.samples(table)] if len(table.lines) else []

    def _new_lines(self) -> list[str]:
        """Return the lines that were finished since the last call."""
        with self.path.open("rb") as file:
            size = file.seek(0, 2)
            if size < self._bytes:
                raise ValueError(f"{self.path}: {size} bytes, {self._bytes} were read before: expected it to grow")
            file.seek(self._bytes)
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]
        self._bytes += len(data)
        try:
            return [line.rstrip("\r") for line in data.decode().split("\n")[:-1]]
        except UnicodeDecodeError as error:
            raise ValueError(f"{self.path}, after line {self._lines}: not text in UTF-8 ({error})") from error


class GazeIterator(GazeSource):
    """
    Take (time_s, x_norm, y_norm) from any Python iterable, origin top-left, y down; NaN where the gaze is untracked.
    It is asked for no more than up to the first sample that lies after the time needed.
    """

    def __init__(self, samples: Iterable[tuple[float, float, float]], name: str = "gaze"):
        super().__init__()
        self._samples, self.name, self._last_s = iter(samples), name, -math.inf

    def _arrived(self, time_s: float) -> Iterable[GazeSamples]:
        rows = []
        while self._last_s <= time_s:
            row = next(self._samples, None)
            if row is None:
                self._last_s = math.inf
                break
            rows.append(row)
            self._last_s = row[0]
        if not rows:
            return []
        table = np.array(rows, dtype=np.float64)
        if table.ndim != 2 or table.shape[1] != 3:
            raise ValueError(f"{self.name}: got samples of shape {table.shape[1:]}, expected (time_s, x, y)")
        return [GazeSamples.from_recording(table[:, 0], table[:, 1:], np.ones(len(table), bool), self.name)]


class LslGaze(GazeSource):
    """
    Receive a stream of Lab Streaming Layer, the first whose `prop` (`name`, `type`, `source_id`) is `value`. The
    columns are channels, by their labels; where the stream has no labels, the first two, and the third as confidence
    if there is one. Times are of this machine's clock, corrected for the sender's by LSL. `offset_s` is that clock's
    time, in seconds, at which the video begins; None: its first frame comes then (`begin`), and all samples wait for
    it.

    Raises ImportError without pylsl, and ValueError if no such stream is found within `timeout_s` or a channel is
    missing.
    """

    def __init__(
        self,
        columns: Columns,
        prop: str = "type",
        value: str = "Gaze",
        offset_s: float | None = None,
        timeout_s: float = 10.0,
    ):
        super().__init__()
        try:
            import pylsl
        except ImportError:
            raise ImportError("gaze over Lab Streaming Layer needs: pip install gazeqwen[lsl]") from None
        self.columns, self.offset_s, self.name = columns, offset_s, f"LSL stream with {prop} {value}"
        if offset_s is not None:
            self.clock = f"the video begins at {offset_s:.3f} s of this machine's LSL clock (offset_s)"
        streams = pylsl.resolve_byprop(prop, value, 1, timeout_s)
        if not streams:
            raise ValueError(f"{self.name}: none within {timeout_s:g} s")
        flags = pylsl.proc_clocksync | pylsl.proc_monotonize
        self._clock, self._inlet = pylsl.local_clock, pylsl.StreamInlet(streams[0], processing_flags=flags)
        self._inlet.open_stream(timeout_s)
        self._channels = self._places(_labels(self._inlet.info(timeout_s)), streams[0].channel_count())

    def _places(self, labels: list[str], channels: int) -> list[int]:
        """Return the places of x, y and, if there is one, confidence among the channels."""
        if not any(labels):
            labels = [self.columns.x_column, self.columns.y_column, self.columns.confidence_column][:channels]
        required = [self.columns.x_column, self.columns.y_column]
        optional = [self.columns.confidence_column]
        if self.columns.min_confidence > 0:
            required, optional = required + optional, []
        missing = [name for name in required if name not in labels]
        if missing:
            raise ValueError(f"{self.name}: no channel {', '.join(missing)} among {labels}")
        return [labels.index(name) for name in required + optional if name in labels]

    def begin(self, time_s: float) -> None:
        """Take note that now is `time_s` of the video, unless the offset is known."""
        if self.offset_s is None:
            self.offset_s = self._clock() - time_s
            self.clock = (
                f"the video begins at {self.offset_s:.3f} s of this machine's LSL clock, when its first frame came"
            )

    def _arrived(self, time_s: float) -> Iterable[GazeSamples]:
        if self.offset_s is None:
            return []
        rows, times = [], []
        while True:  # a chunk at a time, until none is left
            chunk, stamps = self._inlet.pull_chunk(timeout=0.0, max_samples=1024)
            if not stamps:
                break
            rows += chunk
            times += stamps
        if not rows:
            return []
        table = np.array(rows, dtype=np.float64)[:, self._channels]
        xy, tracked = self.columns.in_frame(table[:, :2]), np.ones(len(table), bool)
        if table.shape[1] > 2:
            tracked = table[:, 2] >= self.columns.min_confidence
        size = self.columns.frame_size
        return [GazeSamples.from_recording(np.array(times) - self.offset_s, xy, tracked, self.name, frame_size=size)]

    def close(self) -> None:
        """End the connection."""
        self._inlet.close_stream()


def _labels(info) -> list[str]:
    """Return the labels of a stream's channels, in order, as its description has them."""
    labels, channel = [], info.desc().child("channels").child("channel")
    while not channel.empty():
        labels.append(channel.child_value("label"))
        channel = channel.next_sibling("channel")
    return labels


__all__ = ["GazeIterator", "GazeSource", "GrowingTable", "LslGaze"]
