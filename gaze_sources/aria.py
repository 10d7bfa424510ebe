"""
Project Aria: the eye gaze of Machine Perception Services (MPS), of both generations of the glasses. Aria Everyday
Activities, Nymeria, HD-EPIC and Ego-Exo4D (its `eye_gaze/*_eye_gaze.csv`) have it.

`mps/eye_gaze/personalized_eye_gaze.csv`, or else `general_eye_gaze.csv`: one row per frame of the eye cameras, with
`tracking_timestamp_us`, microseconds of the device's clock, and angles in radians in the central pupil frame (CPF: x
to the wearer's left, y up, z ahead), in one of three layouts:
- `yaw_rads_cpf`, `pitch_rads_cpf`, and `depth_m`, which may be empty or 0;
- generation 1 with vergence: `left_yaw_rads_cpf`, `right_yaw_rads_cpf`, `pitch_rads_cpf`, `depth_m`;
- generation 2: yaw and pitch of both eyes together and of each, and where each eye is (`tx_left_eye_cpf`, ...).
The point looked at is the meeting point of the two eyes' rays (generation 2), or lies on the ray from the CPF at the
depth that the table has, else at `gaze_distance_m` (1 m, as in Project Aria's tools, and a note says for how many
samples). It is seen through the color camera with the calibration in the recording's VRS file, read by Project Aria's
own package: `pip install --no-deps projectaria-tools`, or the extra `aria`. The VRS file is `vrs`, or the one beside
the video or in the first folder above the table that holds one (or whose `data/` does).

Videos of generation 1 are turned upright, a quarter clockwise from the sensor (`upright=False`: they are as the sensor
is). A pixel's coordinates are those of its middle. Points outside the lens's circle are out of frame.

The video's clock: the device time of each of its frames, as `vrs_to_mp4` writes it (in the video's description tag, or
`<stem>_mp4_to_vrs_time_ns.csv` beside it, as HD-EPIC has it), else the times of the VRS file's color frames, one per
frame of the video. `offset_s` replaces all of these: the device's time, in seconds, at which the video begins.
"""

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from gazeqwen.video_gazeqwen import video_info

from .files import TextTable, find_path, frame_size_of, read_text_table, video_times_s
from .samples import GazeSamples, Status

_TABLES = ("personalized_eye_gaze.csv", "general_eye_gaze.csv")
_TIME, _YAW, _PITCH, _DEPTH = "tracking_timestamp_us", "yaw_rads_cpf", "pitch_rads_cpf", "depth_m"
_EYES = ("left", "right")
_OPTIONAL = (
    *(_YAW, _PITCH, _DEPTH),
    *(f"{eye}_{angle}_rads_cpf" for eye in _EYES for angle in ("yaw", "pitch")),
    *(f"t{axis}_{eye}_eye_cpf" for eye in _EYES for axis in "xyz"),
)
# Rays of two eyes meet where Project Aria's tools say so (core/mps/EyeGazeReader.cpp).
_MIN_VERGENCE_DEG, _MAX_MISS_M, _MAX_DEPTH_M = 0.75, 0.03, 6.0
_CAMERA = "camera-rgb"


@dataclass(frozen=True, eq=False)
class AriaCamera:
    """
    Hold the color camera: `from_cpf` (4, 4) takes points of the CPF to the camera (x right, y down, z ahead, as the
    sensor is), `parameters` (15,) are Project Aria's FISHEYE624 (focal length, principal point, 6 radial, 2
    tangential, 4 of a thin prism), `size` is the sensor image's (width, height). Pixels further than `valid_radius`
    from the principal point, and points more than `max_angle_rad` off the axis, are outside the lens's circle.
    `is_sideways`: upright is a quarter clockwise from the sensor. `frames_ns` (F,) int64: when each color frame was
    taken, device clock.
    """

    from_cpf: np.ndarray
    parameters: np.ndarray
    size: tuple[int, int]
    valid_radius: float
    max_angle_rad: float
    is_sideways: bool
    frames_ns: np.ndarray


def find(root, stem: str) -> Path | None:
    """Return where the recording of the video `stem`.mp4 lies below `root`, or None."""
    folders = ("eye_gaze", "mps/eye_gaze", "recording_head/mps/eye_gaze")
    return find_path(root, f"mps_{stem}_vrs/eye_gaze", *(f"{stem}/{folder}" for folder in folders))


