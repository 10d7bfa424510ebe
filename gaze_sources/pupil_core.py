"""
Pupil Core: a folder that Pupil Player exported, also from a recording of Pupil Invisible that it opened.

`gaze_positions.csv` with the columns gaze_timestamp, confidence, norm_pos_x, norm_pos_y; `world_timestamps.csv` with
the column `# timestamps [seconds]`, one row per frame of the exported scene video (`world.mp4`). Positions are
normalised by the frame's size, origin bottom-left, y up. Samples whose confidence is below `min_confidence` (0.6,
below which Pupil Player holds gaze for unreliable) are untracked. Samples of the two eyes may be out of order: they
are sorted.

The clock is Pupil's, in seconds. As for `pupil_labs`, the video's time is interpolated between those of its frames;
without the video, or if its number of frames is another, it is the time since the first world timestamp.
"""

from pathlib import Path

import numpy as np

from .files import find_path, frame_size_of, read_text_table, video_times_s
from .samples import GazeSamples

_TIME, _WORLD_TIME = "gaze_timestamp", "# timestamps [seconds]"
_COLUMNS = (_TIME, "confidence", "norm_pos_x", "norm_pos_y")


def find(root, stem: str) -> Path | None:
    """Return the folder of the export that is named `stem`, or that lies below a recording of that name, or None."""
    table = find_path(root, f"{stem}/gaze_positions.csv", f"{stem}/exports/000/gaze_positions.csv")
    return None if table is None else table.parent


def read(path, video=None, min_confidence: float = 0.6, frame_size: tuple[int, int] | None = None) -> GazeSamples:
    """
    Return the samples of an export's folder, or its gaze_positions.csv. Raises FileNotFoundError, or ValueError naming
    file, line and value.
    """
    path = Path(path) / "gaze_positions.csv" if Path(path).is_dir() else Path(path)
    table = read_text_table(path, _COLUMNS)
    seconds = table.numbers(_TIME)
    world = read_text_table(path.with_name("world_timestamps.csv"), (_WORLD_TIME,))
    world_s = world.numbers(_WORLD_TIME)
    for recorded, times, column in ((table, seconds, _TIME), (world, world_s, _WORLD_TIME)):
        row = next(iter(np.flatnonzero(~np.isfinite(times))), None)
        if row is not None:
            place = f"{recorded.path}, line {recorded.lines[row]}"
            raise ValueError(f"{place}: {column} is {times[row]}, expected a finite number")
    back = np.flatnonzero(np.diff(world_s) <= 0)
    if len(back):
        raise ValueError(f"{world.path}, line {world.lines[back[0] + 1]}: {_WORLD_TIME} does not increase")
    times_s, notes = video_times_s(_nanoseconds(seconds), _nanoseconds(world_s), video)
    order = np.argsort(times_s, kind="stable")
    displaced = int((order != np.arange(len(order))).sum())
    if displaced:
        notes.append(f"{displaced} samples are out of order, sorted by time")
    confident = table.numbers("confidence", empty_allowed=True) >= min_confidence
    if not confident.all():
        notes.append(f"{(~confident).sum()} samples with a confidence below {min_confidence} (or none) are untracked")
    x, y = (table.numbers(name, empty_allowed=True) for name in ("norm_pos_x", "norm_pos_y"))
    return GazeSamples.from_recording(
        times_s[order],
        np.column_stack([x, 1 - y])[order],
        confident[order],
        path,
        table.lines[order],
        notes=notes,
        frame_size=frame_size_of(video, frame_size),
    )


def _nanoseconds(seconds: np.ndarray) -> np.ndarray:
    """Return seconds as whole nanoseconds, int64."""
    return np.rint(seconds * 1e9).astype(np.int64)
