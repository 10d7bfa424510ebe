"""Readers of raw gaze: a real file in each source's format, read back; bad files, named; and the command line."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import index_frames, run_in_process, write_video

from gazeqwen.gaze_sources import SOURCES, guess_source
from gazeqwen.gaze_sources.holoassist import TICKS_PER_S
from gazeqwen.gaze_sources.pupil_labs import read_fixations
from gazeqwen.gaze_sources.samples import GazeSamples, Status
from gazeqwen.scanpath_gazeqwen import Scanpath

UNTRACKED, FIXATION, SACCADE, UNKNOWN, OUT = Status
READING = {"time_unit": "s", "coordinates": "normalised", "origin": "top-left"}


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """Ten frames of 64 x 48, a tenth of a second apart."""
    return write_video(tmp_path_factory.mktemp("a video") / "vidéo 1.mp4", index_frames(10), fps=10)


@pytest.fixture(scope="module")
def uneven_video(tmp_path_factory) -> Path:
    """Frames at 0, 0.1, 0.3 and 0.7 seconds."""
    return write_video(tmp_path_factory.mktemp("video") / "uneven.mp4", index_frames(4), [0.0, 0.1, 0.3, 0.7])


@pytest.fixture(scope="module")
def late_video(tmp_path_factory) -> Path:
    """Ten frames, the first of which is shown at 0.5 seconds."""
    times_s = [0.5 + index / 10 for index in range(10)]
    return write_video(tmp_path_factory.mktemp("video") / "late.mp4", index_frames(10), times_s)


def text_file(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


# ------------------------------------------------------------------ EGTEA
def begaze_1(samples) -> str:
    """First layout, from (x, y, frame, kind)."""
    header = ["## header"] * 34
    header[9] = f"## Number of Samples:\t{len(samples)}"
    return "\n".join([*header, *(f"{5 * f}\tSMP\t1\t{x}\t{y}\t{f}\t{kind}" for x, y, f, kind in samples)]) + "\n"


def begaze_2(samples) -> str:
    """Second layout, from (x, y, time code, kind)."""
    header = ["## header"] * 34
    header[10] = f"## Number of Samples:\t{len(samples)}"
    rows = ["\t".join(["0"] * 5 + [str(x), str(y)] + ["0"] * 17 + [code, kind]) for x, y, code, kind in samples]
    return "\r\n".join([*header, *rows]) + "\r\n"


def test_egtea_first_layout(tmp_path):
    rows = [(640, 480, 0, "Fixation"), (320, 240, 2, "Saccade"), (1280.5, 0, 2, "Fixation"), (0, 0, 3, "-")]
    samples = SOURCES["egtea"].read(text_file(tmp_path / "OP01.txt", begaze_1(rows)))
    assert samples.times_s.tolist() == [0, 2 / 24, 2 / 24, 3 / 24] and samples.frame_index.tolist() == [0, 2, 2, 3]
    assert samples.status.tolist() == [FIXATION, SACCADE, OUT, UNTRACKED]
    np.testing.assert_array_equal(samples.xy, [[0.5, 0.5], [0.25, 0.25], [1280.5 / 1280, 0], [np.nan, np.nan]])
    assert samples.repeated_times == 1 and samples.notes == ("1 frames up to the last one have no sample",)


def test_egtea_second_layout_counts_time_codes_at_24_frames_a_second(tmp_path):
    rows = [(640, 480, "00:00:00:23", "Fixation"), ("-", "-", "00:00:01:00", "Blink"), (64, 48, "01:01:01:05", "?")]
    samples = SOURCES["egtea"].read(text_file(tmp_path / "P01.txt", begaze_2(rows)))
    assert samples.frame_index.tolist() == [23, 24, 3661 * 24 + 5]
    np.testing.assert_allclose(samples.times_s, [23 / 24, 1.0, 3661 + 5 / 24])
    assert samples.status.tolist() == [FIXATION, UNTRACKED, UNKNOWN]


def test_egtea_takes_the_videos_frame_times(tmp_path, uneven_video):
    rows = [(10, 10, frame, "Fixation") for frame in (0, 1, 2, 3, 5)]
    samples = SOURCES["egtea"].read(text_file(tmp_path / "P01.txt", begaze_1(rows)), uneven_video)
    beyond = 0.7 + 2 * 0.7 / 3  # two frames after the last one, at the mean rate
    np.testing.assert_allclose(samples.times_s, [0, 0.1, 0.3, 0.7, beyond], atol=1e-6)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "expected a text export of BeGaze"),
        ("a\n" * 50, "expected a text export of BeGaze"),
        (begaze_1([]), "no gaze sample"),
        (begaze_1([(1, 1, 0, "Fixation")]) + "0 SMP 1 2\n", "line 36: 4 fields, expected 7"),
        (begaze_1([("1,5", 1, 0, "Fixation")]), "line 35: position is '1,5'"),
        (begaze_1([(1, 1, -1, "Fixation")]), "line 35: frame -1"),
        (begaze_1([(1, 1, 9, "Fixation"), (1, 1, 8, "Fixation")]), "line 36: time 0.333333 s follows 0.375000 s"),
        (begaze_2([(1, 1, "00:00:01", "Fixation")]), "line 35: time code is '00:00:01'"),
    ],
)
def test_egtea_names_what_is_wrong(tmp_path, text, named):
    with pytest.raises(ValueError, match="P 01.txt") as error:
        SOURCES["egtea"].read(text_file(tmp_path / "P 01.txt", text))
    assert named in str(error.value)


def test_egtea_reports_a_header_that_counts_wrongly(tmp_path):
    text = begaze_1([(1, 1, 0, "Fixation")]).replace("Samples:\t1", "Samples:\t7")
    samples = SOURCES["egtea"].read(text_file(tmp_path / "P01.txt", text))
    assert samples.notes == ("the header announces 7 samples, the file holds 1",)


# ------------------------------------------------------------------ EgoExoLearn
def test_egoexolearn(tmp_path, video):
    rows = np.array([[0.25, 0.5, 1], [1.5, 0.5, 1], [0.5, 0.5, 0], [np.nan, 0.5, 1], [np.inf, 0.5, 1]], np.float32)
    np.save(tmp_path / "bee9 ü.npy", rows)
    samples = SOURCES["egoexolearn"].read(tmp_path / "bee9 ü.npy", video)
    np.testing.assert_allclose(samples.times_s, np.arange(5) / 30)
    assert samples.status.tolist() == [UNKNOWN, OUT, UNTRACKED, UNTRACKED, UNTRACKED]
    np.testing.assert_array_equal(samples.xy[:3], [[0.25, 0.5], [1.5, 0.5], [np.nan, np.nan]])
    assert samples.frame_size == (64, 48)
    assert samples.notes == ("2 samples without a finite position count as untracked",)


def test_egoexolearn_says_when_gaze_and_video_last_differently(tmp_path, video):
    np.save(tmp_path / "a.npy", np.ones((90, 3)))
    assert SOURCES["egoexolearn"].read(tmp_path / "a.npy", video).notes == (
        "90 rows at 30 Hz last 3.0 s, the video 1.0 s",
    )


@pytest.mark.parametrize(
    ("array", "named"),
    [
        (np.zeros((4, 2)), r"float64 \(4, 2\), expected a float array \(N, 3\)"),
        (np.zeros(4), r"\(4,\)"),
        (np.array([["a", "b", "c"]]), "expected a float array"),
        (np.zeros((0, 3)), "no gaze sample"),
        (np.array([{"x": 1}], dtype=object), "not a .npy file of numbers"),
    ],
    ids=["two columns", "one axis", "text", "empty", "pickled"],
)
def test_egoexolearn_refuses_other_arrays(tmp_path, array, named):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=named) as error:
        SOURCES["egoexolearn"].read(tmp_path / "a.npy")
    assert "a.npy" in str(error.value)


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY\x01\x00", b"not an array"], ids=["empty", "cut off", "text"])
def test_egoexolearn_refuses_what_is_no_array(tmp_path, data):
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(ValueError, match="a.npy: not a .npy file"):
        SOURCES["egoexolearn"].read(tmp_path / "a.npy")


# ------------------------------------------------------------------ HoloAssist
START_TICK = 132_000_000_000_000_000
IDENTITY = np.eye(4)
YAW_LEFT = np.array([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])  # the camera looks along the room's y


def shifted(pose: np.ndarray, x: float, y: float, z: float) -> np.ndarray:
    moved = pose.copy()
    moved[:3, 3] = x, y, z
    return moved


def session(folder: Path, rays, pose=IDENTITY, duration_s=1.0, size=(64, 48), pose_times=None, ray_times=None) -> Path:
    """
    An `Export_py` folder. `rays`: (origin, direction, valid), one per frame time unless `ray_times`. The camera has a
    focal length of 50 pixels in x and 40 in y, and its centre at (32, 24).
    """
    ray_times = np.arange(len(rays)) / 10 if ray_times is None else ray_times
    pose_times = np.arange(10) / 10 if pose_times is None else pose_times

    def row(time_s: float, *values) -> str:
        return "\t".join(map(str, (time_s, START_TICK + round(time_s * TICKS_PER_S), *values)))

    text_file(folder / "Video" / "VideoMp4Timing.txt", f"{START_TICK}\n{START_TICK + round(duration_s * 1e7)}\n")
    text_file(folder / "Video" / "Intrinsics.txt", f"50\t0\t32\t0\t40\t24\t0\t0\t1\t{size[0]}\t{size[1]}\n")
    poses = "\n".join(row(time, *np.ravel(pose)) for time in pose_times)
    text_file(folder / "Video" / "Pose_sync.txt", poses + "\n\nafter an empty line, nothing counts\n")
    rows = [row(time, *origin, *direction, ok) for time, (origin, direction, ok) in zip(ray_times, rays, strict=True)]
    eyes = "\n".join(rows)
    text_file(folder / "Eyes" / "Eyes_sync.txt", eyes + "\n")
    return folder


AHEAD = ((0, 0, 0), (1, 0, 0), 1)


@pytest.mark.parametrize(
    ("pose", "origin", "direction", "pixel"),
    [
        (IDENTITY, (0, 0, 0), (1, 0, 0), (32, 24)),  # straight ahead: the image's centre
        (IDENTITY, (0, 0, 0), (2, -0.4, 0.2), (42, 20)),  # 0.2 to the right and 0.1 up per unit: 10 px, 4 px
        (YAW_LEFT, (0, 0, 0), (0, 1, 0), (32, 24)),
        (YAW_LEFT, (0, 0, 0), (0.2, 1, 0.1), (42, 20)),  # the room's x is now to the right
        (shifted(IDENTITY, 1, 2, 3), (1, 2, 3), (1, 0, 0), (32, 24)),
        (shifted(YAW_LEFT, 1, 2, 3), (1, 2, 3), (0.2, 1, 0.1), (42, 20)),
        (IDENTITY, (0, 0.1, 0), (1, 0, 0), (22, 24)),  # an eye 10 cm left of the camera, seen 0.5 m ahead: 10 px
        (IDENTITY, (0, 0.1, 0), (3, 0, 0), (22, 24)),  # the point is 0.5 m ahead, however long the direction
    ],
)
def test_holoassist_projection_by_hand(tmp_path, video, pose, origin, direction, pixel):
    samples = SOURCES["holoassist"].read(session(tmp_path / "Export_py", [(origin, direction, 1)] * 10, pose), video)
    np.testing.assert_allclose(samples.xy, np.tile(np.divide(pixel, (64, 48)), (10, 1)), atol=1e-9)
    assert (samples.status == UNKNOWN).all() and samples.notes == ()
    np.testing.assert_allclose(samples.times_s, np.arange(10) / 10, atol=1e-6)
    assert samples.frame_size == (64, 48) and samples.frame_index.tolist() == list(range(10))


def test_holoassist_out_of_frame_behind_and_invalid(tmp_path, video):
    rays = [AHEAD] * 10
    rays[1] = ((0, 0, 0), (1, -1, 0), 1)  # 50 px to the right: at 82
    rays[2] = ((0, 0, 0), (-1, 0, 0), 1)
    rays[3] = ((0, 0, 0), (1, 0, 0), 0)
    rays[4] = ((0, 0, 0), (0, 0, 0), 1)
    samples = SOURCES["holoassist"].read(session(tmp_path / "s" / "Export_py", rays).parent, video)
    assert samples.status.tolist() == [UNKNOWN, OUT, UNTRACKED, UNTRACKED, UNTRACKED] + [UNKNOWN] * 5
    np.testing.assert_allclose(samples.xy[1], [82 / 64, 0.5])
    np.testing.assert_allclose(samples.recorded_xy[3], [0.5, 0.5])  # kept for StreamGaze's algorithm, not trusted
    assert samples.notes == (
        "1 of 10 frames with an invalid ray are untracked",
        "2 of 10 frames whose gaze lies behind the camera or whose pose has no inverse are untracked",
    )


def test_holoassist_far_rays_and_poses_do_not_count(tmp_path, video):
    folder = session(
        tmp_path / "Export_py", [AHEAD] * 5, ray_times=np.arange(5) / 10, pose_times=np.arange(2, 10) / 10
    )
    samples = SOURCES["holoassist"].read(folder, video, max_gaze_gap_s=0.15, max_pose_gap_s=0.15)
    assert (samples.status == UNKNOWN).tolist() == [False, True, True, True, True, True, False, False, False, False]
    samples = SOURCES["holoassist"].read(folder, video, max_gaze_gap_s=1.0, max_pose_gap_s=1.0)
    assert (samples.status == UNKNOWN).all()


def test_holoassist_takes_the_nearest_ray(tmp_path, video):
    rays = [AHEAD, ((0, 0, 0), (1, -0.2, 0), 1)]
    samples = SOURCES["holoassist"].read(
        session(tmp_path / "Export_py", rays, ray_times=[0.1, 0.46]), video, max_gaze_gap_s=1.0
    )
    np.testing.assert_allclose(samples.xy[:, 0] * 64, [32, 32, 32, 42, 42, 42, 42, 42, 42, 42])


def test_holoassist_video_on_another_clock_is_stretched_to_its_ticks(tmp_path, video):
    """Recorded for two seconds, the file's ten frames say one: frame 5 belongs to the ray at 1.0 s."""
    rays = [AHEAD] * 20
    rays[10] = ((0, 0, 0), (1, -0.2, 0), 1)
    folder = session(tmp_path / "Export_py", rays, duration_s=2.0, pose_times=np.arange(20) / 10)
    samples = SOURCES["holoassist"].read(folder, video)
    np.testing.assert_allclose(samples.xy[:, 0] * 64, [32] * 5 + [42] + [32] * 4)
    np.testing.assert_allclose(samples.times_s[5], 0.5)
    assert samples.notes == ("the video lasts 1.00 s, its recording 2.00 s: ticks are stretched to fit",)


