"""Fixations from gaze samples: by dispersion, as StreamGaze makes them, and the filter of scenes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support import write_video

from gazeqwen.gaze_sources.__main__ import arguments, run
from gazeqwen.gaze_sources.fixations import (
    checked_scanpath,
    detect_fixations,
    hue_saturation_histogram,
    scene_consistent,
    streamgaze_fixations,
)
from gazeqwen.gaze_sources.samples import GazeSamples, Status
from gazeqwen.plots.overlay import write_overlay
from gazeqwen.plots.recording import draw_recording
from gazeqwen.scanpath_gazeqwen import Scanpath, as_scanpath
from gazeqwen.video_gazeqwen import frame_times_s, read_frames


def recorded(times_s, xy, tracked=None, frame_size=(1000, 500), **others) -> GazeSamples:
    tracked = np.ones(len(times_s), bool) if tracked is None else tracked
    return GazeSamples.from_recording(times_s, xy, tracked, "gaze", frame_size=frame_size, **others)


# ------------------------------------------------------------------ by dispersion
def extent_deg(xy: np.ndarray, frame_size=(1000, 500), fov_deg=90.0) -> float:
    pixels = xy * frame_size
    return float(np.ptp(pixels, axis=0).sum() * fov_deg / frame_size[0])


def test_two_fixations_by_hand():
    """At 10 Hz: four samples at one place, three at another; 0.02 of a width of 90 degrees is 1.8 degrees."""
    xy = [(0.5, 0.5), (0.52, 0.5), (0.5, 0.5), (0.52, 0.5), (0.8, 0.5), (0.8, 0.5), (0.8, 0.5)]
    scanpath = detect_fixations(recorded(np.arange(7) / 10, xy), 2.0, 0.2, 0.15)
    np.testing.assert_allclose(scanpath.table, [[0.51, 0.5, 0.15, 0.3], [0.8, 0.5, 0.5, 0.2]])
    scanpath = detect_fixations(recorded(np.arange(7) / 10, xy), 1.7, 0.2, 0.15)
    np.testing.assert_allclose(scanpath.table, [[0.8, 0.5, 0.5, 0.2]])


def test_a_gap_and_an_extent_at_their_limits_are_within_them():
    """In numbers that floats hold exactly: of the shortest run, and of what lengthens it."""
    xy = [(0.25, 0.5), (0.5, 0.5), (0.25, 0.5), (0.5, 0.5)]
    scanpath = detect_fixations(recorded(np.arange(4) / 4, xy), 16.0, 0.25, 0.25, horizontal_fov_deg=64.0)
    np.testing.assert_array_equal(scanpath.table, [[0.375, 0.5, 0.375, 0.75]])


def test_distances_are_measured_in_pixels():
    """0.03 of the width are 30 pixels, 0.03 of the height 15: 2.7 and 1.35 degrees."""
    times = np.arange(4) / 10
    along_x, along_y = ([(0.5, 0.5), (0.53, 0.5)] * 2, [(0.5, 0.5), (0.5, 0.53)] * 2)
    assert len(detect_fixations(recorded(times, along_x), 2.0, 0.3, 0.15)) == 0
    assert len(detect_fixations(recorded(times, along_y), 2.0, 0.3, 0.15)) == 1
    assert len(detect_fixations(recorded(times, along_y, frame_size=(500, 1000)), 2.0, 0.3, 0.15)) == 0
    assert len(detect_fixations(recorded(times, along_x), 2.0, 0.3, 0.15, horizontal_fov_deg=60)) == 1


def test_a_gap_ends_a_fixation_and_lost_samples_are_no_positions():
    times = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    xy = np.full((8, 2), 0.5)
    lost = np.array([1, 1, 1, 0, 1, 1, 1, 1], bool)
    xy[3] = 0.0  # a placeholder, marked as untracked
    whole = detect_fixations(recorded(times, xy, lost), 1.0, 0.2, max_gap_s=0.25)
    np.testing.assert_allclose(whole.table, [[0.5, 0.5, 0.35, 0.7]])
    parts = detect_fixations(recorded(times, xy, lost), 1.0, 0.2, max_gap_s=0.15)
    np.testing.assert_allclose(parts.table, [[0.5, 0.5, 0.1, 0.2], [0.5, 0.5, 0.55, 0.3]])
    xy[3] = 1.5, 0.5  # out of the frame
    np.testing.assert_allclose(detect_fixations(recorded(times, xy), 1.0, 0.2, 0.15).table, parts.table)


def test_samples_before_the_video_are_left_out():
    scanpath = detect_fixations(recorded(np.arange(-3, 4) / 10, np.full((7, 2), 0.5)), 1.0, 0.2, 0.15)
    np.testing.assert_allclose(scanpath.table, [[0.5, 0.5, 0.15, 0.3]])


def test_recordings_without_a_usable_sample_have_an_empty_scanpath():
    assert len(detect_fixations(recorded([0.0, 1.0], [[np.nan, 0.5], [2, 2]]))) == 0
    assert len(detect_fixations(recorded([0.0], [[0.5, 0.5]]))) == 0


@pytest.mark.parametrize("name", ["max_dispersion_deg", "min_duration_s", "max_gap_s", "horizontal_fov_deg"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_parameters_are_positive(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        detect_fixations(recorded([0.0], [[0.5, 0.5]]), **{name: value})


def test_an_unknown_aspect_is_refused():
    with pytest.raises(ValueError, match="gaze: the frame's aspect is unknown"):
        detect_fixations(recorded([0.0], [[0.5, 0.5]], frame_size=None))


@st.composite
def recordings(draw) -> GazeSamples:
    """Irregular times with gaps and repeats, places that hold for a while, lost samples and some out of the frame."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(1, 300))
    steps = rng.choice([0.0, 0.004, 0.01, 0.03, 0.3], count, p=[0.05, 0.4, 0.4, 0.12, 0.03])
    places = rng.random((count + 1, 2))[np.cumsum(rng.random(count) < 0.05)]
    xy = places + rng.normal(0, draw(st.sampled_from([0.001, 0.01])), (count, 2))
    return recorded(np.cumsum(steps), xy, rng.random(count) > 0.1)


