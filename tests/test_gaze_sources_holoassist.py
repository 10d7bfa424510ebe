"""The reader of raw gaze of HoloAssist: a file in that format, read back; bad ones, named."""

from pathlib import Path

import numpy as np
import pytest
from gaze_recordings import OUT, UNKNOWN, UNTRACKED, text_file

from gazeqwen.gaze_sources import SOURCES
from gazeqwen.gaze_sources.holoassist import TICKS_PER_S

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