def test_holoassist_recording_begins_with_the_first_frame_wherever_that_is(tmp_path, late_video):
    rays = [AHEAD] * 10
    rays[3] = ((0, 0, 0), (1, -0.2, 0), 1)
    samples = SOURCES["holoassist"].read(session(tmp_path / "Export_py", rays), late_video)
    np.testing.assert_allclose(samples.xy[:, 0] * 64, [32] * 3 + [42] + [32] * 6)
    np.testing.assert_allclose(samples.times_s[3], 0.8)


def test_holoassist_intrinsics_of_another_size_scale_and_of_another_shape_are_refused(tmp_path, video):
    folder = session(tmp_path / "Export_py", [((0, 0, 0), (1, -0.2, 0), 1)] * 10, size=(128, 96))
    samples = SOURCES["holoassist"].read(folder, video)
    np.testing.assert_allclose(samples.xy[0], [(50 * 0.2 + 32) / 128, 24 / 96])
    assert "scaled" in samples.notes[0]
    text_file(folder / "Video" / "Intrinsics.txt", "50\t0\t32\t0\t40\t24\t0\t0\t1\t64\t64\n")
    with pytest.raises(ValueError, match=r"Intrinsics.txt: for images of 64 x 64, the video has 64 x 48"):
        SOURCES["holoassist"].read(folder, video)


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("Video/Pose_sync.txt", "0\t1\t2\n", "line 1: 3 values, expected 18"),
        ("Eyes/Eyes_sync.txt", "0\t5\t0\t0\tzero\t1\t0\t0\t1\n", "line 1: .* expected 9 numbers"),
        ("Eyes/Eyes_sync.txt", "", "no row"),
        ("Video/Intrinsics.txt", "1\t2\n", "2 numbers, expected 11"),
        ("Video/VideoMp4Timing.txt", "200\n100\n", "ticks of the video's begin and, later, its end"),
    ],
)
def test_holoassist_names_what_is_wrong(tmp_path, video, name, text, named):
    folder = session(tmp_path / "Export_py", [AHEAD] * 10)
    text_file(folder / name, text)
    with pytest.raises(ValueError, match=f"{Path(name).name}.*{named}"):
        SOURCES["holoassist"].read(folder, video)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=Path(name).name):
        SOURCES["holoassist"].read(folder, video)


