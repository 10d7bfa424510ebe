"""Clips: every frame is the one on screen at its time, times are the file's own, and bad files are named."""

from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import frame_index, index_frames, write_video

from gazeqwen.video_gazeqwen import Clip, frame_times_s, read_clip, read_frames, sample_times, video_info


def expected_indices(times_s: np.ndarray, taken_at: np.ndarray) -> list[int]:
    return [max(int(np.searchsorted(times_s, t + 1e-6, side="right")) - 1, 0) for t in taken_at]


# What recordings come as: (file name, how it is written, quarter turns of the stored frames).
FILES = {
    "constant rate": ("v.mp4", {}, 0),
    "variable rate": ("v.mp4", {"times_s": "variable"}, 0),
    "many B-frames": ("v.mp4", {"options": {"bf": "5", "g": "40", "x264-params": "b-adapt=0"}}, 0),
    "open groups of pictures": (
        "v.mp4",
        {"options": {"bf": "3", "g": "15", "x264-params": "open-gop=1:b-adapt=0"}},
        0,
    ),
    "one keyframe": ("v.mp4", {"options": {"g": "9999", "sc_threshold": "0"}}, 0),
    "starts late": ("v.mp4", {"times_s": np.arange(100) / 10 + 1.5}, 0),
    "starts late, Matroska": ("v.mkv", {"times_s": np.arange(100) / 10 + 1.5}, 0),
    "no duration, no index": ("v.mkv", {"container_options": {"live": "1"}}, 0),
    "no stream duration": ("v.webm", {"codec": "libvpx", "options": {"deadline": "realtime"}}, 0),
    "transport stream": ("v.ts", {}, 0),
    "fragmented": ("v.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}, 0),
    "AVI": ("v.avi", {"codec": "mpeg4", "options": {"qscale": "2"}}, 0),
    "odd size": ("v.mp4", {"pix_fmt": "yuv444p"}, 0),
    "turned left": ("v.mp4", {"rotation": 90}, 1),
    "turned right": ("v.mp4", {"rotation": -90}, -1),
    "upside down": ("v.mp4", {"rotation": 180}, 2),
}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> dict[str, tuple[Path, np.ndarray, int]]:
    """Per kind: a file of 100 frames that carry their number, their times by brute force, and its quarter turns."""
    found = {}
    for kind, (name, arguments, turns) in FILES.items():
        if kind == "variable rate":
            steps = np.random.default_rng(0).uniform(0.03, 0.25, 100)
            arguments = {"times_s": np.round(np.cumsum(steps) - steps[0], 3)}
        size = (47, 63) if kind == "odd size" else (48, 64)
        frames = np.rot90(index_frames(100, *size), -turns, axes=(1, 2))
        path = write_video(tmp_path_factory.mktemp("kind") / name, frames, **arguments)
        with av.open(str(path)) as container:
            times = np.array([float(frame.pts * frame.time_base) for frame in container.decode(video=0)])
        assert len(times) == 100
        if "times_s" in arguments:
            np.testing.assert_allclose(times, arguments["times_s"], atol=1e-3)
        found[kind] = path, times, turns
    return found


@pytest.mark.parametrize("kind", FILES)
def test_frames_and_times_are_those_on_screen(recordings, kind):
    path, times, _ = recordings[kind]
    first, last = times[0], times[-1]
    for start_s, end_s, num_frames in [(0.0, last, 8), (first + 2.35, last - 1.5, 10), (last - 3.0, last - 2.6, 2)]:
        clip = read_clip(path, start_s, end_s, num_frames=num_frames)
        expected = expected_indices(times, sample_times(start_s, end_s, num_frames))
        assert [frame_index(frame) for frame in clip.frames] == expected
        np.testing.assert_allclose(clip.timestamps_s, times[expected], atol=1e-3)
        assert clip.timestamps_s[-1] <= end_s
        # Qwen's steps and the encoder's tubelets are the same pairs of frames; their spans hold them.
        spans, pairs = clip.step_spans_s(2), clip.timestamps_s.reshape(-1, 2)
        half_a_frame = np.diff(times).max() / 2
        assert (pairs >= spans[:, :1] - half_a_frame).all() and (pairs <= spans[:, 1:] + half_a_frame).all()


@pytest.mark.parametrize("kind", FILES)
def test_extent_and_frame_times_of_a_file(recordings, kind):
    path, times, _ = recordings[kind]
    info, (height, width) = video_info(path), (47, 63) if kind == "odd size" else (48, 64)
    assert (info.height, info.width) == (height, width)
    assert info.start_s == times[0] and times[-1] < info.end_s <= times[-1] + 0.3
    np.testing.assert_array_equal(frame_times_s(path), times)
    assert read_clip(path, num_frames=2).frames.shape[1:3] == (height, width)


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_times_of_any_file(recordings, data):
    path, times, _ = recordings[data.draw(st.sampled_from(sorted(FILES)))]
    asked = np.sort(data.draw(st.lists(st.floats(0, times[-1] + 0.5), min_size=1, max_size=6)))
    frames, shown = read_frames(path, asked)
    expected = expected_indices(times, asked)
    assert [frame_index(frame) for frame in frames] == expected
    np.testing.assert_array_equal(shown, times[expected])


def test_the_first_frame_stands_in_before_the_stream_starts(recordings):
    path, _, _ = recordings["starts late"]
    clip = read_clip(path, 0.0, 4.0, num_frames=4)
    assert clip.timestamps_s.tolist() == [1.5, 1.5, 2.5, 3.5] and (clip.start_s, clip.end_s) == (0.0, 4.0)
    with pytest.raises(ValueError, match=r"the first frame is shown at 1.5 s, after the clip's end at 1.0 s"):
        read_clip(path, 0.0, 1.0, num_frames=2)


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


@pytest.mark.parametrize("options", [{"movflags": "faststart"}, {"movflags": "frag_keyframe+empty_moov"}])
def test_a_file_cut_after_its_header_gives_what_is_there_and_names_the_rest(tmp_path, options):
    frames = np.random.default_rng(0).integers(0, 255, (50, 48, 64, 3), dtype=np.uint8)
    path = write_video(tmp_path / "v.mp4", frames, container_options=options, options={"g": "10"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert len(read_clip(path, 0.0, 1.0, num_frames=4).frames) == 4
    with pytest.raises(ValueError, match=r"v.mp4: .*(damaged|data ends at|lies beyond the video)"):
        read_clip(path, 0.0, 4.9, num_frames=4)


def test_sound_alone_is_no_video(tmp_path):
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match=r"sound.mp4: no video stream, found \['audio'\]"):
        read_clip(tmp_path / "sound.mp4")


def with_display_matrix(path: Path, matrix) -> Path:
    """An mp4 with another display matrix: rows (a b u), (c d v), (x y w); u, v, w with 30 binary places, others 16."""
    data = bytearray(path.read_bytes())
    begin = data.index(b"tkhd") + 44  # after flags, times, id, duration, layer and volume
    fixed = np.round(np.asarray(matrix) * [1 << 16, 1 << 16, 1 << 30]).astype(">i4")
    data[begin : begin + 36] = fixed.tobytes()
    path.write_bytes(data)
    return path


def corner_frames() -> np.ndarray:
    """Frames 64 wide and 48 high whose corners are red, green, blue and black, everything else white."""
    frames = np.full((6, 48, 64, 3), 255, np.uint8)
    for (y, x), colour in CORNERS.items():
        rows, columns = slice(0, 16) if y < 0 else slice(-16, None), slice(0, 16) if x < 0 else slice(-16, None)
        frames[:, rows, columns] = colour
    return frames


CORNERS = {(-1, -1): (255, 0, 0), (-1, 1): (0, 255, 0), (1, -1): (0, 0, 255), (1, 1): (0, 0, 0)}  # (y, x): colour
# (a, b, c, d): a pixel at (x, y) is displayed at (a x + c y, b x + d y), y down.
MATRICES = {
    "upright": (1, 0, 0, 1),
    "mirrored": (-1, 0, 0, 1),
    "flipped": (1, 0, 0, -1),
    "upside down": (-1, 0, 0, -1),
    "turned left": (0, -1, 1, 0),
    "turned right": (0, 1, -1, 0),
    "transposed": (0, 1, 1, 0),
    "transposed along the other diagonal": (0, -1, -1, 0),
    "mirrored, and twice as large": (-2, 0, 0, 2),
}


@pytest.mark.parametrize("kind", MATRICES)
def test_the_whole_display_matrix_is_applied(tmp_path, kind):
    a, b, c, d = MATRICES[kind]
    path = write_video(tmp_path / "v.mp4", corner_frames(), pix_fmt="yuv444p")
    with_display_matrix(path, [[a, b, 0], [c, d, 0], [64, 48, 1]])
    frame = read_clip(path, num_frames=2).frames[0]
    assert frame.shape == ((64, 48, 3) if a == 0 else (48, 64, 3))
    assert (video_info(path).height, video_info(path).width) == frame.shape[:2]
    for (y, x), colour in CORNERS.items():
        shown_x, shown_y = np.sign(a * x + c * y), np.sign(b * x + d * y)
        pixel = frame[8 if shown_y < 0 else -8, 8 if shown_x < 0 else -8].astype(int)
        assert abs(pixel - colour).max() < 40, (y, x)


@pytest.mark.parametrize(
    "matrix",
    [
        [[0.87, -0.5, 0], [0.5, 0.87, 0], [0, 0, 1]],
        [[1, 0.2, 0], [0, 1, 0], [0, 0, 1]],
        [[1, 0, 0], [0, 0, 0], [0, 0, 1]],
        [[1, 0, 0.1], [0, 1, 0], [0, 0, 1]],
        [[1, 0, 0], [0, 1, 0], [0, 0, -1]],
    ],
    ids=["slanted", "sheared", "flat", "in perspective", "negative scale"],
)
def test_other_display_matrices_are_refused(tmp_path, matrix):
    path = with_display_matrix(write_video(tmp_path / "v.mp4", index_frames(20)), matrix)
    with pytest.raises(ValueError, match=r"v.mp4: displayed by the matrix \[\[.*expected quarter turns and mirrors"):
        read_clip(path)


def test_clips_from_arrays_are_checked():
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    Clip(frames, [0.0, 1.0], 0.0, 1.0)
    with pytest.raises(ValueError, match="a frame at 1.5 s lies after the clip's end"):
        Clip(frames, [0.0, 1.5], 0.0, 1.0)
    with pytest.raises(ValueError, match="expected finite and not decreasing"):
        Clip(frames, [1.0, 0.0], 0.0, 1.0)
    with pytest.raises(ValueError, match="float64"):
        Clip(frames.astype(float), [0.0, 1.0], 0.0, 1.0)


# ---------------------------------------------------------------- frames on a grid of the video's clock
def test_frames_on_a_grid_do_not_move_with_the_question():
    assert sample_times(0, 6, fps=1, sampling="grid").tolist() == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5]
    later, earlier = (sample_times(0, end_s, fps=1, sampling="grid") for end_s in (60.0, 37.3))
    assert earlier.tolist() == [*later[:37], later[36]]  # its last step has begun only: the frame comes twice
    spread, moved = (sample_times(0, end_s, fps=1) for end_s in (60.0, 37.3))
    assert not np.isin(moved, spread).any()
    assert sample_times(4.3, 9, fps=1, sampling="grid")[0] == 4.5  # from the step that holds 4.3 s
    assert sample_times(0, 60, fps=1, max_frames=4, sampling="grid").tolist() == [56.5, 57.5, 58.5, 59.5]


@settings(deadline=None)
@given(st.sampled_from([0.1, 0.5, 1.0, 2.0, 29.97, 30.0]), st.integers(0, 5000), st.floats(0, 3), st.integers(1, 40))
def test_a_grid_holds_the_frames_of_the_past_and_no_other(fps, step, share, steps):
    start_s, end_s = 2 * step / fps, 2 * (step + share) / fps
    if end_s < 0.5 / fps or end_s <= start_s:
        return
    times = sample_times(start_s, end_s, fps=fps, max_frames=2 * steps, sampling="grid")
    assert len(times) % 2 == 0 and len(times) <= 2 * steps and times[-1] <= end_s + 2e-6
    assert times[-1] + 1 / fps > end_s - 2e-6  # none is left out at the end
    np.testing.assert_allclose(np.diff(np.unique(times)), 1 / fps)
    np.testing.assert_allclose(times * fps - 0.5, np.round(times * fps - 0.5), atol=1e-6)


def test_spans_of_a_grid_are_those_of_its_clock():
    frames = np.zeros((6, 4, 4, 3), np.uint8)
    clip = Clip(frames, [0.4, 1.5, 2.5, 3.4, 4.5, 4.5], 0.0, 4.8, grid_fps=1.0)
    assert clip.step_spans_s().tolist() == [[0, 2], [2, 4], [4, 4.8]]
    assert clip.seconds_per_step() == 2.0
    assert Clip(frames, clip.timestamps_s + 8, 8.0, 14.0, grid_fps=1.0).step_spans_s()[:, 0].tolist() == [8, 10, 12]


def test_a_clip_is_read_on_a_grid(recordings):
    path, times, _ = recordings["variable rate"]
    long, short = (read_clip(path, 0.0, end_s, fps=2, sampling="grid") for end_s in (12.0, 7.1))
    assert [frame_index(f) for f in short.frames[:14]] == [frame_index(f) for f in long.frames[:14]]
    assert [frame_index(f) for f in long.frames] == expected_indices(times, np.arange(24) / 2 + 0.25)
    window = read_clip(path, 5.3, 7.1, fps=2, sampling="grid")
    assert window.start_s == 5.0 and window.step_spans_s().tolist() == [[5, 6], [6, 7]]
    with pytest.raises(ValueError, match="no frame of the grid of 2 fps.*expected an end at 0.25 s or later"):
        read_clip(path, 0.0, 0.2, fps=2, sampling="grid")
    with pytest.raises(ValueError, match="sampling 'grid': got num_frames=4 and fps=None, expected fps alone"):
        read_clip(path, 0.0, 2.0, num_frames=4, sampling="grid")
