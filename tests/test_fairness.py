"""What can be answered in the kitchen without putting gaze and video together: nothing that asks about gaze."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from gazeqwen.toyworld.fairness import PAGE, RESULTS, accuracy, make_questions, scanpath_features, table
from gazeqwen.toyworld.questions import EASY, FAP, GTA, NFI, clip_of
from gazeqwen.utils.tables import fill

READERS = ("text", "scanpath", "video")


@pytest.fixture(scope="module")
def questions() -> dict:
    return make_questions("kitchen", seed=4, videos=250)


def at_chance(of: dict) -> bool:
    """The answers are what guessing gives in all but one of a thousand cases."""
    return binomtest(of["right"], of["asked"], of["chance"]).pvalue > 1e-3


@pytest.mark.parametrize("reader", READERS)
def test_nobody_answers_without_both(questions, reader):
    for task in (EASY, NFI, GTA):
        of = accuracy(questions[task], task, reader)
        assert of["asked"] >= 100 and at_chance(of), (task, of)


def test_a_video_that_tells_is_found_out(questions):
    """Positive control: answers that are the leftmost or the uppermost of the options."""

    def leans(recording, q) -> bool:
        places = {thing.noun: thing.position_px(q.time_s) for thing in recording.scene.objects}
        return any(q.answer == min(q.options, key=lambda noun: places[noun][axis]) for axis in (0, 1))

    biased = [item for item in questions[EASY] if leans(*item[1:])]
    assert not at_chance(accuracy(biased, EASY, "video"))
    assert at_chance(accuracy(biased, EASY, "text"))


def test_a_scanpath_that_tells_is_found_out(questions):
    """Positive control: alerts that are due where gaze had rested for long before, as often as not."""
    asked = questions[GTA]
    rested = [
        [scanpath_features(recording, clip_of(recording, GTA, time_s), -1)[6] for time_s, _ in q.points]
        for _, recording, q in asked
    ]
    middle, biased = np.median(np.concatenate(rested)), []
    for (name, recording, q), spent in zip(asked, rested, strict=True):
        points = [(time_s, bool(s > middle)) for (time_s, _), s in zip(q.points, spent, strict=True)]
        biased.append((name, recording, replace(q, points=points)))
    assert not at_chance(accuracy(biased, GTA, "scanpath"))


def test_a_text_that_tells_is_found_out(questions):
    """Positive control: options that are listed as the question names them, but for the answer."""
    biased = []
    for name, recording, q in questions[NFI]:
        named = q.question[q.question.index("{") + 1 : q.question.index("}")].split(", ")
        others = [noun for noun in named if noun != q.answer]
        others.insert(q.options.index(q.answer), q.answer)
        biased.append((name, recording, replace(q, options=others)))
    assert not at_chance(accuracy(biased, NFI, "text"))


def test_the_first_worlds_action_is_found_out():
    """Positive control from life: there objects are named as they were looked at, and dwell lengths answer."""
    asked = make_questions("shapes", seed=4, videos=150)[FAP]
    assert not at_chance(accuracy(asked, FAP, "scanpath"))


def test_alerts_are_due_as_often_as_not(questions):
    due = [due for _, _, q in questions[GTA] for _, due in q.points]
    assert len(due) >= 100 and abs(np.mean(due) - 0.5) < 0.02


def test_the_committed_measurement_is_at_chance():
    """To 3 points: of 24 accuracies of thousands of answers some lie outside their interval."""
    tasks = json.loads(RESULTS.read_text())["tasks"]
    about_gaze = {task: of for task, of in tasks.items() if not of["about_the_scene"]}
    assert len(about_gaze) == 8
    for task, of in about_gaze.items():
        for reader in READERS:
            assert of[reader]["asked"] >= 1000 and of[reader]["accuracy"] < of[reader]["chance"] + 0.03, (task, reader)
    assert tasks["past_scene_recall"]["video"]["accuracy"] > 0.9  # the readers can read


def test_the_page_holds_the_committed_measurement():
    page, tasks = PAGE.read_text(), json.loads(RESULTS.read_text())["tasks"]
    assert fill(page, {"fairness": table(tasks)}) == page
