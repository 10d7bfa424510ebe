"""
HoloAssist: gaze as rays in the room, projected into the video; or a table of projected gaze.

A session is a folder `<session>/Export_py` with text tables separated by tabs; times are ticks of 100 ns:
- `Video/VideoMp4Timing.txt`: ticks at which the video begins and ends, one a line;
- `Video/Intrinsics.txt`: the 3 x 3 camera matrix row by row, then width and height in pixels;
- `Video/Pose_sync.txt`: seconds, ticks, and the 16 values, row by row, of the camera-to-room matrix;
- `Eyes/Eyes_sync.txt`: seconds, ticks, the ray's origin (x, y, z in metres), its direction, valid (1 or 0);
- `Video_pitchshift.mp4`, used where no video is given.
The tables end at their first empty line. For each video frame the nearest pose and the nearest ray are taken; the gaze
is the point of the ray `gaze_distance_m` ahead, seen through the camera (HoloLens axes: x ahead, y left, z up; image
axes: x right, y down, z ahead), origin top-left.

What differs from StreamGaze's projection: a frame's ticks follow from the frame's true time between the video's two
ticks, not from the file's nominal frame rate, which is wrong for many of these files; a pose or ray further away than
`max_pose_gap_s` or `max_gaze_gap_s` does not count; frames with an invalid ray are untracked; the intrinsics' size is
compared with the video's, and a video of the same shape in another size scales them.

The table, `<session>_gaze_2d.csv`, has the columns frame_idx, timestamp_sec, u, v (pixels, empty behind the camera),
valid and in_frame, as StreamGaze's projection writes it; a frame's time is its true one when the video is given.
"""

from pathlib import Path

import numpy as np

from gazeqwen.scanpath_gazeqwen import number_of, whole_number_of
from gazeqwen.video_gazeqwen import frame_times_s, video_info

from .files import find_path, frame_size_of, read_text, read_text_table, times_of_frames
from .samples import GazeSamples

TICKS_PER_S = 10_000_000
TABLE_FRAME_SIZE = (896, 504)  # of HoloAssist's videos, where a table comes without its video
# HoloLens camera (x ahead, y left, z up) -> image (x right, y down, z ahead)
_TO_IMAGE_AXES = np.array([[0.0, -1.0, 0.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]])


def find(root, stem: str) -> Path | None:
    """Return where the recording of the video `stem`.mp4 lies below `root`, or None."""
    return find_path(root, f"{stem}/Export_py", f"{stem}_gaze_2d.csv")


def read(
    path,
    video=None,
    max_pose_gap_s: float = 0.1,
    max_gaze_gap_s: float = 0.1,
    gaze_distance_m: float = 0.5,
    frame_size: tuple[int, int] | None = None,
) -> GazeSamples:
    """
    Return one sample per video frame, from a session's folder (`Export_py`, or the one that holds it) or a table of
    projected gaze; `frame_index` is the frame. Raises FileNotFoundError, or ValueError naming file, line and value.
    """
    path = Path(path)
    if path.is_file() or path.suffix == ".csv":
        return _read_table(path, video, frame_size)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder")
    folder = path / "Export_py" if (path / "Export_py").is_dir() else path
    video = folder / "Video_pitchshift.mp4" if video is None else video
    info, times_s = video_info(video), frame_times_s(video)
    width, height = info.width, info.height
    camera, notes = _read_intrinsics(folder / "Video" / "Intrinsics.txt", width, height)
    begin, end = _read_timing(folder / "Video" / "VideoMp4Timing.txt")
    pose_ticks, pose_values = _read_rows(folder / "Video" / "Pose_sync.txt", 18)
    ray_ticks, ray_values = _read_rows(folder / "Eyes" / "Eyes_sync.txt", 9)

    recorded_s, shown_s = (end - begin) / TICKS_PER_S, info.end_s - info.start_s
    if abs(shown_s / recorded_s - 1) > 0.01:
        notes.append(f"the video lasts {shown_s:.2f} s, its recording {recorded_s:.2f} s: ticks are stretched to fit")
    ticks_from_begin = (times_s - info.start_s) * (end - begin) / shown_s
    pose, pose_gap_s = _nearest(pose_ticks - begin, ticks_from_begin)
    ray, ray_gap_s = _nearest(ray_ticks - begin, ticks_from_begin)
    pixels, before_camera = project(
        ray_values[ray, :3], ray_values[ray, 3:6], pose_values[pose].reshape(-1, 4, 4), camera, gaze_distance_m
    )
    valid = ray_values[ray, 6] == 1
    near = (pose_gap_s <= max_pose_gap_s) & (ray_gap_s <= max_gaze_gap_s)
    for count, what in (
        ((~valid).sum(), "with an invalid ray"),
        ((ray_gap_s > max_gaze_gap_s).sum(), f"with no ray within {max_gaze_gap_s} s"),
        ((pose_gap_s > max_pose_gap_s).sum(), f"with no pose within {max_pose_gap_s} s"),
        ((valid & near & ~before_camera).sum(), "whose gaze lies behind the camera or whose pose has no inverse"),
    ):
        if count:
            notes.append(f"{count} of {len(times_s)} frames {what} are untracked")
    return GazeSamples.from_recording(
        times_s,
        pixels / (width, height),
        valid & near & before_camera,
        path,
        notes=notes,
        frame_size=(width, height),
        frame_index=np.arange(len(times_s)),
    )


