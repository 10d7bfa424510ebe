"""Questions about the object that a wandering highlight is on, for pretraining: in gaze's place, with other verbs.

They follow StreamGaze's tasks in their words ("Which object is the user currently pointing at?"). With them come a few
plain questions, about the text alone or the scene.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gazeqwen.toyworld.questions import question_times_s, sample_times_s
from gazeqwen.toyworld.viewer import Fixation, simulate_viewer
from gazeqwen.toyworld.world import COLORS, NOUN_OF, SHAPES, Scene, make_scene

NOUNS = tuple(NOUN_OF.values())
# the verb of "... is the user currently VERB?" and of "which did the user never VERB?"
VERBS = (
    ("pointing at", "point at"),
    ("holding", "hold"),
    ("touching", "touch"),
    ("reaching for", "reach for"),
    ("marking", "mark"),
    ("picking", "pick"),
)
HIGHLIGHT_KINDS = ("which", "color", "shape", "never", "is it now", "was it ever")
PLAIN_KINDS = ("match", "visible", "of noun")


@dataclass
class Question:
    """One question of a clip. Without options the answer is a word, with options a letter."""

    kind: str
    text: str
    options: list[str]
    answer: str


@dataclass
class Clip:
    """What the model sees of [0, time_s]: 8 frames, and where the highlight is."""

    scene: Scene
    path: list[Fixation]
    current: int
    time_s: float


def make_clip(rng: np.random.Generator) -> Clip:
    """A scene and a path of attention whose last part lies on one object; a highlight will follow that path."""
    while True:
        scene = make_scene(rng)
        path = simulate_viewer(scene, rng, duration_s=(0.9, 2.6) if rng.random() < 0.5 else (1.2, 4.0))
        moments = question_times_s(path)
        if moments:
            late = rng.random() < 0.4
            index, time_s = moments[-1] if late else moments[int(rng.integers(len(moments)))]
            return Clip(scene, path, path[index].object_index, float(time_s))


def _pick(rng: np.random.Generator, items, count: int) -> list:
    items = list(items)
    return [items[i] for i in rng.permutation(len(items))[:count]]


def _shuffled(rng: np.random.Generator, items: list) -> list:
    return _pick(rng, items, len(items))


def highlight_question(rng: np.random.Generator, clip: Clip, kind: str, verb: tuple[str, str]) -> Question | None:
    """The highlight's analogue of a gaze task, with another verb; None where the clip does not allow it."""
    scene, thing = clip.scene, clip.scene.objects[clip.current]
    visible = scene.visible(clip.time_s)
    if kind == "which":
        others = [scene.objects[i].noun for i in visible if i != clip.current]
        options = _pick(rng, others, 3)
        absent = [noun for noun in NOUNS if noun not in others and noun != thing.noun]
        options += _pick(rng, absent, 3 - len(options))
        text = f"Which object is the user currently {verb[0]}?"
        if rng.random() < 0.3:
            text = ("Which object is ringed now?", "Which object is highlighted now?")[int(rng.integers(2))]
        return Question(kind, text, _shuffled(rng, [*options, thing.noun]), thing.noun)
    if kind in ("color", "shape"):
        values = tuple(COLORS) if kind == "color" else SHAPES
        answer = getattr(thing, kind)
        shown = {getattr(scene.objects[i], kind) for i in visible} - {answer}
        options = _pick(rng, sorted(shown), 3)
        options += _pick(rng, [v for v in values if v != answer and v not in options], 3 - len(options))
        return Question(kind, f"What {kind} is this object?", _shuffled(rng, [*options, answer]), answer)
    attended = {f.object_index for f in clip.path if f.start_s < clip.time_s}
    seen = {f.object_index for f in clip.path for s in sample_times_s(clip.time_s) if f.start_s <= s < f.end_s}
    ignored = [i for i in scene.visible(0, clip.time_s) if i not in attended]
    if kind == "never":
        if not ignored or len(seen) < 2:
            return None
        answer = ignored[int(rng.integers(len(ignored)))]
        chosen = [*_pick(rng, sorted(seen), 3), answer]
        options = _shuffled(rng, [scene.objects[i].noun for i in chosen])
        listed = f"Among {{{', '.join(_shuffled(rng, options))}}}, which"
        text = f"{listed} did the user never {verb[1]}?"
        if rng.random() < 0.25:
            text = f"{listed} was never {('ringed', 'highlighted')[int(rng.integers(2))]}?"
        return Question(kind, text, options, scene.objects[answer].noun)
    if kind == "is it now":
        yes = rng.random() < 0.5
        others = [i for i in visible if i != clip.current]
        asked = clip.current if yes or not others else others[int(rng.integers(len(others)))]
        noun = scene.objects[asked].noun
        text = f"Is the user currently {verb[0]} the {noun}?"
        return Question(kind, text, _shuffled(rng, ["Yes", "No"]), "Yes" if asked == clip.current else "No")
    if kind == "was it ever":
        if not ignored:
            return None
        yes = rng.random() < 0.5
        pool = sorted(seen) if yes else ignored
        noun = scene.objects[pool[int(rng.integers(len(pool)))]].noun
        text = f"Did the user ever {verb[1]} the {noun}?"
        return Question(kind, text, _shuffled(rng, ["Yes", "No"]), "Yes" if yes else "No")
    raise ValueError(f"unknown kind {kind!r}")


def plain_question(rng: np.random.Generator, clip: Clip, kind: str) -> Question | None:
    """Questions that need no highlight: about the text alone, or about the scene."""
    scene = clip.scene
    visible = scene.visible(clip.time_s)
    if kind == "match":
        pool = (NOUNS, NOUNS, tuple(COLORS), SHAPES)[int(rng.integers(4))]
        options = _pick(rng, pool, 4)
        answer = options[int(rng.integers(4))]
        return Question(kind, f"Which option says {answer}?", options, answer)
    if kind == "visible":
        if not scene.visible(0, clip.time_s):
            return None
        answer = scene.objects[_pick(rng, visible, 1)[0]].noun
        absent = [noun for noun in NOUNS if noun not in {thing.noun for thing in scene.objects}]
        return Question(kind, "Which object is visible now?", _shuffled(rng, [answer, *_pick(rng, absent, 3)]), answer)
    if kind == "of noun":
        attribute, values = (("color", tuple(COLORS)), ("shape", SHAPES))[int(rng.integers(2))]
        thing = scene.objects[_pick(rng, visible, 1)[0]]
        answer = getattr(thing, attribute)
        options = _shuffled(rng, [answer, *_pick(rng, [v for v in values if v != answer], 3)])
        return Question(kind, f"What {attribute} is the {thing.noun}?", options, answer)
    raise ValueError(f"unknown kind {kind!r}")


def make_question(rng: np.random.Generator, clip: Clip, kinds: dict[str, float]) -> Question:
    """Draw a question whose kind has the given weights; a leading "word " in a kind leaves its options out."""
    names, weights = list(kinds), np.array(list(kinds.values()))
    while True:
        kind = names[int(rng.choice(len(names), p=weights / weights.sum()))]
        bare = kind.removeprefix("word ")
        verb = VERBS[int(rng.integers(len(VERBS)))]
        question = (
            plain_question(rng, clip, bare) if bare in PLAIN_KINDS else highlight_question(rng, clip, bare, verb)
        )
        if question:
            question.kind = kind
            if bare != kind:
                question.options = []
            return question
