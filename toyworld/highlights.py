"""Questions about what a wandering highlight is on, for pretraining: in gaze's place, with other verbs.

They follow StreamGaze's ten tasks in their words ("Which object is the user currently pointing at?"), and are drawn
more freely than `questions.py` does, since nothing is measured with them. With them come a few plain questions, about
the text alone or the scene.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gazeqwen.toyworld.questions import View, Wording, sequence_text
from gazeqwen.toyworld.viewer import NOTHING, VERBS, make_viewer, simulate_viewer
from gazeqwen.toyworld.world import make_scene

WORDINGS = tuple(
    Wording(doing, do, doing, noun, noun)
    for doing, do, noun in (
        ("pointing at", "point at", "pointing"),
        ("holding", "hold", "holding"),
        ("touching", "touch", "touching"),
        ("reaching for", "reach for", "reaching"),
        ("marking", "mark", "marking"),
        ("picking", "pick", "picking"),
    )
)
HIGHLIGHT_KINDS = ("which", "color", "shape", "category", "never", "next", "order", "longest", "alert now")
PLAIN_KINDS = ("match", "visible", "of noun", "not visible", "alert visible")
FACTS = ("visible", "now", "before", "ever", "longest")


@dataclass
class Question:
    """One question of a clip. Without options the answer is a word, with options a letter."""

    kind: str
    text: str
    options: list[str]
    answer: str


def make_clip(rng: np.random.Generator, make_scene=make_scene) -> View:
    """
    Return a clip of a scene, with a path of attention that a highlight will follow; it ends where a fixation begins.
    `make_scene` draws a scene of a world.
    """
    while True:
        recording = simulate_viewer(make_scene(rng), make_viewer(rng), rng)
        times = (
            [f.start_s for f in recording.fixations] if rng.random() < 0.2 else [d.start_s for d in recording.dwells]
        )
        snapped = bool(rng.random() < 0.55)
        if not snapped and recording.action and rng.random() < 0.4:
            times = [recording.dwells[recording.action.last].end_s]
        times = [s for s in times if s >= 4]
        if times:
            time_s = float(int(times[int(rng.integers(len(times)))]))
            start_s = max(0.0, time_s - 60) if rng.random() < 0.5 else 0.0
            view = View.of(recording, start_s, time_s, snapped)
            if view.path:
                return view


def facts(view: View, noun: str) -> tuple[float, ...]:
    """Of a noun's object, 0 or 1 each: visible now; highlighted now; the one before that; ever; longest of all."""
    index = next((i for i, thing in enumerate(view.scene.objects) if thing.noun == noun), None)
    if index is None:
        return (0.0,) * len(FACTS)
    runs = _runs(view)
    before = runs[:-1] if runs and runs[-1] == view.main[-1] else runs
    seconds = view.shares.sum(axis=0)
    return (
        float(view.scene.objects[index].visible(view.time_s)),
        float(view.main[-1] == index),
        float(before[-1:] == [index]),
        float(index in view.ever),
        float(seconds[index] > 0 and seconds.argmax() == index),
    )


def _runs(view: View) -> list[int]:
    """Return what the steps are about, in order, each once for steps in a row."""
    runs = []
    for index in view.main:
        if index != NOTHING and runs[-1:] != [index]:
            runs.append(index)
    return runs


def _pick(rng: np.random.Generator, items, count: int) -> list:
    items = list(items)
    return [items[i] for i in rng.permutation(len(items))[:count]]


def _shuffled(rng: np.random.Generator, items) -> list:
    items = list(items)
    return _pick(rng, items, len(items))


def _one(rng: np.random.Generator, items):
    return items[int(rng.integers(len(items)))]


