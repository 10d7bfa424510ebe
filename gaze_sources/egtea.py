"""
EGTEA Gaze+: `<stem>.txt`, the text export of SMI BeGaze, in its two layouts.

34 header lines; the number of samples stands on line 10 (first layout) or 11 (second). Rows are separated by white
space. First layout, 7 fields: x and y are fields 4 and 5, the video frame's number field 6, the kind of eye movement
field 7. Second layout, 26 fields: x and y are fields 6 and 7, field 25 is a time code HH:MM:SS:FF at 24 frames a
second, field 26 the kind. Positions are pixels of a 1280 x 960 frame, origin top-left, y down; BeGaze writes 0, 0
(or `-`) where it has no gaze, and that is untracked. The clock is the video's frame number: the frame's true time when
the video is given, else number / 24. A frame can have several samples, which then share its time, or none.
"""

from pathlib import Path

import numpy as np

from gazeqwen.scanpath_gazeqwen import number_of, whole_number_of

from .files import find_path, read_text, times_of_frames
from .samples import GazeSamples, Status

FRAME_SIZE, FPS, HEADER_LINES = (1280, 960), 24, 34
_COUNT_MARK = "## Number of Samples:"
_KINDS = {"Fixation": Status.FIXATION, "Saccade": Status.SACCADE}


def find(root, stem: str) -> Path | None:
    """Return where the recording of the video `stem`.mp4 lies below `root`, or None."""
    return find_path(root, f"{stem}.txt")


def read(path, video=None) -> GazeSamples:
    """
    Return the samples of a BeGaze text export. Raises FileNotFoundError, or ValueError naming file, line and value.
    """
    lines = read_text(path).split("\n")
    is_first_layout, is_second_layout = (len(lines) > number and _COUNT_MARK in lines[number] for number in (9, 10))
    if not (is_first_layout or is_second_layout):
        raise ValueError(f"{path}: no {_COUNT_MARK!r} on line 10 or 11, expected a text export of BeGaze")
    fields = 7 if is_first_layout else 26
    positions, frames, kinds, numbers = [], [], [], []
    for number, line in enumerate(lines[HEADER_LINES:], start=HEADER_LINES + 1):
        values = line.split()
        if not values:
            continue
        if len(values) != fields:
            raise ValueError(f"{path}, line {number}: {len(values)} fields, expected {fields}")
        try:
            positions.append([_position(text) for text in (values[3:5] if is_first_layout else values[5:7])])
            frames.append(whole_number_of(values[5]) if is_first_layout else _frame_of_timecode(values[-2]))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        if frames[-1] < 0:
            raise ValueError(f"{path}, line {number}: frame {frames[-1]}, expected 0 or more")
        kinds.append(_KINDS.get(values[-1], Status.UNKNOWN))
        numbers.append(number)
    pixels, frame_index = np.array(positions, dtype=np.float64).reshape(-1, 2), np.array(frames, dtype=np.int64)
    notes = []
    announced = lines[9 if is_first_layout else 10].split(":")[-1].strip()
    if announced != str(len(frames)):
        notes.append(f"the header announces {announced} samples, the file holds {len(frames)}")
    missing = int(frame_index.max(initial=-1)) + 1 - len(np.unique(frame_index))
    if missing:
        notes.append(f"{missing} frames up to the last one have no sample")
    return GazeSamples.from_recording(
        times_of_frames(frame_index, video, FPS),
        pixels / FRAME_SIZE,
        ~(pixels == 0).all(axis=1),
        path,
        numbers,
        kinds,
        notes,
        frame_size=FRAME_SIZE,
        frame_index=frame_index,
    )


def _position(text: str) -> float:
    """Return a coordinate in pixels, NaN for `-`. Raises ValueError."""
    if text == "-":
        return np.nan
    try:
        return number_of(text)
    except ValueError:
        raise ValueError(f"position is {text!r}, expected a number of pixels") from None


def _frame_of_timecode(text: str) -> int:
    """Return the frame number of a time code HH:MM:SS:FF. Raises ValueError."""
    parts = text.split(":")
    if len(parts) != 4 or not all(part.isdigit() for part in parts):
        raise ValueError(f"time code is {text!r}, expected HH:MM:SS:FF")
    hours, minutes, seconds, frame = map(int, parts)
    return (3600 * hours + 60 * minutes + seconds) * FPS + frame
