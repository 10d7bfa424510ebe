"""Sources that a stream is fed from: real files, files that grow, devices, sockets, and other processes."""

import csv
import socket
import subprocess
import sys
import time
from itertools import islice

import numpy as np
import pytest
from support import frame_index, index_frames, write_video

from gazeqwen.gaze_sources import generic
from gazeqwen.gaze_sources.generic import Columns
from gazeqwen.streaming.fixations import OnlineFixations
from gazeqwen.streaming.gaze import GazeIterator, GrowingTable, LslGaze
from gazeqwen.streaming.video import VideoSource
from gazeqwen.video_gazeqwen import read_frames

NORMALISED = Columns("s", "normalised", "top-left", frame_size=(1000, 500))


def in_process(code: str, *arguments) -> subprocess.Popen:
    """Start a Python process that runs `code`; what it prints can be read."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


# ------------------------------------------------------------------ video
@pytest.fixture(scope="module")
def video(tmp_path_factory):
    times = [0.0, 0.1, 0.15, 0.4, 0.45, 0.5]
    return write_video(tmp_path_factory.mktemp("video") / "v.mp4", index_frames(6), times), times


def test_a_file_gives_all_frames_at_their_times(video):
    path, times = video
    got = list(VideoSource(path))
    assert [time_s for time_s, _ in got] == pytest.approx(times)
    assert [frame_index(frame) for _, frame in got] == list(range(6))
    np.testing.assert_array_equal(np.stack([frame for _, frame in got]), read_frames(path, times)[0])


def test_at_its_own_pace_no_frame_comes_before_its_time(video):
    path, times = video
    began = None
    for (time_s, _), expected in zip(VideoSource(path, own_pace=True), times, strict=True):
        began = time.monotonic() if began is None else began
        assert time_s == pytest.approx(expected) and time.monotonic() - began >= time_s - 0.02


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        next(iter(VideoSource(tmp_path / "v.mp4")))
    (tmp_path / "v.mp4").write_text("no video")
    with pytest.raises(ValueError, match="not a readable video"):
        next(iter(VideoSource(tmp_path / "v.mp4")))
    with pytest.raises(ValueError, match="/dev/video99: not a readable video"):
        next(iter(VideoSource("/dev/video99")))


def test_a_device_of_pyav_is_live():
    source = VideoSource("testsrc=size=64x48:rate=10", format="lavfi")
    frames = list(islice(source, 4))
    assert source.live and [time_s for time_s, _ in frames] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert frames[0][1].shape == (48, 64, 3)


SENDER = """
import sys, numpy as np, av
from fractions import Fraction
with av.open(f"tcp://127.0.0.1:{sys.argv[1]}?listen=1", "w", format="mpegts") as container:
    stream = container.add_stream("mpeg2video", rate=10)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    for index in range(20):
        frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * index, np.uint8), format="rgb24")
        frame.pts, frame.time_base = 900 + index, Fraction(1, 10)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