def test_holoassist_table_of_projected_gaze(tmp_path, uneven_video):
    text = (
        "frame_idx,timestamp_sec,u,v,valid,in_frame\n"
        "0,0.0,16,12,True,True\n1,0.04,,,True,False\n2,0.08,80,12,1,0\n3,0.12,16,12,False,True\n"
    )
    path = text_file(tmp_path / "s_gaze_2d.csv", text)
    samples = SOURCES["holoassist"].read(path, uneven_video)
    np.testing.assert_allclose(samples.times_s, [0, 0.1, 0.3, 0.7], atol=1e-6)
    assert samples.status.tolist() == [UNKNOWN, UNTRACKED, OUT, UNTRACKED]
    np.testing.assert_array_equal(samples.recorded_xy[[0, 3]], [[0.25, 0.25]] * 2)
    alone = SOURCES["holoassist"].read(path)
    assert alone.times_s.tolist() == [0, 0.04, 0.08, 0.12] and alone.frame_size == (896, 504)
    with pytest.raises(ValueError, match="line 2: valid is 'maybe', expected true or false"):
        SOURCES["holoassist"].read(text_file(path, text.replace("12,True", "12,maybe")))


# ------------------------------------------------------------------ Ego4D
EGO4D = "canonical_timestamp_s,norm_pos_x,norm_pos_y,confidence\n0.0,0.25,0.1,1.0\n0.1,0.5,,0.9\n0.2,0.5,1.2,0.3\n"


def test_ego4d_turns_y_over_unless_told(tmp_path):
    path = text_file(tmp_path / "uid.csv", EGO4D)
    samples = SOURCES["ego4d"].read(path)
    np.testing.assert_allclose(samples.xy, [[0.25, 0.9], [np.nan, np.nan], [0.5, -0.2]])
    assert samples.status.tolist() == [UNKNOWN, UNTRACKED, OUT] and samples.times_s.tolist() == [0, 0.1, 0.2]
    np.testing.assert_allclose(SOURCES["ego4d"].read(path, origin="top-left").xy[0], [0.25, 0.1])
    assert SOURCES["ego4d"].read(path, min_confidence=0.5).status.tolist() == [UNKNOWN, UNTRACKED, UNTRACKED]
    with pytest.raises(ValueError, match="origin 'centre'"):
        SOURCES["ego4d"].read(path, origin="centre")


# ------------------------------------------------------------------ Pupil Labs
T0 = 1_700_000_000_000_000_000


def pupil_export(folder: Path, gaze, world=range(10), header="timestamp [ns],gaze x [px],gaze y [px],worn") -> Path:
    text_file(folder / "gaze.csv", "\n".join([header, *gaze]) + "\n")
    times = "\n".join(f"{T0 + tenth * 10**8}" for tenth in world)
    text_file(folder / "world_timestamps.csv", f"timestamp [ns]\n{times}\n")
    return folder


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


# ------------------------------------------------------------------ Tobii
def pro_lab(unit="μs", kind=" [MCS px]", rows=()) -> str:
    header = ["Recording timestamp" + (f" [{unit}]" if unit else ""), "Sensor"]
    header += [f"Gaze point X{kind}", f"Gaze point Y{kind}", "Validity left", "Validity right", "Eye movement type"]
    return "\n".join("\t".join(map(str, row)) for row in [header, *rows]) + "\n"


