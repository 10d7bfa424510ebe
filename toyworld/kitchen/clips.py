"""
Clips of the kitchen that its backbone is pretrained on, with what each of their visual tokens shows; and the same
clips with other things in them, so that no answer can be learned by heart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from torch.utils.data import Dataset

from gazeqwen.toyworld.highlights import make_clip
from gazeqwen.toyworld.kitchen.marks import Mark, draw_mark, marked_frame
from gazeqwen.toyworld.kitchen.scene import make_scene
from gazeqwen.toyworld.kitchen.sight import NO_THING, STEP_TOKENS, UNCLEAR, cell_labels, filmed
from gazeqwen.toyworld.kitchen.things import THINGS
from gazeqwen.toyworld.packing import patches_of
from gazeqwen.toyworld.questions import FRAMES, STEPS, View
from gazeqwen.toyworld.viewer import NOTHING

VIDEO_TOKENS = STEPS * STEP_TOKENS


@cache
def clip_of(seed: int, number: int) -> tuple[View, Mark]:
    """Return clip `number` of a seed, and how its things are marked: always the same."""
    rng = np.random.default_rng([seed, 91, number])
    return make_clip(rng, make_scene), draw_mark(rng)


def token_labels(view: View, mark: Mark) -> np.ndarray:
    """
    Return, for each visual token (STEPS * 64, 2): the number of the thing that it shows (NO_THING, UNCLEAR), and
    whether that is marked in one of the step's frames, other than in words.
    """
    things, times = view.scene.objects, view.frame_times_s
    places = np.stack([thing.position_px(times) for thing in things], axis=1)  # (frames, things, 2)
    drawn = np.array([[thing.visible(float(s)) for thing in things] for s in times])
    sizes, numbers = [thing.size_px for thing in things], [thing.number for thing in things]
    labels = []
    for step in range(STEPS):
        pair = slice(2 * step, 2 * step + 2)
        drawn_on = {i for k in (2 * step, 2 * step + 1) for i in view.marked[k]} if mark.kind != "words" else set()
        marked = [i in drawn_on for i in range(len(things))]
        labels.append(cell_labels(places[pair], sizes, numbers, drawn[pair], marked))
    return np.concatenate(labels)


@cache
def labels_of(seed: int, number: int) -> np.ndarray:
    return token_labels(*clip_of(seed, number)).astype(np.int8)


def things_of_steps(view: View) -> list[int]:
    """
    Return the number of the thing that each temporal step is about, if a frame shows that; NO_THING where none is
    shown, UNCLEAR otherwise.
    """
    numbers = []
    for step, thing in enumerate(view.main):
        shown = {*view.marked[2 * step], *view.marked[2 * step + 1]}
        clear = thing in shown if thing != NOTHING else not shown
        number = NO_THING if thing == NOTHING else view.scene.objects[thing].number
        numbers.append(number if clear else UNCLEAR)
    return numbers


class ClipEmbeddings(Dataset):
    """Clip number -> the pixels of a whole clip, for the tower to embed."""

    def __init__(self, seed: int, count: int, images):
        self.seed, self.count, self.images = seed, count, images

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> torch.Tensor:
        view, mark = clip_of(self.seed, number)
        frames = np.stack([marked_frame(view, mark, k) for k in range(FRAMES)])
        return patches_of(filmed(frames, np.random.default_rng([self.seed, 93, number])), self.images)


@cache
def heat_of(seed: int, number: int) -> np.ndarray:
    return heat_of_tokens(*clip_of(seed, number))


def heat_of_tokens(view: View, mark: Mark) -> np.ndarray:
    """
    Return how hot a heat map shows the thing of each visual token (STEPS * 64,): how long attention has been on it,
    as a share of the longest; zero for other marks.
    """
    heat = np.zeros((STEPS, STEP_TOKENS))
    if mark.kind != "heat":
        return heat.reshape(-1)
    labels = token_labels(view, mark)[:, 0].reshape(heat.shape)
    for step in range(STEPS):
        seconds = {}
        for begin_s, end_s, thing in view.path:
            lasted_s = min(end_s, view.frame_times_s[2 * step + 1]) - begin_s
            if thing != NOTHING and lasted_s > 0:
                number = view.scene.objects[thing].number
                seconds[number] = seconds.get(number, 0.0) + lasted_s
        for number, value in seconds.items():
            heat[step][labels[step] == number] = value / max(seconds.values())
    return heat.reshape(-1)


def chosen_tokens(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Choose `count` visual tokens of each step, those that show things first: labels (C, V, 2) -> bool (C, V)."""
    shows = labels[..., 0].reshape(-1, STEP_TOKENS) != NO_THING
    order = np.argsort(rng.random(shows.shape) - shows, axis=1)
    chosen = np.zeros(shows.shape, bool)
    np.put_along_axis(chosen, order[:, :count], True, axis=1)
    return chosen.reshape(len(labels), VIDEO_TOKENS)


