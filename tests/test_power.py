"""The note on power: it holds the committed result, says no more than that, and its simulation is what it says."""

import json

import numpy as np
import pytest

from gazeqwen.benchmarks import power
from gazeqwen.utils.tables import fill

RESULT = json.loads(power.OUTPUT.read_text())


def row(**wanted) -> dict:
    (found,) = power.select(RESULT, **{"scenario": power.DEFAULT, "seeds": 1, "seed_sd": 0.0} | wanted)
    return found


def test_the_document_holds_the_committed_result():
    document = power.DOCUMENT.read_text()
    assert fill(document, power.tables(RESULT)) == document
    assert RESULT["settings"]["questions"] == power.QUESTIONS and sum(power.QUESTIONS.values()) == 8521


def test_sentences_of_the_document_say_what_the_result_says():
    test, every = power.TEST_VIDEOS, power.ALL_VIDEOS
    shares = [round(power.QUESTIONS[task] * test / every) for task in ("past_gaze_sequence_matching",)]
    shares.append(round(power.QUESTIONS["proactive_object_appearance_alert"] * test / every))
    assert shares == [29, 288]
    assert row(videos=test, gain=0.0)["differ_by_1.5"] > 0.5  # "more often than not"
    assert row(videos=test, gain=0.0)["half_width"] > 3 * 0.015  # "several times as wide"
    assert row(videos=test, gain=0.03)["different"] < 0.5  # "would mostly go unseen"
    assert 0.012 < row(videos=every, gain=0.0)["half_width"] < 0.03  # "about the size of such a difference"
    assert 2 * row(videos=test, gain=0.0)["half_width"] < 0.639 - 0.478  # "far outside"
    independent, clustered = (
        row(scenario=f"alike, {name}", videos=every, gain=0.03) for name in ("independent", "clustered")
    )
    assert independent["half_width"] < row(videos=every, gain=0.03)["half_width"] < clustered["half_width"]


def test_more_videos_tell_more_in_every_scenario():
    for scenario in power.SCENARIOS:
        rows = [row(scenario=scenario, videos=videos, gain=0.03) for videos in power.VIDEOS]
        widths, told = [one["half_width"] for one in rows], [one["first_better"] for one in rows]
        assert widths == sorted(widths, reverse=True) and told[0] < told[-1]


@pytest.mark.parametrize("scenario", list(power.SCENARIOS))
def test_simulated_rows_have_the_published_accuracies_the_gain_and_the_agreement(scenario):
    parts = power.SCENARIOS[scenario]
    (first, total), (second, _) = power.simulate(np.random.default_rng(1), 6000, parts, 0.03, 2, 0.0)
    accuracies = [(right.sum((0, 1)) / total.sum((0, 1))) for right in (first, second)]
    assert accuracies[1] == pytest.approx(power.published_accuracies(), abs=0.02)
    assert (accuracies[0] - accuracies[1]).mean() == pytest.approx(0.03, abs=0.01)
    assert second[0].sum() != second[1].sum()  # another seed errs elsewhere


def test_agreement_is_that_of_single_questions():
    """Where each video has one question of a task, counts are answers."""
    draw, found = np.random.default_rng(0), []
    (first, total), (second, _) = power.simulate(draw, 20000, (0.5, 0.05), 0.0, 1, 0.0)
    for task in range(10):
        single = total[0][:, task] == 1
        found.append((first[0][single, task] == second[0][single, task]).mean())
    weights = np.array(list(power.QUESTIONS.values()))
    assert found @ weights / weights.sum() == pytest.approx(power.agreement_of((0.5, 0.05)), abs=0.015)
    assert power.agreement_of((0.8, 0.05)) > power.agreement_of((0.5, 0.05)) + 0.05
