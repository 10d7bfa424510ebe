"""Clip: frames of a video file with their true timestamps. One clock: seconds of the source video."""

import math
import numbers
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np

from .scanpath_gazeqwen import checked_file

try:
    import av
    from av.stream import Disposition
    from av.video.reformatter import VideoReformatter
except ImportError:  # only reading files needs it; clips can also be made from arrays
    av = None

# StreamGaze's frame rates by clip length: (longest clip in seconds, frames per second).
_STREAMGAZE_FPS = ((30.0, 1.0), (60.0, 0.5), (300.0, 0.2), (math.inf, 0.1))

# Frames of a clip that become one temporal step: the base models' temporal patch, and the tubelet of V-JEPA 2.1.
FRAMES_PER_STEP = 2

MAX_FRAMES = 64  # of a clip, unless a call says otherwise

# Where a clip's frames are taken. `spread`: at the centres of equal parts of it, which move with its ends. `grid`: at
# times that are fixed on the video's clock, so that clips of one video share their frames.
SAMPLINGS = ("spread", "grid")

SAME_TIME_S = 1e-6  # rounding of times that are the same

# Up to this size one thread decodes and converts faster than several: starting them costs more than they save.
_SMALL_FRAME_PX = 640 * 480

# Demuxers that read one file alone. Others take a text for video, or open what it names: a playlist, any local file.
_FORMATS = ("mov", "matroska", "avi", "mpeg", "mpegts", "flv", "ogg", "asf", "mxf", "dv", "ivf", "nut", "gif")
_PICTURE_FORMATS = ("png_pipe", "jpeg_pipe", "bmp_pipe", "tiff_pipe", "webp_pipe")  # opened to be refused by name
_LARGEST_FRAME_PX = 8192 * 4352  # what H.264 and HEVC allow at most; decoders hold up to 16 such frames
_LARGEST_KEPT_FRAME_PX = 1920 * 1440  # larger frames are kept at this size: base models and encoders see fewer pixels
_FILE_OPTIONS = {
    "format_whitelist": ",".join((*_FORMATS, *_PICTURE_FORMATS)),
    "protocol_whitelist": "file",
    "max_pixels": str(_LARGEST_FRAME_PX),
}
_LIVE_PROTOCOLS = "http,https,httpproxy,tls,tcp,udp,rtp,rtsp,rtmp,rtmps,srt,srtp,crypto,data"

# A question stamped in whole seconds may lie up to this far behind the last frame; the clip then ends with the video.
QUESTION_ROUNDING_S = 1.0


def _check_number(name: str, value, whole: bool = False) -> None:
    """Raise ValueError naming the value unless it is a finite number, and if asked for a whole one."""
    kind = numbers.Integral if whole else numbers.Real
    if isinstance(value, bool) or not isinstance(value, kind) or not math.isfinite(value):
        raise ValueError(f"{name}: got {value!r}, expected a {'whole' if whole else 'finite'} number")