def renamed(view: View, new: np.ndarray) -> View:
    """Return the same clip of other things: where thing i lay, `new[i]` lies, in its size and at the same times."""
    things = tuple(replace(thing, number=int(new[thing.number])) for thing in view.scene.objects)
    return replace(view, scene=replace(view.scene, objects=things))


@dataclass(frozen=True)
class Symbols:
    """What stands for a visual token: its thing's row of `nouns` (things, hidden), and `mark` where that is marked."""

    nouns: np.ndarray
    mark: np.ndarray

    def of(self, things: np.ndarray, strength: np.ndarray) -> np.ndarray:
        """Return the symbols (..., hidden) of things (...); zero for ground; plus `strength` (...) times the mark."""
        known = np.concatenate([self.nouns, np.zeros_like(self.nouns[:1])])
        return known[things] + strength[..., None] * self.mark

    def draw(self, labels: np.ndarray, heat: np.ndarray, heated: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """
        Return symbols (N, hidden) of what labels (N, 2) show, as unlike each other as a tower's embeddings are: weaker
        and stronger, with a tenth of things and of marks left out, and those of UNCLEAR ones.
        """
        seen, noticed, size, contrast = rng.random((4, len(labels)))
        things = np.where((labels[:, 0] == UNCLEAR) | (seen < 0.1), NO_THING, labels[:, 0])
        marked = np.where(noticed < 0.1, 0, np.where(heated, heat, labels[:, 1]))
        strength = (0.35 + 0.75 * contrast) * marked + 0.12 * (things != NO_THING) * rng.normal(size=len(labels))
        symbols = (0.5 + 0.6 * size)[:, None] * self.of(things, np.zeros(len(things))) + strength[:, None] * self.mark
        return (symbols + 0.02 * rng.normal(size=symbols.shape)).astype(np.float32)


class TokensByThing:
    """
    The visual tokens of many clips, by what they show: which thing, how strongly it is marked, and by a heat map or
    otherwise. `labels` (N, 2) as `token_labels`, `heat` (N,) as `heat_of_tokens`, `heated` (N,): by a heat map.
    """

    def __init__(self, labels: np.ndarray, heat: np.ndarray, heated: np.ndarray):
        keys = self._keys(labels, heat, heated)
        self.rows = np.argsort(keys, kind="stable")
        self.begins = np.searchsorted(keys[self.rows], np.arange(8 * (len(THINGS) + 2) + 1))
        self.nearest = self._nearest(np.diff(self.begins).reshape(-1, 4, 2) > 0)

    @staticmethod
    def _keys(labels: np.ndarray, heat: np.ndarray, heated: np.ndarray) -> np.ndarray:
        things, marked = labels[..., 0] % (len(THINGS) + 2), labels[..., 1]  # UNCLEAR is the last
        strength = np.ceil(3 * np.where(heated, heat, marked)).astype(int)  # none, and thirds
        return 8 * things + 2 * strength + heated

    @staticmethod
    def _nearest(known: np.ndarray) -> np.ndarray:
        """Return for each key the nearest that has tokens, -1 if none: of a marked thing's always a marked one's."""
        strength, heated = np.mgrid[0:4, 0:2].reshape(2, 8)
        apart = 2 * abs(strength[:, None] - strength) + (heated[:, None] != heated)
        apart = apart + 100 * ((strength[:, None] > 0) != (strength > 0))
        apart = apart[None] + 1000 * ~known.reshape(-1, 1, 8)  # (things, keys, keys)
        keys = 8 * np.arange(len(known))[:, None] + apart.argmin(axis=-1)
        return np.where(apart.min(axis=-1) < 100, keys, -1).reshape(-1)

    def draw(self, labels: np.ndarray, heat: np.ndarray, heated: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw for each label the number of a token that shows the same: (...,) each -> (...,)."""
        keys = self.nearest[self._keys(labels, heat, heated)]
        if keys.min() < 0:
            raise ValueError("no token shows some of the things, or none shows them marked; more clips are needed")
        counts = self.begins[keys + 1] - self.begins[keys]
        return self.rows[self.begins[keys] + (rng.random(keys.shape) * counts).astype(int)]
