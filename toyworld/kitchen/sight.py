"""
What the vision tower of the kitchen's backbone learns to see: single temporal steps of tables full of things, some of
them marked; at each visual token, which thing it shows and whether that is marked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from gazeqwen.pipeline.overlays import with_heat
from gazeqwen.toyworld.kitchen.marks import draw_mark, with_mark
from gazeqwen.toyworld.kitchen.scene import (
    FRAME_PX,
    MARGIN_PX,
    SWAY_PX,
    TILT_DEG,
    TOKEN_PX,
    Head,
    KitchenObject,
    KitchenScene,
    Places,
    draw_ground,
    draw_size_px,
)
from gazeqwen.toyworld.kitchen.things import THINGS
from gazeqwen.toyworld.packing import patches_of

GRID = FRAME_PX // TOKEN_PX
STEP_TOKENS = GRID * GRID
NO_THING, UNCLEAR = len(THINGS), -1


@dataclass(frozen=True)
class Sight:
    """
    A phase in which the vision tower learns: for how many batches, of how many tables and temporal steps of each, how
    full these are, in what share of the steps a heat map marks things, and how fast it learns.
    """

    name: str
    steps: int
    tables: int
    pairs: int
    most_things: int
    most_marks: int
    heated: float = 0.15
    decay: bool = False  # the learning rate goes to zero over the second half
    lr: float = 1.0


def cell_labels(places_px: np.ndarray, sizes_px, numbers, drawn: np.ndarray, marked) -> np.ndarray:
    """
    Return, for each visual token of a temporal step (64, 2): the number of the thing that it shows (NO_THING,
    UNCLEAR), and whether that is marked. Of each of N things: `places_px` (2, N, 2) in the step's two frames, `drawn`
    (2, N) whether it is there, its size, number, and whether it is marked.
    """
    labels = np.zeros((GRID, GRID, 2), np.int64)
    labels[..., 0] = NO_THING
    centres = (np.arange(GRID) + 0.5) * TOKEN_PX
    nearest = np.full((GRID, GRID), np.inf)
    for index in np.flatnonzero(drawn.any(axis=0)):
        x, y = places_px[:, index].mean(axis=0)
        away = np.maximum(abs(centres[None, :] - x), abs(centres[:, None] - y))
        distance = np.hypot(centres[None, :] - x, centres[:, None] - y)
        closer = (away <= max(sizes_px[index] * 0.42, TOKEN_PX / 2)) & (distance < nearest)
        moved = not drawn[:, index].all() or np.ptp(places_px[:, index], axis=0).max() > TOKEN_PX / 2
        labels[closer, 0] = UNCLEAR if moved else numbers[index]
        labels[closer, 1] = marked[index]
        nearest[closer] = distance[closer]
    return labels.reshape(STEP_TOKENS, 2)


def filmed(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Do roughly what a camera and a video file do to frames: brightness, contrast, and noise."""
    gain, offset = rng.uniform(0.85, 1.15), rng.uniform(-12, 12)
    noise = rng.normal(0, rng.uniform(0, 4), size=4096).astype(np.float32)
    spread = np.resize(np.roll(noise, rng.integers(4096)), frames.size).reshape(frames.shape)
    return (frames * np.float32(gain) + np.float32(offset) + spread).clip(0, 255).astype(np.uint8)


def draw_table(rng: np.random.Generator, sight: Sight) -> KitchenScene:
    """Draw a scene of things at rest; only the head moves a little, at 0, 1, ... s."""
    sways = FRAME_PX / 2 + rng.uniform(-SWAY_PX, SWAY_PX, size=(2 * sight.pairs, 2)) * rng.choice([0.2, 1.0])
    tilts = tuple((float(s), float(rng.uniform(-TILT_DEG, TILT_DEG))) for s in (0, 5))
    head = Head(tuple((float(s), float(x), float(y)) for s, (x, y) in enumerate(sways)), tilts)
    places, objects = Places(rng), []
    low, high = np.full(2, MARGIN_PX - 8.0), np.full(2, FRAME_PX - MARGIN_PX + 8.0)
    for number in rng.permutation(len(THINGS))[: sight.most_things]:
        size_px = draw_size_px(rng)
        place = places.draw(size_px, low, high)
        if place is not None:
            turn_deg = float(rng.uniform(-25, 25))
            objects.append(KitchenObject(int(number), size_px, turn_deg, ((0.0, *place),), head=head))
    return KitchenScene(2.0 * sight.pairs, tuple(objects), draw_ground(rng), head)


