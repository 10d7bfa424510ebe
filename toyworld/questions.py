"""
StreamGaze's ten tasks about a toy recording, fair by construction.

Fair: *among the options a reader without gaze has nothing to choose by*. The viewer looks evenly at whatever is
visible, so objects that stayed in view from the clip's beginning ("stayers") are exchangeable for whoever sees the
video alone. Options are stayers, drawn *blind to the answer*: first a list that would be valid whatever the answer,
evenly from all such lists, and only then is the question kept, if the answer happens to be in it. Two tasks are about
the scene, as StreamGaze builds them, so that the video alone answers them: scene recall (stamped with the start of the
fixation that it names, so the scene asked about is the clip's last) and, but for what is being looked at, object
appearance. The scene recall options are drawn so that the text alone says nothing.

The kitchen is *strictly fair* beyond that (measured by `fairness.py`). The options of sequence matching are orders of
the same three objects (in the first world orders of any stayers: the set alone answers 95 %). Future action prediction
names its objects in random order, and its options in another (in the first world in the order in which they were
looked at, as StreamGaze does: there the lengths of the fixations, with the text, answer 86 % without a look at the
video). A gaze alert's test points all lie where a dwell on something begins, around any dwell on the target. As many
of an alert's points are due as not, at all times (`even_points`); else the clock, or how long gaze has rested, is a
good guess.

Time stamps are StreamGaze's: whole seconds (MM:SS), rounded from the start of the fixation asked about (present), cut
down from it (past), from the end of the last one (future action). Next to nothing of the fixation asked about lies in
the clip, therefore; `Scanpath.snap` brings it into view, and so do questions here when they check what can be seen.

Readable: a question is kept only if what it asks about fills enough of the temporal steps of a clip of 12 frames.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations

import numpy as np

from gazeqwen.questions.tasks import clip_window, task_info
from gazeqwen.toyworld.viewer import NOTHING, Recording
from gazeqwen.toyworld.world import Scene
from gazeqwen.video_gazeqwen import FRAMES_PER_STEP, sample_times

GSM, NFI, OTP, SR, FAP, OAR, EASY, HARD, GTA, OAA = TASK_NAMES = (
    "past_gaze_sequence_matching",
    "past_non_fixated_object_identification",
    "past_object_transition_prediction",
    "past_scene_recall",
    "present_future_action_prediction",
    "present_object_attribute_recognition",
    "present_object_identification_easy",
    "present_object_identification_hard",
    "proactive_gaze_triggered_alert",
    "proactive_object_appearance_alert",
)
SCENE_TASKS = (SR, OAA)  # the video alone says (nearly) everything

FRAMES = 12  # frames sampled from a clip: the centres of equal bins
STEPS = FRAMES // FRAMES_PER_STEP
SNAP_S = 1.0
SEEN = 0.25  # what has this share of a step has been seen
MAIN = 0.5  # what has this share of a step, and no other has more than this, is what the step is about
UNSEEN = 0.05

OFFSETS_S = (-20, -10, 0, 10, 20)  # of test points, from the first time that the alert is due
EVEN_POINTS = 12  # test points that follow each other in time, of all videos, of which as many are due as not


@dataclass(eq=False)
class View:
    """
    What there is to see of [start_s, time_s] of a recording: `path`, the fixations in it (begin_s, end_s, object), the
    last of them snapped if asked for.
    """

    scene: Scene
    start_s: float
    time_s: float
    path: list[tuple[float, float, int]] = field(repr=False)

    @classmethod
    def of(cls, recording: Recording, start_s: float, time_s: float, snapped: bool) -> View:
        scanpath = recording.scanpath
        if snapped:
            scanpath = scanpath.snap(time_s, time_s - (time_s - start_s) / STEPS, SNAP_S)
        scanpath = scanpath.clip(start_s, time_s)
        objects = [recording.fixations[int(i)].object_index for i in scanpath.ids]
        path = list(zip(scanpath.begin_s.tolist(), scanpath.end_s.tolist(), objects, strict=True))
        return cls(recording.scene, start_s, time_s, path)

    @cached_property
    def frame_times_s(self) -> np.ndarray:
        return sample_times(self.start_s, self.time_s, num_frames=FRAMES)

    @cached_property
    def edges_s(self) -> np.ndarray:
        """Return when the temporal steps begin, and when the last one ends."""
        return np.linspace(self.start_s, self.time_s, STEPS + 1)

    @cached_property
    def shares(self) -> np.ndarray:
        """Of each temporal step's span, the share that gaze is on each object: (steps, objects)."""
        edges = self.edges_s
        shares = np.zeros((len(edges) - 1, len(self.scene.objects)))
        on_objects = [fixation for fixation in self.path if fixation[2] != NOTHING]
        times_s = np.array(on_objects).reshape(-1, 3)  # (fixations, begin, end and object)
        overlap_s = np.minimum(times_s[:, 1:2], edges[1:]) - np.maximum(times_s[:, :1], edges[:-1])
        for (_, _, thing), share in zip(on_objects, overlap_s.clip(min=0) / np.diff(edges), strict=True):
            shares[:, thing] += share
        return shares

    @cached_property
    def marked(self) -> list[list[int]]:
        """Return the objects that gaze is on at the time of each frame."""
        return [
            [thing for begin_s, end_s, thing in self.path if begin_s <= s < end_s and thing != NOTHING]
            for s in self.frame_times_s
        ]

    @cached_property
    def main(self) -> list[int]:
        """Return the object that each temporal step is about, NOTHING where there is none."""
        objects = []
        for share in self.shares:
            order = np.argsort(share)
            clear = share[order[-1]] >= MAIN and share[order[-2]] <= share[order[-1]] / 2
            objects.append(int(order[-1]) if clear else NOTHING)
        return objects

    @cached_property
    def stayers(self) -> list[int]:
        """Return the objects that are visible all through the clip."""
        return self.scene.visible(self.start_s, self.time_s)

    @cached_property
    def ever(self) -> set[int]:
        """Return what was looked at, however shortly."""
        return {thing for _, _, thing in self.path} - {NOTHING}

    @cached_property
    def seen(self) -> set[int]:
        """Return what was clearly looked at: in a good part of a step, and in a frame."""
        shown = {thing for things in self.marked for thing in things}
        return {i for i in shown if self.shares[:, i].max() >= SEEN}

    def visible_last(self, index: int) -> bool | None:
        """Say whether an object is visible in the last temporal step's frames and at its end; None if only in some."""
        times = (*self.frame_times_s[-2:], self.time_s)
        shown = {self.scene.objects[index].visible(float(s)) for s in times}
        return shown.pop() if len(shown) == 1 else None

    def still_last(self, index: int) -> bool:
        """Say whether it stays in its place in the last temporal step's frames and at its end."""
        times = (*self.frame_times_s[-2:], self.time_s)
        return self.scene.still(index, times)

    def looked_at_last(self, index: int) -> bool | None:
        """Say whether the last temporal step is about it; None if it is unclear."""
        if self.main[-1] == index:
            return True
        return False if self.shares[-1, index] <= UNSEEN and index not in self.marked[-1] + self.marked[-2] else None