def read(
    path,
    video=None,
    vrs=None,
    gaze_distance_m: float = 1.0,
    upright: bool = True,
    offset_s: float | None = None,
    frame_size: tuple[int, int] | None = None,
) -> GazeSamples:
    """
    Return the samples of an MPS table or of a folder that holds one (itself, in `eye_gaze/` or in `mps/eye_gaze/`).
    Raises FileNotFoundError, ValueError naming file, line and value, or ImportError.
    """
    if not gaze_distance_m > 0:
        raise ValueError(f"gaze_distance_m is {gaze_distance_m}, expected more than 0 metres")
    path, notes = _table_path(Path(path))
    table = read_text_table(path, (_TIME,), _OPTIONAL)
    points, point_notes = gaze_points(table, gaze_distance_m)
    vrs = _vrs_path(path, video) if vrs is None else Path(vrs)
    camera = read_camera(vrs)
    pixels, visible = project(points, camera)
    width, height = camera.size
    if upright and camera.is_sideways:
        pixels, (width, height) = np.column_stack([height - 1 - pixels[:, 1], pixels[:, 0]]), (height, width)
    size = frame_size_of(video, frame_size) or (width, height)
    if abs(size[0] * height - size[1] * width) > 0.01 * size[0] * height:
        raise ValueError(
            f"{vrs}: its color frames are {width} x {height}, the video {size[0]} x {size[1]}: another shape"
        )
    device_ns = 1000 * table.integers(_TIME)
    times_s, clock_notes = _times_s(device_ns, camera, vrs, video, offset_s)
    behind = int((np.isfinite(points).all(axis=1) & ~np.isfinite(pixels).all(axis=1)).sum())
    if behind:
        clock_notes = [*clock_notes, f"{behind} samples behind the color camera are untracked"]
    return GazeSamples.from_recording(
        times_s,
        (pixels + 0.5) / (width, height),
        np.isfinite(pixels).all(axis=1),
        path,
        table.lines,
        np.where(visible, Status.UNKNOWN, Status.OUT_OF_FRAME),
        notes=[*notes, f"calibration: {vrs}", *point_notes, *clock_notes],
        frame_size=size,
    )


# ------------------------------------------------------------------ the table
def _table_path(path: Path) -> tuple[Path, list[str]]:
    """Return the table that is meant by a file or folder, and notes. Raises FileNotFoundError."""
    if not path.is_dir():
        return path, []
    for folder in (path, path / "eye_gaze", path / "mps" / "eye_gaze"):
        present = [folder / name for name in _TABLES if (folder / name).is_file()]
        if present:
            return present[0], [f"of {folder} {present[0].name} is read"]
    raise FileNotFoundError(f"{path}: no such file {' or '.join(_TABLES)}, nor in eye_gaze/ or mps/eye_gaze/ of it")


def gaze_points(table: TextTable, distance_m: float) -> tuple[np.ndarray, list[str]]:
    """
    Return (N, 3) points looked at, metres in the CPF, NaN where an angle is missing, and notes. Raises ValueError
    naming file, line and value.
    """
    if _PITCH not in table or not (_YAW in table or all(f"{eye}_yaw_rads_cpf" in table for eye in _EYES)):
        raise ValueError(f"{table.path}: no column {_PITCH} with {_YAW}, or left_ and right_{_YAW}")
    pitch = _angles(table, _PITCH)
    if _YAW in table:
        yaw = _angles(table, _YAW)
    else:  # where the eyes' rays meet, seen from between them
        left, right = (np.tan(_angles(table, f"{eye}_yaw_rads_cpf")) for eye in _EYES)
        yaw = np.arctan((left + right) / 2)
    depth = table.numbers(_DEPTH, empty_allowed=True) if _DEPTH in table else np.full(len(pitch), np.nan)
    negative = np.flatnonzero(depth < 0)
    if len(negative):
        row = negative[0]
        raise ValueError(f"{table.path}, line {table.lines[row]}: {_DEPTH} is {depth[row]}, expected 0 or more metres")
    has_depth = depth > 0
    direction = np.column_stack([np.tan(yaw), np.tan(pitch), np.ones(len(yaw))])
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    points = direction * np.where(has_depth, depth, distance_m)[:, None]
    if all(name in table for name in _OPTIONAL if name.startswith(("left", "right", "t"))):
        meeting, meets = _vergence_points(table)
        points, has_depth = np.where(meets[:, None], meeting, points), has_depth | meets
    without = int((np.isfinite(points).all(axis=1) & ~has_depth).sum())
    if not without:
        return points, []
    return points, [f"{without} of {len(points)} samples have no depth: taken as {distance_m:g} m (gaze_distance_m)"]


