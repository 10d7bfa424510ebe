"""How near to the middle of the frame people look: the nearer, the more a point that never moves says as well."""

from collections.abc import Iterable

import numpy as np

from gazeqwen.questions.question import Question
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.utils.tables import NO_VALUE

RADII = (0.1, 0.2)  # of the shares

CENTRALITY_HEADER = ["gaze from the middle", *(f"within {radius}".replace("0.", ".") for radius in RADII)]

# What places drawn evenly in the frame would give: for reading the numbers of a recording.
EVEN_PLACES = {
    "mean_distance": float((np.sqrt(2) + np.log(1 + np.sqrt(2))) / 6),
    **{f"within_{radius}": float(np.pi * radius**2) for radius in RADII},
}

UNITS = (
    "Distances are from the middle of the frame, x in frame widths and y in frame heights (the middle of an edge is "
    ".5 away, a corner .71), weighted by how long each fixation lasts; places drawn evenly in the frame would give "
    f"{EVEN_PLACES['mean_distance']:.2f}, and {100 * EVEN_PLACES['within_0.1']:.0f} and "
    f"{100 * EVEN_PLACES['within_0.2']:.0f} % of the time within .1 and .2."
)


def centrality(scanpaths: Iterable[Scanpath]) -> dict[str, float] | None:
    """
    Return how near to the middle of the frame the fixations of some scanpaths are, each weighted by its duration.

    `mean_distance`, and `within_0.1` and `within_0.2`, the shares of the fixated time that are spent at most so far
    away. Distances are Euclidean, with x in frame widths and y in frame heights: from 0 to .71, whatever the frame's
    shape. `fixation_s`: the fixated time in seconds. None where there is no fixation.
    """
    table = np.concatenate([np.zeros((0, 4)), *(scanpath.table for scanpath in scanpaths)])
    if not len(table):
        return None
    distances, durations_s = np.hypot(table[:, 0] - 0.5, table[:, 1] - 0.5), table[:, 3]
    total_s = durations_s.sum()
    # A place such as .6 is no further away than .1, whatever binary fractions make of it.
    shares = {f"within_{radius}": durations_s[distances <= radius + 1e-9].sum() / total_s for radius in RADII}
    values = {"mean_distance": (durations_s * distances).sum() / total_s, **shares, "fixation_s": total_s}
    return {name: float(value) for name, value in values.items()}


def centrality_of_questions(questions: Iterable[Question]) -> dict[str, float] | None:
    """
    Return the `centrality` of what questions see, without snapping: the gaze of each one's clip, so that a fixation
    counts once for each question whose clip it is in. None where there is no fixation.
    """
    return centrality(
        question.scanpath.clip(question.start_s, question.end_s)
        for question in questions
        if question.scanpath is not None
    )


def centrality_cells(values: dict[str, float] | None) -> list[str]:
    """Return a centrality as cells under `CENTRALITY_HEADER`; `NO_VALUE` in each where there is none."""
    if values is None:
        return [NO_VALUE] * len(CENTRALITY_HEADER)
    return [f"{values['mean_distance']:.2f}", *(f"{100 * values[f'within_{radius}']:.0f} %" for radius in RADII)]


__all__ = [
    "CENTRALITY_HEADER",
    "EVEN_PLACES",
    "RADII",
    "UNITS",
    "centrality",
    "centrality_cells",
    "centrality_of_questions",
]