PRO_LAB_ROWS = [
    (0, "Eye Tracker", 32, 24, "Valid", "Valid", "Fixation"),
    (500, "Gyro", "", "", "", "", ""),
    (20_000, "Eye Tracker", "16,5", 12, "Valid", "Invalid", "Saccade"),
    (40_000, "Eye Tracker", "", "", "Invalid", "Invalid", "EyesNotFound"),
    (60_000, "Eye Tracker", 32, 24, "Invalid", "Invalid", "Unclassified"),
    (80_000, "Eye Tracker", 65, 24, "Valid", "Valid", "Fixation"),
    (90_000, "Eye Tracker", 65, 24, "Valid", "Valid", "EyesNotFound"),
]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tobii_pro_lab(tmp_path, video, encoding):
    (tmp_path / "p 1.tsv").write_bytes(pro_lab(rows=PRO_LAB_ROWS).replace("\n", "\r\n").encode(encoding))
    samples = SOURCES["tobii"].read(tmp_path / "p 1.tsv", video)
    np.testing.assert_allclose(samples.times_s, [0, 0.02, 0.04, 0.06, 0.08, 0.09])
    assert samples.status.tolist() == [FIXATION, SACCADE, UNTRACKED, UNTRACKED, OUT, UNTRACKED]
    np.testing.assert_allclose(samples.xy[:2], [[0.5, 0.5], [16.5 / 64, 0.25]])
    assert samples.notes == ("1 rows of other sensors are left out",)


@pytest.mark.parametrize(("unit", "time_unit"), [("μs", None), ("µs", None), ("us", None), ("ms", None), ("", "us")])
def test_tobii_pro_lab_units_of_time(tmp_path, unit, time_unit):
    rows = [(2000, "Eye Tracker", 0.5, 0.25, "Valid", "Valid", "Fixation")]
    path = text_file(tmp_path / "p.tsv", pro_lab(unit, " [MCS norm]", rows))
    samples = SOURCES["tobii"].read(path, time_unit=time_unit, offset_s=0.001)
    np.testing.assert_allclose(samples.times_s, [1.999 if unit == "ms" else 0.001])
    assert samples.xy.tolist() == [[0.5, 0.25]]


def test_tobii_pro_lab_prefers_positions_that_need_no_frame_size(tmp_path):
    names = [f"Gaze point {axis} [MCS {kind}]" for kind in ("px", "norm") for axis in "XY"]
    header = "\t".join(["Recording timestamp [ms]", *names])
    path = text_file(tmp_path / "p.tsv", f"{header}\n0\t32\t12\t0.5\t0.25\n")
    assert SOURCES["tobii"].read(path).xy.tolist() == [[0.5, 0.25]]


def test_tobii_pro_lab_picks_one_of_several_recordings(tmp_path):
    header = "Recording name\tRecording timestamp [ms]\tGaze point X [MCS norm]\tGaze point Y [MCS norm]"
    path = text_file(tmp_path / "p.tsv", f"{header}\none\t5\t0.5\t0.5\none\t9\t0.5\t0.5\ntwo\t1\t0.25\t0.5\n")
    assert SOURCES["tobii"].read(path, recording="two").xy.tolist() == [[0.25, 0.5]]
    with pytest.raises(ValueError, match=r"p.tsv: recording None, expected one of \['one', 'two'\]"):
        SOURCES["tobii"].read(path)
    with pytest.raises(ValueError, match="recording 'three'"):
        SOURCES["tobii"].read(path, recording="three")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (pro_lab("", " [MCS norm]", PRO_LAB_ROWS), "carries no unit"),
        (pro_lab("μs", " [DACS px]", PRO_LAB_ROWS), "only positions on a display"),
        (pro_lab("μs", " [MCS px]", PRO_LAB_ROWS), "give the video, or the frame size"),
        ("time\tx\n1\t2\n", "no column Recording timestamp"),
        ("", "no column Recording timestamp"),
        (pro_lab("μs", " [MCS norm]", [(0, "Eye Tracker", "left", 0.5, "", "", "")]), "line 2: .* is 'left'"),
        (pro_lab("μs", " [MCS norm]", [(0, "Eye Tracker", 0.5)]), "line 2: 3 fields, expected 7"),
    ],
)
def test_tobii_pro_lab_names_what_is_wrong(tmp_path, text, named):
    with pytest.raises(ValueError, match=f"p.tsv.*{named}"):
        SOURCES["tobii"].read(text_file(tmp_path / "p.tsv", text))


GLASSES3 = [
    '{"type": "gaze", "timestamp": 0.01, "data": {"gaze2d": [0.25, 0.75], "gaze3d": [1, 2, 3]}}',
    '{"type": "gaze", "timestamp": 0.03, "data": {}}',
    '{"type": "sync", "timestamp": 0.04, "data": {}}',
    '{"type": "gaze", "timestamp": 0.05, "data": {"gaze2d": [1.25, 0.5]}}',
]


def test_tobii_glasses3(tmp_path):
    text = "\n".join(GLASSES3) + "\n"
    text_file(tmp_path / "plain" / "gazedata", text)
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "gazedata.gz").write_bytes(gzip.compress(text.encode()))
    for folder in ("plain", "packed"):
        samples = SOURCES["tobii"].read(tmp_path / folder)
        np.testing.assert_allclose(samples.times_s, [0.01, 0.03, 0.05])
        assert samples.status.tolist() == [UNKNOWN, UNTRACKED, OUT]
        np.testing.assert_array_equal(samples.xy[0], [0.25, 0.75])
        assert samples.notes == ("1 lines of other types than gaze are left out",)
        cut = SOURCES["tobii"].read(tmp_path / folder, offset_s=0.02)  # the video begins 0.02 s into the recording
        np.testing.assert_allclose(cut.times_s, [-0.01, 0.01, 0.03])


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (("\n".join(GLASSES3) + "\n" + GLASSES3[0][:-1]).encode(), "line 5: "),
        (b'{"type": "gaze", "data": {}}', "line 1: .*timestamp"),
        (b'{"type": "gaze", "timestamp": 0, "data": {"gaze2d": [1]}}', "line 1: "),
        (f"{GLASSES3[3]}\n{GLASSES3[0]}".encode(), "line 2: time 0.01"),
        (gzip.compress("\n".join(GLASSES3).encode())[:-12], "cut off"),
        (b"", "no gaze sample"),
        (b"\xff\xfe\xfd", "not gaze data"),
    ],
)
def test_tobii_glasses3_names_what_is_wrong(tmp_path, data, named):
    (tmp_path / "gazedata").write_bytes(data)
    with pytest.raises(ValueError, match=f"gazedata.*{named}"):
        SOURCES["tobii"].read(tmp_path)