@dataclass(frozen=True)
class Wording:
    """The words that questions of the tasks use for what the user does."""

    present: str = "gazing at"
    past: str = "gaze at"
    group: str = "looking at"
    noun: str = "gaze"
    pattern: str = "fixation"

    def identify(self) -> str:
        return f"Which object is the user currently {self.present}?"

    def attribute(self, attribute: str) -> str:
        return f"What {attribute} is this object?"

    def never(self, nouns: list[str]) -> str:
        return f"Among {{{', '.join(nouns)}}}, which did the user never {self.past}?"

    def transition(self, nouns: list[str]) -> str:
        return f"What object does the user {self.past} next after {self.group} the {{{', '.join(nouns)}}}?"

    def sequence(self) -> str:
        return f"Which transition best matches the user's {self.noun} pattern?"

    def scene_recall(self, noun: str) -> str:
        return f"When the user was {self.present} the {{{noun}}}, which background object was NOT visible?"

    def future_action(self, nouns: list[str], in_order: bool = True) -> str:
        pattern = (" -> " if in_order else ", ").join(nouns)
        return f"Based on the recent {self.pattern} pattern ({pattern}), what action will the user do next?"

    def alert_on_gaze(self, noun: str) -> str:
        return f"Monitor my {self.noun} and alert me when I {self.past.replace(' at', ' on')} the <{noun}>."

    def alert_on_appearance(self, noun: str) -> str:
        return f"Watch the scene and alert me when the <{noun}> first appears."

    def reword(self, question: str) -> str:
        """Return a question about gaze in these words."""
        for words, replacement in (
            ("gazing at", self.present),
            ("gaze at", self.past),
            ("gaze on", self.past.replace(" at", " on")),
            ("looking at", self.group),
            ("gaze", self.noun),
            ("fixation", self.pattern),
        ):
            question = question.replace(words, replacement)
        return question


