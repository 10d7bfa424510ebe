"""Clips: every frame is the one on screen at its time, times are the file's own, and bad files are named."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import frame_index, index_frames, write_video

from gazeqwen.video_gazeqwen import Clip, read_clip, sample_times


def expected_indices(times_s: np.ndarray, taken_at: np.ndarray) -> list[int]:
    return [int(np.flatnonzero(times_s <= t + 1e-9)[-1]) for t in taken_at]


@pytest.mark.parametrize("kind", ["constant rate", "variable rate"])
def test_frames_and_times_are_those_on_screen(tmp_path, kind):
    times = np.arange(120) / 10
    if kind == "variable rate":
        times = np.round(np.cumsum(np.random.default_rng(0).uniform(0.03, 0.25, 120)), 3) - 0.03
        times -= times[0]
    path = write_video(tmp_path / "v.mp4", index_frames(120), None if kind == "constant rate" else times)
    for start_s, end_s, num_frames in [(0.0, 11.0, 8), (2.35, 9.5, 10), (7.0, 7.4, 2)]:
        clip = read_clip(path, start_s, end_s, num_frames=num_frames)
        expected = expected_indices(times, sample_times(start_s, end_s, num_frames))
        assert [frame_index(frame) for frame in clip.frames] == expected
        np.testing.assert_allclose(clip.timestamps_s, times[expected], atol=1e-3)
        assert clip.timestamps_s[-1] <= end_s


def test_whole_video_by_default(tmp_path):
    clip = read_clip(write_video(tmp_path / "v.mp4", index_frames(50)))
    assert (clip.start_s, clip.end_s) == (0, pytest.approx(5.0, abs=0.11))
    assert len(clip.frames) == 6  # one per second up to 30 s, made even


def test_sampling_policies():
    assert len(sample_times(0, 30)) == 30 and len(sample_times(0, 60)) == 30
    assert len(sample_times(0, 300)) == 60 and len(sample_times(0, 640)) == 64
    assert len(sample_times(0, 2000, max_frames=20)) == 20
    np.testing.assert_allclose(sample_times(10, 18, num_frames=4), [11, 13, 15, 17])
    for arguments in ({"num_frames": 0}, {"fps": 0.0}, {"num_frames": 2, "fps": 1.0}, {"max_frames": 1}):
        with pytest.raises(ValueError, match=str(next(iter(arguments)))):
            sample_times(0, 10, **arguments)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=12), st.floats(0.1, 10))
def test_steps_tile_the_clip(times, rest_s):
    times = np.sort(times)
    clip = Clip(np.zeros((len(times), 2, 2, 3), np.uint8), times, 0.0, times[-1] + rest_s)
    spans = clip.step_spans_s(2)
    assert len(spans) == (len(times) + 1) // 2
    assert spans[0, 0] == 0 and spans[-1, 1] == clip.end_s
    np.testing.assert_array_equal(spans[1:, 0], spans[:-1, 1])
    assert (np.diff(spans, axis=1) >= 0).all()


def test_qwens_step_length_is_the_distance_of_step_centres():
    clip = Clip(np.zeros((4, 2, 2, 3), np.uint8), [0.0, 1.0, 5.0, 6.0], 0.0, 8.0)
    assert clip.seconds_per_step() == 5.0


@pytest.mark.parametrize(
    ("end_s", "start_s", "message"),
    [
        (7.5, 0.0, "query time 7.5 s lies beyond the video, which ends at 5.0"),
        (5.0, 5.5, "clip starts at 5.5 s"),
        (5.0, -1.0, "clip starts at -1.0 s"),
        (2.0, 3.0, "expected a positive length"),
    ],
)
def test_bad_windows_are_named(tmp_path, end_s, start_s, message):
    path = write_video(tmp_path / "v.mp4", index_frames(50))
    with pytest.raises(ValueError, match=message):
        read_clip(path, start_s, end_s)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.mp4"):
        read_clip(tmp_path / "nowhere.mp4")
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match="text.mp4: not a readable video"):
        read_clip(tmp_path / "text.mp4")
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(ValueError, match="empty.mp4: not a readable video"):
        read_clip(tmp_path / "empty.mp4")
    whole = write_video(tmp_path / "whole.mp4", index_frames(50)).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut.mp4"):
        read_clip(tmp_path / "cut.mp4")


def test_clips_from_arrays_are_checked():
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    Clip(frames, [0.0, 1.0], 0.0, 1.0)
    with pytest.raises(ValueError, match="a frame at 1.5 s lies after the clip's end"):
        Clip(frames, [0.0, 1.5], 0.0, 1.0)
    with pytest.raises(ValueError, match="expected finite and not decreasing"):
        Clip(frames, [1.0, 0.0], 0.0, 1.0)
    with pytest.raises(ValueError, match="float64"):
        Clip(frames.astype(float), [0.0, 1.0], 0.0, 1.0)
