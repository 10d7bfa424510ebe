"""Clip: frames of a video file with their true timestamps. One clock: seconds of the source video."""

import math
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import numpy as np

try:
    import av
except ImportError:  # only reading files needs it; clips can also be made from arrays
    av = None

# StreamGaze's frame rates by clip length: (longest clip in seconds, frames per second).
_STREAMGAZE_FPS = ((30.0, 1.0), (60.0, 0.5), (300.0, 0.2), (math.inf, 0.1))

_SAME_TIME_S = 1e-6  # rounding of times that are the same

# Up to this size one thread decodes faster than several: starting them costs more than they save.
_SMALL_FRAME_PX = 640 * 480

# A question stamped in whole seconds may lie up to this far behind the last frame; the clip then ends with the video.
QUESTION_ROUNDING_S = 1.0


@dataclass(frozen=True, eq=False)
class Clip:
    """
    The part `[start_s, end_s]` of a video. `frames` (F, H, W, 3) uint8 RGB; `timestamps_s` (F,) their presentation
    times, not decreasing. Nothing after `end_s`, the query time, is in it.
    """

    frames: np.ndarray
    timestamps_s: np.ndarray
    start_s: float
    end_s: float
    source: str = field(default="clip")

    def __post_init__(self):
        frames, times = np.asarray(self.frames), np.asarray(self.timestamps_s, dtype=np.float64)
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
        if times[-1] > self.end_s + _SAME_TIME_S:
            raise ValueError(f"{self.source}: a frame at {times[-1]} s lies after the clip's end, {self.end_s} s")
        object.__setattr__(self, "frames", frames)
        object.__setattr__(self, "timestamps_s", times)

    def padded(self, multiple: int) -> "Clip":
        """The clip with its last frame repeated until the number of frames is a multiple (of a temporal patch)."""
        missing = -len(self.frames) % multiple
        if not missing:
            return self
        return Clip(
            np.concatenate([self.frames, np.repeat(self.frames[-1:], missing, axis=0)]),
            np.concatenate([self.timestamps_s, np.repeat(self.timestamps_s[-1:], missing)]),
            self.start_s,
            self.end_s,
            self.source,
        )

    def step_spans_s(self, frames_per_step: int = 2) -> np.ndarray:
        """
        (T, 2) begin and end of each temporal step of `frames_per_step` frames. Steps tile the clip: neighbours meet
        halfway between the last frame of one and the first of the next.
        """
        times = self.padded(frames_per_step).timestamps_s.reshape(-1, frames_per_step)
        edges = np.concatenate([[self.start_s], (times[:-1, -1] + times[1:, 0]) / 2, [self.end_s]])
        return np.stack([edges[:-1], edges[1:]], axis=1)

    def seconds_per_step(self, frames_per_step: int = 2) -> float:
        """Mean distance between the centres of neighbouring temporal steps, Qwen's `second_per_grid_ts`."""
        times = self.padded(frames_per_step).timestamps_s.reshape(-1, frames_per_step).mean(axis=1)
        if len(times) == 1:
            return self.end_s - self.start_s
        return float((times[-1] - times[0]) / (len(times) - 1))