GAZE = Wording()


@dataclass
class ToyQuestion:
    """
    One question: its options (no letters) and which is the answer, or its test points (whole second, whether the alert
    is due). `extra`: the fields that StreamGaze adds for the task.
    """

    task: str
    time_s: int
    question: str
    options: list[str] = field(default_factory=list)
    answer: str = ""
    points: list[tuple[int, bool]] = field(default_factory=list)
    extra: dict = field(default_factory=dict)


def clock(time_s: float) -> str:
    """Return whole seconds as StreamGaze's MM:SS."""
    return f"{int(time_s) // 60:02d}:{int(time_s) % 60:02d}"


def _draw(rng: np.random.Generator, lists: list) -> list | None:
    """Draw one of the lists, in random order."""
    if not lists:
        return None
    chosen = list(lists[int(rng.integers(len(lists)))])
    return [chosen[i] for i in rng.permutation(len(chosen))]


def sequence_text(groups: list[str]) -> str:
    return ">".join(f"{{{noun}}}" for noun in groups)


def identification_lists(scene: Scene, candidates: list[int], hard: bool) -> list[tuple[int, ...]]:
    """
    Return the valid option lists (object indices): four that differ pairwise in both attributes of a scene's objects
    (easy), or four that are alike in one of them (hard). Every option stands in the same relation to the others, so
    the text gives nothing away.
    """
    values = [{i: getattr(scene.objects[i], name) for i in candidates} for name in scene.attributes]
    lists = []
    for four in combinations(candidates, 4):
        counts = [len({value_of[i] for i in four}) for value_of in values]
        if min(counts) == (1 if hard else 4):
            lists.append(four)
    return lists


def attribute_lists(scene: Scene, candidates: list[int], visible: list[int], attribute: str) -> list[tuple[str, ...]]:
    """
    Return the valid option lists (such as colours): four values that equally many candidates, and equally many of
    all visible objects, show.
    """
    counts = Counter(getattr(scene.objects[i], attribute) for i in candidates)
    shown = Counter(getattr(scene.objects[i], attribute) for i in visible)
    return [
        four
        for four in combinations(sorted(counts), 4)
        if len({counts[v] for v in four}) == len({shown[v] for v in four}) == 1
    ]


def clip_of(recording: Recording, task: str, time_s: int) -> View:
    """Return the clip of a question of the task."""
    start_s, _ = clip_window(task, float(time_s))
    return View.of(recording, start_s, float(time_s), task_info(task).asks_about_fixation_at_query)


