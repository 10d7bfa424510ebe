"""Frames as they arrive: from a file, a camera or a network stream."""

import time
from collections.abc import Iterator
from os import PathLike, fspath

import numpy as np

from gazeqwen.video_gazeqwen import each_frame, each_live_frame


class VideoSource:
    """
    Iterate over (time_s, frame (H, W, 3) uint8 RGB, upright) of a video, in order.

    A file is read as fast as it is asked for; its times are the video's. With `own_pace` no frame comes before its
    time, by a clock that starts with the first one. A camera (`/dev/video0`, or any device by its PyAV `format`) and a
    network stream (an address such as `rtsp://...`) are live: they come when they come, their times count from the
    first frame on, and are those of arrival where the source tells none. `options` are PyAV's. A live source that
    sends nothing for `timeout_s` has ended.

    `damaged` counts a live source's frames that were left out because they came damaged.
    """

    def __init__(
        self,
        source: str | PathLike,
        own_pace: bool = False,
        format: str | None = None,
        options: dict | None = None,
        timeout_s: float = 10.0,
    ):
        self.source, self.own_pace, self.options, self.timeout_s = fspath(source), own_pace, options, timeout_s
        self.format = "v4l2" if format is None and self.source.startswith("/dev/video") else format
        self.live = self.format is not None or "://" in self.source
        self.damaged = 0

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        if self.live:
            return self._live_frames()
        return self._at_own_pace() if self.own_pace else each_frame(self.source)

    def _at_own_pace(self) -> Iterator[tuple[float, np.ndarray]]:
        """Yield a file's frames, none before its time."""
        began_s = None
        for time_s, frame in each_frame(self.source):
            began_s = time.monotonic() - time_s if began_s is None else began_s
            time.sleep(max(0.0, began_s + time_s - time.monotonic()))
            yield time_s, frame

    def _live_frames(self) -> Iterator[tuple[float, np.ndarray]]:
        """Yield a live source's frames that came whole."""
        began_s = None
        for time_s, frame in each_live_frame(self.source, self.format, self.options, self.timeout_s):
            began_s = time.monotonic() if began_s is None else began_s
            if frame is None:
                self.damaged += 1
            else:
                yield (time.monotonic() - began_s if time_s is None else time_s), frame


__all__ = ["VideoSource"]