def sample_times(
    start_s: float, end_s: float, num_frames: int | None = None, fps: float | None = None, max_frames: int = 64
) -> np.ndarray:
    """
    The (F,) times to take frames at: the centres of F equal parts of `[start_s, end_s]`. F is `num_frames`, or follows
    `fps`, or, with neither, StreamGaze's rate for the clip's length (1, 0.5, 0.2, 0.1 per second up to 30 s, 60 s,
    300 s, beyond). F is even and at most `max_frames`; a cap spreads the frames, it does not cut the clip.
    """
    if not start_s < end_s:
        raise ValueError(f"clip from {start_s} to {end_s} s, expected a positive length")
    if num_frames is not None and fps is not None:
        raise ValueError(f"got num_frames={num_frames} and fps={fps}, expected one of them")
    if num_frames is None:
        if fps is None:
            fps = next(rate for longest, rate in _STREAMGAZE_FPS if end_s - start_s <= longest)
        if not fps > 0:
            raise ValueError(f"fps: got {fps}, expected a positive number")
        num_frames = round((end_s - start_s) * fps)
    elif num_frames < 1:
        raise ValueError(f"num_frames: got {num_frames}, expected at least 1")
    if max_frames < 2:
        raise ValueError(f"max_frames: got {max_frames}, expected at least 2 (one temporal step)")
    count = min(2 * math.ceil(max(num_frames, 2) / 2), 2 * (max_frames // 2))
    return start_s + (np.arange(count) + 0.5) * (end_s - start_s) / count


def video_end_s(container, stream) -> float:
    """Time at which the last frame of an open video ends; read from the packets where the file does not say."""
    if stream.duration is not None:
        return float(((stream.start_time or 0) + stream.duration) * stream.time_base)
    last = max(
        (packet.pts + (packet.duration or 0) for packet in container.demux(stream) if packet.pts is not None),
        default=None,
    )
    container.seek(0)
    if last is None:
        raise ValueError("no packet carries a time")
    return float(last * stream.time_base)


def read_clip(
    path: str | PathLike,
    start_s: float = 0.0,
    end_s: float | None = None,
    num_frames: int | None = None,
    fps: float | None = None,
    max_frames: int = 64,
) -> Clip:
    """
    Decode frames of `[start_s, end_s]` (default: the whole video) at `sample_times`. The frame taken for a time is the
    one on screen then: the last whose presentation time is not later.

    Raises FileNotFoundError, or ValueError naming the file, for what is no video, cannot be decoded, or ends more than
    a second before `end_s` (questions are stamped in whole seconds).
    """
    path = Path(path)
    if av is None:
        raise ImportError("reading video files needs PyAV: pip install av")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such video file")
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise ValueError(f"{path}: not a readable video ({error})") from error
    with container:
        if not container.streams.video:
            raise ValueError(f"{path}: no video stream, found {[stream.type for stream in container.streams]}")
        stream = container.streams.video[0]
        if stream.width * stream.height > _SMALL_FRAME_PX:
            stream.thread_type = "AUTO"
        try:
            video_end = video_end_s(container, stream)
            end_s = _checked_end(path, start_s, end_s, video_end)
            times = sample_times(start_s, end_s, num_frames, fps, max_frames)
            frames, timestamps = _decode_at(container, stream, times, path)
        except av.FFmpegError as error:
            raise ValueError(f"{path}: cannot be decoded around {start_s} to {end_s} s ({error})") from error
    return Clip(frames, timestamps, start_s, end_s, str(path))


def _checked_end(path: Path, start_s: float, end_s: float | None, video_end: float) -> float:
    if start_s < 0 or start_s >= video_end:
        raise ValueError(f"{path}: clip starts at {start_s} s, expected 0 to the video's end at {video_end:.3f} s")
    if end_s is None:
        return video_end
    if end_s > video_end + QUESTION_ROUNDING_S:
        raise ValueError(f"{path}: query time {end_s} s lies beyond the video, which ends at {video_end:.3f} s")
    return min(end_s, video_end)


def _decode_at(container, stream, times: np.ndarray, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The frames on screen at increasing `times`, and their presentation times."""
    container.seek(max(0, int(times[0] / stream.time_base)), stream=stream, backward=True)
    frames, timestamps, shown = [], [], None

    def take(frame) -> None:
        if frame.rotation % 360:
            raise ValueError(f"{path}: rotated by {frame.rotation} degrees, expected upright video: re-encode it")
        if frames and timestamps[-1] == float(frame.pts * frame.time_base):
            frames.append(frames[-1])
        else:
            frames.append(frame.to_ndarray(format="rgb24"))
        timestamps.append(float(frame.pts * frame.time_base))

    for frame in container.decode(stream):
        if frame.pts is None:
            raise ValueError(f"{path}: a frame carries no presentation time")
        time_s = float(frame.pts * frame.time_base)
        while shown is not None and len(frames) < len(times) and time_s > times[len(frames)] + _SAME_TIME_S:
            take(shown)
        if len(frames) == len(times):
            break
        shown = frame
    if shown is None:
        raise ValueError(f"{path}: no frame could be decoded from {times[0]:.3f} s on")
    shown_until = float((shown.pts + (shown.duration or 0)) * shown.time_base)
    if len(frames) < len(times) and times[-1] > shown_until + QUESTION_ROUNDING_S:
        raise ValueError(f"{path}: the video's data ends at {shown_until:.3f} s, before {times[-1]:.3f} s is reached")
    while len(frames) < len(times):
        take(shown)
    return np.stack(frames), np.array(timestamps)


__all__ = ["QUESTION_ROUNDING_S", "Clip", "read_clip", "sample_times"]