"""


def test_a_network_stream_counts_from_its_first_frame():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    sender = in_process(SENDER, port)
    for _ in range(100):  # until the sender listens
        try:
            frames = list(VideoSource(f"tcp://127.0.0.1:{port}"))
            break
        except ValueError:
            time.sleep(0.1)
    assert sender.wait(10) == 0
    assert [time_s for time_s, _ in frames] == pytest.approx(np.arange(20) / 10)
    assert [frame.mean() for _, frame in frames] == pytest.approx(10 * np.arange(20), abs=6)


def test_a_network_stream_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="tcp://127.0.0.1:1: not a readable video"):
        next(iter(VideoSource("tcp://127.0.0.1:1")))


# ------------------------------------------------------------------ a table that grows
def times_of(parts) -> list[float]:
    return [time_s for samples in parts for time_s in samples.times_s.tolist()]


def test_a_line_counts_when_its_end_is_written(tmp_path):
    path = tmp_path / "gaze.csv"
    path.write_bytes(b"time,x,y\r\n0.0,0.5,0.5\r\n0.1,0.2")
    gaze = GrowingTable(path, NORMALISED)
    assert times_of(gaze.until(9)) == [0.0]
    with path.open("ab") as file:
        file.write(b"5,0.75\r")
    assert gaze.until(9) == []
    with path.open("ab") as file:
        file.write(b"\n\n0.2,,\n0.3,1.5,0.5\n")
    (samples,) = gaze.until(9)
    assert samples.times_s.tolist() == [0.1, 0.2, 0.3] and samples.recorded_xy[0].tolist() == [0.25, 0.75]
    assert samples.in_frame.tolist() == [True, False, False] and samples.frame_size == (1000, 500)


def test_what_lies_later_is_held_back(tmp_path):
    path = tmp_path / "gaze.csv"
    path.write_text("time,x,y\n0.0,0.5,0.5\n0.1,0.5,0.5\n0.2,0.5,0.5\n")
    gaze = GrowingTable(path, NORMALISED)
    assert [times_of(gaze.until(time_s)) for time_s in (0.1, 0.15, 0.2, 9)] == [[0.0, 0.1], [], [0.2], []]


def test_a_growing_table_names_file_line_and_value(tmp_path):
    path = tmp_path / "gaze.csv"
    with pytest.raises(FileNotFoundError, match="gaze.csv: no such file"):
        GrowingTable(path, NORMALISED)
    path.write_text("time,x,y\n0.0,0.5,0.5\n")
    gaze = GrowingTable(path, NORMALISED)
    gaze.until(9)
    for text, message in (
        ("0.1,left,0.5\n", "gaze.csv, line 3: x is 'left', expected a number"),
        ("0.2,0.5\n", "gaze.csv, line 4: 2 fields, expected 3"),
        ("0.4,0.5,0.5\n0.3,0.5,0.5\n", "gaze.csv, line 6: time 0.300000 s follows 0.400000 s"),
    ):
        with path.open("a") as file:
            file.write(text)
        with pytest.raises(ValueError, match=message):
            gaze.until(9)
    path.write_text("time,x,y\n")
    with pytest.raises(ValueError, match="9 bytes, .* were read before: expected it to grow"):
        gaze.until(9)
    path.write_text("t,x,y\n")
    with pytest.raises(ValueError, match="no column time among"):
        GrowingTable(path, NORMALISED).until(9)


WRITER = """
import sys, time
data = open(sys.argv[1], "rb").read()
with open(sys.argv[2], "wb", buffering=0) as file:
    file.write(data[:30])
    print("begun", flush=True)
    for start in range(30, len(data), 37):
        file.write(data[start : start + 37])
        time.sleep(0.002)
"""


def test_a_table_that_another_process_writes_is_read_whole(tmp_path):
    """In pieces that end anywhere, read while it is written: what a reader of the finished file gets."""
    rng = np.random.default_rng(0)
    whole, path = tmp_path / "whole.csv", tmp_path / "gaze.csv"
    with whole.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["time", "x", "y", "confidence"])
        writer.writerows([i / 200, *rng.random(3).round(4)] for i in range(400))
    columns = Columns("s", "normalised", "bottom-left", offset_s=0.5, min_confidence=0.3)
    writer = in_process(WRITER, whole, path)
    assert writer.stdout.readline() == "begun\n"
    gaze, parts, ended = GrowingTable(path, columns), [], False
    while not ended:
        ended = writer.poll() is not None  # before the last read
        parts += gaze.until(np.inf)
        time.sleep(0.005)
    settings = {"time_unit": "s", "coordinates": "normalised", "origin": "bottom-left", "offset_s": 0.5}
    expected = generic.read(whole, min_confidence=0.3, **settings)
    assert len(parts) > 5
    for name in ("times_s", "recorded_xy", "status"):
        together = np.concatenate([getattr(samples, name) for samples in parts])
        np.testing.assert_array_equal(together, getattr(expected, name))


# ------------------------------------------------------------------ an iterator
def test_an_iterator_is_asked_no_further_than_needed():
    taken = []

    def samples():
        for index in range(100):
            taken.append(index)
            yield index / 10, 0.5, float("nan") if index == 2 else 0.5

    gaze = GazeIterator(samples())
    assert times_of(gaze.until(0.25)) == [0.0, 0.1, 0.2] and len(taken) == 4
    assert gaze.until(0.29) == [] and len(taken) == 4
    (samples,) = gaze.until(0.3)
    assert samples.in_frame.tolist() == [True] and len(taken) == 5
    assert len(times_of(gaze.until(1e9))) == 96 and gaze.until(1e9) == []


def test_an_iterator_of_something_else_is_refused():
    with pytest.raises(ValueError, match=r"glasses: got samples of shape \(2,\), expected \(time_s, x, y\)"):
        GazeIterator([(0.0, 0.5)], "glasses").until(1)
    with pytest.raises(ValueError, match="glasses, sample 1: time 0.1.* follows 0.2"):
        GazeIterator([(0.2, 0.5, 0.5), (0.1, 0.5, 0.5)], "glasses").until(1)


# ------------------------------------------------------------------ Lab Streaming Layer
OUTLET = """
import sys, time
from pylsl import StreamInfo, StreamOutlet, local_clock
info = StreamInfo(sys.argv[1], "Gaze", 4, 0, "float32", sys.argv[1])
if sys.argv[2] == "labels":
    channels = info.desc().append_child("channels")
    for label in ("pupil", "gaze_x", "gaze_y", "confidence"):
        channels.append_child("channel").append_child_value("label", label)
