"""How central gaze is: numbers by hand, and what must hold of any scanpath."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gazeqwen.questions.centrality import EVEN_PLACES, UNITS, centrality, centrality_of_questions
from gazeqwen.questions.question import Question
from gazeqwen.scanpath_gazeqwen import Scanpath

SCANPATHS = st.lists(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 60)), max_size=6), min_size=1, max_size=4
)


def scanpath(*fixations: tuple[float, float, float]) -> Scanpath:
    """Fixations one after the other, of x, y and duration."""
    ends = np.cumsum([duration for *_, duration in fixations])
    rows = [[x, y, end - d / 2, d] for (x, y, d), end in zip(fixations, ends, strict=True)]
    return Scanpath.from_array(np.reshape(rows, (-1, 4)))


def test_numbers_by_hand():
    # 1 s in the middle, 3 s at a distance of .5 (.3 to the right, .4 down), 1 s at .15 (up).
    found = centrality([scanpath((0.5, 0.5, 1.0), (0.8, 0.9, 3.0)), scanpath((0.5, 0.35, 1.0))])
    assert found == pytest.approx(
        {"mean_distance": (0 + 3 * 0.5 + 0.15) / 5, "within_0.1": 1 / 5, "within_0.2": 2 / 5, "fixation_s": 5.0}
    )


def test_a_place_at_the_limit_is_within():
    for place in ((0.6, 0.5), (0.4, 0.5), (0.5, 0.6), (0.5, 0.4), (0.56, 0.58)):
        assert centrality([scanpath((*place, 1.0))])["within_0.1"] == 1, place
    assert centrality([scanpath((0.601, 0.5, 1.0))])["within_0.1"] == 0


def test_without_fixation_there_is_nothing_to_say():
    assert centrality([]) is None and centrality([scanpath(), scanpath()]) is None
    assert centrality([scanpath(), scanpath((0.5, 0.5, 2.0))])["fixation_s"] == 2.0


def test_even_places_are_what_they_are_said_to_be():
    places = np.random.default_rng(0).random((20000, 2))
    found = centrality([scanpath(*((x, y, 1.0) for x, y in places))])
    for name, value in EVEN_PLACES.items():
        assert found[name] == pytest.approx(value, abs=0.006), name
    assert "would give 0.38, and 3 and 13 % of the time within .1 and .2" in UNITS


@given(SCANPATHS)
def test_distances_are_bounded_and_shares_grow_with_the_radius(rows):
    found = centrality([scanpath(*fixations) for fixations in rows])
    if not any(rows):
        assert found is None
        return
    assert 0 <= found["mean_distance"] <= np.sqrt(0.5) + 1e-9
    assert 0 <= found["within_0.1"] <= found["within_0.2"] <= 1 + 1e-9
    # Markov's inequality, in both directions: shares and mean speak of the same distances.
    assert found["mean_distance"] >= 0.2 * (1 - found["within_0.2"]) - 1e-9
    assert found["mean_distance"] <= 0.2 * found["within_0.2"] + np.sqrt(0.5) * (1 - found["within_0.2"]) + 1e-9


@given(SCANPATHS, st.floats(0.1, 10))
def test_sides_order_and_unit_of_time_do_not_matter(rows, factor):
    found = centrality([scanpath(*fixations) for fixations in rows])
    mirrored = [[(1 - y, x, factor * d) for x, y, d in fixations] for fixations in rows]
    # Only to rounding, which decides at a limit: the mean, that is, not the shares.
    other = centrality([scanpath(*fixations) for fixations in mirrored[::-1]])
    if found is not None:
        assert other["mean_distance"] == pytest.approx(found["mean_distance"], abs=1e-9)
        assert other["fixation_s"] == pytest.approx(factor * found["fixation_s"])


@given(SCANPATHS)
def test_a_fixation_cut_in_two_counts_as_before(rows):
    halves = [[half for x, y, d in fixations for half in ((x, y, d / 2),) * 2] for fixations in rows]
    found, cut = (centrality([scanpath(*fixations) for fixations in each]) for each in (rows, halves))
    assert cut == (None if found is None else pytest.approx(found))


def test_of_questions_the_gaze_of_each_clip_counts():
    """Cut where the clip is; one without gaze says nothing; a fixation of two clips counts twice."""
    path = Scanpath.from_array([[0.5, 0.5, 2.0, 4.0], [0.5, 0.9, 6.0, 4.0]])  # to 4 s, from 4 to 8 s

    def asked(start_s: float, end_s: float, given: Scanpath | None = path) -> Question:
        return Question(Path("a"), "a", given, "past_scene_recall", "Which?", ("a", "b"), 0, start_s, end_s)

    found = centrality_of_questions([asked(3.0, 5.0), asked(0.0, 6.0), asked(0.0, 6.0, None)])
    assert (found["fixation_s"], found["mean_distance"]) == (pytest.approx(8.0), pytest.approx(0.4 * 3 / 8))
    assert centrality_of_questions([asked(0.0, 6.0, None)]) is None
