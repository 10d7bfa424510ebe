"""Whose gaze is given, and how: conditions, moved and noisy scanpaths, gaze drawn on frames and told in words."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gazeqwen.pipeline.conditions import Condition, assign_scanpaths, moved, moved_around, noisy
from gazeqwen.pipeline.overlays import draw_gaze, gaze_in_words
from gazeqwen.questions.question import Question
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.toyworld.world import Highlight, Scene, WorldObject, draw_frame
from gazeqwen.video_gazeqwen import Clip


# ---------------------------------------------------------------- conditions
@pytest.mark.parametrize(
    ("name", "channels", "source"),
    [
        ("gaze", {"model"}, "own"),
        ("model", {"model"}, "own"),
        ("none", set(), "own"),
        ("shuffled", {"model"}, "shuffled"),
        ("zero", {"model"}, "zero"),
        ("overlay", {"overlay"}, "own"),
        ("overlay+shuffled", {"overlay"}, "shuffled"),
        ("ring+shuffled+model", {"ring", "model"}, "shuffled"),
        ("model+text+shifted", {"model", "text"}, "shifted"),
        ("centre", {"model"}, "centre"),
        ("ring+centre", {"ring"}, "centre"),
        ("random_place+text", {"text"}, "random_place"),
        ("overlay+permuted_times+model", {"overlay", "model"}, "permuted_times"),
        ("text_only", set(), "own"),
    ],
)
def test_conditions_are_words(name, channels, source):
    condition = Condition.parse(name)
    assert (condition.channels, condition.source, condition.name) == (channels, source, name)
    assert condition.text_only == (name == "text_only") and condition.draws == bool(channels & {"overlay", "ring"})


@pytest.mark.parametrize(
    "name",
    [
        *("", "gase", "none+overlay", "shuffled+zero", "overlay+overlay", "text_only+gaze"),
        *("center", "centre+shuffled", "random_place+permuted_times", "none+centre"),
    ],
)
def test_other_words_are_refused(name):
    with pytest.raises(ValueError, match="condition"):
        Condition.parse(name)


def asked(video: str, end_s: float, rows, task: str = "past_scene_recall", start_s: float = 0.0) -> Question:
    scanpath = None if rows is None else Scanpath.from_array(rows)
    return Question(Path(video), video, scanpath, task, "Which?", ("a", "b"), 0, start_s, end_s)


def test_shuffled_gaze_is_that_of_another_question_of_the_task_at_the_same_distance_from_the_query():
    questions = [
        asked("a", 10.0, [[0.1, 0.1, 9.0, 1.0]]),
        asked("b", 30.0, [[0.2, 0.2, 5.0, 1.0], [0.3, 0.3, 28.5, 2.0]]),
        asked("c", 20.0, [[0.4, 0.4, 19.0, 1.0]], "present_future_action_prediction"),
        asked("a", 12.0, [[0.1, 0.1, 9.0, 1.0]]),
    ]
    given = assign_scanpaths(Condition.parse("shuffled"), questions)
    assert [name for name, _ in given] == ["b", "a", given[2][0], "b"] and given[2][0] in ("a", "b")
    moved = given[0][1]  # 20 s earlier; what would lie before the beginning is gone
    assert moved.table.tolist() == [[0.3, 0.3, 8.5, 2.0]] and moved.ids.tolist() == [1]
    assert assign_scanpaths(Condition.parse("shuffled"), questions, 0)[0][0] == "b"
    with pytest.raises(ValueError, match="at least 2 videos, got 1"):
        assign_scanpaths(Condition.parse("shuffled"), [questions[0], questions[3]])


def test_zero_gaze_is_empty_and_none_is_none():
    questions = [asked("a", 10.0, [[0.1, 0.1, 9.0, 1.0]]), asked("b", 10.0, None)]
    (first, empty), (second, nothing) = assign_scanpaths(Condition.parse("zero"), questions)
    assert (first, len(empty), second, nothing) == ("a", 0, None, None)
    assert assign_scanpaths(Condition.parse("none"), questions) == [(None, None)] * 2
    assert assign_scanpaths(Condition.parse("overlay"), questions)[0] == ("a", questions[0].scanpath)


@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0.1, 6)), max_size=6), st.floats(0, 10), st.floats(1.0, 10.0))
def test_shifted_gaze_keeps_its_time_and_moves_by_half_the_clip(rows, start_s, length_s):
    ends = np.cumsum([gap + duration for gap, duration in rows])
    table = [(0.1 * i, 0.5, end - d / 2, d) for i, ((_, d), end) in enumerate(zip(rows, ends, strict=True))]
    scanpath, end_s = Scanpath.from_array(table), start_s + length_s
    inside, moved = scanpath.clip(start_s, end_s), moved_around(scanpath, start_s, end_s)
    assert moved.table[:, 3].sum() == pytest.approx(inside.table[:, 3].sum(), abs=1e-4)
    assert (moved.begin_s >= start_s - 1e-9).all() and (moved.end_s <= end_s + 1e-9).all()
    twice = moved_around(moved, start_s, end_s)
    for place in set(inside.table[:, 0].tolist()):
        where = [(path.table[:, 2] * path.table[:, 3])[path.table[:, 0] == place].sum() for path in (inside, twice)]
        assert where[0] == pytest.approx(where[1], abs=1e-3)


def test_drawn_gaze_is_at_its_place_and_time():
    frames = np.full((4, 120, 200, 3), 128, np.uint8)
    clip = Clip(frames, [0.0, 1.2, 2.0, 3.0], 0.0, 4.0)
    scanpath = Scanpath.from_array([[0.25, 0.5, 1.5, 1.0], [0.75, 0.5, 3.2, 0.8]])
    drawn = draw_gaze(clip, scanpath, {"overlay"}).frames
    assert (clip.frames == 128).all() and (drawn[0] == 128).all() and (drawn[2] == 128).all()
    for frame, x in ((drawn[1], 50), (drawn[3], 150)):
        green = np.argwhere((frame == (0, 255, 0)).all(-1))
        assert len(green) and abs(green[:, 1].mean() - x) <= 1 and abs(green[:, 0].mean() - 60) <= 1
        red = np.argwhere((frame == (255, 0, 0)).all(-1))
        assert np.hypot(red[:, 1] - x, red[:, 0] - 60) == pytest.approx(0.156 * 200, abs=2.0)
    heat = draw_gaze(clip, scanpath, {"saliency"}).frames.astype(int)
    changed = np.abs(heat - 128).sum(-1)
    assert changed[0].max() == 0 and changed[1, 60, 50] > 100 > changed[1, 60, 120]  # nothing before
    assert changed[3, 60, 50] > 50 and changed[3, 60, 100] < changed[3, 60, 50]


def test_the_plain_ring_is_at_its_place_while_its_fixation_lasts():
    """On frames wider than high: the ring is measured in frame widths, and stays round."""
    frames = np.full((5, 90, 224, 3), 60, np.uint8)
    clip = Clip(frames, [0.0, 1.0, 1.9, 2.0, 3.5], 0.0, 4.0)
    scanpath = Scanpath.from_array([[0.25, 0.6, 1.5, 1.0], [0.75, 0.4, 3.75, 0.5]])  # from 1 to 2 s, from 3.5 to 4 s
    drawn = draw_gaze(clip, scanpath, {"ring"}).frames
    rows, columns = np.mgrid[:90, :224] + 0.5
    for time_s, frame, place in zip(
        clip.timestamps_s, drawn, [None, (56, 54), (56, 54), None, (168, 36)], strict=True
    ):
        if place is None:  # before the first fixation, and between the two
            assert (frame == 60).all(), time_s
            continue
        distance = np.hypot(columns - place[0], rows - place[1])
        on_the_line = abs(distance - 26) < 1.4  # 13 and 2 pixels of 112 are 26 and 4 of 224
        assert (frame[on_the_line] == 255).all() and on_the_line.sum() > 300, time_s
        assert (frame[abs(distance - 26) > 2.6] == 60).all(), time_s
    assert (clip.frames == 60).all()


def test_a_cross_lies_over_the_fixation_under_way_on_each_frame():
    clip = Clip(np.full((3, 90, 224, 3), 60, np.uint8), [0.5, 1.5, 2.5], 0.0, 3.0)
    drawn = draw_gaze(clip, Scanpath.from_array([[0.25, 0.6, 1.5, 0.8]]), {"cross"}).frames
    assert (drawn[[0, 2]] == 60).all() and (clip.frames == 60).all()
    rows, columns = np.mgrid[:90, :224] + 0.5
    across, down = abs(columns - 56), abs(rows - 54)
    near, far = np.minimum(across, down), np.maximum(across, down)
    on_a_line = (near < 1.6) & (far < 25)  # 13 and 2 pixels of 112 are 26 and 4 of 224
    assert on_a_line.sum() > 150 and (drawn[1][on_a_line] == 255).all()
    assert (drawn[1][(near > 2.6) | (far > 27)] == 60).all()


def test_the_plain_ring_is_the_mark_that_the_toy_backbone_was_pretrained_on():
    """Drawn at an object's centre it is, to a tenth of the contrast, what the toy world draws around that object."""
    thing = WorldObject("red", "cross", ((0.0, 40.0, 62.0),))
    scene = Scene(4.0, (thing,), (70.0, 70.0, 70.0))
    clip = Clip(draw_frame(scene, 0.0)[None], [0.0], 0.0, 1.0)
    ring = draw_gaze(clip, Scanpath.from_array([[40 / 112, 62 / 112, 0.5, 1.0]]), {"ring"}).frames[0]
    difference = abs(ring.astype(int) - draw_frame(scene, 0.0, [(0, Highlight())]))
    assert difference.max() <= 0.1 * 255 and abs(ring.astype(int) - clip.frames[0]).max() > 180


