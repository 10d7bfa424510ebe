"""
Tobii: a TSV export of Pro Lab, or the gaze data of a Glasses 3 recording.

Pro Lab: a table separated by tabs, in UTF-8 or UTF-16. `Recording timestamp [μs]` or `[ms]` is the time since the
recording began, which is when its scene video begins (an export without the unit in the header needs `time_unit`).
Positions: `Gaze point X [MCS norm]` and `Y`, normalised by the scene video's frame, or `[MCS px]` (or no unit), pixels
of it; origin top-left, y down. Positions on a display (`[DACS px]`) are not positions in a scene video. Of the
optional columns, `Sensor` keeps the rows of the eye tracker, `Validity left` and `right` (Invalid, both) and `Eye
movement type` (Fixation, Saccade, EyesNotFound) tell what a sample is, and `Recording name` holds what `recording`
picks. Decimal commas are read: exports follow the computer's language.

Glasses 3: `gazedata.gz` (or `gazedata`), one JSON object a line: `{"type": "gaze", "timestamp": seconds since the
scene video's begin, "data": {"gaze2d": [x, y], ...}}`, normalised, origin top-left, y down; `data` is empty where the
gaze is not tracked. Lines of other types are left out, and counted.
"""

import gzip
import json
import unicodedata
import zlib
from pathlib import Path

import numpy as np

from .files import find_path, frame_size_of, read_text, read_text_table, required_frame_size
from .generic import TIME_UNITS
from .samples import GazeSamples, Status

_KINDS = {"Fixation": Status.FIXATION, "Saccade": Status.SACCADE, "EyesNotFound": Status.UNTRACKED}
_VALIDITY = ("Validity left", "Validity right")


def find(root, stem: str) -> Path | None:
    """Return where the recording of the video `stem`.mp4 lies below `root`, or None."""
    return find_path(root, f"{stem}.tsv", f"{stem}/gazedata.gz", f"{stem}/gazedata")


def read(
    path,
    video=None,
    time_unit: str | None = None,
    offset_s: float = 0.0,
    recording: str | None = None,
    frame_size: tuple[int, int] | None = None,
) -> GazeSamples:
    """
    Return the samples of a Pro Lab export (.tsv) or of a Glasses 3 recording (its folder or its gaze data). `offset_s`
    is the recording's time at which the video begins, where the video was cut. Raises FileNotFoundError, or ValueError
    naming file, line and value.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "gazedata.gz" if (path / "gazedata.gz").exists() else path / "gazedata"
    if path.suffix.lower() in (".tsv", ".txt"):
        return _read_pro_lab(path, video, time_unit, offset_s, recording, frame_size)
    return _read_glasses3(path, video, offset_s, frame_size)


def _read_pro_lab(path: Path, video, time_unit, offset_s: float, recording, frame_size) -> GazeSamples:
    """Return the samples of a Pro Lab export. Raises ValueError naming file, line and value."""
    header = read_text(path).partition("\n")[0].rstrip("\r").split("\t")
    columns = {unicodedata.normalize("NFKC", name.strip()): name.strip() for name in header}  # both signs for micro
    time, unit = _time_column(path, columns, time_unit)
    kinds = (" [MCS norm]", " [MCS px]", "")
    kind = next((kind for kind in kinds if {f"Gaze point X{kind}", f"Gaze point Y{kind}"} <= set(columns)), None)
    if kind is None:
        display = ", only positions on a display [DACS]" if any("DACS" in name for name in columns) else ""
        raise ValueError(f"{path}: no columns Gaze point X and Y [MCS norm] or [MCS px]{display}")
    axes = (f"Gaze point X{kind}", f"Gaze point Y{kind}")
    table = read_text_table(path, (time, *axes), ("Sensor", "Eye movement type", "Recording name", *_VALIDITY), "\t")
    notes = []
    if "Recording name" in table:
        known = sorted(set(table.columns["Recording name"]))
        if recording not in known and (recording is not None or len(known) > 1):
            raise ValueError(f"{path}: recording {recording!r}, expected one of {known}")
        if len(known) > 1:
            table = table.rows(np.array(table.columns["Recording name"]) == recording)
    if "Sensor" in table:
        from_eyes = np.array([sensor.strip() in ("", "Eye Tracker") for sensor in table.columns["Sensor"]])
        if not from_eyes.all():
            notes.append(f"{(~from_eyes).sum()} rows of other sensors are left out")
            table = table.rows(from_eyes)
    xy = np.column_stack([table.numbers(axis, empty_allowed=True, decimal_comma=True) for axis in axes])
    if kind == " [MCS norm]":
        size = frame_size_of(video, frame_size)
    else:
        size = required_frame_size(path, video, frame_size)
        xy = xy / size
    tracked = np.isfinite(xy).all(axis=1)
    if all(name in table for name in _VALIDITY):
        left, right = (np.array(table.columns[name]) for name in _VALIDITY)
        tracked &= ~((left == "Invalid") & (right == "Invalid"))
    labels = None
    if "Eye movement type" in table:
        labels = np.array([_KINDS.get(text.strip(), Status.UNKNOWN) for text in table.columns["Eye movement type"]])
        tracked &= labels != Status.UNTRACKED
    return GazeSamples.from_recording(
        table.numbers(time, decimal_comma=True) / TIME_UNITS[unit] - offset_s,
        xy,
        tracked,
        path,
        table.lines,
        labels,
        notes,
        frame_size=size,
    )


def _time_column(path: Path, columns: dict[str, str], time_unit: str | None) -> tuple[str, str]:
    """
    Return the header's name of the time, and its unit. `columns`: the header's names by normalised name. Raises
    ValueError naming the file.
    """
    for label, unit in (("[μs]", "us"), ("[us]", "us"), ("[ms]", "ms")):
        if f"Recording timestamp {label}" in columns:
            return columns[f"Recording timestamp {label}"], unit
    if "Recording timestamp" not in columns:
        raise ValueError(f"{path}: no column Recording timestamp among {list(columns)}")
    if time_unit not in TIME_UNITS:
        raise ValueError(
            f"{path}: Recording timestamp carries no unit and time_unit is {time_unit!r}, expected us or ms"
        )
    return columns["Recording timestamp"], time_unit


def _read_glasses3(path: Path, video, offset_s: float, frame_size) -> GazeSamples:
    """Return the samples of a Glasses 3 recording. Raises FileNotFoundError, or ValueError naming file and line."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    data = path.read_bytes()
    try:
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not gaze data of Glasses 3, or cut off ({error})") from error
    times_s, positions, lines, others = [], [], [], 0
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            if entry["type"] != "gaze":
                others += 1
                continue
            times_s.append(float(entry["timestamp"]))
            x, y = entry["data"].get("gaze2d") or (np.nan, np.nan)
            positions.append((float(x), float(y)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            shown, expected = line.strip()[:80], "a JSON object with type, timestamp and data"
            raise ValueError(f"{path}, line {number}: {shown!r}, expected {expected} ({error!r})") from None
        lines.append(number)
    xy = np.array(positions, dtype=np.float64).reshape(-1, 2)
    return GazeSamples.from_recording(
        np.array(times_s) - offset_s,
        xy,
        ~np.isnan(xy).any(axis=1),
        path,
        lines,
        notes=[f"{others} lines of other types than gaze are left out"] if others else [],
        frame_size=frame_size_of(video, frame_size),
    )