@settings(deadline=None, max_examples=100)
@given(recordings(), st.floats(0.5, 10), st.floats(0.02, 0.3), st.floats(0.01, 0.2))
def test_what_every_fixation_is(samples, dispersion, duration, gap):
    scanpath = detect_fixations(samples, dispersion, duration, gap)
    used = samples.keep(samples.in_frame)
    assert (scanpath.begin_s[1:] >= scanpath.end_s[:-1] - 1e-9).all()
    for begin, end, (x, y, _, length) in zip(scanpath.begin_s, scanpath.end_s, scanpath.table, strict=True):
        assert length >= duration - 1e-8
        # The samples of a fixation: all between its ends, except that neighbours can share the time of an end.
        inner = (used.times_s > begin + 1e-7) & (used.times_s < end - 1e-7)
        assert extent_deg(used.xy[inner]) <= dispersion + 1e-9 if inner.any() else True
        times = used.times_s[used.within(begin, end)]
        assert np.diff(times).max() <= gap + 1e-9
        assert abs(times[0] - begin) < 2e-6 and abs(times[-1] - end) < 2e-6
        assert 0 <= x <= 1 and 0 <= y <= 1


@settings(deadline=None, max_examples=100)
@given(recordings(), st.integers(0, 2**32 - 1))
def test_lost_samples_dropped_in_change_nothing(samples, seed):
    rng = np.random.default_rng(seed)
    count = rng.integers(1, 50)
    times = np.concatenate([samples.times_s, rng.uniform(0, samples.times_s[-1] + 1, count)])
    xy = np.concatenate([samples.recorded_xy, rng.random((count, 2))])
    tracked = np.concatenate([samples.status != Status.UNTRACKED, np.zeros(count, bool)])
    order = np.argsort(times, kind="stable")
    more = recorded(times[order], xy[order], tracked[order])
    np.testing.assert_array_equal(detect_fixations(samples).table, detect_fixations(more).table)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_planted_fixations_are_found_under_noise(seed):
    """The control: places 10 degrees or more apart, held for 0.2 to 1 s at 100 to 200 Hz, 0.2 degrees of noise."""
    rng = np.random.default_rng(seed)
    places = [(0.2, 0.3), (0.5, 0.7), (0.8, 0.2), (0.35, 0.9)]
    planted, times, xy, now = [], [], [], 0.0
    for place in rng.permutation(places):
        held = now + np.cumsum(rng.uniform(0.005, 0.01, rng.integers(40, 120)))
        planted.append((*place, held[0], held[-1]))
        times.extend(held)
        xy.extend(place + rng.normal(0, 0.2 / 90, (len(held), 2)))
        now = held[-1] + 0.02
    tracked = rng.random(len(times)) > 0.05
    scanpath = detect_fixations(recorded(times, xy, tracked))
    found = np.column_stack([scanpath.table[:, :2], scanpath.begin_s, scanpath.end_s])
    assert found.shape == (len(planted), 4)
    np.testing.assert_allclose(found[:, :2], np.array(planted)[:, :2], atol=0.002)
    np.testing.assert_allclose(found[:, 2:], np.array(planted)[:, 2:], atol=0.06)  # ends can be lost samples