# ------------------------------------------------------------------ any table
def test_generic_units_and_origins(tmp_path, video):
    def read(rows, **options) -> GazeSamples:
        path = text_file(tmp_path / "g.csv", "time,x,y\n" + "\n".join(rows) + "\n")
        return SOURCES["generic"].read(path, video, **{**READING, **options})

    for unit, factor in (("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)):
        samples = read([f"{2 * factor},0.25,0.75", f"{3 * factor},0.5,0.5"], time_unit=unit, offset_s=1.5)
        np.testing.assert_allclose(samples.times_s, [0.5, 1.5])
    np.testing.assert_allclose(read(["2500.5,0,0", "2750,0,0"], time_unit="ms", offset_s=1.5).times_s, [1.0005, 1.25])
    assert read(["0,0.25,0.75"]).xy.tolist() == [[0.25, 0.75]]
    assert read(["0,0.25,0.75"], origin="bottom-left").xy.tolist() == [[0.25, 0.25]]
    assert read(["0,-0.25,0.125"], origin="centre").xy.tolist() == [[0.25, 0.375]]
    assert read(["0,16,12"], coordinates="pixels").xy.tolist() == [[0.25, 0.25]]
    assert read(["0,16,12"], coordinates="pixels", origin="bottom-left").xy.tolist() == [[0.25, 0.75]]
    assert read(["0,16,12"], coordinates="pixels", origin="centre").xy.tolist() == [[0.75, 0.25]]
    assert read(["0,16,12"], coordinates="pixels", frame_size=(32, 24)).xy.tolist() == [[0.5, 0.5]]


def test_generic_nanoseconds_since_1970_stay_exact(tmp_path):
    path = text_file(tmp_path / "g.csv", f"time,x,y\n{T0 + 1},0.5,0.5\n{T0 + 129},0.5,0.5\n")
    samples = SOURCES["generic"].read(path, **{**READING, "time_unit": "ns", "offset_s": 1.7e9})
    assert samples.times_s.tolist() == [1e-9, 129e-9]


def test_generic_columns_delimiter_confidence_and_line_ends(tmp_path):
    rows = [
        "quality;t;gx;gy;other",
        "0.9;0;0.5;0.25;a",
        "",
        "0.4;0;0.5;0.25;b",
        ";1;nan;0.25;c",
        "0.8;2;1;inf;d",
        "0.5;3;1;1;e",
    ]
    path = text_file(tmp_path / "g.csv", "\ufeff" + "\r\n".join(rows) + "\r\n")
    columns = {"time_column": "t", "x_column": "gx", "y_column": "gy", "confidence_column": "quality"}
    samples = SOURCES["generic"].read(path, **READING, **columns, delimiter=";", min_confidence=0.5)
    assert samples.times_s.tolist() == [0, 0, 1, 2, 3] and samples.repeated_times == 1
    assert samples.status.tolist() == [UNKNOWN, UNTRACKED, UNTRACKED, UNTRACKED, UNKNOWN]
    assert len(samples.notes) == 2 and "2 samples with a confidence below 0.5" in samples.notes[0]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "empty, expected a header with time, x, y"),
        ("time,x,y\n", "a header and no rows"),
        ("t,x,y\n0,0,0\n", r"no column time among \['t', 'x', 'y'\]"),
        ("time;x;y\n0;0;0\n", "fields seem to be separated by ';', not ','"),
        ("time,x,y,x\n0,0,0,0\n", "column x occurs 2 times"),
        ("time,x,y\n0,0.5,0.5\n1,0.5\n", "line 3: 2 fields, expected 3"),
        ("time,x,y\n0,0,5,0,5\n", "line 2: 5 fields, expected 3"),
        ('time,x,y\n0,"0,5",0\n', r"line 2: x is '0,5' \(a decimal comma\?\), expected a number"),
        ("time,x,y\n0,0.5,0.5\nnan,0.5,0.5\n", "line 3: time is nan, expected a finite number"),
        ("time,x,y\ninf,0.5,0.5\n", "line 2: time is inf"),
        ("time,x,y\n,0.5,0.5\n", "line 2: time is '', expected a number"),
        ("time,x,y\n0,0.5,0.5\n2,0.5,0.5\n\n1,0.5,0.5\n", "line 5: time 1.000000 s follows 2.000000 s"),
        ("time,x,y\n0,left,0.5\n", "line 2: x is 'left'"),
        ('time,x,y\n0,"0.5,0.5\n', "line 2"),
    ],
)
def test_generic_names_what_is_wrong(tmp_path, text, named):
    with pytest.raises(ValueError, match="my gäze.csv") as error:
        SOURCES["generic"].read(text_file(tmp_path / "my gäze.csv", text), **READING)
    error.match(named)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"time_unit": "min"}, "time_unit 'min', expected one of s, ms, us, ns"),
        ({"coordinates": "percent"}, "coordinates 'percent'"),
        ({"origin": "left"}, "origin 'left'"),
        ({"coordinates": "pixels"}, "give the video, or the frame size"),
        ({"coordinates": "pixels", "frame_size": (64, 48)}, "are they normalised"),
        ({"coordinates": "pixels", "frame_size": (64, 0)}, "positive width and height"),
        ({"min_confidence": 0.5}, "no column confidence"),
    ],
)
def test_generic_refuses_options_that_do_not_fit(tmp_path, options, named):
    path = text_file(tmp_path / "g.csv", "time,x,y\n0,0.5,0.5\n")
    with pytest.raises(ValueError, match=named):
        SOURCES["generic"].read(path, **{**READING, **options})


@pytest.mark.parametrize("number", ["1_0", "٣", "0x1"])
def test_numbers_are_those_that_a_table_means(tmp_path, number):
    """Python reads underscores and digits of other scripts too."""
    for cells, column in ((f"{number},0.1,0.2", "time"), (f"1,{number},0.2", "x")):
        table = text_file(tmp_path / "gaze.csv", f"time,x,y\n0,0.1,0.2\n{cells}\n")
        with pytest.raises(ValueError, match=f"gaze.csv, line 3: {column} is '{number}', expected a number"):
            SOURCES["generic"].read(table, **READING)
    recording = text_file(tmp_path / "v.txt", begaze_1([(1, 2, 0, "Fixation"), (number, 2, 1, "Fixation")]))
    with pytest.raises(ValueError, match=f"v.txt, line 36: position is '{number}', expected a number"):
        SOURCES["egtea"].read(recording)


def test_binary_missing_and_folders_are_named(tmp_path):
    (tmp_path / "g.csv").write_bytes(bytes(range(255, 0, -1)))
    with pytest.raises(ValueError, match="g.csv: not a text file"):
        SOURCES["generic"].read(tmp_path / "g.csv", **READING)
    with pytest.raises(FileNotFoundError, match="a folder, expected a file"):
        SOURCES["generic"].read(tmp_path, **READING)
    for name, module in SOURCES.items():
        options = READING if name == "generic" else {}
        with pytest.raises(FileNotFoundError, match="nowhere"):
            module.read(tmp_path / "nowhere.x", **options)


# ------------------------------------------------------------------ samples, and where files lie
def test_samples_refuse_what_does_not_fit_together():
    with pytest.raises(ValueError, match="f: status has shape"):
        GazeSamples(np.zeros(2), np.zeros((2, 2)), np.zeros(3), "f")
    with pytest.raises(ValueError, match="f, sample 1: .* does not lie in the frame"):
        GazeSamples(np.zeros(2), np.array([[0, 0], [2, 0]]), np.full(2, UNKNOWN), "f")
    with pytest.raises(ValueError, match="f, sample 1: time 0"):
        GazeSamples.from_recording([1, 0], [[0, 0], [0, 0]], [True, True], "f")


