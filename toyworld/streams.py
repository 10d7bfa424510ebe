"""
Long streams of the first world: one slow scene after the other, on a grid of steps, and questions at any moment.

A scene is two minutes long at most, and so slow that gaze rests on a thing for about a temporal step of ten seconds.
What gaze is on has a ring, as in pretraining. Questions are about the scene that is seen, since it began.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from gazeqwen.streaming.context import forgotten
from gazeqwen.token_selection_gazeqwen import fixation_ranks
from gazeqwen.toyworld.questions import View
from gazeqwen.toyworld.viewer import Recording, make_viewer, simulate_viewer
from gazeqwen.toyworld.world import GRID, make_scene

STEP_S = 10.0
FRAMES_PER_SECOND = 2 / STEP_S
STEP_TOKENS = GRID * GRID
MOST_STEPS = 12  # of a scene
FEWEST_STEPS = 3  # seen of a scene before something is asked


class GridView(View):
    """What there is to see of a recording from its beginning, in temporal steps of `STEP_S` seconds."""

    @cached_property
    def edges_s(self) -> np.ndarray:
        return np.arange(round(self.time_s / STEP_S) + 1) * STEP_S

    @cached_property
    def frame_times_s(self) -> np.ndarray:
        return (np.arange(2 * round(self.time_s / STEP_S)) + 0.5) * STEP_S / 2

    @classmethod
    def first_steps(cls, recording: Recording, steps: int) -> GridView:
        """Return the view of the first `steps` steps."""
        view = View.of(recording, 0.0, steps * STEP_S, snapped=False)
        return cls(view.scene, view.start_s, view.time_s, view.path)


@dataclass(frozen=True)
class SlowScene:
    """A recording of which `steps` temporal steps are shown, from step `begin` of a stream on."""

    recording: Recording
    begin: int
    steps: int

    @property
    def end(self) -> int:
        """Return the first step of the stream after it."""
        return self.begin + self.steps

    @cached_property
    def view(self) -> GridView:
        """Return all that is shown of it."""
        return GridView.first_steps(self.recording, self.steps)

    @cached_property
    def frames(self) -> np.ndarray:
        """Return the frames, two for each step, uint8 (2 * steps, 112, 112, 3), with a ring around what gaze is on."""
        view = self.view
        return np.stack([view.scene.draw(s, on) for s, on in zip(view.frame_times_s, view.marked, strict=True)])

    def ranks(self) -> torch.Tensor:
        """Return the ranks (steps, 16) of its visual tokens by how near they are to the fixations of their step."""
        spans_s = torch.from_numpy(np.stack([self.view.edges_s[:-1], self.view.edges_s[1:]], axis=1))
        table = torch.from_numpy(self.recording.scanpath.clip(0.0, self.view.time_s).table)
        return fixation_ranks(table, spans_s, GRID, GRID).reshape(self.steps, STEP_TOKENS)


def draw_slow_scene(rng: np.random.Generator, begin: int, steps: int | None = None) -> SlowScene:
    """Draw a scene of which `steps` steps are shown, by default 3 to 12, from step `begin` of a stream on."""
    steps = int(rng.integers(FEWEST_STEPS, MOST_STEPS + 1)) if steps is None else steps
    while True:
        duration_s = float(rng.uniform(MOST_STEPS * STEP_S, 1.5 * MOST_STEPS * STEP_S))
        recording = simulate_viewer(make_scene(rng, duration_s), make_viewer(rng), rng)
        scene = SlowScene(recording, begin, steps)
        if scene.view.path:
            return scene


def remembered(ranks: torch.Tensor, steps: torch.Tensor, budget: int, policy: str) -> torch.Tensor:
    """
    Return which visual tokens (V,) stay in a memory of `budget` of them, as `Context.forget` has it (without looking
    again). `ranks` (V,) by their nearness to gaze; `steps` (V,) in which they came, in order.
    """
    stays = torch.ones(len(ranks), dtype=torch.bool)
    if len(ranks) > budget:
        stays[forgotten(ranks, steps, steps, budget, policy)] = False
    return stays
