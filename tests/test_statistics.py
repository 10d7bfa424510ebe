"""Intervals over seeds and videos: how often they hold the truth, and against other computations."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from gazeqwen.evaluation.scoring import GradedAnswer, score
from gazeqwen.evaluation.statistics import (
    intervals,
    intervals_over_seeds,
    paired_difference,
    paired_difference_over_seeds,
)

RECALL, FAP, ALERT = "past_scene_recall", "present_future_action_prediction", "proactive_gaze_triggered_alert"


def run(right: np.ndarray, task: str = RECALL) -> list[GradedAnswer]:
    """A run from (videos, questions) of what was answered right."""
    return [
        GradedAnswer(f"{task} {video} {number}", f"v{video}", task, 0, 2, logits=[1.0, 0.0] if one else [0.0, 1.0])
        for video, row in enumerate(right)
        for number, one in enumerate(row)
    ]


def pooled(runs: list[list[GradedAnswer]]) -> list[GradedAnswer]:
    """All seeds' answers as if they were one run's."""
    return [dataclasses.replace(one, key=f"{seed} {one.key}") for seed, items in enumerate(runs) for one in items]


def simulated_runs(draw, seeds: int, videos: int, of_seeds: float, of_videos: float, mean: float = 0.6) -> list:
    """Runs whose questions are right with a probability that depends on the seed and on the video, normally."""
    chance = mean + of_seeds * draw.normal(size=(seeds, 1, 1)) + of_videos * draw.normal(size=(1, videos, 1))
    return [run(right) for right in draw.random((seeds, videos, 3)) < chance]


# ------------------------------------------------------------------ how often they hold the truth
@pytest.mark.parametrize("seeds, of_seeds", [(3, 0.1), (5, 0.03), (3, 0.0)])
def test_intervals_hold_the_truth_as_often_as_they_say(seeds, of_seeds):
    """
    100 experiments with hard and easy videos and good and bad seeds. The old way, all seeds' answers as one run, fails
    as soon as seeds differ.
    """
    draw, held, held_pooled, count = np.random.default_rng(seeds), 0, 0, 100
    for _ in range(count):
        runs = simulated_runs(draw, seeds, 20, of_seeds, 0.1)
        low, high = intervals_over_seeds(runs, resamples=300)["micro"]
        held += low <= 0.6 <= high
        low, high = intervals(pooled(runs), resamples=300)["micro"]
        held_pooled += low <= 0.6 <= high
    assert held / count >= 0.9  # of 95 %; the standard error is 2 points
    if of_seeds == 0.1:
        assert held_pooled / count < 0.8
    if of_seeds == 0:
        assert held_pooled / count >= 0.88  # where seeds do not differ, the old way was right


def test_intervals_of_differences_hold_the_truth_where_rows_share_seeds_and_videos():
    draw, held, held_pooled, count = np.random.default_rng(0), 0, 0, 100
    for _ in range(count):
        first = simulated_runs(draw, 3, 20, 0.08, 0.1)
        second = simulated_runs(draw, 3, 20, 0.08, 0.1)
        low, high = paired_difference_over_seeds(first, second, resamples=300)["intervals"]["micro"]
        held += low <= 0 <= high
        low, high = paired_difference(pooled(first), pooled(second), resamples=300)["intervals"]["micro"]
        held_pooled += low <= 0 <= high
    assert held / count >= 0.9 and held_pooled / count < 0.85


def test_what_never_varies_is_held_too():
    """One video in 20 is all wrong. Of experiments with 10 videos most see none, and say 100 %."""
    draw, held, seen = np.random.default_rng(1), 0, 0
    for _ in range(200):
        right = np.repeat(draw.random((10, 1)) < 0.95, 4, axis=1)
        low, high = intervals(run(right), resamples=200)["micro"]
        held += low <= 0.95 <= high
        seen += right.all()
    assert seen > 100  # whose bootstrap alone is [1, 1]
    assert held / 200 >= 0.95


# ------------------------------------------------------------------ against other computations
def test_the_spread_over_seeds_and_videos_is_that_of_two_way_analysis():
    """The variance of the draws is s^2 / S of the seeds' means, and that of the videos' means, drawn by scipy."""
    draw = np.random.default_rng(2)
    runs = simulated_runs(draw, 12, 40, 0.05, 0.1)
    means = np.array([[one.choice == 0 for one in items] for items in runs]).reshape(12, 40, 3).mean(2)
    of_videos = stats.bootstrap((means.mean(0),), np.mean, n_resamples=20000, method="percentile", rng=0)
    of_seeds = stats.t(11, scale=means.mean(1).std(ddof=1) / np.sqrt(12)).rvs(20000, random_state=1)
    sums = np.quantile(of_videos.bootstrap_distribution + of_seeds, [0.025, 0.975])
    assert intervals_over_seeds(runs, resamples=20000)["micro"] == pytest.approx(sums, abs=0.004)
    (low, high), (narrow_low, narrow_high) = sums, of_videos.confidence_interval
    assert high - low > 1.15 * (narrow_high - narrow_low)  # so that the seeds' part is seen at all


def test_golden_numbers_of_three_seeds():
    """Two videos, both alike, so that the seeds' means .5, .75, 1 alone matter: Student's interval, 2 degrees."""
    runs = [run(np.tile([True] * right + [False] * (4 - right), (2, 1))) for right in (2, 3, 4)]
    low, high = intervals_over_seeds(runs, resamples=200_000)["micro"]
    by_hand = 0.75 - 4.302653 * 0.25 / 3**0.5
    assert low == pytest.approx(by_hand, abs=0.01) and high == 1.0  # 1.37, but there is nothing above 1
    differences = paired_difference_over_seeds(runs, [runs[1]], resamples=200_000)
    assert differences["micro"] == 0 and differences["intervals"]["seeds"] == 3
    assert differences["intervals"]["micro"] == pytest.approx([by_hand - 0.75, 0.75 - by_hand], abs=0.01)


@pytest.mark.parametrize("videos", [2, 10, 100])
def test_all_right_and_all_wrong_are_clopper_and_pearsons_of_videos(videos):
    exact = stats.binomtest(videos, videos).proportion_ci(0.95, "exact")
    right, wrong = run(np.ones((videos, 3), bool)), run(np.zeros((videos, 3), bool))
    assert intervals(right, resamples=20)["micro"] == pytest.approx([exact.low, 1])
    assert intervals(wrong, resamples=20)["micro"] == pytest.approx([0, 1 - exact.low])
    assert intervals_over_seeds([right] * 3, resamples=20)["micro"] == pytest.approx([exact.low, 1])
    same = paired_difference(right, right, resamples=20)["intervals"]["micro"]
    assert same == pytest.approx([exact.low - 1, 1 - exact.low])
    opposite = paired_difference(right, wrong, resamples=20)["intervals"]["micro"]
    assert opposite == pytest.approx([2 * exact.low - 1, 1])


def test_one_seed_is_the_bootstrap_of_videos():
    draw = np.random.default_rng(3)
    (first,), (second,) = simulated_runs(draw, 1, 10, 0, 0.2), simulated_runs(draw, 1, 10, 0, 0.2)
    assert intervals_over_seeds([first], resamples=100) == intervals(first, resamples=100)
    assert paired_difference_over_seeds([first], [second], resamples=100) == paired_difference(
        first, second, resamples=100
    )


# ------------------------------------------------------------------ what always holds
RUNS = st.integers(1, 4).flatmap(
    lambda seeds: st.lists(
        st.tuples(
            st.sampled_from([RECALL, FAP, ALERT]),
            st.sampled_from("vwxyz"),
            st.lists(st.booleans(), min_size=seeds, max_size=seeds),
        ),
        min_size=2,
        max_size=20,
    )
)


def built(rows) -> list[list[GradedAnswer]]:
    return [
        [
            GradedAnswer(str(number), video, task, 0, 2, logits=[float(right[seed]), 0.5])
            for number, (task, video, right) in enumerate(rows)
        ]
        for seed in range(len(rows[0][2]))
    ]


@settings(max_examples=60, deadline=None)
@given(RUNS, st.randoms())
def test_intervals_are_in_order_within_bounds_and_the_same_in_any_order_of_questions(rows, random):
    runs = built(rows)
    found = intervals_over_seeds(runs, resamples=60)
    for name in ("macro", "micro"):
        if found[name] is not None:
            low, high = found[name]
            assert 0 <= low < high <= 1
    mixed = [random.sample(items, len(items)) for items in runs]
    assert intervals_over_seeds(mixed, resamples=60) == found
    again = paired_difference_over_seeds(runs, mixed[:1], resamples=60)
    assert again["micro"] == pytest.approx(
        np.mean([score(items)["micro"] for items in runs]) - score(runs[0])["micro"]
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 5), st.integers(5, 15), st.integers(0, 1000))
def test_intervals_contain_the_mean_and_widen_with_confidence(seeds, videos, number):
    runs = simulated_runs(np.random.default_rng(number), seeds, videos, 0.1, 0.2)
    mean = np.mean([score(items)["micro"] for items in runs])
    (low, high), (lower, higher) = (
        intervals_over_seeds(runs, confidence=confidence, resamples=400)["micro"] for confidence in (0.8, 0.99)
    )
    assert lower <= low <= mean <= high <= higher


def test_runs_of_other_questions_or_numbers_of_seeds_are_refused():
    runs = simulated_runs(np.random.default_rng(0), 3, 4, 0.1, 0.1)
    with pytest.raises(ValueError, match="12 and 9, of which 3 and 0 are not in the other"):
        intervals_over_seeds([runs[0], runs[1][3:]])
    with pytest.raises(ValueError, match="got 3 and 2 seeds, expected as many in both, or one beside several"):
        paired_difference_over_seeds(runs, runs[:2])
    with pytest.raises(ValueError, match="no runs, expected one for each seed"):
        intervals_over_seeds([])
