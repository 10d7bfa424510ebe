"""Live gaze of Pupil Labs' glasses: a stand-in for the device, with the calls and the samples of its package."""

import argparse
import sys
import time
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

from gazeqwen.gaze_sources import Status
from gazeqwen.streaming.__main__ import arguments, gaze_of
from gazeqwen.streaming.neon import NeonGaze

NOW = 1_700_000_000.0


class GazeData(NamedTuple):
    """The fields of pupil_labs.realtime_api.streaming.GazeData."""

    x: float
    y: float
    worn: bool
    timestamp_unix_seconds: float


class FakeDevice:
    """Neon that sends `samples`, then nothing; or raises them."""

    def __init__(self, samples=(), version="2.0", clock_ms: float | None = 250.0):
        self.samples, self.version_glasses, self.clock_ms = list(samples), version, clock_ms
        self.closed = False

    def receive_gaze_datum(self, timeout_seconds=None):
        if not self.samples:
            time.sleep(0.001)
            return None
        sample = self.samples.pop(0)
        if isinstance(sample, Exception):
            raise sample
        return sample

    def estimate_time_offset(self):
        if self.clock_ms is None:
            return None
        return SimpleNamespace(time_offset_ms=SimpleNamespace(mean=self.clock_ms, std=2.0))

    def close(self):
        self.closed = True


@pytest.fixture
def network(monkeypatch):
    """Let devices be reached: by discovery the `first`, by address what `at` holds."""
    reached = SimpleNamespace(first=None, at={})

    def device(address, port):
        if (address, port) not in reached.at:
            raise ConnectionRefusedError(f"{address}:{port}")
        return reached.at[address, port]

    simple = SimpleNamespace(Device=device, discover_one_device=lambda max_search_duration_seconds: reached.first)
    for name in ("pupil_labs", "pupil_labs.realtime_api"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    monkeypatch.setitem(sys.modules, "pupil_labs.realtime_api.simple", simple)
    return reached


def received(gaze: NeonGaze, count: int, until_s: float = np.inf):
    parts, deadline = [], time.monotonic() + 10
    while sum(map(len, parts)) < count and time.monotonic() < deadline:
        parts += gaze.until(until_s)
        time.sleep(0.001)
    return parts


def test_gaze_is_by_the_scene_frame_and_the_given_clock(network):
    rows = [(800, 600, True, 0.0), (400, 300, True, 0.005), (400, 300, False, 0.01), (1601, 0, True, 0.015)]
    network.first = FakeDevice([GazeData(x, y, worn, NOW + at_s) for x, y, worn, at_s in rows])
    gaze = NeonGaze(offset_s=NOW - 2)
    parts = received(gaze, 4)
    xy, times = (np.concatenate([getattr(part, name) for part in parts]) for name in ("recorded_xy", "times_s"))
    np.testing.assert_allclose(times, [2.0, 2.005, 2.01, 2.015], atol=1e-6)
    np.testing.assert_allclose(xy, [[0.5, 0.5], [0.25, 0.25], [0.25, 0.25], [1601 / 1600, 0]])
    status = np.concatenate([part.status for part in parts]).tolist()
    assert status == [Status.UNKNOWN, Status.UNKNOWN, Status.UNTRACKED, Status.OUT_OF_FRAME]
    assert gaze.clock == f"the video begins at {NOW - 2:.3f} s of the device's (offset_s)"
    gaze.close()
    assert network.first.closed and not gaze._thread.is_alive()


def test_the_clock_is_measured_as_the_first_frame_comes(network, monkeypatch):
    """The device is 250 ms behind this machine: its sample at NOW was taken when it was NOW + 0.25 here."""
    network.first = FakeDevice([GazeData(544, 540, True, NOW), GazeData(544, 540, True, NOW + 0.5)], "1.0")
    gaze = NeonGaze()
    time.sleep(0.05)
    assert gaze.until(np.inf) == [] and gaze.clock == ""
    monkeypatch.setattr("gazeqwen.streaming.neon.time", SimpleNamespace(time=lambda: NOW + 0.25 + 0.1))
    gaze.begin(3.0)
    parts = received(gaze, 1, until_s=3.2)
    assert [part.times_s.tolist() for part in parts] == [pytest.approx([2.9], abs=1e-6)]
    assert [part.times_s.tolist() for part in received(gaze, 1)] == [pytest.approx([3.4], abs=1e-6)]
    assert parts[0].frame_size == (1088, 1080) and parts[0].xy.tolist() == [[0.5, 0.5]]
    assert gaze.clock.startswith(
        f"the video begins at {NOW + 0.1 - 3:.3f} s of the device's, when its first frame came"
    )
    assert gaze.clock.endswith("the device's clock is 250.0 ms behind this machine's (measured, +-2.0 ms)")
    gaze.close()


def test_an_app_that_cannot_measure_is_said(network):
    network.first = FakeDevice(clock_ms=None)
    gaze = NeonGaze()
    gaze.begin(0.0)
    assert abs(gaze.offset_s - time.time()) < 5 and "taken as this machine's: the app did not answer" in gaze.clock
    gaze.close()


def test_samples_out_of_order_are_counted_and_a_broken_connection_is_named(network):
    rows = [GazeData(1, 1, True, NOW + at_s) for at_s in (0.0, 0.2, 0.1, 0.3)]
    network.at["10.0.0.7", 8080] = FakeDevice([*rows, ConnectionResetError("gone")])
    gaze = NeonGaze("10.0.0.7", offset_s=NOW)
    times = np.concatenate([part.times_s for part in received(gaze, 3)])
    np.testing.assert_allclose(times, [0, 0.2, 0.3], atol=1e-6)
    assert gaze.out_of_order == 1
    gaze._thread.join(5)
    with pytest.raises(ValueError, match="glasses at 10.0.0.7: ConnectionResetError: gone"):
        gaze.until(np.inf)
    gaze.close()


def test_glasses_that_are_not_there_are_named(network, monkeypatch):
    with pytest.raises(ValueError, match="at any address: none was seen within 0.5 s"):
        NeonGaze(timeout_s=0.5)
    with pytest.raises(ValueError, match=r"at 10.0.0.7:81: does not answer \(ConnectionRefusedError: 10.0.0.7:81\)"):
        NeonGaze("10.0.0.7:81")
    with pytest.raises(ValueError, match="address '10.0.0.7:web', expected a host, or host:port"):
        NeonGaze("10.0.0.7:web")
    monkeypatch.setitem(sys.modules, "pupil_labs.realtime_api.simple", None)
    with pytest.raises(ImportError, match=r"pip install gazeqwen\[neon-live\]"):
        NeonGaze()


def parsed(*words) -> argparse.Namespace:
    return arguments().parse_args(["--video", "v.mp4", *words])


def test_the_command_takes_the_glasses_by_address_or_the_first_seen(network):
    network.first, network.at["10.0.0.7", 81] = FakeDevice(), FakeDevice(version="1.0")
    first = gaze_of(parsed("--neon", "--frame_size", "800", "600"))
    named = gaze_of(parsed("--neon", "10.0.0.7:81", "--offset_s", "12.5"))
    assert (first.frame_size, named.frame_size, named.offset_s) == ((800, 600), (1088, 1080), 12.5)
    first.close()
    named.close()
    with pytest.raises(ValueError, match="got --lsl and --neon, expected one of them"):
        gaze_of(parsed("--neon", "--lsl", "gaze"))
    with pytest.raises(ValueError, match="--time_unit: the gaze of --neon is pixels of its scene camera"):
        gaze_of(parsed("--neon", "--time_unit", "s"))