def test_permuted_options_keep_the_question_and_its_answer():
    question = Question(Path("a"), "a", None, "past_scene_recall", "Which?", ("w", "x", "y", "z"), 2, 0.0, 9.0)
    for by in (1, 2, 3):
        permuted = question.permuted(by)
        assert permuted.options[permuted.answer] == "y" and permuted.key == question.key
        assert (
            [question.options[place] for place in permuted.order] == list(permuted.options) != list(question.options)
        )


def test_the_options_move_on_by_so_many_places_and_the_last_come_first():
    question = Question(Path("a"), "a", None, "past_scene_recall", "Which?", ("w", "x", "y", "z"), 2, 0.0, 9.0)
    once = question.permuted(1)
    assert (once.options, once.answer, once.order) == (("z", "w", "x", "y"), 3, (3, 0, 1, 2))
    assert question.permuted(3).options == ("x", "y", "z", "w")


# ---------------------------------------------------------------- moved and noisy
def test_a_moved_scanpath_is_later_by_so_many_seconds_and_cut_at_zero():
    scanpath = Scanpath.from_array([[0.1, 0.2, 0.5, 1.0], [0.3, 0.4, 3.0, 2.0], [0.5, 0.6, 9.0, 1.0]])
    later, earlier = moved(scanpath, 2.0), moved(scanpath, -3.0)
    assert later.table.tolist() == [[0.1, 0.2, 2.5, 1.0], [0.3, 0.4, 5.0, 2.0], [0.5, 0.6, 11.0, 1.0]]
    assert earlier.table.tolist() == [[0.3, 0.4, 0.5, 1.0], [0.5, 0.6, 6.0, 1.0]] and earlier.ids.tolist() == [1, 2]