def test_kept_samples_keep_all_that_belongs_to_them():
    positions = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    samples = GazeSamples(
        np.arange(3.0), positions, np.array([FIXATION, SACCADE, UNKNOWN]), "f", (64, 48), np.arange(7, 10)
    )
    kept = samples.keep(np.array([True, False, True]))
    assert kept.times_s.tolist() == [0, 2] and kept.recorded_xy.tolist() == [[0.1, 0.2], [0.5, 0.6]]
    assert kept.status.tolist() == [FIXATION, UNKNOWN] and kept.frame_index.tolist() == [7, 9]


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("egtea", "gaze_data/OP01 [1].txt"),
        ("egoexolearn", "gazes_30fps_npy/OP01 [1].npy"),
        ("holoassist", "OP01 [1]/Export_py/Eyes/Eyes_sync.txt"),
        ("holoassist", "a/OP01 [1]_gaze_2d.csv"),
        ("ego4d", "v2/gaze/OP01 [1].csv"),
        ("pupil_labs", "OP01 [1]/gaze.csv"),
        ("tobii", "a/OP01 [1].tsv"),
        ("tobii", "OP01 [1]/gazedata.gz"),
        ("generic", "OP01 [1].csv"),
    ],
)
def test_find_looks_below_the_sources_folder(tmp_path, source, path):
    text_file(tmp_path / path, "")
    expected = tmp_path / path
    if source == "holoassist" and "Export_py" in path:
        expected = expected.parent.parent
    if source == "pupil_labs":
        expected = expected.parent
    assert SOURCES[source].find(tmp_path, "OP01 [1]") == expected
    assert SOURCES[source].find(tmp_path, "OP01") is None


def test_find_refuses_two_candidates_and_knows_a_recording_by_its_video(tmp_path):
    text_file(tmp_path / "a" / "P01.txt", "")
    text_file(tmp_path / "b" / "P01.txt", "")
    with pytest.raises(ValueError, match="2 places for P01.txt"):
        SOURCES["egtea"].find(tmp_path, "P01")
    text_file(tmp_path / "c" / "scene.mp4", "")
    assert SOURCES["pupil_labs"].find(tmp_path, "scene") is None
    text_file(tmp_path / "c" / "gaze.csv", "")
    assert SOURCES["pupil_labs"].find(tmp_path, "scene") == tmp_path / "c"


# ------------------------------------------------------------------ the command line
def command(*arguments) -> subprocess.CompletedProcess:
    """In this process; the last test shows one in a process of its own."""
    return run_in_process("gazeqwen.gaze_sources", *arguments)


def gaze_table(path: Path, until_s: float) -> Path:
    """60 Hz: x 0.25 for 0.4 s, 0.75 until 1 s (the video's end), then 0.76; one sample lost, one out of the frame."""
    times = np.arange(0, until_s, 1 / 60)
    rows = [f"{time:.6f},{0.25 if time < 0.4 else 0.75 if time < 1.001 else 0.76},0.5" for time in times]
    rows[5], rows[40] = f"{times[5]:.6f},,", f"{times[40]:.6f},1.5,0.5"
    return text_file(path, "time,x,y\n" + "\n".join(rows) + "\n")


GENERIC = ("--source", "generic", "--time_unit", "s", "--coordinates", "normalised", "--origin", "top-left")


def test_command_line_from_recording_to_table_and_picture(tmp_path, video):
    gaze, table, picture = gaze_table(tmp_path / "my gäze.csv", 1.02), tmp_path / "out" / "f.csv", tmp_path / "p.png"
    result = command(gaze, *GENERIC, "--video", video, "-o", table, "--plot", picture)
    assert result.returncode == 0 and result.stderr == ""
    scanpath = Scanpath.from_csv(table)
    np.testing.assert_allclose(scanpath.table[:, :2], [[0.25, 0.5], [0.75, 0.5]])
    np.testing.assert_allclose(scanpath.begin_s, [0, 0.4], atol=1e-5)
    np.testing.assert_allclose(scanpath.end_s, [23 / 60, 1.0], atol=1e-5)
    for line in (
        "samples: 62 from 0.000 to 1.017 s, 0 repeat a time",
        "rate: 60.0 Hz (median)",
        "in the frame: 96.8 % (1 untracked, 0 fixation, 0 saccade, 60 unknown, 1 out of frame)",
        "outside the video (0.000 to 1.000 s), left out: 1 samples, at 1.017 s",
        "fixations: 2",
        "duration: median 0.492 s; together 1.0 s, 98.3 % of the video",
    ):
        assert line in result.stdout
    assert list(table.parent.iterdir()) == [table]
    with Image.open(picture) as image:
        assert image.format == "PNG" and len(image.convert("RGB").getcolors(2**24)) > 100


def test_command_line_tells_another_clock_from_a_tracker_that_was_started_earlier(tmp_path, video):
    gaze = gaze_table(tmp_path / "g.csv", 2.0)  # of a video of 1 s
    words = [gaze, *GENERIC, "--video", video, "-o", tmp_path / "f.csv"]
    result = command(*words)
    assert result.returncode == 0
    assert (
        f"WARNING: the gaze lasts until 2.0 s, {video} until 1.0 s: is it this video's, on its clock?" in result.stderr
    )
    assert Scanpath.from_csv(tmp_path / "f.csv").end_s.max() <= 1.0
    result = command(*words, "--offset_s", "1")
    assert result.returncode == 0 and result.stderr == ""
    assert "the tracker was started 1.0 s before the video begins" in result.stdout
    result = command(*words, "--offset_s", "-0.5")
    assert "WARNING: 74.2 % of the samples lie outside" in result.stderr and "clocks are likely not" in result.stderr


def test_command_line_writes_no_table_of_gaze_that_is_never_in_the_frame(tmp_path):
    percent = text_file(tmp_path / "percent.csv", "time,x,y\n0,25,25\n0.2,75,50\n0.4,,\n")
    result = command(percent, *GENERIC, "--frame_size", "64x48", "-o", tmp_path / "f.csv")
    assert result.returncode == 1 and not (tmp_path / "f.csv").exists()
    assert "WARNING: 100.0 % of the tracked samples lie outside the frame" in result.stderr
    assert "percent.csv: none of 3 samples lies in the frame (2 out of frame, 1 untracked)" in result.stderr
    saccades = text_file(tmp_path / "fast.csv", "time,x,y\n0,0.2,0.2\n0.2,0.8,0.8\n")  # in the frame, no fixation
    result = command(saccades, *GENERIC, "--frame_size", "64x48", "-o", tmp_path / "f.csv")
    assert result.returncode == 0 and (tmp_path / "f.csv").read_text().count("\n") == 1


