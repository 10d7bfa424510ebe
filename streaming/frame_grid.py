"""Take, of the frames that arrive, those that are on screen at a grid's times on the video's clock."""

import math

import numpy as np

from gazeqwen.video_gazeqwen import (
    FRAMES_PER_STEP,
    SAME_TIME_S,
    Clip,
    grid_edges_s,
    grid_frame_at,
    grid_step_at,
    grid_times_s,
)


class FrameGrid:
    """
    Hold the frames at a grid's times that no temporal step has used up yet, as `read_frames` takes them from a file:
    for each time the last frame that is not later, and the first frame for times before it.

    `fps`: of the grid; `start_s`: in its first step; `max_gap_s`: a frame that comes later than this after the one
    before is refused, since its clock must have jumped. `now_s` is the time of the last frame, None before the first.
    """

    def __init__(self, fps: float, start_s: float, max_gap_s: float):
        self.fps, self.max_gap_s = fps, max_gap_s
        self.first_step = self.next_step = grid_step_at(start_s, fps)
        self.start_s = grid_edges_s(self.first_step, fps)
        self.now_s: float | None = None
        self.size: tuple[int, int] | None = None  # height, width
        self.repeated = 0  # frames of the grid that show a frame again: nothing newer came in between
        self._on_screen: tuple[np.ndarray, float] | None = None
        self._waiting: tuple[tuple[np.ndarray, float], ...] = ()  # from the first frame of `next_step` on

    @property
    def end_of_steps_s(self) -> float:
        """Return when the last step that was used up ends, seconds of the video."""
        return grid_edges_s(self.next_step, self.fps)

    @property
    def end_of_next_s(self) -> float:
        """Return when the next step ends, seconds of the video."""
        return grid_edges_s(self.next_step + 1, self.fps)

    def push(self, frames: np.ndarray, times_s: np.ndarray) -> None:
        """
        Take frames (F, H, W, 3) uint8 RGB that came at increasing times (F,), seconds. Raises ValueError naming the
        frame, and takes none of them, for other arrays, a changed size, and a time that is not later than the one
        before it, or a long way ahead of it.
        """
        frames, times = np.asarray(frames), np.atleast_1d(np.asarray(times_s, dtype=np.float64))
        if frames.ndim == 3:
            frames = frames[None]
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise ValueError(f"frames are {frames.dtype} {frames.shape}, expected uint8 (F, H, W, 3)")
        if times.shape != (len(frames),):
            raise ValueError(f"got {times.shape} times for {len(frames)} frames, expected one each")
        if not len(frames):
            return
        if self.size not in (None, frames.shape[1:3]):
            raise ValueError(
                f"frames are {frames.shape[2]}x{frames.shape[1]} pixels, expected {self.size[1]}x{self.size[0]} as "
                "before: open another stream for another size"
            )
        self._check_times(times)
        self.size = frames.shape[1:3]
        for frame, time_s in zip(frames, times.tolist(), strict=True):
            self._take(frame, time_s)
        self._on_screen = self._on_screen[0].copy(), self._on_screen[1]  # the source may write over its own

    def _check_times(self, times: np.ndarray) -> None:
        first = self.start_s if self.now_s is None else self.now_s
        before = np.concatenate([[first], times[:-1]])
        not_later = times <= before + SAME_TIME_S
        if self.now_s is None:  # what is on screen at the start may have come before it
            not_later[0] = False
        for problem, expected in (
            (~np.isfinite(times), "a finite time"),
            (not_later, "a later time"),
            (times - before > self.max_gap_s, f"at most {self.max_gap_s:g} s later (max_gap_s)"),
        ):
            if problem.any():
                row = int(problem.argmax())
                after = "the stream's start" if row == 0 and self.now_s is None else "the frame before"
                raise ValueError(
                    f"frame {row}: its time is {times[row]} s, {after} is at {before[row]} s, expected {expected}"
                )

    def _take(self, frame: np.ndarray, time_s: float) -> None:
        """Fill the grid's times up to a frame's, and let it be on screen from then on."""
        due = grid_frame_at(time_s, self.fps)  # the last time that this frame decides
        number = self.next_step * FRAMES_PER_STEP + len(self._waiting)
        kept = None
        while number <= due:
            shown_at = grid_times_s(number, self.fps)
            is_new = self._on_screen is None or time_s <= shown_at + SAME_TIME_S
            if is_new and kept is None:
                kept = frame.copy()
            self._show((kept, time_s) if is_new else self._on_screen)
            number += 1
        self._on_screen = (frame if kept is None else kept), time_s
        self.now_s = time_s

    def _show(self, shown: tuple[np.ndarray, float]) -> None:
        """Take a frame and its time for the next of the grid's times."""
        if self._waiting and self._waiting[-1][1] == shown[1]:
            self.repeated += 1
        self._waiting += (shown,)

    def show_until(self, time_s: float) -> None:
        """Take the frame on screen for the grid's times up to a time, which is not before `now_s`."""
        first = self.next_step * FRAMES_PER_STEP + len(self._waiting)
        for _ in range(first, grid_frame_at(time_s, self.fps) + 1):
            self._show(self._on_screen)

    def complete(self, time_s: float) -> bool:
        """Return whether the next step has all its frames and has ended by a time."""
        return len(self._waiting) >= FRAMES_PER_STEP and self.end_of_next_s <= time_s + SAME_TIME_S

    def next_clip(self) -> Clip:
        """Return the next step, which is complete, as a clip of its own."""
        return self._clip(self._waiting[:FRAMES_PER_STEP], self.next_step, math.inf)

    def advance(self) -> None:
        """Use up the next step."""
        self._waiting = self._waiting[FRAMES_PER_STEP:]
        self.next_step += 1

    def clips_until(self, time_s: float) -> list[Clip]:
        """
        Return the steps that are not used up as they are at a time, which is not before `now_s`: the last one as far
        as it has come, its last frame twice where there is one only.
        """
        if self._on_screen is None:
            return []
        first = self.next_step * FRAMES_PER_STEP
        count = max(grid_frame_at(time_s, self.fps) + 1 - first, 0)
        frames = self._waiting + (self._on_screen,) * max(count - len(self._waiting), 0)
        starts = range(0, count, FRAMES_PER_STEP)
        return [
            self._clip(frames[start : min(start + FRAMES_PER_STEP, count)], self.next_step + index, time_s)
            for index, start in enumerate(starts)
        ]

    def _clip(self, frames: tuple[tuple[np.ndarray, float], ...], step: int, time_s: float) -> Clip:
        begin_s, end_s = grid_edges_s(step, self.fps), grid_edges_s(step + 1, self.fps)
        times = [shown_s for _, shown_s in frames]
        end_s = max(min(end_s, time_s), times[-1])  # a video's first frame may come after its first steps
        return Clip(np.stack([frame for frame, _ in frames]), np.array(times), begin_s, end_s, "stream", self.fps)


__all__ = ["FrameGrid"]