def _angles(table: TextTable, column: str) -> np.ndarray:
    """Return (N,) radians, NaN for empty cells. Raises ValueError naming file, line and value above a quarter turn."""
    angles = table.numbers(column, empty_allowed=True)
    beyond = np.flatnonzero(np.abs(angles) >= np.pi / 2)
    if len(beyond):
        row = beyond[0]
        expected = "radians between -1.57 and 1.57 (are these degrees?)"
        raise ValueError(f"{table.path}, line {table.lines[row]}: {column} is {angles[row]}, expected {expected}")
    return angles


def _vergence_points(table: TextTable) -> tuple[np.ndarray, np.ndarray]:
    """
    Return (N, 3) points midway between the two eyes' rays where they are nearest, metres in the CPF, and (N,) bool
    whether the rays meet there: not nearly parallel, ahead of both eyes, within 3 cm of each other, 6 m or nearer.
    """
    origins, directions = [], []
    for eye in _EYES:
        yaw, pitch = (_angles(table, f"{eye}_{angle}_rads_cpf") for angle in ("yaw", "pitch"))
        directions.append(np.column_stack([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)]))
        origins.append(
            np.column_stack([table.numbers(f"t{axis}_{eye}_eye_cpf", empty_allowed=True) for axis in "xyz"])
        )
    (left, right), apart = directions, origins[0] - origins[1]
    cosine = (left * right).sum(axis=1)
    along_left, along_right = (left * apart).sum(axis=1), (right * apart).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        sine_squared = 1 - cosine**2
        from_left = (cosine * along_right - along_left) / sine_squared
        from_right = (along_right - cosine * along_left) / sine_squared
        nearest_left, nearest_right = origins[0] + from_left[:, None] * left, origins[1] + from_right[:, None] * right
        points = (nearest_left + nearest_right) / 2
        ahead = left + right
        ahead /= np.linalg.norm(ahead, axis=1, keepdims=True)
        meets = (
            (cosine <= np.cos(np.deg2rad(_MIN_VERGENCE_DEG)))
            & ((from_left >= 0) & (from_right >= 0))
            & (np.linalg.norm(nearest_left - nearest_right, axis=1) <= _MAX_MISS_M)
            & ((ahead * (points - (origins[0] + origins[1]) / 2)).sum(axis=1) <= _MAX_DEPTH_M)
        )
    return points, meets


# ------------------------------------------------------------------ the camera
def _vrs_path(table: Path, video) -> Path:
    """Return the VRS file of a recording. Raises FileNotFoundError, or ValueError naming several."""
    beside = [] if video is None else [Path(video).with_suffix(".vrs")]
    if beside and beside[0].is_file():
        return beside[0]
    above = list(table.resolve().parents)[:4]
    for folder in above:
        found = sorted([*folder.glob("*.vrs"), *folder.glob("data/*.vrs")])
        if len(found) > 1:
            raise ValueError(f"{table}: {', '.join(map(str, found[:5]))}: which is the recording's? Say it with vrs")
        if found:
            return found[0]
    raise FileNotFoundError(
        f"{table}: no such file *.vrs beside the video or in {above[-1]} and the folders down to the table. The "
        "recording's VRS file has the camera's calibration: say where it is with vrs"
    )


