"""Gaze of Pupil Labs' glasses (Neon, Invisible) over the network, through Pupil Labs' realtime API."""

import threading
import time
from collections import deque
from collections.abc import Iterable

import numpy as np

from gazeqwen.gaze_sources.samples import GazeSamples
from gazeqwen.streaming.gaze import GazeSource

SCENE_SIZES = {"1": (1088, 1080), "2": (1600, 1200)}  # of the scene camera, pixels, by the glasses' version
_POLL_S = 0.2


class NeonGaze(GazeSource):
    """
    Receive the gaze of glasses whose Companion app runs at `address` (host, or host:port), or of the first that is
    seen within `timeout_s`. Positions are pixels of the scene camera, by default of the size that the glasses'
    version has (`SCENE_SIZES`; unknown: Neon's); samples while the glasses are not worn are untracked. The device's
    package keeps the newest sample alone, so a thread collects them.

    Times are of the device's clock. `offset_s` is its time, in seconds since 1970, at which the video begins; None:
    its first frame comes then (`begin`), by this machine's clock and the difference between the two clocks, which is
    measured here. What was taken is said in `clock`. Samples that come after a later one are left out, and counted
    (`out_of_order`).

    Raises ImportError without the package, and ValueError if no device answers.
    """

    def __init__(
        self,
        address: str | None = None,
        offset_s: float | None = None,
        frame_size: tuple[int, int] | None = None,
        timeout_s: float = 10.0,
    ):
        super().__init__()
        self.name = f"Pupil Labs' glasses at {address or 'any address'}"
        self._device = _connected(self.name, address, timeout_s)
        self.frame_size = frame_size or SCENE_SIZES.get(str(self._device.version_glasses)[:1], SCENE_SIZES["2"])
        self.offset_s, self.out_of_order = offset_s, 0
        if offset_s is None:
            self._behind_s, self._measured = self._measure_clocks()
        else:
            self.clock = f"the video begins at {offset_s:.3f} s of the device's (offset_s)"
        self._last_s, self._failure = -np.inf, None
        self._received, self._ended = deque(), threading.Event()
        self._thread = threading.Thread(target=self._collect, name="Neon gaze", daemon=True)
        self._thread.start()

    def _measure_clocks(self) -> tuple[float, str]:
        """Return by how many seconds the device's clock is behind this machine's, and how well that is known."""
        estimates = self._device.estimate_time_offset()
        if estimates is None:
            return 0.0, "taken as this machine's: the app did not answer the measurement"
        offset = estimates.time_offset_ms
        return offset.mean / 1000, f"{offset.mean:.1f} ms behind this machine's (measured, +-{offset.std:.1f} ms)"

    def begin(self, time_s: float) -> None:
        """Take note that now is `time_s` of the video, unless the offset is known."""
        if self.offset_s is None:
            self.offset_s = time.time() - self._behind_s - time_s
            self.clock = (
                f"the video begins at {self.offset_s:.3f} s of the device's, when its first frame came; the device's "
                f"clock is {self._measured}"
            )

    def _collect(self) -> None:
        """Take samples as they come, until the source is closed."""
        try:
            while not self._ended.is_set():
                datum = self._device.receive_gaze_datum(timeout_seconds=_POLL_S)
                if datum is not None:
                    self._received.append((datum.timestamp_unix_seconds, datum.x, datum.y, datum.worn))
        except Exception as error:  # is raised where the samples are asked for
            self._failure = error

    def _arrived(self, time_s: float) -> Iterable[GazeSamples]:
        if self.offset_s is None:
            return []
        rows = []
        while self._received:
            row = self._received.popleft()
            if row[0] < self._last_s:
                self.out_of_order += 1
                continue
            self._last_s = row[0]
            rows.append(row)
        if not rows:
            if self._failure is not None:
                kind = type(self._failure).__name__
                raise ValueError(f"{self.name}: {kind}: {self._failure}") from self._failure
            return []
        times_s, x, y, worn = (np.array(values, dtype=np.float64) for values in zip(*rows, strict=True))
        xy = np.column_stack([x, y]) / self.frame_size
        return [
            GazeSamples.from_recording(times_s - self.offset_s, xy, worn != 0, self.name, frame_size=self.frame_size)
        ]

    def close(self) -> None:
        """End the connection."""
        self._ended.set()
        self._thread.join()
        self._device.close()


def _connected(name: str, address: str | None, timeout_s: float):
    """Return the device at an address, or the first that is seen. Raises ImportError, or ValueError."""
    try:
        from pupil_labs.realtime_api.simple import Device, discover_one_device
    except ImportError:
        raise ImportError("gaze of Pupil Labs' glasses needs: pip install gazeqwen[neon-live]") from None
    if address is None:
        device = discover_one_device(max_search_duration_seconds=timeout_s)
        if device is None:
            raise ValueError(f"{name}: none was seen within {timeout_s:g} s; is it in this network? Say its address")
        return device
    host, _, port = address.partition(":")
    if port and not port.isdigit():
        raise ValueError(f"address {address!r}, expected a host, or host:port")
    try:
        return Device(address=host, port=int(port or 8080))
    except Exception as error:  # of whatever network library the package uses
        raise ValueError(f"{name}: does not answer ({type(error).__name__}: {error})") from error


__all__ = ["SCENE_SIZES", "NeonGaze"]