class Asker:
    """Asks all questions that a recording yields."""

    def __init__(self, recording: Recording, rng: np.random.Generator):
        self.recording, self.rng = recording, rng
        self.scene, self.dwells = recording.scene, recording.dwells

    def noun(self, index: int) -> str:
        return self.scene.objects[index].noun

    def view(self, task: str, time_s: int) -> View:
        return clip_of(self.recording, task, time_s)

    def questions(self) -> list[ToyQuestion]:
        found = []
        for index, dwell in enumerate(self.dwells):
            found += self.about_now(dwell.object_index, round(dwell.start_s))
            found += [self.never(int(dwell.start_s))]
            found += [self.transition(index), self.sequence(index), self.scene_recall(index)]
        found += [self.future_action()]
        for index in range(len(self.scene.objects)):
            found += [self.gaze_alert(index), self.appearance_alert(index)]
        return [question for question in found if question is not None]

    # ---------------------------------------------------------------- present
    def about_now(self, target: int, time_s: int) -> list[ToyQuestion]:
        """Ask for object identification, easy and hard, and attributes, of what is looked at from `time_s` on."""
        if target == NOTHING or time_s < 3:
            return []
        view, found = self.view(EASY, time_s), []
        candidates = [i for i in view.stayers if view.still_last(i)]
        if view.looked_at_last(target) is not True or target not in candidates:
            return []
        thing = self.scene.objects[target]
        for task in (EASY, HARD):
            four = _draw(self.rng, identification_lists(self.scene, candidates, hard=task == HARD))
            if four and target in four:
                nouns = [self.noun(i) for i in four]
                extra = {"object": thing.noun}
                found.append(ToyQuestion(task, time_s, GAZE.identify(), nouns, thing.noun, extra=extra))
        for attribute in self.scene.attributes:
            visible = self.scene.visible(float(time_s))
            four = _draw(self.rng, attribute_lists(self.scene, candidates, visible, attribute))
            value = getattr(thing, attribute)
            if four and value in four:
                extra = {"attribute_type": attribute, "object_name": thing.noun}
                found.append(ToyQuestion(OAR, time_s, GAZE.attribute(attribute), four, value, extra=extra))
        return found

    def future_action(self) -> ToyQuestion | None:
        """The viewer acts on what they looked at longest of the four objects that the question names."""
        action = self.recording.action
        if action is None:
            return None
        pattern = self.dwells[action.first : action.last + 1]
        time_s = int(pattern[-1].end_s)
        view = self.view(FAP, time_s)
        things = [d.object_index for d in pattern]
        seconds = view.shares[:, things].sum(axis=0)
        clear = seconds.max() >= 1.5 * np.sort(seconds)[-2] and int(seconds.argmax()) == things.index(
            action.object_index
        )
        if not clear or any(i not in view.stayers or i not in view.seen for i in things):
            return None
        in_order = not self.scene.strictly_fair
        if not in_order:
            things = [things[i] for i in self.rng.permutation(4)]
        nouns = [self.noun(i) for i in things]
        if not in_order:
            things = [things[i] for i in self.rng.permutation(4)]
        options = [f"{action.verb} the {self.noun(i)}" for i in things]
        answer = f"{action.verb} the {self.noun(action.object_index)}"
        extra = {
            "answer_action": answer,
            "context_objects": nouns,
            "context_objects_with_timing": [
                {"object": self.noun(d.object_index), "timestamp": clock(d.start_s)} for d in pattern
            ],
            "actual_action_time": clock(action.time_s),
        }
        return ToyQuestion(FAP, time_s, GAZE.future_action(nouns, in_order), options, answer, extra=extra)

    # ---------------------------------------------------------------- past
    def never(self, time_s: int) -> ToyQuestion | None:
        """Four stayers of which one was never looked at, and the others clearly."""
        if time_s < 4:
            return None
        view = self.view(NFI, time_s)
        four = _draw(self.rng, list(combinations(view.stayers, 4)))
        never = [i for i in four or () if i not in view.ever]
        if len(never) != 1 or any(i not in view.seen for i in four if i != never[0]):
            return None
        nouns, answer = [self.noun(i) for i in four], self.noun(never[0])
        listed = [nouns[i] for i in self.rng.permutation(4)]
        return ToyQuestion(NFI, time_s, GAZE.never(listed), nouns, answer, extra={"answer_object": answer})

    def _first_round(self, index: int) -> list[int] | None:
        """What the dwells up to number `index` are on, if they are on different objects or on nothing."""
        things = [d.object_index for d in self.dwells[: index + 1] if d.object_index != NOTHING]
        return things if len(set(things)) == len(things) and self.dwells[index].object_index != NOTHING else None

    def transition(self, index: int) -> ToyQuestion | None:
        """What comes after the last two: the one of four that had no turn yet, since gaze returns to none before."""
        things, dwell = self._first_round(index), self.dwells[index]
        time_s = int(dwell.start_s)
        if things is None or len(things) < 6 or time_s < 4:
            return None
        view, group = self.view(OTP, time_s), things[-3:-1]
        four = _draw(self.rng, list(combinations([i for i in view.stayers if i not in group], 4)))
        fresh = [i for i in four or () if i not in view.ever]
        if fresh != [dwell.object_index] or any(i not in view.seen for i in four if i not in fresh):
            return None
        if any(i not in view.stayers for i in group):
            return None
        nouns, answer = [self.noun(i) for i in four], self.noun(dwell.object_index)
        named = [self.noun(i) for i in group]
        extra = {
            "object_group": named,
            "object_group_timestamp": f"({clock(self.dwells[index - 1].start_s)}, {clock(dwell.start_s)})",
            "answer_object": answer,
            "answer_timestamp": clock(dwell.start_s),
        }
        return ToyQuestion(OTP, time_s, GAZE.transition(named), nouns, answer, extra=extra)

    def sequence(self, index: int) -> ToyQuestion | None:
        """
        The last three objects in order; the other options are drawn evenly from all other orders of stayers, or, blind
        to order, of the same three.
        """
        things = self._first_round(index)
        time_s = int(self.dwells[index].start_s)
        if things is None or len(things) < 3 or time_s < 4:
            return None
        view, three = self.view(GSM, time_s), tuple(things[-3:])
        if any(i not in view.stayers for i in three) or view.main[-1] != three[2]:
            return None
        steps = [[step for step in range(STEPS - 1) if view.main[step] == i] for i in three[:2]]
        if not all(steps) or steps[0][-1] >= steps[1][0]:
            return None
        orders, pool = {three}, three if self.scene.strictly_fair else view.stayers
        while len(orders) < 4:
            orders.add(tuple(int(i) for i in self.rng.permutation(pool)[:3]))
        options = sorted(sequence_text([self.noun(i) for i in order]) for order in orders)
        options = [options[i] for i in self.rng.permutation(4)]
        groups = [self.noun(i) for i in three]
        extra = {"correct_sequence": [[noun] for noun in groups]}
        return ToyQuestion(GSM, time_s, GAZE.sequence(), options, sequence_text(groups), extra=extra)

    def scene_recall(self, index: int) -> ToyQuestion | None:
        """Four other objects of the video of which one is not visible when the fixation begins."""
        target, time_s = self.dwells[index].object_index, int(self.dwells[index].start_s)
        if target == NOTHING or time_s < 3:
            return None
        view = self.view(SR, time_s)
        if view.looked_at_last(target) is not True:
            return None
        others = [i for i in range(len(self.scene.objects)) if i != target]
        lists = [identification_lists(self.scene, others, hard) for hard in (False, True)]
        four = _draw(self.rng, lists[0] + lists[1])
        shown = [view.visible_last(i) for i in four or ()]
        if sorted(map(str, shown)) != ["False", "True", "True", "True"]:
            return None
        answer, options = four[shown.index(False)], [self.noun(i) for i in four]
        extra = {
            "gazed_objects": [self.noun(target)],
            "answer_object": self.noun(answer),
            "background_objects": [self.noun(i) for i in others if view.visible_last(i)],
        }
        question = GAZE.scene_recall(self.noun(target))
        return ToyQuestion(SR, time_s, question, options, self.noun(answer), extra=extra)

    # ---------------------------------------------------------------- proactive
    def _points(self, task: str, first_s: float, due, clear) -> list[tuple[int, bool]]:
        """Test points around `first_s`: (whole second, whether the alert is due), of those where that is clear."""
        points = []
        for offset_s in OFFSETS_S:
            true_s = first_s + offset_s
            time_s = int(true_s)
            if true_s < 2 or true_s >= self.scene.duration_s:
                continue
            if clear(self.view(task, time_s)) is due(true_s):
                points.append((time_s, due(true_s)))
        return points

    def _strictly_fair_points(self, first_s: float, target: int) -> list[tuple[int, bool]]:
        """
        Test points of a gaze alert, each where the dwell begins that holds a moment around `first_s`, and that is on
        something as still, and in view from beginning to end, as the target is: as many due as not (long videos have
        more of those that are not, and slower gaze).
        """
        points = {}
        for moment_s in (first_s + offset_s for offset_s in OFFSETS_S):
            for dwell in self.dwells:
                if not dwell.start_s <= moment_s < dwell.end_s or dwell.object_index == NOTHING or dwell.start_s < 2:
                    continue
                on, view = dwell.object_index, self.view(GTA, int(dwell.start_s))
                stays = self.scene.objects[on].visible(0, self.scene.duration_s - 1e-6)
                clear = view.looked_at_last(target) is (on == target) and view.main[-1] == on
                if clear and stays and view.still_last(on) and view.still_last(target):
                    points[int(dwell.start_s)] = on == target
        return sorted(as_many_due(list(points.items()), self.rng))

    def _interval(self, dwell) -> dict:
        return {"start": clock(dwell.start_s), "end": clock(dwell.end_s)}

    def gaze_alert(self, target: int) -> ToyQuestion | None:
        """Alert while gaze is on the target, a stayer to the end, so that the scene says nothing."""
        mine = [d for d in self.dwells if d.object_index == target]
        if not mine or not self.scene.objects[target].visible(0, self.scene.duration_s - 1e-6):
            return None
        first_s = mine[0].start_s
        if self.scene.strictly_fair:
            first_s = mine[int(self.rng.integers(len(mine)))].start_s
            points = self._strictly_fair_points(first_s, target)
        else:
            points = self._points(
                GTA,
                first_s,
                lambda s: any(d.start_s <= s < d.end_s for d in mine),
                lambda view: view.looked_at_last(target) if view.still_last(target) else None,
            )
        if not points:
            return None
        extra = {"fixation_intervals": [self._interval(d) for d in mine], "difficulty": "easy", "gaze_area": "FOV"}
        return self._alert(GTA, GAZE.alert_on_gaze(self.noun(target)), target, first_s, points, extra)

    def appearance_alert(self, target: int) -> ToyQuestion | None:
        """Alert while an object that came later is visible beside what is being looked at."""
        thing = self.scene.objects[target]
        if thing.visible(0):
            return None
        beside = [d for d in self.dwells if d.object_index != target and thing.visible(d.start_s, d.end_s)]
        if not beside:
            return None

        def clear(view: View) -> bool | None:
            shown, looked_at = view.visible_last(target), view.looked_at_last(target)
            if shown is None or looked_at is None:
                return None
            return shown and not looked_at

        first_s = beside[0].start_s
        points = self._points(OAA, first_s, lambda s: any(d.start_s <= s < d.end_s for d in beside), clear)
        if not points:
            return None
        extra = {
            "appearance_intervals": [self._interval(d) for d in beside],
            "difficulty": "hard",
            "gaze_area": "Outside",
        }
        return self._alert(OAA, GAZE.alert_on_appearance(self.noun(target)), target, first_s, points, extra)

    def _alert(self, task, question, target, first_s, points, extra) -> ToyQuestion:
        about = {"target_object": self.noun(target), "first_appearance": clock(first_s)}
        return ToyQuestion(task, int(self.dwells[0].start_s), question, points=points, extra=about | extra)