@dataclass(frozen=True, eq=False)
class Clip:
    """
    The part `[start_s, end_s]` of a video. `frames` (F, H, W, 3) uint8 RGB; `timestamps_s` (F,) their presentation
    times, not decreasing. Nothing after `end_s`, the query time, is in it. `grid_fps`: the rate of the grid that the
    frames were taken on, whole temporal steps from `start_s` on; None: they were spread over the clip.
    """

    frames: np.ndarray
    timestamps_s: np.ndarray
    start_s: float
    end_s: float
    source: str = field(default="clip")
    grid_fps: float | None = None

    def __post_init__(self):
        try:
            frames, times = np.asarray(self.frames), np.asarray(self.timestamps_s, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.source}: frames or timestamps are no arrays of numbers ({error})") from None
        _check_number(f"{self.source}: start_s", self.start_s)
        _check_number(f"{self.source}: end_s", self.end_s)
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
            raise ValueError(
                f"{self.source}: frames are {frames.dtype} {frames.shape}, expected uint8 (F, H, W, 3) with F > 0"
            )
        if times.shape != (len(frames),):
            raise ValueError(f"{self.source}: {times.shape} timestamps for {len(frames)} frames")
        if not np.isfinite(times).all() or (np.diff(times) < 0).any():
            raise ValueError(f"{self.source}: timestamps {times.tolist()}, expected finite and not decreasing")
        if not self.start_s < self.end_s:
            raise ValueError(f"{self.source}: clip from {self.start_s} to {self.end_s} s, expected a positive length")
        if times[-1] > self.end_s + SAME_TIME_S:
            raise ValueError(f"{self.source}: a frame at {times[-1]} s lies after the clip's end, {self.end_s} s")
        object.__setattr__(self, "frames", frames)
        object.__setattr__(self, "timestamps_s", times)

    def padded(self, multiple: int) -> "Clip":
        """
        Return the clip with its last frame repeated until the number of frames is a multiple (of a temporal patch).
        """
        missing = -len(self.frames) % multiple
        if not missing:
            return self
        return Clip(
            np.concatenate([self.frames, np.repeat(self.frames[-1:], missing, axis=0)]),
            np.concatenate([self.timestamps_s, np.repeat(self.timestamps_s[-1:], missing)]),
            self.start_s,
            self.end_s,
            self.source,
            self.grid_fps,
        )

    def step_spans_s(self, frames_per_step: int = FRAMES_PER_STEP) -> np.ndarray:
        """
        Return (T, 2) begin and end of each temporal step of `frames_per_step` frames. Steps tile the clip: neighbours
        meet halfway between the last frame of one and the first of the next. On a grid they are the grid's, the last
        one cut at the clip's end.
        """
        times = self.padded(frames_per_step).timestamps_s.reshape(-1, frames_per_step)
        if self.grid_fps is not None:
            first = grid_step_at(self.start_s, self.grid_fps, frames_per_step)
            edges = grid_edges_s(np.arange(first, first + len(times) + 1), self.grid_fps, frames_per_step)
            edges[-1] = min(edges[-1], self.end_s)
            return np.stack([edges[:-1], edges[1:]], axis=1)
        edges = np.concatenate([[self.start_s], (times[:-1, -1] + times[1:, 0]) / 2, [self.end_s]])
        return np.stack([edges[:-1], edges[1:]], axis=1)

    def seconds_per_step(self, frames_per_step: int = FRAMES_PER_STEP) -> float:
        """
        Return the mean seconds between neighbouring temporal steps' centres, Qwen's `second_per_grid_ts`; on a grid
        those between its steps.
        """
        if self.grid_fps is not None:
            return frames_per_step / self.grid_fps
        times = self.padded(frames_per_step).timestamps_s.reshape(-1, frames_per_step).mean(axis=1)
        if len(times) == 1:
            return self.end_s - self.start_s
        return float((times[-1] - times[0]) / (len(times) - 1))


def grid_times_s(frames, fps: float):
    """Return the times, seconds of the video's clock, of frames by their numbers on a grid: (k + 1/2) / `fps`."""
    return (frames + 0.5) / fps


def grid_edges_s(steps, fps: float, frames_per_step: int = FRAMES_PER_STEP):
    """Return the times, seconds of the video's clock, at which temporal steps of a grid begin, by their numbers."""
    return steps * frames_per_step / fps


def grid_frame_at(time_s: float, fps: float) -> int:
    """Return the number of a grid's last frame that is not later than a time; -1: there is none yet."""
    return max(math.floor((time_s + SAME_TIME_S) * fps - 0.5), -1)


def grid_step_at(time_s: float, fps: float, frames_per_step: int = FRAMES_PER_STEP) -> int:
    """Return the number of a grid's temporal step that holds a time, its begin counting to it."""
    return math.floor((time_s + SAME_TIME_S) * fps / frames_per_step)