def test_pure_noise_has_no_fixation():
    rng = np.random.default_rng(0)
    assert len(detect_fixations(recorded(np.arange(5000) / 100, rng.random((5000, 2))))) == 0


@settings(deadline=None, max_examples=60)
@given(recordings(), st.floats(0.5, 10), st.floats(0.02, 0.3))
def test_the_fast_search_finds_what_the_plain_one_finds(samples, dispersion, duration):
    used = samples.keep(samples.in_frame)
    times, xy, expected, start = used.times_s, used.xy, [], 0
    while start < len(times):
        end = start
        while (
            end + 1 < len(times)
            and times[end + 1] - times[end] <= 0.1
            and extent_deg(xy[start : end + 2]) <= dispersion
        ):
            end += 1
        if times[end] - times[start] >= duration - 1e-9:
            expected.append((times[start], times[end]))
            start = end + 1
        else:
            start += 1
    scanpath = detect_fixations(samples, dispersion, duration, 0.1)
    assert len(scanpath) == len(expected)
    if expected:
        np.testing.assert_allclose(np.column_stack([scanpath.begin_s, scanpath.end_s]), expected, atol=1e-9)


# ------------------------------------------------------------------ as StreamGaze does
def rows(source: str, positions, frames=None, frame_size=(640, 480), tracked=None) -> GazeSamples:
    """Samples of `source`, one a frame unless `frames` tells."""
    frames = np.arange(len(positions)) if frames is None else np.array(frames)
    fps = {"egtea": 24, "egoexolearn": 30, "holoassist": 24.46, "ego4d": 30}[source]
    index = None if source == "ego4d" else frames
    times = (frames + 0.5) / fps if source == "ego4d" else frames / fps
    return recorded(times, positions, tracked, frame_size, frame_index=index)


def test_compat_measures_from_the_first_frame_and_averages_all():
    """A drift of 0.002 a frame: each step is tiny, but frame 75 lies 0.15 from the first (more, in float32) or 76."""
    positions = [(0.2 + 0.002 * frame, 0.5) for frame in range(120)]
    scanpath, dropped = streamgaze_fixations(rows("egtea", positions, frame_size=(1280, 960)), "egtea")
    assert len(scanpath) == 1 and not dropped
    assert scanpath.begin_s[0] == 0 and round(scanpath.end_s[0] * 24) in (74, 75)
    last = round(scanpath.end_s[0] * 24)
    np.testing.assert_allclose(scanpath.table[0, 0], 0.2 + 0.002 * last / 2, atol=1e-6)


def test_compat_one_stray_frame_ends_a_fixation():
    positions = [(0.5, 0.5)] * 60 + [(0.9, 0.5)] + [(0.5, 0.5)] * 60
    scanpath, _ = streamgaze_fixations(rows("egtea", positions, frame_size=(1280, 960)), "egtea")
    np.testing.assert_allclose(scanpath.begin_s * 24, [0, 61], atol=1e-9)
    np.testing.assert_allclose(scanpath.end_s * 24, [59, 120], atol=1e-9)


@pytest.mark.parametrize(("frames", "count"), [(48, 0), (49, 1)])
def test_compat_fixations_last_two_seconds_between_first_and_last_frame(frames, count):
    samples = rows("egtea", [(0.5, 0.5)] * frames, frame_size=(1280, 960))
    assert len(streamgaze_fixations(samples, "egtea")[0]) == count