def test_command_line_compat_and_its_phantoms(tmp_path):
    rows = [(640, 480, frame, "Fixation") for frame in range(60)] + [(640, 480, 200, "Fixation")]
    gaze = text_file(tmp_path / "P01.txt", begaze_1(rows))
    result = command(gaze, "--source", "egtea", "--algorithm", "streamgaze", "-o", tmp_path / "f.csv")
    assert result.returncode == 0 and "clock: StreamGaze's" in result.stdout
    assert "WARNING: 1 fixations have no sample in the frame" in result.stderr
    scanpath = Scanpath.from_csv(tmp_path / "f.csv")
    np.testing.assert_allclose(scanpath.table[:, :2], [[0.5, 0.5], [0, 0]])
    np.testing.assert_allclose(scanpath.end_s, [59 / 24, 199 / 24])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nowhere.csv", *GENERIC], "nowhere.csv: no such file"),
        (["GAZE", "--source", "generic", "--time_unit", "s"], "needs --coordinates, --origin"),
        (["GAZE", "--source", "egtea", "--origin", "centre"], "--origin: no option of source egtea"),
        (["GAZE", *GENERIC], "the frame's aspect is unknown"),
        (["GAZE", *GENERIC, "--frame_size", "64x48", "--algorithm", "export"], "no fixations of its own"),
        (["GAZE", *GENERIC, "--frame_size", "64x48", "--algorithm", "streamgaze"], "StreamGaze has egtea"),
        (["GAZE", *GENERIC, "--frame_size", "64x48", "--min_duration_s", "-1"], "min_duration_s is -1.0"),
        (["GAZE", *GENERIC, "--frame_size", "64x48", "--scene_filter"], "--scene_filter needs --video"),
        (["GAZE", *GENERIC, "--video", "GAZE"], "not a readable video"),
        (["GAZE", *GENERIC, "--offset_s", "-100", "--video", "VIDEO"], "no sample lies within"),
    ],
)
def test_command_line_errors_are_one_line(tmp_path, video, arguments, named):
    gaze = gaze_table(tmp_path / "g.csv", 0.8)
    words = [{"GAZE": gaze, "VIDEO": video}.get(word, word) for word in arguments]
    result = command(*words, "-o", tmp_path / "f.csv")
    *warnings, error = result.stderr.splitlines()
    assert result.returncode == 1 and named in error
    assert all(line.startswith("WARNING: ") for line in warnings)
    assert not (tmp_path / "f.csv").exists()


def test_command_line_takes_the_exports_fixations_and_filters_scenes(tmp_path):
    """A cut at 3 s: of the export's fixations, the one across it goes, and so does the one outside the frame."""
    colors = np.repeat([[250, 20, 20], [20, 250, 20]], 30, axis=0).astype(np.uint8)
    scenes = write_video(tmp_path / "cut.mp4", np.broadcast_to(colors[:, None, None], (60, 48, 64, 3)), fps=10)
    folder = pupil_export(tmp_path / "export", [f"{T0 + 10**9},32,24,1"], world=range(60))
    header = "fixation id,start timestamp [ns],end timestamp [ns],fixation x [px],fixation y [px]"
    rows = [(1, 0, 20, 32, 24), (2, 20, 45, 32, 24), (3, 46, 70, 16, 12), (4, 50, 51, 99, 24)]
    lines = [f"{number},{T0 + begin * 10**8},{T0 + end * 10**8},{x},{y}" for number, begin, end, x, y in rows]
    text_file(folder / "fixations.csv", "\n".join([header, *lines]) + "\n")
    words = [folder, "--source", "pupil_labs", "--video", scenes, "-o", tmp_path / "f.csv", "--algorithm", "export"]
    printed = command(*words, "--scene_filter").stdout
    scanpath = Scanpath.from_csv(tmp_path / "f.csv")
    np.testing.assert_allclose(scanpath.table, [[0.5, 0.5, 1.0, 2.0], [0.25, 0.25, 5.3, 1.4]], atol=1e-6)
    assert scanpath.ids.tolist() == [0, 2]
    assert "left out: 3 fixations or parts of them" in printed
    for line in ("5.000 to 5.100 s at (1.547, 0.500): its position lies outside the frame", "after the video ends"):
        assert line in printed
    assert "2.000 to 4.500 s at (0.500, 0.500): the scene changes" in printed


def test_command_line_fails_in_one_line_and_leaves_the_old_table(tmp_path):
    table = text_file(tmp_path / "f.csv", "old")
    gaze = text_file(tmp_path / "g.csv", "time,x,y\n0,0.5,0.5\nend\n")
    line = [sys.executable, "-m", "gazeqwen.gaze_sources", gaze, *GENERIC, "--frame_size", "64x48", "-o", table]
    result = subprocess.run(line, capture_output=True, text=True)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("gazeqwen gaze: ") and result.stderr.count("\n") == 1
    assert "g.csv, line 3: 1 fields, expected 3" in result.stderr
    assert table.read_text() == "old"


# ------------------------------------------------------------------ Ego-Exo4D, Pupil Core, and guesses
def test_egoexo4d_counts_ten_rows_a_second_in_pixels_of_the_upright_frame(tmp_path):
    rows = "0,704.0,352.0\n3,1408.5,10\n4,,\n20,140.8,1267.2\n"
    path = text_file(tmp_path / "take_1" / "eye_gaze" / "general_eye_gaze_2d.csv", f"frame_num,x,y\n{rows}")
    for place in (path, tmp_path / "take_1", tmp_path / "take_1" / "eye_gaze"):
        samples = SOURCES["egoexo4d"].read(place)
        assert samples.times_s.tolist() == [0, 0.3, 0.4, 2.0] and samples.frame_size == (1408, 1408)
        assert samples.status.tolist() == [UNKNOWN, OUT, UNTRACKED, UNKNOWN]
        np.testing.assert_allclose(samples.xy[[0, 3]], [[0.5, 0.25], [0.1, 0.9]])
    assert "1 of 4 rows have no position, so they are untracked" in samples.notes
    text_file(path.with_name("personalized_eye_gaze_2d.csv"), f"frame_number,x,y\n{rows}")
    samples = SOURCES["egoexo4d"].read(tmp_path / "take_1")
    assert samples.source.endswith("personalized_eye_gaze_2d.csv") and samples.times_s[-1] == 2.0


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("frame_num,x,y\n0,1,1\n-2,1,1\n", "g.csv, line 3: frame_num is -2, expected 0 or more"),
        ("frame_num,x,y\n0,1,1\n1.5,1,1\n", "g.csv, line 3: frame_num is '1.5', expected a whole number"),
        ("frame_num,x,y\n5,1,1\n4,20,1\n", "g.csv, line 3: time 0.4"),
        ("frame_num,x,y\n0,0.5,0.5\n", "g.csv: all positions lie within 1 pixel"),
        ("frame,x,y\n0,5,5\n", "g.csv: no column frame_num"),
    ],
)
def test_egoexo4d_names_what_is_wrong(tmp_path, text, named):
    with pytest.raises(ValueError, match=named):
        SOURCES["egoexo4d"].read(text_file(tmp_path / "g.csv", text))


def core_export(folder: Path, gaze, world=range(4)) -> Path:
    header = "gaze_timestamp,world_index,confidence,norm_pos_x,norm_pos_y,base_data"
    text_file(folder / "gaze_positions.csv", "\n".join([header, *gaze]) + "\n")
    times = "\n".join(f"{5000.25 + tenth / 10:f},{tenth}" for tenth in world)
    text_file(folder / "world_timestamps.csv", f"# timestamps [seconds],pts\n{times}\n")
    return folder


CORE = ["5000.35,1,0.9,0.25,0.1,5000.35-0", "5000.30,0,0.8,0.5,0.5,", "5000.40,1,0.3,0.5,0.5,", "5000.5,2,1.0,1.5,0,"]