class Drawer:
    """Draws questions of one clip, in one of the `wordings`; a kind's method gives None where it does not allow it."""

    def __init__(self, rng: np.random.Generator, view: View, wordings: tuple[Wording, ...] = WORDINGS):
        self.rng, self.view, self.scene, self.wordings = rng, view, view.scene, wordings
        self.visible = view.scene.visible(view.time_s)
        self.now = view.main[-1]
        self.absent = [noun for noun in self.scene.nouns if noun not in {thing.noun for thing in view.scene.objects}]

    def noun(self, index: int) -> str:
        return self.scene.objects[index].noun

    def question(self, kinds: dict[str, float]) -> Question:
        """Draw one whose kind has the given weights; a leading "word " in a kind leaves its options out."""
        names, weights = list(kinds), np.array(list(kinds.values()))
        while True:
            kind = names[int(self.rng.choice(len(names), p=weights / weights.sum()))]
            bare = kind.removeprefix("word ")
            drawn = getattr(self, "draw_" + bare.replace(" ", "_"))(_one(self.rng, self.wordings))
            if drawn:
                text, options, answer = drawn
                return Question(kind, text, options if bare == kind else [], answer)

    def draw_which(self, words: Wording):
        if self.now == NOTHING:
            return None
        options = _pick(self.rng, [self.noun(i) for i in self.visible if i != self.now], 3)
        options += _pick(self.rng, self.absent, 3 - len(options))
        text = words.identify()
        if self.rng.random() < 0.3:
            text = _one(self.rng, ("Which object is ringed now?", "Which object is highlighted now?"))
        return text, _shuffled(self.rng, [*options, self.noun(self.now)]), self.noun(self.now)

    def _attribute(self, words: Wording, attribute: str):
        if self.now == NOTHING:
            return None
        values = self.scene.attributes[attribute]
        answer = getattr(self.scene.objects[self.now], attribute)
        shown = {getattr(self.scene.objects[i], attribute) for i in self.visible} - {answer}
        options = _pick(self.rng, sorted(shown), 3)
        options += _pick(self.rng, [v for v in values if v != answer and v not in options], 3 - len(options))
        return words.attribute(attribute), _shuffled(self.rng, [*options, answer]), answer

    def draw_color(self, words: Wording):
        return self._attribute(words, "color")

    def draw_shape(self, words: Wording):
        return self._attribute(words, "shape")

    def draw_category(self, words: Wording):
        return self._attribute(words, "category")

    def _never_seen(self, without=()) -> tuple[list[str], str] | None:
        fresh = [i for i in self.view.stayers if i not in self.view.ever]
        seen = [i for i in sorted(self.view.seen) if i in self.visible and i not in without]
        if not fresh or len(seen) < 2:
            return None
        answer = self.noun(_one(self.rng, fresh))
        return _shuffled(self.rng, [*(self.noun(i) for i in _pick(self.rng, seen, 3)), answer]), answer

    def draw_never(self, words: Wording):
        never_seen = self._never_seen()
        if not never_seen:
            return None
        listed = _shuffled(self.rng, never_seen[0])
        text = words.never(listed)
        if self.rng.random() < 0.2:
            text = f"Among {{{', '.join(listed)}}}, which was never {_one(self.rng, ('ringed', 'highlighted'))}?"
        return text, *never_seen

    def draw_next(self, words: Wording):
        group = _runs(self.view)[-2:]
        never_seen = self._never_seen(without=group)
        return never_seen and (words.transition([self.noun(i) for i in group]), *never_seen)

    def draw_order(self, words: Wording):
        runs = _runs(self.view)
        if len(set(runs)) != len(runs) or len(runs) < 3 or len(self.visible) < 3:
            return None
        three = tuple(runs[-3:])
        orders = {three}
        pool = sorted({*self.visible, *runs})
        while len(orders) < 4:
            easy = self.rng.random() < 0.6
            orders.add(tuple(_pick(self.rng, pool if easy else three, 3)))
        options = _shuffled(self.rng, sorted(sequence_text([self.noun(i) for i in order]) for order in orders))
        return words.sequence(), options, sequence_text([self.noun(i) for i in three])

    def draw_longest(self, words: Wording):
        seconds = self.view.shares.sum(axis=0)
        longest = int(seconds.argmax())
        others = [i for i in np.flatnonzero(seconds) if i in self.view.seen and seconds[i] <= seconds[longest] / 1.5]
        if len(others) < 3 or longest not in self.view.seen:
            return None
        chosen = [longest, *(int(i) for i in _pick(self.rng, others, 3))]
        order = list(dict.fromkeys(thing for _, _, thing in self.view.path if thing in chosen))
        in_order = not self.scene.strictly_fair
        order = order if in_order else _shuffled(self.rng, order)
        verb = _one(self.rng, VERBS)
        options = _shuffled(self.rng, [f"{verb} the {self.noun(i)}" for i in chosen])
        text = words.future_action([self.noun(i) for i in order], in_order)
        return text, options, f"{verb} the {self.noun(longest)}"

    def _alert(self, text: str, due: bool):
        return text, ["Yes", "No"], "Yes" if due else "No"

    def draw_alert_now(self, words: Wording):
        yes = self.rng.random() < 0.5
        others = [i for i in self.visible if self.view.looked_at_last(i) is False]
        pool = [self.now] if yes and self.now != NOTHING else others
        if not pool:
            return None
        index = _one(self.rng, pool)
        return self._alert(words.alert_on_gaze(self.noun(index)), index == self.now)

    def draw_alert_visible(self, words: Wording):
        pools = {
            "shown": [i for i in self.visible if self.view.visible_last(i) and self.view.looked_at_last(i) is False],
            "gone": [i for i in range(len(self.scene.objects)) if self.view.visible_last(i) is False],
            "now": [self.now] if self.now != NOTHING else [],
        }
        kind = str(self.rng.choice(["shown", "gone", "now", "absent"], p=[0.5, 0.3, 0.1, 0.1]))
        if kind == "absent":
            noun = _one(self.rng, self.absent)
        elif pools[kind]:
            noun = self.noun(_one(self.rng, pools[kind]))
        else:
            return None
        return self._alert(words.alert_on_appearance(noun), kind == "shown")

    def draw_not_visible(self, words: Wording):
        if self.now == NOTHING:
            return None
        pool = [self.noun(i) for i in range(len(self.scene.objects)) if self.view.visible_last(i) is False]
        shown = [self.noun(i) for i in self.visible if i != self.now and self.view.visible_last(i)]
        if (not pool and self.rng.random() < 0.7) or len(shown) < 3:
            return None
        answer = _one(self.rng, pool or self.absent)
        options = _shuffled(self.rng, [*_pick(self.rng, shown, 3), answer])
        return words.scene_recall(self.noun(self.now)), options, answer

    # ---------------------------------------------------------------- about the text or the scene alone
    def draw_match(self, words: Wording):
        nouns = self.scene.nouns
        pool = (nouns, nouns, *self.scene.attributes.values())[int(self.rng.integers(4))]
        options = _pick(self.rng, pool, 4)
        answer = _one(self.rng, options)
        return f"Which option says {answer}?", options, answer

    def draw_visible(self, words: Wording):
        answer = self.noun(_one(self.rng, self.visible))
        return "Which object is visible now?", _shuffled(self.rng, [answer, *_pick(self.rng, self.absent, 3)]), answer

    def draw_of_noun(self, words: Wording):
        attribute, values = list(self.scene.attributes.items())[int(self.rng.integers(2))]
        thing = self.scene.objects[_one(self.rng, self.visible)]
        answer = getattr(thing, attribute)
        options = _shuffled(self.rng, [answer, *_pick(self.rng, [v for v in values if v != answer], 3)])
        return f"What {attribute} is the {thing.noun}?", options, answer