def test_compat_radius_is_a_circle_in_normalised_units():
    """0.14 of the height is within 0.15, whatever that is in pixels; 0.16 of the width or the height is not."""
    near = rows("egtea", [(0.5, 0.5)] * 30 + [(0.5, 0.64)] * 30, frame_size=(1280, 960))
    np.testing.assert_allclose(streamgaze_fixations(near, "egtea")[0].table[:, :2], [[0.5, 0.57]], atol=1e-6)
    for place in ((0.66, 0.5), (0.5, 0.66)):
        far = rows("egtea", [(0.5, 0.5)] * 30 + [place] * 30, frame_size=(1280, 960))
        assert len(streamgaze_fixations(far, "egtea")[0]) == 0
    at_the_limit = rows("egoexolearn", [(0.25, 0.5)] * 40 + [(0.375, 0.5)] * 40, frame_size=(768, 480))
    assert len(streamgaze_fixations(at_the_limit, "egoexolearn")[0]) == 1  # 96 of 768 pixels
    for step, count in ((0.08, 1), (0.1, 0)):  # Ego4D's is 0.088
        steps = rows("ego4d", [(0.5, 0.5)] * 40 + [(0.5 + step, 0.5)] * 40)
        assert len(streamgaze_fixations(steps, "ego4d")[0]) == count


def test_compat_untracked_frames_become_a_fixation_in_the_corner():
    positions, frames = [(0.5, 0.5), (0.5, 0.5)], [0, 100]
    scanpath, _ = streamgaze_fixations(rows("egtea", positions, frames, (1280, 960)), "egtea")
    np.testing.assert_allclose(scanpath.table, [[0, 0, 50 / 24, 98 / 24]])
    scanpath, _ = streamgaze_fixations(rows("ego4d", positions, frames), "ego4d")
    np.testing.assert_allclose(scanpath.table, [[0, 0, 50 / 30, 98 / 30]])


def test_compat_frames_without_a_position_lie_in_the_middle_for_holoassist():
    scanpath, _ = streamgaze_fixations(rows("holoassist", [(np.nan, np.nan)] * 60), "holoassist")
    np.testing.assert_allclose(scanpath.table, [[0.5, 0.5, 59 / 24.46 / 2, 59 / 24.46]])


def test_compat_untracked_samples_keep_their_recorded_position():
    positions, untracked = [(0.25, 0.75)] * 70, np.zeros(70, bool)
    for source in ("egoexolearn", "holoassist"):
        scanpath, _ = streamgaze_fixations(rows(source, positions, tracked=untracked), source)
        np.testing.assert_allclose(scanpath.table[:, :2], [[0.25, 0.75]])


def test_compat_samples_of_a_frame_are_averaged_in_pairs():
    """0.2, then the mean with 0.4, then that one's with 0.8: 0.55, not 0.467."""
    frames, positions = np.repeat(np.arange(70), 3), [(0.2, 0.5), (0.4, 0.5), (0.8, 0.5)] * 70
    for source, size in (("egtea", (1280, 960)), ("ego4d", (640, 480))):
        scanpath, _ = streamgaze_fixations(rows(source, positions, frames, size), source)
        np.testing.assert_allclose(scanpath.table[:, :2], [[0.55, 0.5]], atol=1e-6)


def test_compat_positions_are_clipped_except_for_holoassist():
    outside = [(1.5, 0.5)] * 70
    scanpath, _ = streamgaze_fixations(rows("egtea", outside, frame_size=(1280, 960)), "egtea")
    np.testing.assert_allclose(scanpath.table[:, :2], [[1279 / 1280, 0.5]])
    for source in ("egoexolearn", "ego4d"):
        np.testing.assert_allclose(streamgaze_fixations(rows(source, outside), source)[0].table[:, :2], [[1, 0.5]])
    scanpath, dropped = streamgaze_fixations(rows("holoassist", outside), "holoassist")
    assert len(scanpath) == 0 and len(dropped) == 1
    assert str(dropped[0]) == "0.000 to 2.821 s at (1.500, 0.500): its position lies outside the frame"