def gaze_questions(recording: Recording, rng: np.random.Generator) -> list[ToyQuestion]:
    """Return all questions of the ten tasks that a recording yields."""
    return Asker(recording, rng).questions()


def as_many_due(points: list, rng: np.random.Generator) -> list:
    """Return as many of the points (tuples that end with whether the alert is due) that are due as that are not."""
    sides = [[point for point in points if point[-1] is due] for due in (True, False)]
    count = min(map(len, sides))
    return [side[i] for side in sides for i in rng.permutation(len(side))[:count]]


def even_points(rng: np.random.Generator, pairs: list[tuple[str, ToyQuestion]]) -> list[tuple[str, ToyQuestion]]:
    """
    Return (video's name, question) pairs of alerts of which, among those at about the same time, as many test points
    are due as not; questions without any go.
    """
    points = [(time_s, number, due) for number, (_, q) in enumerate(pairs) for time_s, due in q.points]
    points = sorted(points[i] for i in rng.permutation(len(points)))
    kept: set = set()
    for begin in range(0, len(points), EVEN_POINTS):
        kept.update(as_many_due(points[begin : begin + EVEN_POINTS], rng))
    evened = []
    for number, (name, q) in enumerate(pairs):
        of_question = [(time_s, due) for time_s, due in q.points if (time_s, number, due) in kept]
        if of_question:
            evened.append((name, replace(q, points=of_question)))
    return evened
