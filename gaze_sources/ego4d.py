"""
Ego4D: `v2/gaze/<video_uid>.csv` with the columns canonical_timestamp_s, norm_pos_x, norm_pos_y, confidence.

The clock is seconds of the canonical video. Positions are normalised by the frame's size with the origin of Pupil
Labs' recordings, bottom-left and y up, so they are turned over by default. StreamGaze's pipeline does not do that:
`origin="top-left"` reproduces it. Samples whose confidence is below `min_confidence` are untracked.
"""

from pathlib import Path

import numpy as np

from .files import find_path, frame_size_of, read_text_table
from .samples import GazeSamples

_COLUMNS = ("canonical_timestamp_s", "norm_pos_x", "norm_pos_y", "confidence")


def find(root, stem: str) -> Path | None:
    """Return where the recording of the video `stem`.mp4 lies below `root`, or None."""
    return find_path(root, f"{stem}.csv")


def read(
    path,
    video=None,
    origin: str = "bottom-left",
    min_confidence: float = 0.0,
    frame_size: tuple[int, int] | None = None,
) -> GazeSamples:
    """
    Return the samples of an Ego4D gaze table. Raises FileNotFoundError, or ValueError naming file, line and value.
    """
    if origin not in ("bottom-left", "top-left"):
        raise ValueError(f"origin {origin!r}, expected bottom-left or top-left")
    table = read_text_table(path, _COLUMNS)
    times_s = table.numbers("canonical_timestamp_s")
    x, y = (table.numbers(name, empty_allowed=True) for name in ("norm_pos_x", "norm_pos_y"))
    confidence = table.numbers("confidence", empty_allowed=True)
    confident = confidence >= min_confidence
    notes = []
    if not confident.all():
        notes.append(f"{(~confident).sum()} samples with a confidence below {min_confidence} (or none) are untracked")
    return GazeSamples.from_recording(
        times_s,
        np.column_stack([x, 1 - y if origin == "bottom-left" else y]),
        confident,
        path,
        table.lines,
        notes=notes,
        frame_size=frame_size_of(video, frame_size),
    )