def test_compat_a_nan_swallows_what_follows_and_is_counted():
    """After an anchor without a position nothing is ever too far; the good fixation before it stays number 0."""
    positions = [(0.5, 0.5)] * 70 + [(0.9, 0.9), (np.nan, 0.5)] + [(0.5, 0.5), (0.9, 0.9)] * 50
    good, _ = streamgaze_fixations(rows("egoexolearn", positions[:71]), "egoexolearn")
    assert len(good) == 1
    positions[71:71] = [(np.nan, np.nan)]
    scanpath, dropped = streamgaze_fixations(rows("egoexolearn", [(np.nan, 0.5), *positions]), "egoexolearn")
    assert len(scanpath) == 0 and [entry.reason for entry in dropped] == ["its position is not finite"]
    assert dropped[0].end_s == pytest.approx((len(positions)) / 30)


@pytest.mark.parametrize(("width", "count"), [(640, 1), (1280, 0)])
def test_compat_radius_of_96_pixels_depends_on_the_videos_width(width, count):
    """A step of 0.1 is 64 pixels of 640, within 96; and 128 of 1280."""
    positions = [(0.5, 0.5)] * 40 + [(0.6, 0.5)] * 40
    for source in ("egoexolearn", "holoassist"):
        scanpath, _ = streamgaze_fixations(rows(source, positions, frame_size=(width, 480)), source)
        assert len(scanpath) == count


def test_compat_needs_what_it_needs():
    with pytest.raises(ValueError, match="the frame's width is unknown"):
        streamgaze_fixations(rows("holoassist", [(0.5, 0.5)], frame_size=None), "holoassist")
    with pytest.raises(ValueError, match="carry no frame numbers"):
        streamgaze_fixations(recorded([0.0], [(0.5, 0.5)]), "egtea")
    with pytest.raises(ValueError, match="source 'tobii', StreamGaze has egtea"):
        streamgaze_fixations(recorded([0.0], [(0.5, 0.5)]), "tobii")


def test_fixations_are_cut_to_the_video_and_what_is_cut_is_told():
    xy = [(0.1, 0.1), (0.2, 0.2), (0.3, 0.3), (2.0, 0.3)]
    scanpath, dropped = checked_scanpath([0.0, 1.0, 7.0, 2.0], [2.0, 5.0, 8.0, 3.0], xy, "f", 0.5, 4.0)
    np.testing.assert_allclose(scanpath.table, [[0.1, 0.1, 1.25, 1.5], [0.2, 0.2, 2.5, 3.0]])
    assert [(entry.begin_s, entry.end_s, entry.reason) for entry in dropped] == [
        (0.0, 0.5, "before the video begins"),
        (4.0, 5.0, "after the video ends"),
        (7.0, 8.0, "after the video ends"),
        (2.0, 3.0, "its position lies outside the frame"),
    ]
    assert scanpath.ids.tolist() == [0, 1]


def test_fixations_that_touch_the_video_s_ends_lie_within_or_outside_and_keep_their_numbers():
    with pytest.warns(UserWarning, match="2 of 2 fixations are out of order, sorted by time"):
        scanpath, dropped = checked_scanpath([3.0, 0.5, 0.0], [4.0, 1.0, 0.5], [(0.1, 0.1)] * 3, "f", 0.5, 4.0)
    assert scanpath.begin_s.tolist() == [0.5, 3.0] and scanpath.ids.tolist() == [1, 0]
    assert [(entry.begin_s, entry.end_s, entry.reason) for entry in dropped] == [(0.0, 0.5, "before the video begins")]