def test_pupil_core_export(tmp_path, uneven_video):
    """Frames shown at 0, 0.1, 0.3, 0.7 s, taken 0.1 s apart; two samples in the wrong order."""
    folder = core_export(tmp_path / "rec 1" / "exports" / "000", CORE)
    samples = SOURCES["pupil_core"].read(folder, uneven_video)
    np.testing.assert_allclose(samples.times_s, [0.05, 0.1, 0.2, 0.5], atol=1e-6)
    np.testing.assert_allclose(samples.recorded_xy, [[0.5, 0.5], [0.25, 0.9], [0.5, 0.5], [1.5, 1.0]])
    assert samples.status.tolist() == [UNKNOWN, UNKNOWN, UNTRACKED, OUT] and samples.frame_size == (64, 48)
    assert samples.notes[0] == "2 samples are out of order, sorted by time"
    assert samples.notes[1] == "1 samples with a confidence below 0.6 (or none) are untracked"
    trusting = SOURCES["pupil_core"].read(folder / "gaze_positions.csv", min_confidence=0.2)
    np.testing.assert_allclose(trusting.times_s, [0.05, 0.1, 0.15, 0.25], atol=1e-9)
    assert trusting.status.tolist() == [UNKNOWN, UNKNOWN, UNKNOWN, OUT]
    assert SOURCES["pupil_core"].find(tmp_path, "rec 1") == folder
    assert SOURCES["pupil_core"].find(tmp_path, "000") == folder


@pytest.mark.parametrize(
    ("gaze", "world", "named"),
    [
        (["later,0,1,0.5,0.5,"], range(4), "gaze_positions.csv, line 2: gaze_timestamp is 'later', expected a number"),
        (
            [*CORE, "inf,0,1,0.5,0.5,"],
            range(4),
            "gaze_positions.csv, line 6: gaze_timestamp is inf, expected a finite",
        ),
        ([*CORE, "5001,0,high,0.5,0.5,"], range(4), "gaze_positions.csv, line 6: confidence is 'high'"),
        (CORE, [0, 2, 1], "world_timestamps.csv, line 4: .* does not increase"),
        (CORE, [], "world_timestamps.csv: a header and no rows"),
    ],
)
def test_pupil_core_names_what_is_wrong(tmp_path, gaze, world, named):
    with pytest.raises(ValueError, match=named):
        SOURCES["pupil_core"].read(core_export(tmp_path, gaze, world))


INVISIBLE = "section id,recording id,timestamp [ns],gaze x [px],gaze y [px],worn,fixation id,blink id"


def test_pupil_invisibles_cloud_export(tmp_path):
    rows = [f"s,r,{T0},544,540,1.0,1,", f"s,r,{T0 + 5 * 10**6},272,810,0.0,,"]
    samples = SOURCES["pupil_labs"].read(pupil_export(tmp_path, rows, header=INVISIBLE), frame_size=(1088, 1080))
    np.testing.assert_allclose(samples.recorded_xy, [[0.5, 0.5], [0.25, 0.75]])
    assert samples.status.tolist() == [UNKNOWN, UNTRACKED] and samples.times_s.tolist() == [0, 0.005]


@pytest.mark.parametrize(
    ("name", "text", "source", "folder_tells"),
    [
        ("eye_gaze/general_eye_gaze_2d.csv", "frame_num,x,y\n0,1,1\n", "egoexo4d", True),
        (
            "mps/eye_gaze/general_eye_gaze.csv",
            "tracking_timestamp_us,yaw_rads_cpf,pitch_rads_cpf\n0,0,0\n",
            "aria",
            True,
        ),
        ("gaze_positions.csv", "gaze_timestamp,world_index,confidence,norm_pos_x,norm_pos_y\n", "pupil_core", True),
        ("gaze.csv", f"{INVISIBLE}\n", "pupil_labs", True),
        ("gazedata", GLASSES3[0], "tobii", True),
        ("uid.csv", EGO4D, "ego4d", False),
        ("s_gaze_2d.csv", "frame_idx,timestamp_sec,u,v,valid,in_frame\n", "holoassist", False),
        ("p.tsv", pro_lab(rows=PRO_LAB_ROWS), "tobii", False),
        ("OP01.txt", begaze_1([(1, 2, 0, "Fixation")]), "egtea", False),
        ("mine.csv", "time,x,y\n0,0.5,0.5\n", "generic", False),
    ],
)
def test_the_source_is_guessed_from_a_file_and_from_its_folder(tmp_path, name, text, source, folder_tells):
    assert guess_source(text_file(tmp_path / "recording" / name, text))[0] == source
    if folder_tells:
        assert guess_source(tmp_path / "recording")[0] == source


def test_arrays_archives_and_folders_are_guessed_and_what_tells_no_source_is_refused(tmp_path):
    np.save(tmp_path / "g.npy", np.zeros((2, 3)))
    assert guess_source(tmp_path / "g.npy")[0] == "egoexolearn"
    (tmp_path / "gazedata.gz").write_bytes(gzip.compress(b"{}"))
    assert guess_source(tmp_path / "gazedata.gz")[0] == "tobii"
    with pytest.raises(FileNotFoundError, match="nowhere.csv: no such file"):
        guess_source(tmp_path / "nowhere.csv")
    for data in (b"", b"0,1,2\n", bytes(range(255, 0, -1))):
        (tmp_path / "other").write_bytes(data)
        with pytest.raises(ValueError, match="other: a file of no known source, expected --source"):
            guess_source(tmp_path / "other")
    text_file(tmp_path / "neon" / "info.json", "{}")
    assert guess_source(tmp_path / "neon")[0] == "pupil_labs"
    text_file(tmp_path / "session" / "Export_py" / "Eyes" / "Eyes_sync.txt", "")
    assert [guess_source(tmp_path / "session" / place)[0] for place in ("", "Export_py")] == ["holoassist"] * 2
    (tmp_path / "recording.vrs").touch()
    with pytest.raises(ValueError, match="recording.vrs: a VRS file, expected the eye_gaze folder .* as --vrs"):
        guess_source(tmp_path / "recording.vrs")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: a folder of no known source"):
        guess_source(tmp_path / "empty")


def test_command_line_says_what_it_guessed(tmp_path):
    rows = "\n".join(f"{frame},704,704" for frame in range(10))
    gaze = text_file(tmp_path / "general_eye_gaze_2d.csv", f"frame_num,x,y\n{rows}\n")
    result = command(gaze, "-o", tmp_path / "f.csv")
    assert result.returncode == 0, result.stderr
    assert "max_gap_s: 0.25 s, two and a half steps of this recording" in result.stdout
    assert "source: egoexo4d, guessed from the columns frame_num, x, y (--source says another)" in result.stdout
    np.testing.assert_allclose(Scanpath.from_csv(tmp_path / "f.csv").table, [[0.5, 0.5, 0.45, 0.9]], atol=1e-9)
    unsaid = command(gaze_table(tmp_path / "mine.csv", 0.8), "-o", tmp_path / "f.csv")
    assert unsaid.returncode == 1 and "source generic needs --time_unit, --coordinates, --origin" in unsaid.stderr