def project(origins, directions, camera_to_room, camera, distance_m: float) -> tuple[np.ndarray, np.ndarray]:
    """
    Return pixels (N, 2) of the points `distance_m` along rays, and (N,) bool whether they lie before the camera.

    `origins`, `directions` (N, 3) in the room; `camera_to_room` (N, 4, 4); `camera` (3, 3). Pixels are NaN where the
    point is not before the camera, a direction has no length, or a pose has no inverse.
    """
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        points = np.column_stack([origins + distance_m * directions / lengths, np.ones(len(origins))])
        invertible = np.isfinite(camera_to_room).all(axis=(1, 2)) & np.isfinite(points).all(axis=1)
        invertible[invertible] = np.abs(np.linalg.det(camera_to_room[invertible])) > 1e-9
        in_camera = np.full((len(points), 4), np.nan)
        in_camera[invertible] = np.linalg.solve(camera_to_room[invertible], points[invertible][..., None])[..., 0]
        x, y, z = _TO_IMAGE_AXES @ in_camera[:, :3].T
        before = z > 0
        pixels = np.column_stack([camera[0, 0] * x / z + camera[0, 2], camera[1, 1] * y / z + camera[1, 2]])
    return np.where(before[:, None], pixels, np.nan), before


def _nearest(ticks: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each of `wanted` the index of the nearest of increasing `ticks`, and its distance in seconds."""
    after = np.minimum(np.searchsorted(ticks, wanted), len(ticks) - 1)
    before = np.maximum(after - 1, 0)
    nearest = np.where(np.abs(ticks[after] - wanted) < np.abs(ticks[before] - wanted), after, before)
    return nearest, np.abs(ticks[nearest] - wanted) / TICKS_PER_S


def _read_rows(path: Path, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (N,) int64 ticks, in increasing order, and (N, width - 2) float64 values of a synchronised table."""
    ticks, values = [], []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            break
        cells = line.strip().split("\t")
        if len(cells) != width:
            raise ValueError(f"{path}, line {number}: {len(cells)} values, expected {width} separated by tabs")
        try:
            ticks.append(whole_number_of(cells[1]) if cells[1].isdigit() else int(number_of(cells[1])))
            values.append([number_of(cell) for cell in cells[2:]])
        except (ValueError, OverflowError):
            raise ValueError(f"{path}, line {number}: {line.strip()[:80]!r}, expected {width} numbers") from None
    if not ticks:
        raise ValueError(f"{path}: no row")
    order = np.argsort(ticks, kind="stable")
    return np.array(ticks, dtype=np.int64)[order], np.array(values)[order]


def _read_timing(path: Path) -> tuple[int, int]:
    """Return the ticks at which the video begins and ends. Raises ValueError naming the file."""
    lines = [line.strip() for line in read_text(path).split("\n") if line.strip()]
    if len(lines) < 2 or not all(line.isdigit() for line in lines[:2]) or int(lines[0]) >= int(lines[1]):
        raise ValueError(f"{path}: {lines[:2]}, expected the ticks of the video's begin and, later, its end")
    return int(lines[0]), int(lines[1])


def _read_intrinsics(path: Path, width: int, height: int) -> tuple[np.ndarray, list[str]]:
    """Return the (3, 3) camera matrix for a video of `width` x `height` pixels, and notes."""
    try:
        values = [number_of(cell) for cell in read_text(path).split()]
    except ValueError as error:
        raise ValueError(f"{path}: {error}, expected 11 numbers") from None
    if len(values) != 11:
        raise ValueError(f"{path}: {len(values)} numbers, expected 11: the 3 x 3 camera matrix, width, height")
    camera, (image_width, image_height) = np.array(values[:9]).reshape(3, 3), values[9:]
    if (image_width, image_height) == (width, height):
        return camera, []
    if abs(width * image_height - height * image_width) > 0.01 * width * image_height:
        raise ValueError(
            f"{path}: for images of {image_width:g} x {image_height:g}, "
            f"the video has {width} x {height}: another shape"
        )
    scaled = np.diag([width / image_width, height / image_height, 1.0]) @ camera
    return scaled, [f"intrinsics for {image_width:g} x {image_height:g} are scaled to the video's {width} x {height}"]


def _read_table(path: Path, video, frame_size) -> GazeSamples:
    """Return the samples of a table of projected gaze. Raises ValueError naming file, line and value."""
    table = read_text_table(path, ("frame_idx", "timestamp_sec", "u", "v", "valid", "in_frame"))
    frame_index = table.integers("frame_idx")
    if (frame_index < 0).any():
        row = int(np.flatnonzero(frame_index < 0)[0])
        raise ValueError(f"{path}, line {table.lines[row]}: frame_idx is {frame_index[row]}, expected 0 or more")
    pixels = np.column_stack([table.numbers(name, empty_allowed=True) for name in ("u", "v")])
    valid = table.flags("valid")
    times_s = table.numbers("timestamp_sec") if video is None else times_of_frames(frame_index, video, 1.0)
    size = frame_size_of(video, frame_size)
    notes = [f"{(~valid).sum()} of {len(valid)} frames are marked invalid, so untracked"] if not valid.all() else []
    if size is None:
        size = TABLE_FRAME_SIZE
        notes.append(f"no video or frame size given: positions count as pixels of {size[0]} x {size[1]}")
    return GazeSamples.from_recording(
        times_s,
        pixels / size,
        valid & np.isfinite(pixels).all(axis=1),
        path,
        table.lines,
        notes=notes,
        frame_size=size,
        frame_index=frame_index,
    )