def test_shuffled_gaze_is_late_by_as_much_as_its_question_is():
    questions = [asked("a", 30.0, [[0.1, 0.1, 29.0, 1.0]]), asked("b", 10.0, [[0.2, 0.2, 9.0, 1.0]])]
    (_, later), (_, earlier) = assign_scanpaths(Condition.parse("shuffled"), questions)
    assert later.table.tolist() == [[0.2, 0.2, 29.0, 1.0]] and earlier.table.tolist() == [[0.1, 0.1, 9.0, 1.0]]


def test_shuffled_gaze_is_drawn_by_the_seed():
    questions = [asked(f"{n}", 10.0, [[n / 20, 0.5, 9.0, 1.0]]) for n in range(20)]
    first, again, other = (
        [name for name, _ in assign_scanpaths(Condition.parse("shuffled"), questions, seed)] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_shifted_gaze_is_half_a_clip_later():
    """Of a clip from 10 to 18 s: 4 s later, what would lie behind its end comes first; one fixation is cut in two."""
    rows = [[0.9, 0.5, 9.0, 1.0], [0.1, 0.5, 11.5, 1.0], [0.2, 0.5, 14.0, 2.0], [0.3, 0.5, 16.5, 1.0]]
    table = moved_around(Scanpath.from_array([*rows, [0.9, 0.5, 19.0, 1.0]]), 10.0, 18.0)
    expected = [[0.2, 0.5, 10.5, 1.0], [0.3, 0.5, 12.5, 1.0], [0.1, 0.5, 15.5, 1.0], [0.2, 0.5, 17.5, 1.0]]
    np.testing.assert_allclose(table.table, expected, atol=1e-9)
    assert table.ids.tolist() == [2, 3, 1, 2]


def test_noise_is_another_for_x_than_for_y():
    scanpath = Scanpath.from_array([[0.5, 0.5, 1 + 2 * n, 1.0] for n in range(300)])
    dx, dy = (noisy(scanpath, 0.05, np.random.default_rng(0)).table[:, :2] - 0.5).T
    assert abs(np.corrcoef(dx, dy)[0, 1]) < 0.2 and 0.04 < dx.std() < 0.06 and 0.04 < dy.std() < 0.06


def test_noise_is_the_same_for_a_question_wherever_it_is_asked_and_another_for_each():
    rows = [[0.5, 0.5, 1 + 2 * i, 1.0] for i in range(400)]
    questions = [asked("a", 10.0, rows), asked("a", 12.0, rows), asked("b", 10.0, rows)]
    noise5 = Condition.parse("noise5")
    first, second, third = (scanpath.table for _, scanpath in assign_scanpaths(noise5, questions))
    for one, other in ((first, second), (second, third), (first, third)):
        assert not np.allclose(one[:, :2], other[:, :2], atol=0.01) and (one[:, 2:] == other[:, 2:]).all()
    ((_, alone),) = assign_scanpaths(noise5, [questions[2].permuted(1)])
    assert (alone.table == third).all()
    assert (assign_scanpaths(noise5, questions[::-1])[0][1].table == third).all()
    assert not np.allclose(assign_scanpaths(noise5, questions, seed=1)[2][1].table, third, atol=0.01)
    assert np.abs((third - np.array(rows))[:, :2].std(axis=0) - 0.05).max() < 0.006
    assert (third[:, 2:] == np.array(rows)[:, 2:]).all() and (questions[2].scanpath.table == rows).all()
    wide = assign_scanpaths(Condition.parse("overlay+noise100"), questions)[0][1].table[:, :2]
    assert wide.min() == 0 and wide.max() == 1  # clipped
    moved = assign_scanpaths(Condition.parse("shuffled+noise5"), questions)
    plain = assign_scanpaths(Condition.parse("shuffled"), questions)
    assert [of for of, _ in moved] == [of for of, _ in plain]
    assert 0.04 < (moved[0][1].table - plain[0][1].table)[:, 0].std() < 0.06


def test_noise_is_a_whole_percent():
    assert Condition.parse("overlay+noise10").noise == 0.1 and Condition.parse("noise100").noise == 1.0
    assert Condition.parse("noise7").channels == {"model"} and Condition.parse("gaze").noise == 0
    for name in ("noise", "noise0", "noise05", "noise101", "noise5.5", "noiseN", "noise5+noise6", "none+noise5"):
        with pytest.raises(ValueError, match="condition"):
            Condition.parse(name)


# ---------------------------------------------------------------- another place at the same time
OTHER_PLACES = ("centre", "random_place", "permuted_times")
OI_E = "present_object_identification_easy"  # asks about the fixation that begins at its query


def under(name: str, question: Question, seed: int = 0, **options) -> Scanpath:
    ((video, scanpath),) = assign_scanpaths(Condition.parse(name), [question], seed, **options)
    assert video == question.video_name
    return scanpath


ANYWHERE = st.tuples(st.floats(0, 1), st.floats(0, 1))


@st.composite
def rows_of_fixations(draw, places=ANYWHERE):
    """Rows of fixations one after the other, as trackers give them."""
    steps = draw(st.lists(st.tuples(st.floats(0, 2), st.floats(0.05, 3), places), max_size=8))
    ends = np.cumsum([gap + duration for gap, duration, _ in steps])
    return [[*place, end - duration / 2, duration] for (_, duration, place), end in zip(steps, ends, strict=True)]


@given(rows_of_fixations(), st.floats(0, 8), st.floats(0.5, 12), st.integers(0, 5), st.booleans())
def test_another_place_at_the_same_time(rows, start_s, length_s, seed, snaps):
    """Times, ids and order stay; places lie in the frame, and are those of the control."""
    task = OI_E if snaps else "past_scene_recall"
    question = asked("a", start_s + length_s, rows, task, start_s)
    own, snap_s = question.scanpath, 1.0 if snaps else 0.0
    before = own.table.copy()
    for name in OTHER_PLACES:
        changed = under(name, question, seed, snap_s=snap_s)
        assert np.array_equal(changed.table[:, 2:], own.table[:, 2:]) and np.array_equal(changed.ids, own.ids)
        assert ((changed.table[:, :2] >= 0) & (changed.table[:, :2] <= 1)).all()
        if name == "centre":
            assert (changed.table[:, :2] == 0.5).all()
        elif name == "random_place":
            assert len(np.unique(changed.table[:, :2])) == 2 * len(own)
        else:
            assert sorted(map(tuple, changed.table[:, :2])) == sorted(map(tuple, own.table[:, :2]))
            for parts in ((own, changed), (path.clip(question.start_s, question.end_s) for path in (own, changed))):
                first, second = (sorted(map(tuple, part.table[:, :2])) for part in parts)
                assert first == second or (snaps and len(first) == len(second))  # the snapped one begins later
    assert np.array_equal(own.table, before)


@given(rows_of_fixations(st.sampled_from([(0.1, 0.2), (0.9, 0.2), (0.4, 0.7)])), st.integers(0, 20))
def test_permuted_places_are_in_another_order_wherever_there_is_one(rows, seed):
    question = asked("a", 100.0, rows)
    own, changed = question.scanpath, under("permuted_times", question, seed)
    several = len({tuple(place) for place in own.table[:, :2].tolist()}) > 1
    assert (own.table != changed.table).any() == several


def test_a_single_fixation_keeps_its_place_when_times_are_permuted_and_two_change_places():
    one = asked("a", 10.0, [[0.1, 0.2, 3.0, 1.0], [0.7, 0.8, 30.0, 1.0]])  # the second lies after the query
    assert np.array_equal(under("permuted_times", one).table, one.scanpath.table)
    two = asked("a", 10.0, [[0.1, 0.2, 3.0, 1.0], [0.7, 0.8, 5.0, 2.0]])
    for seed in range(5):
        assert under("permuted_times", two, seed).table.tolist() == [[0.7, 0.8, 3.0, 1.0], [0.1, 0.2, 5.0, 2.0]]
    for name in OTHER_PLACES:
        assert len(under(name, asked("a", 10.0, np.zeros((0, 4))))) == 0  # of none, there is none
        assert assign_scanpaths(Condition.parse(name), [asked("a", 10.0, None)]) == [(None, None)]


def test_every_other_order_is_drawn_as_often():
    places = [(0.1, 0.1), (0.5, 0.5), (0.9, 0.9)]
    question = asked("a", 10.0, [[*place, 1.0 + 2 * i, 1.0] for i, place in enumerate(places)])
    orders = [tuple(under("permuted_times", question, seed).table[:, 0].tolist()) for seed in range(1000)]
    counts = {order: orders.count(order) for order in set(orders)}
    assert len(counts) == 5 and min(counts.values()) > 150  # 200 of each of 3! - 1


def test_places_are_drawn_evenly_in_the_frame():
    question = asked("a", 9000.0, [[0.9, 0.9, 1 + 2 * i, 1.0] for i in range(4000)])
    places = under("random_place", question).table[:, :2]
    for axis in (0, 1):
        counts, _ = np.histogram(places[:, axis], bins=10, range=(0, 1))
        assert counts.min() > 320 and counts.max() < 480
    assert abs(np.corrcoef(places.T)[0, 1]) < 0.05


def test_the_fixation_that_snapping_brings_into_view_is_permuted_and_no_other_that_is_not_seen():
    """It begins after the query: kept at its place, it would tell the answer in spite of the control."""
    rows = [[0.1, 0.5, 3.0, 2.0], [0.2, 0.5, 6.0, 2.0], [0.7, 0.5, 9.4, 2.0], [0.9, 0.5, 12.0, 2.0]]
    question = asked("a", 8.0, rows, OI_E)  # the third begins .4 s later, the steps of eight frames last 2 s
    spans_s = np.array([[0.0, 2.0], [2.0, 4.0], [4.0, 6.0], [6.0, 8.0]])
    shown = set()
    for seed in range(20):
        changed = under("permuted_times", question, seed, snap_s=1.0)
        assert changed.table[3].tolist() == rows[3]
        shown.add(question.seen(changed, spans_s, 1.0).table[-1, 0])
        unsnapped = under("permuted_times", question, seed)
        assert unsnapped.table[2:].tolist() == rows[2:] and unsnapped.table[0, 0] == 0.2
    assert shown == {0.1, 0.2, 0.7}
    other = asked("a", 8.0, rows, "past_object_transition_prediction")  # is not snapped: the answer must stay unseen
    assert under("permuted_times", other, snap_s=1.0).table[2:].tolist() == rows[2:]


@pytest.mark.parametrize("name", ["random_place", "permuted_times", "overlay+random_place"])
def test_places_are_drawn_for_each_question_from_the_seed(name):
    rows = [[i / 40, 0.5, 1 + 2 * i, 1.0] for i in range(40)]
    questions = [asked("a", 90.0, rows), asked("a", 92.0, rows), asked("b", 90.0, rows)]
    condition = Condition.parse(name)
    first, second, third = (scanpath.table for _, scanpath in assign_scanpaths(condition, questions))
    for one, other in ((first, second), (second, third), (first, third)):
        assert (one[:, 0] != other[:, 0]).mean() > 0.8
    ((_, alone),) = assign_scanpaths(condition, [questions[2].permuted(1)])
    assert (alone.table == third).all()
    assert (assign_scanpaths(condition, questions[::-1])[0][1].table == third).all()
    assert (assign_scanpaths(condition, questions, seed=1)[2][1].table[:, 0] != third[:, 0]).mean() > 0.8


def test_noise_is_added_to_the_places_of_a_control():
    question = asked("a", 9000.0, [[0.5, 0.5, 1 + 2 * i, 1.0] for i in range(3000)])
    plain, changed = (under(name, question).table[:, :2] for name in ("random_place", "random_place+noise1"))
    assert 0.008 < (changed - plain).std() < 0.012
    assert (under("centre+noise5", question).table[:, :2] - 0.5).std() == pytest.approx(0.05, abs=0.003)


def test_a_mark_at_the_centre_is_in_the_middle_of_frames_wider_than_high():
    question, condition = asked("a", 10.0, [[0.9, 0.1, 4.0, 2.0]]), Condition.parse("overlay+centre")
    drawing = condition.drawing(under("overlay+centre", question))
    frame = draw_gaze(Clip(WIDE, [4.0], 0.0, 10.0), drawing.scanpath, drawing.channels).frames[0]
    green = np.argwhere((frame == (0, 255, 0)).all(-1)) + 0.5
    np.testing.assert_allclose(green.mean(0), (45, 120), atol=0.6)


# ---------------------------------------------------------------- drawn, frames wider than high
WIDE = np.full((1, 90, 240, 3), 128, np.uint8)


def drawn_at(time_s: float, rows, channel: str) -> np.ndarray:
    clip = Clip(WIDE, [time_s], 0.0, 10.0)
    return draw_gaze(clip, Scanpath.from_array(rows), {channel}).frames[0].astype(int)


@pytest.mark.parametrize("channel", ["overlay", "ring"])
def test_a_fixation_is_drawn_from_its_begin_until_its_end(channel):
    rows = [[0.5, 0.5, 4.0, 2.0]]  # from 3 to 5 s
    for time_s, there in ((0.0, False), (2.99, False), (3.0, True), (4.99, True), (5.0, False), (9.0, False)):
        assert (drawn_at(time_s, rows, channel) != 128).any() == there, time_s


def test_the_heat_map_holds_what_was_looked_at_until_the_frame_and_nothing_later():
    rows = [[0.25, 0.5, 2.0, 2.0], [0.75, 0.5, 7.0, 2.0]]  # from 1 to 3 s, from 6 to 8 s
    for time_s, left, right in ((0.5, False, False), (2.0, True, False), (5.0, True, False), (9.0, True, True)):
        changed = abs(drawn_at(time_s, rows, "saliency") - 128).sum(-1)
        assert (changed[45, 60] > 60, changed[45, 180] > 60) == (left, right), time_s


def test_the_heat_map_is_round_at_its_place_and_hottest_where_it_was_looked_at_longest():
    rows = [[0.25, 0.6, 1.5, 1.0], [0.75, 0.4, 5.0, 4.0]]
    frame = drawn_at(9.0, rows, "saliency")
    np.testing.assert_allclose(frame[35, 179], 0.55 * 128 + 0.45 * np.array([127.5, 0, 0]), atol=4)  # jet's dark red
    assert frame[53, 60, 0] < frame[35, 179, 0] - 20 or frame[53, 60, 2] > frame[35, 179, 2] + 20  # a quarter as hot
    alone = abs(drawn_at(9.0, rows[1:], "saliency") - 128).sum(-1)
    rows_hot, columns_hot = np.nonzero(alone > 40)
    height, width = np.ptp(rows_hot) + 1, np.ptp(columns_hot) + 1
    assert abs(rows_hot.mean() + 0.5 - 36) < 1 and abs(columns_hot.mean() + 0.5 - 180) < 1
    assert abs(height - width) <= 2 and height == pytest.approx(4.5 * 0.06 * 240, rel=0.25)  # in frame widths


def test_disc_and_ring_are_measured_in_frame_widths_and_at_their_place():
    frame = drawn_at(4.0, [[0.3, 0.4, 4.0, 2.0]], "overlay")
    green, red = (np.argwhere((frame == color).all(-1)) + 0.5 for color in ((0, 255, 0), (255, 0, 0)))
    np.testing.assert_allclose(green.mean(0), (36, 72), atol=0.6)
    assert np.ptp(green[:, 1]) + 1 == pytest.approx(2 * 8 / 640 * 240 - 1, abs=1)  # a pixel of it is the edge
    distance = np.hypot(red[:, 0] - 36, red[:, 1] - 72)
    assert abs(distance - 0.156 * 240).max() < 1.5  # one pixel wide: 2 of 640


# ---------------------------------------------------------------- told
def test_gaze_in_words_is_cut_at_the_query():
    scanpath = Scanpath.from_array([[0.25, 0.5, 11.0, 2.0], [0.75, 0.125, 14.0, 2.0]])
    assert gaze_in_words(scanpath, 10.0, 14.0).endswith(
        ": 0.0 to 2.0 s at (0.25, 0.50); 3.0 to 4.0 s at (0.75, 0.12)."
    )
    assert "no fixation" in gaze_in_words(scanpath, 0.0, 5.0)