# ------------------------------------------------------------------ scenes
def scene(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A picture of eight bars in colours of its own."""
    colors = np.random.default_rng(seed).integers(0, 256, (1, 8, 3))
    return np.broadcast_to(colors.repeat(width // 8, axis=1), (height, width, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def cut_video(tmp_path_factory):
    """One scene for 10 s, another for 5 s, black for 5 s, at 5 frames per second."""
    frames = [scene(1)] * 50 + [scene(2)] * 25 + [np.zeros((48, 64, 3), np.uint8)] * 25
    return write_video(tmp_path_factory.mktemp("scenes") / "cut.mp4", np.stack(frames), fps=5)


def test_a_cut_within_a_fixation_drops_it_and_a_static_scene_keeps_it(cut_video):
    scanpath = as_scanpath([[0.5, 0.5, mid, duration] for mid, duration in ((4, 4), (10, 3), (12.5, 3), (17, 4))])
    kept, dropped = scene_consistent(scanpath, cut_video)
    assert kept.ids.tolist() == [0, 2] and kept.table[:, 2].tolist() == [4, 12.5]
    assert [(entry.begin_s, entry.end_s) for entry in dropped] == [(8.5, 11.5), (15, 19)]
    assert dropped[0].reason.startswith("the scene changes: correlation ")
    assert dropped[1].reason == "5 of 5 frames are black"


def test_the_scene_threshold_and_short_fixations(cut_video):
    across = as_scanpath([[0.5, 0.5, 10, 3]])
    assert len(scene_consistent(across, cut_video, threshold=0.9)[0]) == 0
    assert len(scene_consistent(across, cut_video, threshold=-1.0)[0]) == 1
    kept = [len(scene_consistent(as_scanpath([[0.5, 0.5, 10, duration]]), cut_video)[0]) for duration in (1.4, 1.5)]
    assert kept == [1, 0]


@pytest.mark.parametrize(
    ("color", "is_black"), [((7, 7, 7), True), ((14, 14, 14), False), ((0, 0, 60), True), ((60, 0, 0), False)]
)
def test_a_mean_grey_below_10_is_black(tmp_path, color, is_black):
    """Of blue a ninth counts, of red three tenths."""
    video = write_video(tmp_path / "dark.mp4", np.full((20, 48, 64, 3), color, np.uint8), fps=5)
    dropped = scene_consistent(as_scanpath([[0.5, 0.5, 2, 3]]), video)[1]
    assert [entry.reason for entry in dropped] == is_black * ["5 of 5 frames are black"]


@pytest.mark.parametrize(("duration_s", "flash"), [(8, 2), (10, 39)])
def test_two_frames_a_second_are_compared(tmp_path, duration_s, flash):
    """
    Of 8 s, 16 frames 0.53 s apart, the second of them number 2 of the video; of 10 s, 20, the sixteenth of them number
    39, and that is the last of those read at once.
    """
    frames = np.stack([scene(2 if number == flash else 1) for number in range(55)])
    video = write_video(tmp_path / "flash.mp4", frames, fps=5)
    assert len(scene_consistent(as_scanpath([[0.5, 0.5, duration_s / 2, duration_s]]), video)[0]) == 0


def test_mostly_black_counts_as_black_and_less_does_not(cut_video):
    """Of five frames from 13 to 17 s, those at 15, 16 and 17 are black; from 12 to 16 s, two are."""
    reasons = [scene_consistent(as_scanpath([[0.5, 0.5, mid, 4]]), cut_video)[1][0].reason for mid in (15, 14)]
    assert reasons[0] == "3 of 5 frames are black" and reasons[1].startswith("the scene changes")


def test_a_fixation_beyond_the_video_is_refused(cut_video):
    with pytest.raises(ValueError, match=r"cut.mp4.* ends at 20.000 s"):
        scene_consistent(as_scanpath([[0.5, 0.5, 25, 4]]), cut_video)


def test_hue_and_saturation_fall_into_the_bins_of_8_bit_hsv():
    """
    Red has hue 0, green 60, blue 120, magenta 150, all with saturation 255. The seventh has 127.5: fixed point with 12
    bits makes it 127. Of the last two, saturation 4.6 is rounded to 5, and hue 3.6 to 4.
    """
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 255), (0, 0, 0), (9, 9, 9), (200, 100, 100)]
    colors += [(222, 218, 218), (200, 112, 100)]
    histogram = hue_saturation_histogram(np.array([colors], dtype=np.uint8))
    expected = np.zeros((50, 60), int)
    places = [(0, 255), (60, 255), (120, 255), (150, 255), (0, 0), (0, 0), (0, 127), (0, 5), (4, 127)]
    for hue, saturation in places:
        expected[hue * 50 // 180, saturation * 60 // 256] += 1
    np.testing.assert_array_equal(histogram, expected)


# ------------------------------------------------------------------ the picture
def test_the_picture_shows_the_fixation_where_it_is(tmp_path):
    """On a black video the only bright spot is the fixation's disc: a quarter from the left, three from the top."""
    video = write_video(tmp_path / "black.mp4", np.zeros((10, 240, 320, 3), np.uint8))
    samples = recorded(np.arange(10) / 10, np.full((10, 2), (0.25, 0.75)), frame_size=(320, 240))
    draw_recording(tmp_path / "p.png", samples, as_scanpath([[0.25, 0.75, 0.45, 0.9]]), video, "a title")
    with Image.open(tmp_path / "p.png") as image:
        picture = np.asarray(image.convert("RGB")).astype(int)
    right = picture[:, picture.shape[1] // 2 :]
    black = right.sum(axis=2) < 60
    frame = right[black.mean(axis=1) > 0.5][:, black.mean(axis=0) > 0.5]
    y, x = (frame.sum(axis=2) > 200).nonzero()
    np.testing.assert_allclose([x.mean() / frame.shape[1], y.mean() / frame.shape[0]], [0.25, 0.75], atol=0.02)


def test_the_picture_of_a_long_recording_shows_what_is_around_its_longest_fixation(tmp_path):
    """300 fixations of 0.5 s before it make no difference to the picture; one beside it does."""
    samples = recorded(np.arange(0, 600, 0.5), np.full((1200, 2), 0.5), frame_size=(320, 240))
    xy = np.random.default_rng(0).random((300, 2))
    table = [[x, y, mid, 0.5] for mid, (x, y) in enumerate(xy, start=1)]
    whole = as_scanpath([*table, [0.7, 0.5, 320, 1.0], [0.2, 0.5, 325, 0.5]])
    pictures = []
    for first, last in ((0, None), (300, None), (300, -1)):
        draw_recording(tmp_path / "p.png", samples, Scanpath(whole.table[first:last], whole.ids[first:last]))
        with Image.open(tmp_path / "p.png") as image:
            pictures.append(np.asarray(image.convert("RGB")))
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert (pictures[1] != pictures[2]).any()


@pytest.mark.parametrize("video", [True, False])
def test_a_picture_without_fixations(tmp_path, video):
    path = write_video(tmp_path / "v.mp4", np.zeros((5, 48, 64, 3), np.uint8)) if video else None
    samples = recorded([0.0, 1.0], [[0.1, 0.1], [0.9, 0.9]])
    draw_recording(tmp_path / "p.png", samples, as_scanpath(np.zeros((0, 4))), path)
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "p.png", *([path] if video else [])])