outlet = StreamOutlet(info)
outlet.wait_for_consumers(10)
time.sleep(0.2)
begin = local_clock()
print(begin, flush=True)
for index in range(60):
    while local_clock() < begin + index / 200:
        time.sleep(0.001)
    outlet.push_sample([3.0, 250.0, 125.0, 0.2 if index == 10 else 0.9], begin + index / 200)
time.sleep(20)
"""


def received(gaze: LslGaze, count: int) -> list:
    """Return so many samples, waited for as long as it takes."""
    parts, until_s = [], time.monotonic() + 20
    while sum(map(len, parts)) < count and time.monotonic() < until_s:
        parts += gaze.until(np.inf)
        time.sleep(0.02)
    return parts


def test_gaze_comes_over_lab_streaming_layer(tmp_path):
    """A 200 Hz outlet in another process, on loopback: values, times on one clock, and the fixation they make."""
    name = f"gazeqwen-{tmp_path.name}-{time.monotonic_ns()}"
    outlet = in_process(OUTLET, name, "labels")
    columns = Columns(
        "s", "pixels", "top-left", 0.0, 0.5, x_column="gaze_x", y_column="gaze_y", frame_size=(1000, 500)
    )
    gaze = LslGaze(columns, "name", name)
    begin_s = float(outlet.stdout.readline())
    gaze.offset_s = begin_s
    fixations, parts = OnlineFixations((1000, 500)), received(gaze, 60)
    gaze.close()
    outlet.terminate()
    outlet.wait()
    for samples in parts:
        fixations.push(samples)
    times = np.concatenate([samples.times_s for samples in parts])
    np.testing.assert_allclose(times, np.arange(60) / 200, atol=0.005)  # less the correction of the clock
    assert sum(samples.in_frame.sum() for samples in parts) == 59  # one is below the confidence
    np.testing.assert_allclose(fixations.until(10).table, [[0.25, 0.25, 0.1475, 0.295]], atol=0.005)


def test_a_video_that_has_not_begun_keeps_lsl_samples_waiting(tmp_path):
    name = f"gazeqwen-{tmp_path.name}-{time.monotonic_ns()}"
    outlet = in_process(OUTLET, name, "plain")
    gaze = LslGaze(Columns("s", "normalised", "top-left"), "name", name)
    begin_s = float(outlet.stdout.readline())
    time.sleep(0.1)
    assert gaze.until(np.inf) == []
    gaze.begin(2.0)
    assert gaze.offset_s > begin_s + 0.1 - 2.0
    assert (
        gaze.clock
        == f"the video begins at {gaze.offset_s:.3f} s of this machine's LSL clock, when its first frame came"
    )
    parts = received(gaze, 60)
    gaze.close()
    outlet.terminate()
    outlet.wait()
    np.testing.assert_allclose(times_of(parts), begin_s - gaze.offset_s + np.arange(60) / 200, atol=0.005)


def test_an_lsl_stream_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="LSL stream with name nobody: none within 0.2 s"):
        LslGaze(NORMALISED, "name", "nobody", timeout_s=0.2)
