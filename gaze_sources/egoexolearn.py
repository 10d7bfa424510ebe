"""
EgoExoLearn: `<stem>.npy` of `gazes_30fps_npy`, a float array (N, 3): x, y, valid.

Positions are normalised by the frame's size, origin top-left, y down; valid is 1 where the gaze is tracked. The gaze
was resampled to 30 Hz: row i belongs to i / 30 seconds, whatever the video's frame rate is (many of these videos do
not have 30 frames a second, so a row is no frame). Rows whose position is not finite are untracked.
"""

from pathlib import Path

import numpy as np

from gazeqwen.video_gazeqwen import video_info

from .files import find_path, frame_size_of
from .samples import GazeSamples

RATE_HZ = 30


def find(root, stem: str) -> Path | None:
    """Return where the recording of the video `stem`.mp4 lies below `root`, or None."""
    return find_path(root, f"{stem}.npy")


def read(path, video=None, frame_size: tuple[int, int] | None = None) -> GazeSamples:
    """
    Return the samples of a gaze array; `frame_index` is the row. Raises FileNotFoundError, or ValueError naming file
    and value: also for an array of pickled objects, which is never loaded.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        rows = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not a .npy file of numbers ({error})") from error
    if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.shape[1] != 3 or rows.dtype.kind not in "fiu":
        kind = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else type(rows).__name__
        raise ValueError(f"{path}: {kind}, expected a float array (N, 3): x, y, valid")
    index, notes = np.arange(len(rows)), []
    if video is not None:
        info = video_info(video)
        recorded_s, shown_s = len(rows) / RATE_HZ, info.end_s - info.start_s
        if abs(recorded_s - shown_s) > max(1.0, 0.02 * shown_s):
            notes.append(f"{len(rows)} rows at {RATE_HZ} Hz last {recorded_s:.1f} s, the video {shown_s:.1f} s")
    return GazeSamples.from_recording(
        index / RATE_HZ,
        rows[:, :2],
        rows[:, 2] == 1,
        path,
        notes=notes,
        frame_size=frame_size_of(video, frame_size),
        frame_index=index,
    )