def _grid_frames(start_s: float, end_s: float, fps: float, max_frames: int) -> np.ndarray:
    """
    Return the (F,) numbers of the grid's frames in `[start_s, end_s]`, F even: whole temporal steps from the one that
    holds `start_s` on, of a longer clip the last `max_frames`, its last frame twice where its step has begun only.
    """
    last = grid_frame_at(end_s, fps)
    if last < 0:
        raise ValueError(
            f"no frame of the grid of {fps:g} fps lies in the clip from {start_s} to {end_s} s, expected an end at "
            f"{grid_times_s(0, fps):g} s or later"
        )
    last_step = last // FRAMES_PER_STEP
    first_step = max(min(grid_step_at(start_s, fps), last_step), last_step + 1 - max_frames // FRAMES_PER_STEP)
    frames = np.arange(first_step * FRAMES_PER_STEP, (last_step + 1) * FRAMES_PER_STEP)
    return np.minimum(frames, last)


def sample_times(
    start_s: float,
    end_s: float,
    num_frames: int | None = None,
    fps: float | None = None,
    max_frames: int = MAX_FRAMES,
    sampling: str = "spread",
) -> np.ndarray:
    """
    Return the (F,) times to take frames at, seconds: the centres of F equal parts of `[start_s, end_s]`. F is
    `num_frames`, or follows `fps`, or, with neither, StreamGaze's rate for the clip's length (1, 0.5, 0.2, 0.1 per
    second up to 30 s, 60 s, 300 s, beyond). F is even and at most `max_frames`; a cap spreads the frames, it does not
    cut the clip.

    With `sampling` `grid` the times are (k + 1/2) / `fps` of the video's clock instead, from the temporal step on that
    holds `start_s`; of a longer clip the last `max_frames`. The last time comes twice where its step has begun only.

    Raises ValueError naming the argument and its value.
    """
    _check_number("start_s", start_s)
    _check_number("end_s", end_s)
    _check_number("max_frames", max_frames, whole=True)
    if not start_s < end_s:
        raise ValueError(f"clip from {start_s} to {end_s} s, expected a positive length")
    if num_frames is not None and fps is not None:
        raise ValueError(f"got num_frames={num_frames} and fps={fps}, expected one of them")
    check_sampling(sampling, num_frames, fps)
    if num_frames is None:
        if fps is None:
            fps = next(rate for longest, rate in _STREAMGAZE_FPS if end_s - start_s <= longest)
        _check_number("fps", fps)
        if not fps > 0:
            raise ValueError(f"fps: got {fps}, expected a positive number")
        num_frames = round(min((end_s - start_s) * fps, max_frames))
    else:
        _check_number("num_frames", num_frames, whole=True)
        if num_frames < 1:
            raise ValueError(f"num_frames: got {num_frames}, expected at least 1")
    if max_frames < FRAMES_PER_STEP:
        raise ValueError(f"max_frames: got {max_frames}, expected at least {FRAMES_PER_STEP} (one temporal step)")
    if sampling == "grid":
        return grid_times_s(_grid_frames(start_s, end_s, fps, max_frames), fps)
    steps = min(max(math.ceil(num_frames / FRAMES_PER_STEP), 1), max_frames // FRAMES_PER_STEP)
    count = steps * FRAMES_PER_STEP
    return start_s + (np.arange(count) + 0.5) * (end_s - start_s) / count


def check_sampling(sampling: str, num_frames: int | None, fps: float | None) -> None:
    """Raise ValueError for an unknown sampling, and for a grid without `fps` or beside `num_frames`."""
    if sampling not in SAMPLINGS:
        raise ValueError(f"sampling: got {sampling!r}, expected one of {SAMPLINGS}")
    if sampling == "grid" and (fps is None or num_frames is not None):
        raise ValueError(f"sampling 'grid': got num_frames={num_frames} and fps={fps}, expected fps alone")


@dataclass(frozen=True)
class VideoInfo:
    """Displayed size in pixels (once turned), and the times at which the first frame begins and the last ends."""

    width: int
    height: int
    start_s: float
    end_s: float


@contextmanager
def _opened(path: str | PathLike):
    """
    Yield (container, video stream) of a file, whose decoder stops at damage. Raises ValueError for what is no video,
    or cannot be decoded in the block.
    """
    name = f"file:{checked_file(path)}"  # a name with a colon is no protocol
    with _opened_source(name, str(path), options=_FILE_OPTIONS) as (container, stream):
        format_name, is_gif = container.format.name, container.format.name == "gif"
        if format_name in _PICTURE_FORMATS or stream.frames == 1 or (is_gif and _packet_count(container, stream) == 1):
            raise ValueError(f"{path}: a picture, expected a video")
        if not stream.width * stream.height:
            raise ValueError(f"{path}: no size, or more than {_LARGEST_FRAME_PX:,} pixels, which are not read")
        stream.codec_context.options = {"max_pixels": str(_LARGEST_FRAME_PX)}
        if (
            stream.codec_context.name != "h264"
        ):  # which marks damaged frames, and where it is entered errs without damage
            stream.codec_context.options |= {"err_detect": "crccheck+bitstream+buffer+explode"}
        yield container, stream


@contextmanager
def _opened_source(source: str, name: str, **options):
    """
    Yield (container, video stream) of anything that `av.open` takes `options` for, `name` in errors. Raises as
    `_opened`. Of several streams it is the one with most pixels, of equal ones the first.
    """
    if av is None:
        raise ImportError("reading videos needs PyAV: pip install av")
    try:
        container = av.open(source, metadata_errors="replace", **options)  # a title need not be UTF-8
    except (av.FFmpegError, OSError, ValueError) as error:  # ValueError: no such format
        raise ValueError(f"{name}: not a readable video ({error})") from error
    with container:
        other = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
        streams = [s for s in container.streams.video if s.codec_context is not None and not s.disposition & other]
        if not streams:
            raise ValueError(f"{name}: no video stream, found {[stream.type for stream in container.streams]}")
        try:
            yield container, max(streams, key=lambda stream: (stream.frames != 1, stream.width * stream.height))
        except av.FFmpegError as error:
            raise ValueError(f"{name}: damaged, cannot be decoded ({error})") from error


def _packet_count(container, stream) -> int:
    """Return how many packets a stream has, by reading them all."""
    count = sum(packet.size > 0 for packet in container.demux(stream))
    container.seek(0)
    return count


def _time_s(frame) -> float:
    """Return the presentation time of a frame, seconds."""
    return float(frame.pts * frame.time_base)


def _end_s(container, stream) -> float:
    """Return when the last frame ends, seconds, from the last packets: what files say of their length may be wrong."""
    ends: list[int] = []
    end_us = (container.start_time or 0) + (container.duration or 0)
    frame_duration = round(1 / (stream.average_rate * stream.time_base)) if stream.average_rate else 0
    near_end_us = (
        max(end_us - 2_000_000, 0) if _can_seek(container) else 0
    )  # frames are out of order by less than that
    for begin in (near_end_us, 0):
        with suppress(av.FFmpegError):  # a file without an index cannot be entered at its end
            container.seek(begin)
        ends = [p.pts + (p.duration or frame_duration) for p in container.demux(stream) if p.pts is not None]
        if ends:
            break
    container.seek(0)
    if not ends:
        raise ValueError(f"{container.name}: no packet of the video stream carries a time")
    return float(max(ends) * stream.time_base)


def video_info(path: str | PathLike) -> VideoInfo:
    """Return size and extent of a video file. Raises FileNotFoundError, or ValueError naming the file."""
    with _opened(path) as (container, stream):
        end_s = _end_s(container, stream)
        frame = next(_decoded(container, stream, path), None)
        if frame is None:
            raise ValueError(f"{path}: no frame could be decoded")
        kept = _upright(frame, path)
        width, height = frame.width, frame.height
        turned = (kept.shape[1] > kept.shape[0]) != (width > height)
        return VideoInfo(*((height, width) if turned else (width, height)), _time_s(frame), end_s)


def video_size(path: str | PathLike) -> tuple[int, int]:
    """Return (width, height) in pixels of the frames that are read, before any turn: from the header alone."""
    with _opened(path) as (_, stream):
        return _kept_size(stream.width, stream.height)


def frame_times_s(path: str | PathLike) -> np.ndarray:
    """Return (n,) presentation times of all frames, increasing, from a video's packets: nothing is decoded."""
    with _opened(path) as (container, stream):
        times = [float(p.pts * p.time_base) for p in container.demux(stream) if p.pts is not None and not p.is_discard]
    if not times:
        raise ValueError(f"{path}: no packet of the video stream carries a time")
    return np.sort(np.array(times))


def read_frames(path: str | PathLike, times_s) -> tuple[np.ndarray, np.ndarray]:
    """
    Return the frames on screen at increasing times, (F, H, W, 3) uint8 RGB, upright, and their (F,) presentation
    times: for each time the last frame that is not later (the first frame, where there is none yet). Frames of more
    than 1920 x 1440 pixels are returned at about that size.

    Decoding starts at the last keyframe before a time, skips what lies between times where the file has an index, and
    keeps nothing but the frames asked for. Raises as `read_clip`.
    """
    try:
        times = np.asarray(times_s, dtype=np.float64)
    except (TypeError, ValueError):
        times = np.empty(0)
    if times.ndim != 1 or not len(times) or not np.isfinite(times).all() or (np.diff(times) < 0).any():
        raise ValueError(f"{path}: times are {times_s}, expected finite ones, not decreasing")
    with _opened(path) as (container, stream):
        return _decode_at(container, stream, times, Path(path))


def each_frame(path: str | PathLike):
    """Yield (time_s, frame (H, W, 3) uint8 RGB, upright) for all frames of a video file. Raises as `read_clip`."""
    reformatter = VideoReformatter()
    with _opened(path) as (container, stream):
        for frame in _decoded(container, stream, path):
            yield _time_s(frame), _upright(frame, path, reformatter)


def each_live_frame(source: str, format: str | None = None, options: dict | None = None, timeout_s: float = 10.0):
    """
    Yield (time_s, frame (H, W, 3) uint8 RGB, upright) for the frames of a camera or network stream as they come. The
    first is at 0 s; time_s is None where the source tells none, frame is None where it came damaged. `format`
    and `options` are PyAV's (`v4l2` for a camera of Linux). Raises ValueError if the source cannot be opened, breaks
    off, or sends nothing for `timeout_s`.
    """
    reformatter, began_s = VideoReformatter(), None
    options = dict(options or {})
    if format is None:  # no playlist that names local files
        options = {"protocol_whitelist": _LIVE_PROTOCOLS, "max_pixels": str(_LARGEST_FRAME_PX)} | options
    with _opened_source(source, source, format=format, options=options, timeout=timeout_s) as (container, stream):
        for frame in container.decode(stream):
            time_s = None if frame.pts is None else _time_s(frame)
            began_s = time_s if began_s is None else began_s
            rgb = None if frame.is_corrupt else _upright(frame, source, reformatter)
            yield (None if time_s is None else time_s - began_s), rgb


def read_clip(
    path: str | PathLike,
    start_s: float = 0.0,
    end_s: float | None = None,
    num_frames: int | None = None,
    fps: float | None = None,
    max_frames: int = MAX_FRAMES,
    sampling: str = "spread",
) -> Clip:
    """
    Return frames of `[start_s, end_s]` (default: the whole video) at `sample_times`. The frame taken for a time is the
    one on screen then: the last whose presentation time is not later. The display matrix is applied, quarter turns and
    mirrors: gaze is relative to the frame as displayed.

    Raises FileNotFoundError, or ValueError naming the file, for what is no video, cannot be decoded, or ends more than
    a second before `end_s` (questions are stamped in whole seconds).
    """
    path = checked_file(path)
    with _opened(path) as (container, stream):
        end_s = checked_end(path, start_s, end_s, _end_s(container, stream))
        times = sample_times(start_s, end_s, num_frames, fps, max_frames, sampling)
        frames, timestamps = _decode_at(container, stream, times, path)
    if timestamps[0] > end_s:
        raise ValueError(f"{path}: the first frame is shown at {timestamps[0]} s, after the clip's end at {end_s} s")
    if sampling == "spread":
        return Clip(frames, timestamps, start_s, end_s, str(path))
    return Clip(frames, timestamps, grid_edges_s(grid_step_at(times[0], fps), fps), end_s, str(path), fps)


def checked_end(path: Path, start_s: float, end_s: float | None, video_end_s: float) -> float:
    """Return the clip's end, at most the video's. Raises ValueError for a clip that the video does not hold."""
    _check_number(f"{path}: start_s", start_s)
    if end_s is None:
        end_s = video_end_s
    _check_number(f"{path}: end_s", end_s)
    if not end_s <= video_end_s + QUESTION_ROUNDING_S:
        raise ValueError(f"{path}: query time {end_s} s lies beyond the video, which ends at {video_end_s:.3f} s")
    if not 0 <= start_s < video_end_s:
        raise ValueError(f"{path}: clip starts at {start_s} s, expected 0 to the video's end at {video_end_s:.3f} s")
    if not start_s < end_s:
        raise ValueError(f"{path}: clip from {start_s} to {end_s} s, expected a positive length")
    return min(end_s, video_end_s)


def _upright(frame, path: str | PathLike, reformatter=None) -> np.ndarray:
    """
    Return (H, W, 3) uint8 RGB of a decoded frame, turned and mirrored as the file says it is to be displayed. A
    `reformatter` kept for all frames of a video is set up once.
    """
    width, height = _kept_size(frame.width, frame.height)
    interpolation = "AREA" if width < frame.width else None
    threads = 1 if frame.width * frame.height <= _SMALL_FRAME_PX else 0
    reformatter = reformatter or VideoReformatter()
    rgb = reformatter.reformat(
        frame, width, height, format="rgb24", interpolation=interpolation, threads=threads
    ).to_ndarray()
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return rgb if matrix is None else _displayed(rgb, np.frombuffer(matrix, "=i4").reshape(3, 3), path)


def _kept_size(width: int, height: int) -> tuple[int, int]:
    """Return (width, height) in pixels at which frames of a size are kept."""
    scale = math.sqrt(_LARGEST_KEPT_FRAME_PX / (width * height))
    return (width, height) if scale >= 1 else (max(round(scale * width), 1), max(round(scale * height), 1))


def _displayed(pixels: np.ndarray, matrix: np.ndarray, path: str | PathLike) -> np.ndarray:
    """
    Return (H, W, 3) pixels as a display matrix ((a b u), (c d v), (x y w)), fixed-point, shows them: the pixel at
    (x, y), y down, at (a x + c y, b x + d y). Its scale and shift change nothing that gaze is relative to. Raises
    ValueError for what is no combination of quarter turns and mirrors.
    """
    a, b, c, d = (matrix[:2, :2] / (1 << 16)).ravel()
    swaps_axes = abs(b) > abs(a)
    kept, zero = ((b, c), (a, d)) if swaps_axes else ((a, d), (b, c))
    slanted = max(map(abs, zero)) >= math.radians(1) * min(map(abs, kept))  # also where one of them is 0: no area
    if slanted or matrix[:2, 2].any() or matrix[2, 2] <= 0:
        rows = (matrix / [1 << 16, 1 << 16, 1 << 30]).round(3).tolist()
        raise ValueError(f"{path}: displayed by the matrix {rows}, expected quarter turns and mirrors: re-encode it")
    shown = pixels.swapaxes(0, 1) if swaps_axes else pixels
    x_sign, y_sign = (c, b) if swaps_axes else (a, d)
    return np.ascontiguousarray(shown[:: -1 if y_sign < 0 else 1, :: -1 if x_sign < 0 else 1])


def _decoded(container, stream, path: str | PathLike):
    """
    Yield the frames from where the container stands on, in order of presentation. Raises ValueError at the first
    damage, and at a frame without a presentation time.
    """
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise ValueError(f"{path}: damaged, a packet {_at(packet)} is not whole")
        for frame in packet.decode():
            if frame.is_corrupt:
                raise ValueError(f"{path}: damaged, the frame {_at(frame)} is not whole")
            if frame.pts is None:
                raise ValueError(f"{path}: a frame carries no presentation time")
            yield frame


def _at(timed) -> str:
    """Return in words when a packet or a frame is shown."""
    return "without a time" if timed.pts is None else f"at {_time_s(timed):.3f} s"


def _can_seek(container) -> bool:
    """Return whether times are right after a seek: MPEG program streams (.mpg) then give some to the next frame."""
    return container.format.name != "mpeg"


def _decode_from(container, stream, time_s: float, path: Path):
    """Yield all frames in order of presentation, from one that is not later than `time_s` on (or from the first)."""
    back_s = 0.0 if _can_seek(container) else math.inf
    while True:
        begin = time_s - back_s
        container.seek(math.floor(max(begin, 0.0) / stream.time_base), stream=stream, backward=True)
        frames = _decoded(container, stream, path)
        first = next(frames, None)
        # Some formats enter at the decoding time of a keyframe, or behind it: then further back.
        if begin <= 0 or (first is not None and _time_s(first) <= time_s + SAME_TIME_S):
            break
        back_s = max(1.0, 2 * back_s)
    if first is not None:
        yield first
        yield from frames


def _keyframe_ahead(stream, frame, time_s: float) -> bool:
    """Return whether the file's index knows a keyframe after `frame` from which `time_s` can be reached."""
    entry = stream.index_entries.search_timestamp(math.floor(time_s / stream.time_base))
    return entry >= 0 and stream.index_entries[entry].timestamp > frame.pts


def _decode_at(container, stream, times: np.ndarray, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the frames on screen at increasing `times`, and their presentation times."""
    if stream.width * stream.height > _SMALL_FRAME_PX:
        stream.thread_type = "AUTO"
    frames: np.ndarray | None = None  # made once: a list, stacked in the end, would need twice the memory
    timestamps: list[float] = []
    current, upcoming, decoder, reformatter = None, None, None, VideoReformatter()
    for time_s in times.tolist():
        skips = decoder is not None and upcoming is not None and _can_seek(container)
        if decoder is None or (skips and _keyframe_ahead(stream, upcoming, time_s)):
            decoder = _decode_from(container, stream, time_s, path)
            current, upcoming = next(decoder, None), next(decoder, None)
            if current is None:
                raise ValueError(f"{path}: no frame could be decoded from {time_s:.3f} s on")
        while upcoming is not None and _time_s(upcoming) <= time_s + SAME_TIME_S:
            current, upcoming = upcoming, next(decoder, None)
        if upcoming is None:
            until = float((current.pts + (current.duration or 0)) * current.time_base)
            if time_s > until + QUESTION_ROUNDING_S:
                raise ValueError(f"{path}: the video's data ends at {until:.3f} s, before {time_s:.3f} s is reached")
        if not timestamps or timestamps[-1] != _time_s(current):
            pixels = _upright(current, path, reformatter)
            if frames is None:
                frames = np.empty((len(times), *pixels.shape), np.uint8)
            if pixels.shape != frames.shape[1:]:
                sizes = " x ".join(map(str, pixels.shape[1::-1])), " x ".join(map(str, frames.shape[2:0:-1]))
                raise ValueError(f"{path}: frames change their size from {sizes[1]} to {sizes[0]}, expected one size")
        frames[len(timestamps)] = pixels
        timestamps.append(_time_s(current))
    return frames, np.array(timestamps)


__all__ = [
    "FRAMES_PER_STEP",
    "MAX_FRAMES",
    "QUESTION_ROUNDING_S",
    "SAMPLINGS",
    "Clip",
    "VideoInfo",
    "check_sampling",
    "checked_end",
    "each_frame",
    "each_live_frame",
    "frame_times_s",
    "grid_edges_s",
    "grid_frame_at",
    "grid_step_at",
    "grid_times_s",
    "read_clip",
    "read_frames",
    "sample_times",
    "video_info",
    "video_size",
]
