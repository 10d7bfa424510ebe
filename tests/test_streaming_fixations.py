"""Fixations from samples as they arrive are those of the recording cut at each moment."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_gaze_sources_fixations import recorded, recordings

from gazeqwen.gaze_sources.fixations import detect_fixations
from gazeqwen.gaze_sources.samples import GazeSamples
from gazeqwen.streaming.fixations import OnlineFixations


def until(samples: GazeSamples, time_s: float) -> GazeSamples:
    """Return the recording cut at a time."""
    return samples.keep(samples.times_s <= time_s)


def pushed(online: OnlineFixations, samples: GazeSamples, first: int, last: int) -> None:
    places = np.arange(len(samples))
    online.push(samples.keep((places >= first) & (places < last)))


def assert_same(online, offline) -> None:
    np.testing.assert_array_equal(online.table, offline.table)
    np.testing.assert_array_equal(online.ids, offline.ids)


def steady(count: int, rate_hz: float = 100.0, place=(0.5, 0.5)) -> GazeSamples:
    return recorded(np.arange(count) / rate_hz, np.tile(place, (count, 1)))


@settings(max_examples=40)
@given(recordings(), st.floats(0.5, 10), st.floats(0.02, 0.3), st.floats(0.01, 0.2), st.integers(0, 2**32 - 1))
def test_at_each_moment_the_fixations_are_those_of_the_recording_cut_there(samples, dispersion, duration, gap, seed):
    """Pushed in parts of any size, some of them ahead of the time that is asked, some asked for before they come."""
    rng = np.random.default_rng(seed)
    thresholds = {"max_dispersion_deg": dispersion, "min_duration_s": duration, "max_gap_s": gap}
    online = OnlineFixations(samples.frame_size, **thresholds)
    here, asked_s = 0, 0.0
    while here < len(samples) or asked_s < samples.times_s[-1] + 1:
        more = min(here + int(rng.choice([0, 1, 2, 40])), len(samples))
        pushed(online, samples, here, more)
        here = more
        asked_s += rng.choice([0.0, 0.004, 0.05, 1.0])
        known = samples.keep(np.arange(len(samples)) < here)
        assert_same(online.until(asked_s), detect_fixations(until(known, asked_s), **thresholds))
    assert online.samples == len(samples) and online.repeated_times == samples.repeated_times
    whole = detect_fixations(samples, **thresholds)
    assert_same(online.until(np.inf), whole)
    since_s = rng.uniform(0, samples.times_s[-1] + 1)
    recent = online.until(np.inf, since_s)
    np.testing.assert_array_equal(recent.table, whole.table[whole.end_s > since_s])
    np.testing.assert_array_equal(recent.ids, whole.ids[whole.end_s > since_s])


def test_the_recording_has_to_be_cut_not_its_fixations():
    """The control: a fixation under way has another mean and end than what the whole recording makes of it."""
    drift = recorded(np.arange(60) / 100, np.column_stack([0.5 + np.arange(60) * 4e-4, np.full(60, 0.5)]))
    online = OnlineFixations(drift.frame_size)
    online.push(drift)
    assert_same(online.until(0.3), detect_fixations(until(drift, 0.3)))
    assert not np.array_equal(online.until(0.3).table, detect_fixations(drift).clip(0, 0.3).table)
    with pytest.raises(AssertionError):
        assert_same(online.until(0.3), detect_fixations(until(drift, 0.29)))


def test_samples_before_the_video_and_lost_ones_are_no_positions():
    times, xy = np.arange(-10, 40) / 100, np.full((50, 2), 0.5)
    xy[30:] = 1.5
    tracked = np.arange(50) != 20
    samples = recorded(times, xy, tracked)
    online = OnlineFixations(samples.frame_size)
    for index in range(50):
        pushed(online, samples, index, index + 1)
    assert_same(online.until(0.4), detect_fixations(samples))
    assert len(online.until(0.4)) == 1


def test_what_comes_too_late_counts_from_the_next_time_on():
    samples = steady(60)
    online = OnlineFixations(samples.frame_size)
    pushed(online, samples, 0, 20)
    assert online.until(0.3).end_s[0] == pytest.approx(0.19)
    pushed(online, samples, 20, 60)
    assert online.late == 11  # at 0.20 to 0.30 s
    assert_same(online.until(0.5), detect_fixations(until(samples, 0.5)))


def test_times_that_cannot_be_are_refused_and_nothing_of_the_push_is_taken():
    online = OnlineFixations((1000, 500), source="glasses")
    online.push(steady(10))
    with pytest.raises(ValueError, match=r"glasses, sample 10: time 0.050000 s follows the one before at 0.090000 s"):
        online.push(recorded([0.05, 0.1], [[0.5, 0.5]] * 2))
    with pytest.raises(ValueError, match=r"glasses, sample 11: time 9000.0.* expected at most 3600 s later"):
        online.push(recorded([0.1, 9000.0], [[0.5, 0.5]] * 2))
    assert online.samples == 10
    online.push(steady(20).keep(np.arange(20) >= 10))
    assert_same(online.until(0.2), detect_fixations(steady(20)))
    with pytest.raises(ValueError, match="asked until 0.1 s after 0.2 s"):
        online.until(0.1)
    with pytest.raises(ValueError, match="asked until nan s"):
        online.until(float("nan"))


def test_a_clock_of_its_own_is_refused_at_the_first_sample():
    with pytest.raises(ValueError, match="sample 0: time 86400.0.* follows 0.000000 s"):
        OnlineFixations((1000, 500)).push(recorded([86400.0], [[0.5, 0.5]]))
    joined = OnlineFixations((1000, 500))
    joined.until(86000.0)
    joined.push(recorded([86400.0], [[0.5, 0.5]]))
    assert joined.samples == 1


def test_the_frame_is_one_and_its_aspect_known():
    online = OnlineFixations()
    with pytest.raises(ValueError, match="aspect is unknown"):
        online.until(0.0)
    online.push(steady(20))
    assert online.frame_size == (1000, 500) and len(online.until(1.0)) == 1
    with pytest.raises(ValueError, match=r"sample 20: the frame is \(640, 480\) pixels, expected \(1000, 500\)"):
        online.push(recorded([1.0], [[0.5, 0.5]], frame_size=(640, 480)))
    with pytest.raises(ValueError, match="max_gap_s is 0"):
        OnlineFixations(max_gap_s=0)


def test_a_long_fixation_and_a_long_stream_take_no_longer_per_sample():
    """A stare, then noise: nothing but a window is kept, and a step late in the stream costs what an early one did."""
    rng = np.random.default_rng(0)
    xy = np.concatenate([np.full((6000, 2), 0.5) + rng.normal(0, 1e-4, (6000, 2)), rng.random((6000, 2))])
    samples = recorded(np.arange(12000) / 200, xy)
    online = OnlineFixations(samples.frame_size)
    took = []
    for first in range(0, 12000, 100):
        begin = time.process_time()
        pushed(online, samples, first, first + 100)
        online.until(samples.times_s[first + 99])
        took.append(time.process_time() - begin)
        assert len(online._times) <= 21
    assert_same(online.until(100.0), detect_fixations(samples))
    assert np.median(took[50:60]) < 5 * np.median(took[:10])
