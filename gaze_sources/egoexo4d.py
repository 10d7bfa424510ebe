"""
Ego-Exo4D: a take's `eye_gaze/personalized_eye_gaze_2d.csv`, or else `general_eye_gaze_2d.csv`.

The columns are `frame_num` (or `frame_number`), which counts 10 a second of the take, and `x`, `y`, pixels of the
1408 x 1408 frames of the glasses' color camera, turned upright as the take's videos are, also those scaled down;
origin top-left, y down. Rows without a position are untracked. The clock is that of the take's frame-aligned videos,
from 0.

The same folder's `*_eye_gaze.csv` are Project Aria's, which `aria` reads.
"""

from pathlib import Path

import numpy as np

from .files import find_path, read_text, read_text_table
from .samples import GazeSamples

RATE_HZ, FRAME_SIZE = 10, (1408, 1408)
_TABLES = ("personalized_eye_gaze_2d.csv", "general_eye_gaze_2d.csv")


def find(root, stem: str) -> Path | None:
    """Return where the recording of the take `stem` lies below `root`, or None."""
    return find_path(root, *(f"{stem}/eye_gaze/{name}" for name in _TABLES))


def read(path, video=None) -> GazeSamples:
    """
    Return the samples of a table of projected gaze, or of a take's folder. Raises FileNotFoundError, or ValueError
    naming file, line and value.
    """
    path, notes = Path(path), []
    if path.is_dir():
        folder = path / "eye_gaze" if (path / "eye_gaze").is_dir() else path
        present = [folder / name for name in _TABLES if (folder / name).is_file()]
        if not present:
            raise FileNotFoundError(f"{path}: no such file {' or '.join(_TABLES)}, nor in eye_gaze/ of it")
        path, notes = present[0], [f"of {folder} {present[0].name} is read"]
    header = read_text(path).partition("\n")[0]
    number = "frame_number" if "frame_number" in header else "frame_num"
    table = read_text_table(path, (number, "x", "y"))
    frames = table.integers(number)
    if (frames < 0).any():
        row = int(np.flatnonzero(frames < 0)[0])
        raise ValueError(f"{path}, line {table.lines[row]}: {number} is {frames[row]}, expected 0 or more")
    pixels = np.column_stack([table.numbers(axis, empty_allowed=True) for axis in "xy"])
    finite = np.isfinite(pixels).all(axis=1)
    if finite.any() and np.abs(pixels[finite]).max() <= 1:
        raise ValueError(f"{path}: all positions lie within 1 pixel of the origin: are they normalised?")
    if not finite.all():
        notes.append(f"{(~finite).sum()} of {len(finite)} rows have no position, so they are untracked")
    return GazeSamples.from_recording(
        frames / RATE_HZ, pixels / FRAME_SIZE, finite, path, table.lines, notes=notes, frame_size=FRAME_SIZE
    )