def marked_pair(
    rng: np.random.Generator, scene: KitchenScene, start_s: float, sight: Sight
) -> tuple[np.ndarray, np.ndarray]:
    """
    Draw a temporal step of a table: frames, uint8 (2, 224, 224, 3), and labels (64, 3), `cell_labels` and whether the
    mark is to be told: of a heat map nobody could say where it ends.
    """
    times_s = (start_s, start_s + 1)
    frames = [scene.draw(s) for s in times_s]
    things = rng.permutation(len(scene.objects))[: int(rng.integers(sight.most_marks + 1))]
    marked = np.zeros(len(scene.objects), bool)
    heated = bool(len(things)) and rng.random() < sight.heated
    weights = rng.exponential(size=len(things)) + 0.05
    for k, time_s in enumerate(times_s):
        if heated:
            places = np.array([scene.objects[thing].position_px(time_s) for thing in things])
            frames[k] = with_heat(frames[k], places, weights)
    for thing in () if heated else things:
        mark, shown = draw_mark(rng), scene.objects[thing]
        while mark.kind not in ("ring", "cross", "arrow"):
            mark = draw_mark(rng)
        for k in ((0, 1), (0, 1), (0,), (1,))[int(rng.integers(4))]:
            off = np.array(mark.offset) * shown.size_px
            frames[k] = with_mark(frames[k], shown.position_px(times_s[k]) + off, shown.size_px, mark)
        marked[thing] = True
    labels = cell_labels(
        np.array([[thing.position_px(s) for thing in scene.objects] for s in times_s]),
        [thing.size_px for thing in scene.objects],
        [thing.number for thing in scene.objects],
        np.ones((2, len(scene.objects)), bool),
        marked,
    )
    known = np.full((STEP_TOKENS, 1), not heated)
    return filmed(np.stack(frames), rng), np.concatenate([labels, known], axis=-1)


class SightBatches(Dataset):
    """Step number -> pixels (tables * pairs * 256, 1176) and labels (tables * pairs * 64, 3)."""

    def __init__(self, seed: int, number: int, sight: Sight, images):
        self.seed, self.number, self.sight, self.images = seed, number, sight, images

    def __len__(self) -> int:
        return self.sight.steps

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        drawn, sight = [], self.sight
        for table in range(sight.tables):
            rng = np.random.default_rng([self.seed, 92, self.number, step, table])
            scene = draw_table(rng, sight)
            drawn += [marked_pair(rng, scene, 2.0 * pair, sight) for pair in range(sight.pairs)]
        pixels = patches_of(np.concatenate([frames for frames, _ in drawn]), self.images)
        return {"pixels": pixels, "labels": torch.from_numpy(np.concatenate([labels for _, labels in drawn]))}


class SightHeads(nn.Module):
    """What is told of a visual token: the thing that it shows (or none), and whether that is marked."""

    def __init__(self, hidden: int):
        super().__init__()
        self.thing = nn.Linear(hidden, len(THINGS) + 1)
        self.marked = nn.Linear(hidden, 1)


def sight_loss(tower: nn.Module, heads: SightHeads, batch: dict) -> tuple[torch.Tensor, dict[str, float]]:
    """What thing does each visual token show, and is it marked? Returns the loss and accuracies."""
    steps = len(batch["labels"]) // STEP_TOKENS
    grid = torch.tensor([[1, 2 * GRID, 2 * GRID]] * steps, device=batch["pixels"].device)
    visual = tower(batch["pixels"], grid_thw=grid).pooler_output
    thing, marked, known = batch["labels"].unbind(-1)
    clear = thing != UNCLEAR
    scores = heads.thing(visual[clear])
    full = thing[clear] != NO_THING
    weight = scores.new_ones(len(THINGS) + 1)
    weight[-1] = 0.3
    loss = F.cross_entropy(scores, thing[clear], weight=weight)
    of_mark = clear & (known > 0) & (thing != NO_THING)
    guess = heads.marked(visual)[of_mark, 0]
    loss = loss + F.binary_cross_entropy_with_logits(guess, marked[of_mark].float(), pos_weight=scores.new_tensor(2.0))
    right, truth = scores.argmax(-1) == thing[clear], marked[of_mark] > 0
    return loss, {
        "thing": right[full].float().mean().item(),
        "nothing": right[~full].float().mean().item(),
        "marked": ((guess > 0) == truth)[truth].float().mean().item() if truth.any() else 1.0,
        "not marked": ((guess > 0) == truth)[~truth].float().mean().item() if not truth.all() else 1.0,
    }