def test_the_overlay_shows_on_every_frame_the_gaze_of_its_own_time(tmp_path):
    """A late video at an uneven rate; one sample in each frame, 10 ms after it appears, from left to right."""
    times_s = np.array([0.5, 0.6, 0.9, 1.0])
    height, width = 121, 481  # odd, which the overlay's pixels can not be
    frames = np.zeros((4, height, width, 3), np.uint8)
    video = write_video(tmp_path / "v.mp4", frames, times_s, pix_fmt="yuv444p")
    places = np.column_stack([[0.2, 0.4, 0.6, 0.8], np.full(4, 0.25)])
    samples = recorded(times_s + 0.01, places, frame_size=(width, height))
    write_overlay(tmp_path / "o.mp4", video, samples, Scanpath(np.array([[0.4, 0.25, 0.75, 0.3]]), np.array([7])))
    np.testing.assert_allclose(frame_times_s(tmp_path / "o.mp4"), times_s)
    frames, _ = read_frames(tmp_path / "o.mp4", times_s)
    red, green, blue = np.moveaxis(frames[:, :height, :width].astype(int), -1, 0)
    for index, (x, y) in enumerate(places):
        rows, columns = ((green[index] > 120) & (red[index] > 120) & (blue[index] < 90)).nonzero()  # the dot's colour
        np.testing.assert_allclose([columns.mean() / width, rows.mean() / height], [x, y], atol=0.01)
    has_ring = ((red > 120) & (green < 90)).any((1, 2))
    assert has_ring.tolist() == [False, True, False, False]  # it ends as the third frame appears
    assert (frames[:, height:].max((1, 2, 3)) > 200).all()  # the words
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.mp4", "v.mp4"]


def test_an_overlay_needs_a_video_and_the_name_of_one(tmp_path):
    for options in (["--overlay", "o.mp4"], ["--video", "v.mp4", "--overlay", "o.png"]):
        args = arguments().parse_args(["gaze.txt", "--source", "egtea", "-o", "f.csv", *options])
        with pytest.raises(ValueError, match=r"--overlay o\..*: expected the name of an .mp4 to write, and --video"):
            run(args)
