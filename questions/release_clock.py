"""Turn the clock of StreamGaze's questions and fixation tables into seconds of each video file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gazeqwen.questions.sources import VIDEO_SOURCES
from gazeqwen.video_gazeqwen import frame_times_s, read_frames


@dataclass(frozen=True)
class Clock:
    """Seconds of the release -> seconds of the video file. `kind` says how that is known."""

    kind: str
    knots_s: tuple[np.ndarray, np.ndarray] | None = None  # (release's, file's) times of the same frames

    def to_file_s(self, times_s):
        """Return seconds of the video file for seconds of the release, numbers or arrays alike."""
        if self.knots_s is None:
            return times_s
        release, file = self.knots_s
        inside = np.interp(times_s, release, file)
        # Beyond the last frame time goes on at the mean rate: whether a question lies there is checked in file time.
        rate = (file[-1] - file[0]) / (release[-1] - release[0])
        return (
            inside
            + np.maximum(np.asarray(times_s) - release[-1], 0) * rate
            + np.minimum(np.asarray(times_s) - release[0], 0) * rate
        )


def release_clock(source: str, video: Path, overlay: Path | None) -> Clock:
    """
    Return the clock of a video's questions and fixation table. StreamGaze cut its clips from the gaze-overlay encodes,
    which hold the same frames as the originals but may declare another rate: so a time means the overlay's frame on
    screen then, and the original's frame of the same number. Without the overlay, times are frame number / the
    source's assumed rate; where the source has none, seconds of the file.

    Raises ValueError if the two files do not show the same frames at the same numbers.
    """
    times_s = frame_times_s(video)
    if overlay is not None:
        overlay_s = frame_times_s(overlay)
        count = min(len(times_s), len(overlay_s))
        if count < 2:
            raise ValueError(f"{overlay}: {len(overlay_s)} frames beside {len(times_s)}, expected as many")
        _check_same_frames(video, times_s, overlay, overlay_s, count)
        return Clock("overlay frames", (overlay_s[:count], times_s[:count]))
    fps = VIDEO_SOURCES[source].assumed_fps if source in VIDEO_SOURCES else None
    if fps is not None and len(times_s) > 1:
        return Clock(f"frame number at {fps:g} fps", (np.arange(len(times_s)) / fps, times_s))
    return Clock("seconds of the file")


def _thumbnails(path: Path, times_s: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Return (n, cells): the brightness of frames by number, averaged over 16x16 cells and standardised."""
    frames, shown_s = read_frames(path, times_s[indices])
    if not np.allclose(shown_s, times_s[indices], atol=1e-6):
        raise ValueError(f"{path}: frames cannot be found by their times")
    grey = frames.astype(np.float32).mean(-1)
    rows, columns = (np.arange(size) * 16 // size for size in grey.shape[1:])
    cells = np.zeros((len(grey), 16, 16), np.float32)
    for image, sums in zip(grey, cells, strict=True):
        np.add.at(sums, (rows[:, None], columns[None, :]), image)
    flat = cells.reshape(len(grey), -1)
    flat = flat - flat.mean(1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def _check_same_frames(video: Path, times_s: np.ndarray, overlay: Path, overlay_s: np.ndarray, count: int) -> None:
    """Raise ValueError unless the frames of shared numbers look alike: equal counts prove nothing."""
    numbers = np.unique(np.linspace(0, count - 1, 7).round().astype(int)[1:-1]) if count > 6 else np.arange(count)
    original_cells, overlay_cells = _thumbnails(video, times_s, numbers), _thumbnails(overlay, overlay_s, numbers)
    correlation = original_cells @ overlay_cells.T  # (n, n): original's frames by overlay's
    same_number = np.diag(correlation)
    if np.median(same_number) < 0.9 or np.mean(correlation.argmax(1) == np.arange(len(numbers))) < 0.5:
        raise ValueError(
            f"{video.name} and its gaze overlay show different frames at the same numbers "
            f"(correlations {np.round(same_number, 2).tolist()}; {len(times_s)} and {len(overlay_s)} frames)"
        )
