"""
Pupil Labs Neon and Invisible: a folder exported from Pupil Cloud (or Neon Player), or a Neon's native recording.

Export: `gaze.csv` with the columns timestamp [ns], gaze x [px], gaze y [px] and, in most exports, worn and recording
id; `world_timestamps.csv` with the column timestamp [ns], one row per frame of the scene video; `fixations.csv`, which
`read_fixations` reads. Positions are pixels of the scene video (Neon 1600 x 1200, Invisible 1088 x 1080), origin
top-left, y down. Samples with worn = 0 are untracked.

Native recording: the folder that the Neon Companion app writes (`info.json`, `gaze ps1.raw`, ...), read through Pupil
Labs' own package: `pip install "gazeqwen[neon]"`.

The clock is nanoseconds since 1970. Scene frame i was taken at world timestamp i, so between frames the video's time
is interpolated between the true times of its frames; without the video, or if its number of frames is another, it is
the time since the first world timestamp.
"""

from pathlib import Path

import numpy as np

from gazeqwen.scanpath_gazeqwen import Scanpath

from .files import TextTable, find_path, frame_size_of, read_text_table, required_frame_size, video_times_s
from .fixations import Dropped, checked_scanpath
from .samples import GazeSamples

_TIME, _RECORDING = "timestamp [ns]", "recording id"


def find(root, stem: str) -> Path | None:
    """Return the folder named `stem`, or that of the video `stem`.mp4, if an export or a native recording is in it."""
    folder = find_path(root, stem)
    if folder is None:
        video = find_path(root, f"{stem}.mp4")
        folder = None if video is None else video.parent
    is_recording = folder is not None and ((folder / "gaze.csv").is_file() or (folder / "info.json").is_file())
    return folder if is_recording else None


def read(path, video=None, recording: str | None = None, frame_size: tuple[int, int] | None = None) -> GazeSamples:
    """
    Return the samples of an export's folder (or its gaze.csv) or of a native recording. `recording` picks one
    recording id of a gaze.csv that holds several. Raises FileNotFoundError, ValueError naming file, line and value, or
    ImportError.
    """
    path = Path(path)
    if path.is_dir() and not (path / "gaze.csv").exists() and (path / "info.json").exists():
        return _read_native(path, video, frame_size)
    path = path / "gaze.csv" if path.is_dir() else path
    table = read_text_table(path, (_TIME, "gaze x [px]", "gaze y [px]"), ("worn", _RECORDING))
    table = _one_recording(table, recording)
    worn = table.flags("worn") if "worn" in table else np.ones(len(table.lines), bool)
    pixels = np.column_stack([table.numbers(f"gaze {axis} [px]", empty_allowed=True) for axis in "xy"])
    size = required_frame_size(path, video, frame_size)
    times_s, notes = video_times_s(table.integers(_TIME), _world_ns(path, recording), video)
    return _samples(times_s, pixels, worn, path, size, notes, table.lines)


def read_fixations(
    path, video=None, recording: str | None = None, frame_size: tuple[int, int] | None = None
) -> tuple[Scanpath, list[Dropped]]:
    """
    Return the fixations that Pupil Cloud detected, from an export's `fixations.csv` (or the folder that holds it), and
    what of them lies outside the frame or before the video. Columns: start timestamp [ns], end timestamp [ns],
    fixation x [px], fixation y [px]. Raises FileNotFoundError, or ValueError naming file, line and value.
    """
    path = Path(path) / "fixations.csv" if Path(path).is_dir() else Path(path)
    names = ("start timestamp [ns]", "end timestamp [ns]", "fixation x [px]", "fixation y [px]")
    table = _one_recording(read_text_table(path, names, (_RECORDING,)), recording)
    world = _world_ns(path, recording)
    begin_s, end_s = (video_times_s(table.integers(name), world, video)[0] for name in names[:2])
    xy = np.column_stack([table.numbers(name) for name in names[2:]]) / required_frame_size(path, video, frame_size)
    return checked_scanpath(begin_s, end_s, xy, str(path))


def _samples(times_s, pixels, worn, path, size, notes, lines=()) -> GazeSamples:
    """Return samples at `pixels` (N, 2) of a frame of `size`, untracked where the glasses were not worn."""
    if not worn.all():
        notes = [*notes, f"{(~worn).sum()} samples while the glasses were not worn are untracked"]
    return GazeSamples.from_recording(times_s, pixels / size, worn, path, lines, notes=notes, frame_size=size)


def _one_recording(table: TextTable, recording: str | None) -> TextTable:
    """Return the rows of one recording. Raises ValueError if the table holds several and none of them is picked."""
    if _RECORDING not in table:
        return table
    known = sorted(set(table.columns[_RECORDING]))
    if recording is None and len(known) == 1:
        return table
    if recording not in known:
        raise ValueError(f"{table.path}: recording {recording!r}, expected one of {known}")
    return table.rows(np.array(table.columns[_RECORDING]) == recording)


def _world_ns(path: Path, recording: str | None) -> np.ndarray:
    """Return (frames,) int64, when each scene frame was taken, from the table beside `path`. Raises ValueError."""
    world = path.with_name("world_timestamps.csv")
    table = _one_recording(read_text_table(world, (_TIME,), (_RECORDING,)), recording)
    nanoseconds = table.integers(_TIME)
    back = np.flatnonzero(np.diff(nanoseconds) <= 0)
    if len(back):
        raise ValueError(f"{world}, line {table.lines[back[0] + 1]}: {_TIME} does not increase")
    return nanoseconds


def _read_native(path: Path, video, frame_size) -> GazeSamples:
    """Return the samples of a Neon's native recording. Raises ImportError, or ValueError naming the folder."""
    try:
        from pupil_labs import neon_recording
    except ImportError as error:
        raise ImportError(f'{path}: a native Neon recording needs pip install "gazeqwen[neon]" ({error})') from error
    try:
        with neon_recording.open(path) as recording:
            gaze_ns, pixels = np.array(recording.gaze.time), np.array(recording.gaze.point, dtype=np.float64)
            world_ns = np.array(recording.scene.time)
            scene_size = (recording.scene.width, recording.scene.height)
            try:
                worn_ns, worn = np.array(recording.worn.time), np.array(recording.worn.worn) != 0
            except neon_recording.NeonRecording.SensorError:
                worn_ns, worn = gaze_ns, np.ones(len(gaze_ns), bool)
    except neon_recording.NeonRecording.SensorError as error:
        raise ValueError(f"{path}: {error} ({error.__cause__})") from error
    notes = []
    if not np.array_equal(worn_ns, gaze_ns):
        worn = np.ones(len(gaze_ns), bool)
        notes.append("whether the glasses were worn is not recorded per gaze sample, so all samples count")
    times_s, clock_notes = video_times_s(gaze_ns, world_ns, video)
    size = frame_size_of(video, frame_size) or scene_size
    return _samples(times_s, pixels, worn, path, size, [*notes, *clock_notes])
