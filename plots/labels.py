"""Write labels on a picture so that none covers another: of overlapping numbers, 1 and 0 would read as 10."""

from dataclasses import dataclass
from itertools import product

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from gazeqwen.plots.style import FONT

_CHARACTER = 0.65  # how wide a character is, of its font's size
# Where else a label may stand: around its place, ever farther away, and rather above or below than in a line.
_RINGS, _DIRECTIONS = range(1, 7), np.radians([90, 270, 60, 120, 240, 300, 30, 150, 210, 330, 0, 180])


@dataclass(frozen=True)
class Label:
    """A text that belongs to a place of an axis, in data coordinates; `size` of the font, points."""

    x: float
    y: float
    text: str
    size: int


def write_labels(axis: Axes, labels: list[Label]) -> None:
    """
    Write labels in white with a black edge, which is read on every ground: each at its place or, where an earlier one
    stands, beside it, tied to it by a line. One that has no room at all is left out. The axis has its limits already.
    """
    taken: list[np.ndarray] = []
    for label in labels:
        box = next((box for box in _boxes(axis, label) if not any(_overlap(box, other) for other in taken)), None)
        if box is None:
            continue
        taken.append(box)
        x, y = box.mean(0)
        if (x, y) != (label.x, label.y):
            axis.plot([label.x, x], [label.y, y], color="white", linewidth=0.6, alpha=0.7, zorder=2.5)
        text = axis.text(x, y, label.text, fontsize=label.size, color="white", ha="center", va="center", **FONT)
        text.set_path_effects([withStroke(linewidth=2, foreground="black")])


def _boxes(axis: Axes, label: Label):
    """Yield ((left, low), (right, high)) of where a label may stand, with a character's room around it, best first."""
    extent = axis.get_window_extent()
    limits = np.sort([axis.get_xlim(), axis.get_ylim()]).T
    pixels = min(np.array([extent.width, extent.height]) / (limits[1] - limits[0]))  # per unit, of equal aspect
    unit = label.size * axis.figure.dpi / 72 / pixels
    half = np.array([_CHARACTER * (len(label.text) + 1), 1.3]) * unit / 2
    place = np.array([label.x, label.y])
    yield np.stack([place - half, place + half])
    for ring, angle in product(_RINGS, _DIRECTIONS):
        moved = place + ring * unit * np.array([np.cos(angle), np.sin(angle)])
        box = np.stack([moved - half, moved + half])
        if (box[0] >= limits[0]).all() and (box[1] <= limits[1]).all():
            yield box


def _overlap(box: np.ndarray, other: np.ndarray) -> bool:
    """Return whether two boxes share a point."""
    return bool((box[0] < other[1]).all() and (other[0] < box[1]).all())