def read_camera(vrs: Path) -> AriaCamera:
    """
    Return the color camera of a VRS file. Raises FileNotFoundError, ValueError naming the file, or ImportError without
    Project Aria's package.
    """
    if not Path(vrs).is_file():
        raise FileNotFoundError(f"{vrs}: no such file")
    try:
        from projectaria_tools.core import data_provider
        from projectaria_tools.core.sensor_data import TimeDomain
    except ImportError as error:
        raise ImportError(
            f'{vrs}: to read it needs pip install --no-deps projectaria-tools, or "gazeqwen[aria]" ({error})'
        ) from error
    provider = data_provider.create_vrs_data_provider(str(vrs))
    device = None if provider is None else provider.get_device_calibration()
    camera = None if device is None else device.get_camera_calib(_CAMERA)
    if camera is None:
        raise ValueError(f"{vrs}: not a VRS file of Project Aria with the calibration of {_CAMERA}, or damaged")
    model = str(camera.get_model_name()).rpartition(".")[2]
    if model != "FISHEYE624":
        raise ValueError(f"{vrs}: {_CAMERA} is calibrated as {model}, expected FISHEYE624")
    stream, frames = provider.get_stream_id_from_label(_CAMERA), []
    if stream is not None and provider.get_num_data(stream):
        frames = provider.get_timestamps_ns(stream, TimeDomain.DEVICE_TIME)
    from_device = np.linalg.inv(device.get_transform_device_sensor(_CAMERA).to_matrix())
    width, height = camera.get_image_size()
    radius = camera.get_valid_radius()
    return AriaCamera(
        from_device @ device.get_transform_device_cpf().to_matrix(),
        np.array(camera.get_projection_params(), dtype=np.float64),
        (int(width), int(height)),
        np.inf if radius is None else float(radius),
        float(camera.get_max_solid_angle()),
        str(device.get_device_version()).endswith("Gen1"),
        np.array(frames, dtype=np.int64),
    )


def project(points: np.ndarray, camera: AriaCamera) -> tuple[np.ndarray, np.ndarray]:
    """
    Return pixels (N, 2) of the sensor's image for points (N, 3) of the CPF, NaN for those not before the camera, and
    (N,) bool whether they lie within the lens's circle.
    """
    x, y, z = (np.column_stack([points, np.ones(len(points))]) @ camera.from_cpf.T)[:, :3].T
    parameters = camera.parameters
    focal, principal = parameters[0], parameters[1:3]
    radial, tangential, prism = parameters[3:9], parameters[9:11], parameters[11:15]
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = np.where((z > 0)[:, None], np.column_stack([x / z, y / z]), np.nan)
        slope = np.linalg.norm(slopes, axis=1)
        angle = np.arctan(slope)
        scale = np.where(slope > 0, angle / slope, 1.0)
    scale *= 1 + (radial * angle[:, None] ** (2 * np.arange(1, 7))).sum(axis=1)
    xy = slopes * scale[:, None]
    squared = (xy**2).sum(axis=1)
    xy = xy + 2 * (xy @ tangential)[:, None] * xy + squared[:, None] * tangential
    xy += np.column_stack([prism[0] * squared + prism[1] * squared**2, prism[2] * squared + prism[3] * squared**2])
    within_lens = np.linalg.norm(focal * xy, axis=1) <= camera.valid_radius
    return focal * xy + principal, within_lens & (angle <= camera.max_angle_rad)


# ------------------------------------------------------------------ the clock
def _times_s(device_ns: np.ndarray, camera: AriaCamera, vrs: Path, video, offset_s) -> tuple[np.ndarray, list[str]]:
    """Return (N,) seconds of the video at device times, and notes. Raises ValueError naming the VRS file."""
    if offset_s is not None:
        whole = round(offset_s * 1e9)
        return (device_ns - whole) / 1e9, [f"clock: the video begins at {offset_s:g} s of the device's (offset_s)"]
    frames_ns, source = camera.frames_ns, f"the color frames of {vrs}"
    if video is not None:
        written, where = _written_times_ns(video)
        if written is not None:
            frames_ns, source = written, where
    if not len(frames_ns):
        raise ValueError(f"{vrs}: it holds no color frames, so say with offset_s when the video begins, device clock")
    times_s, notes = video_times_s(device_ns, frames_ns, video)
    begin_s = frames_ns[0] / 1e9
    return times_s, [f"clock: the first frame is at {begin_s:.6f} s of the device's, by {source}", *notes]


def _written_times_ns(video) -> tuple[np.ndarray | None, str]:
    """Return (F,) int64 device times of a video's frames that `vrs_to_mp4` wrote, or None, and where they stand."""
    video_info(video)  # refuses a playlist, which would open other files
    with av.open(f"file:{video}", metadata_errors="replace") as container:
        words = container.metadata.get("description", "").strip(" []").split(",")
    if len(words) > 1 and all(word.strip().isdigit() for word in words):
        return np.array([int(word) for word in words], dtype=np.int64), "the video's description"
    beside = Path(video).with_name(f"{Path(video).stem}_mp4_to_vrs_time_ns.csv")
    if not beside.is_file():
        return None, ""
    return read_text_table(beside, ("vrs_device_time_ns",)).integers("vrs_device_time_ns"), str(beside)
