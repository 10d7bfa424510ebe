"""The reader of raw gaze of Pupil Labs' Neon and Invisible: a file in that format, read back; bad ones, named."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gaze_recordings import INVISIBLE, OUT, T0, UNKNOWN, UNTRACKED, pupil_export, text_file
from support import index_frames, write_video

from gazeqwen.gaze_sources import SOURCES
from gazeqwen.gaze_sources.pupil_labs import read_fixations


def test_pupil_labs_export(tmp_path, video):
    gaze = [f"{T0 - 10**7},32,24,1", f"{T0 + 25 * 10**7},16,12,1", f"{T0 + 10**9},70,12,1", f"{T0 + 10**9},16,12,0"]
    samples = SOURCES["pupil_labs"].read(pupil_export(tmp_path / "an export", gaze), video)
    np.testing.assert_allclose(samples.times_s, [-0.01, 0.25, 1.0, 1.0], atol=1e-9)
    assert samples.status.tolist() == [UNKNOWN, UNKNOWN, OUT, UNTRACKED] and samples.frame_size == (64, 48)
    np.testing.assert_allclose(samples.xy[:2], [[0.5, 0.5], [0.25, 0.25]])


def test_pupil_labs_times_follow_the_videos_frames(tmp_path, uneven_video):
    """World timestamps 0.1 s apart, frames shown at 0, 0.1, 0.3, 0.7 s: halfway between two is halfway on screen."""
    gaze = [f"{T0 + tick},32,24,1" for tick in (0, 5 * 10**7, 15 * 10**7, 25 * 10**7, 35 * 10**7)]
    samples = SOURCES["pupil_labs"].read(pupil_export(tmp_path, gaze, world=range(4)), uneven_video)
    np.testing.assert_allclose(samples.times_s, [0, 0.05, 0.2, 0.5, 0.75], atol=1e-6)
    samples = SOURCES["pupil_labs"].read(pupil_export(tmp_path, gaze, world=range(6)), uneven_video)
    np.testing.assert_allclose(samples.times_s, [0, 0.05, 0.15, 0.25, 0.35], atol=1e-9)
    assert samples.notes[0].startswith("6 frame timestamps for 4 frames")
    alone = SOURCES["pupil_labs"].read(tmp_path / "gaze.csv", frame_size=(64, 48))
    np.testing.assert_allclose(alone.times_s, [0, 0.05, 0.15, 0.25, 0.35], atol=1e-9)


def test_pupil_labs_times_count_from_the_first_frame_wherever_that_is(tmp_path, late_video):
    gaze = [f"{T0},32,24,1", f"{T0 + 15 * 10**7},32,24,1"]
    for frames in (10, 11):  # as many world timestamps as the video has frames, and one more
        samples = SOURCES["pupil_labs"].read(pupil_export(tmp_path, gaze, world=range(frames)), late_video)
        np.testing.assert_allclose(samples.times_s, [0.5, 0.65], atol=1e-6)


def test_pupil_labs_picks_one_of_several_recordings(tmp_path):
    header = "recording id,timestamp [ns],gaze x [px],gaze y [px]"
    folder = pupil_export(tmp_path, [f"a,{T0},8,12", f"b,{T0 + 5},16,12", f"a,{T0 + 10**9},8,12"], header=header)
    with pytest.raises(ValueError, match=r"gaze.csv: recording None, expected one of \['a', 'b'\]"):
        SOURCES["pupil_labs"].read(folder, frame_size=(64, 48))
    samples = SOURCES["pupil_labs"].read(folder, frame_size=(64, 48), recording="a")
    assert samples.times_s.tolist() == [0, 1]


def test_pupil_labs_fixations_of_the_export(tmp_path, video):
    folder = pupil_export(tmp_path, [f"{T0},1,1,1"])
    header = "fixation id,start timestamp [ns],end timestamp [ns],fixation x [px],fixation y [px]"
    rows = [(1, -(10**8), 10**8, 32, 24), (2, 2 * 10**8, 5 * 10**8, 16, 12), (3, 6 * 10**8, 7 * 10**8, 65, 12)]
    lines = [f"{number},{T0 + begin},{T0 + end},{x},{y}" for number, begin, end, x, y in rows]
    text_file(folder / "fixations.csv", "\n".join([header, *lines]) + "\n")
    scanpath, dropped = read_fixations(folder, video)
    np.testing.assert_allclose(scanpath.table, [[0.5, 0.5, 0.05, 0.1], [0.25, 0.25, 0.35, 0.3]], atol=1e-9)
    assert scanpath.ids.tolist() == [0, 1]
    assert [entry.reason for entry in dropped] == ["before the video begins", "its position lies outside the frame"]


@pytest.mark.parametrize(
    ("gaze", "world", "named"),
    [
        ([f"{T0},1,1,1"], [0, 2, 1], "world_timestamps.csv, line 4: .* does not increase"),
        ([f"{T0}.5,1,1,1"], range(3), "gaze.csv, line 2: timestamp .* expected a whole number"),
        ([f"{T0},1,1,yes"], range(3), "gaze.csv, line 2: worn is 'yes'"),
        ([f"{10**30},1,1,1"], range(3), "gaze.csv, line 2: timestamp .* expected a whole number"),
        ([], range(3), "gaze.csv: a header and no rows"),
    ],
)
def test_pupil_labs_names_what_is_wrong(tmp_path, gaze, world, named):
    with pytest.raises(ValueError, match=named):
        SOURCES["pupil_labs"].read(pupil_export(tmp_path, gaze, world), frame_size=(64, 48))


def test_pupil_labs_needs_a_frame_size(tmp_path):
    with pytest.raises(ValueError, match="give the video, or the frame size"):
        SOURCES["pupil_labs"].read(pupil_export(tmp_path, [f"{T0},1,1,1"]))


@pytest.fixture
def neon_recording(tmp_path) -> Path:
    """The files of a native Neon recording of one second, ten frames and five samples."""
    folder = tmp_path / "neon recording"
    text_file(folder / "info.json", json.dumps({"recording_id": "1", "start_time": T0, "duration": 10**9}))
    write_video(folder / "Neon Scene Camera v1 ps1.mp4", index_frames(10), fps=10)
    (T0 + np.arange(10) * 10**8).astype("<i8").tofile(folder / "Neon Scene Camera v1 ps1.time")
    (T0 + np.arange(5) * 2 * 10**8).astype("<i8").tofile(folder / "gaze ps1.time")
    np.array([[32, 24], [16, 12], [64, 48], [-1, 3], [0, 0]], "<f4").tofile(folder / "gaze ps1.raw")
    np.array([255, 255, 0, 255, 255], "u1").tofile(folder / "worn ps1.raw")
    return folder


def test_native_neon_recording(neon_recording):
    pytest.importorskip("pupil_labs.neon_recording", reason="the extra `neon` is not installed")
    for scene in (None, neon_recording / "Neon Scene Camera v1 ps1.mp4"):
        samples = SOURCES["pupil_labs"].read(neon_recording, scene)
        np.testing.assert_allclose(samples.times_s, [0, 0.2, 0.4, 0.6, 0.8], atol=1e-9)
        assert samples.status.tolist() == [UNKNOWN, UNKNOWN, UNTRACKED, OUT, UNKNOWN]
        np.testing.assert_allclose(samples.recorded_xy[:3], [[0.5, 0.5], [0.25, 0.25], [1, 1]])
        assert samples.frame_size == (64, 48)
    (neon_recording / "gaze ps1.raw").unlink()
    with pytest.raises(ValueError, match="neon recording: .*gaze"):
        SOURCES["pupil_labs"].read(neon_recording)


def test_native_neon_recording_without_the_package_names_the_extra(neon_recording):
    code = (
        "import sys; sys.modules['pupil_labs'] = None; sys.argv[2:] = ['--source', 'pupil_labs', '-o', 'o'];"
        "from gazeqwen.gaze_sources.__main__ import main; main()"
    )
    result = subprocess.run([sys.executable, "-c", code, str(neon_recording)], capture_output=True, text=True)
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert 'pip install "gazeqwen[neon]"' in result.stderr


def test_pupil_invisibles_cloud_export(tmp_path):
    rows = [f"s,r,{T0},544,540,1.0,1,", f"s,r,{T0 + 5 * 10**6},272,810,0.0,,"]
    samples = SOURCES["pupil_labs"].read(pupil_export(tmp_path, rows, header=INVISIBLE), frame_size=(1088, 1080))
    np.testing.assert_allclose(samples.recorded_xy, [[0.5, 0.5], [0.25, 0.75]])
    assert samples.status.tolist() == [UNKNOWN, UNTRACKED] and samples.times_s.tolist() == [0, 0.005]
