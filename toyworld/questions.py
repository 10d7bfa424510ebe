"""Questions about a scene and a path of attention over it, fair by construction.

Options are drawn *blind to the answer*: first a set of four that would be a valid option list, evenly from all such
sets, and only then is the question kept, if the answer happens to be in the set. The viewer looks evenly at whatever
is visible, so a reader who sees the video but not the gaze is at 25 %, and so is one who reads the text alone.

Time stamps are whole seconds (MM:SS), as in StreamGaze. In this first version a question is stamped with the *last*
whole second inside the fixation that it asks about, at least a second after its start. (StreamGaze itself stamps the
start, which leaves that fixation outside the clip; a later version of the toy world does that too.)
"""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np

from gazeqwen.toyworld.viewer import Fixation
from gazeqwen.toyworld.world import Scene
from gazeqwen.video_gazeqwen import sample_times

EASY = "present_object_identification_easy"
HARD = "present_object_identification_hard"
ATTRIBUTE = "present_object_attribute_recognition"
NEVER = "past_non_fixated_object_identification"
TASKS = (EASY, HARD, ATTRIBUTE, NEVER)

CLIP_S = 60  # present questions see [t - 60, t], past questions [0, t]
FRAMES = 8  # frames sampled from a clip: the centres of equal bins; two make one temporal step
STEPS = 4
VERB = {"present": "gazing at", "past": "gaze at"}


def sample_times_s(time_s: float) -> np.ndarray:
    """Times of the frames that a model sees of the clip [0, time_s]: centres of 8 equal bins."""
    return sample_times(0.0, time_s, num_frames=FRAMES)


def step_shares(fixations: list[Fixation], time_s: float) -> list[dict[int, float]]:
    """For each of the 4 temporal steps of [0, time_s], the share of its span that each attended object takes."""
    span_s = time_s / STEPS
    shares = []
    for step in range(STEPS):
        begin_s, share = step * span_s, Counter()
        for f in fixations:
            overlap_s = min(f.end_s, begin_s + span_s) - max(f.start_s, begin_s)
            if overlap_s > 0:
                share[f.object_index] += overlap_s / span_s
        shares.append(dict(share))
    return shares


def question_times_s(fixations: list[Fixation]) -> list[tuple[int, int]]:
    """(fixation index, whole second) pairs that present questions may ask about: see the module's docstring.

    The fixation takes at least half of the last temporal step and 1.5 times as much of it as any other object.
    """
    pairs = []
    for index, f in enumerate(fixations):
        time_s = int(f.end_s)
        if time_s - f.start_s < 1.0 or time_s < 3:
            continue
        last = step_shares(fixations, time_s)[-1]
        mine = last[f.object_index]
        others = [share for thing, share in last.items() if thing != f.object_index]
        if mine >= 0.5 and mine >= 1.5 * max(others, default=0):
            pairs.append((index, time_s))
    return pairs


def candidates_at(scene: Scene, fixation: Fixation, time_s: float) -> list[int]:
    """Objects that the viewer could as well have chosen, and that are visible all through the last temporal step."""
    return scene.visible(min(fixation.start_s, time_s * (1 - 1 / STEPS)), fixation.end_s)


def _draw_set(rng: np.random.Generator, sets: list[tuple]) -> list | None:
    if not sets:
        return None
    chosen = list(sets[int(rng.integers(len(sets)))])
    return [chosen[i] for i in rng.permutation(len(chosen))]


def identification_sets(scene: Scene, candidates: list[int], hard: bool) -> list[tuple[int, ...]]:
    """Valid option lists (object indices): four that differ pairwise in colour and shape (easy), or four of one colour
    or of one shape (hard). Every option stands in the same relation to the others, so the text gives nothing away."""
    sets = []
    for four in combinations(candidates, 4):
        colors = {scene.objects[i].color for i in four}
        shapes = {scene.objects[i].shape for i in four}
        if (min(len(colors), len(shapes)) == 1) if hard else (len(colors) == len(shapes) == 4):
            sets.append(four)
    return sets


def attribute_sets(scene: Scene, candidates: list[int], visible: list[int], attribute: str) -> list[tuple[str, ...]]:
    """Valid option lists (colours or shapes): four values that equally many objects show."""
    counts = Counter(getattr(scene.objects[i], attribute) for i in candidates)
    shown = Counter(getattr(scene.objects[i], attribute) for i in visible)
    return [
        four
        for four in combinations(sorted(counts), 4)
        if len({counts[v] for v in four}) == len({shown[v] for v in four}) == 1
    ]


def never_set(scene: Scene, fixations: list[Fixation], time_s: float, rng: np.random.Generator):
    """Four objects visible throughout [0, time_s] of which one was never attended; returns (objects, answer) or None.

    Each of the other three is attended in at least one of the frames that a model samples.
    """
    chosen = _draw_set(rng, list(combinations(scene.visible(0, time_s), 4)))
    if chosen is None:
        return None
    attended = {f.object_index for f in fixations if f.start_s < time_s}
    seen = {f.object_index for f in fixations for s in sample_times_s(time_s) if f.start_s <= s < f.end_s}
    never = [i for i in chosen if i not in attended]
    if len(never) != 1 or any(i not in seen for i in chosen if i != never[0]):
        return None
    return chosen, never[0]


def gaze_questions(scene: Scene, fixations: list[Fixation], rng: np.random.Generator) -> list[dict]:
    """All questions of the four tasks that this scene and scanpath yield.

    Each: task, time_s (int), question, options (list of words, no letters), answer (one of them), extra (the fields
    that StreamGaze adds for the task), fixation (index of the fixation asked about; for the past, the one under way).
    """
    questions = []

    def add(task, time_s, question, options, answer, index, **extra):
        questions.append(
            {
                "task": task,
                "time_s": time_s,
                "question": question,
                "options": options,
                "answer": answer,
                "fixation": index,
                "extra": extra,
            }
        )

    for index, time_s in question_times_s(fixations):
        fixation = fixations[index]
        target = fixation.object_index
        thing = scene.objects[target]
        candidates = candidates_at(scene, fixation, time_s)
        for task in (EASY, HARD):
            four = _draw_set(rng, identification_sets(scene, candidates, hard=task == HARD))
            if four and target in four:
                nouns = [scene.objects[i].noun for i in four]
                question = f"Which object is the user currently {VERB['present']}?"
                add(task, time_s, question, nouns, thing.noun, index, object=thing.noun)
        for attribute in ("color", "shape"):
            four = _draw_set(rng, attribute_sets(scene, candidates, scene.visible(time_s), attribute))
            value = getattr(thing, attribute)
            if four and target in candidates and value in four:
                extra = {"attribute_type": attribute, "object_name": thing.noun}
                add(ATTRIBUTE, time_s, f"What {attribute} is this object?", four, value, index, **extra)
        found = never_set(scene, fixations, time_s, rng) if time_s >= 4 else None
        if found:
            nouns = [scene.objects[i].noun for i in found[0]]
            answer = scene.objects[found[1]].noun
            listed = [nouns[i] for i in rng.permutation(4)]
            question = f"Among {{{', '.join(listed)}}}, which did the user never {VERB['past']}?"
            add(NEVER, time_s, question, nouns, answer, index, answer_object=answer)
    return questions
