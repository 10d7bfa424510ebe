"""
Draw what the wearer looked at.

A fixation belongs to a moment of a video that moves on. A filled disc lies on the frame of its own moment. All else is
drawn from other moments: hollow rings are other fixations, the thin line leads from each one's predecessor to it. A
dashed ring marked "snapped" is a fixation that the model was told of, though the wearer did not look there then.
"""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.patheffects import withStroke

from gazeqwen.plots.labels import Label, write_labels
from gazeqwen.plots.style import FONT, GAZE_COLOR, PATH_COLOR, rgb
from gazeqwen.scanpath_gazeqwen import Scanpath

_PANEL = 3.0  # inches, which fits the size of the numbers


def draw_scanpath(
    frames: np.ndarray,
    step_spans_s: np.ndarray,
    scanpath: Scanpath,
    weights: np.ndarray,
    title: str = "",
    columns: int = 5,
    attention: np.ndarray | None = None,
    snapped: int | None = None,
) -> Figure:
    """
    Return a figure with one panel per temporal step, see `draw_step`. `frames` (T, H, W, 3): for each step the frame
    of the moment that stands for it (`Comparison.moments_s`); `step_spans_s` (T, 2) in seconds; `scanpath` (F
    fixations) is cut to the clip; `weights` (T, F): how much each counts in each step; `attention` (T, H, W) is on the
    grid of visual tokens; `snapped`: the fixation (id) that snapping put into the last step.
    """
    expected = (len(step_spans_s), len(scanpath))
    if weights.shape != expected or len(frames) != len(step_spans_s):
        got = f"{len(frames)} frames and weights {weights.shape}"
        raise ValueError(f"got {got}, expected {expected[0]} and {expected}: steps, fixations")
    height, width = frames.shape[1:3]
    columns = min(columns, len(frames))
    rows = math.ceil(len(frames) / columns)
    size = (columns * _PANEL, rows * (_PANEL * height / width + 0.5) + 0.15)
    figure = Figure(figsize=size, layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axis in axes:
        axis.axis("off")
    for step, (axis, frame) in enumerate(zip(axes, frames, strict=False)):
        step_snapped = snapped if step == len(frames) - 1 else None
        _draw_step(axis, frame, scanpath, weights[step], None if attention is None else attention[step], step_snapped)
        shares = shares_text(scanpath, weights[step], step_snapped)
        axis.set_title(f"{span_text(*step_spans_s[step])}\n{shares}", fontsize=9, **FONT)
    figure.suptitle(title, fontsize=11, **FONT)
    return figure


def draw_step(
    frame: np.ndarray,
    scanpath: Scanpath,
    shares: np.ndarray,
    attention: np.ndarray | None = None,
    snapped: int | None = None,
) -> Figure:
    """
    Return a picture of a temporal step: the frame (H, W, 3) of its main fixation, and the fixations that cover a share
    of the step, `shares` (F,), each with its number. The main one, which covers most, is a disc whose opacity shows
    the share; the others are rings. `snapped`: the fixation (id) that snapping put into the step. Where `attention`,
    on the step's grid of visual tokens, is low, the frame is dark.
    """
    figure, axis = _picture(frame)
    _draw_step(axis, frame, scanpath, shares, attention, snapped)
    return figure


def draw_moment(frame: np.ndarray, scanpath: Scanpath | None, time_s: float, trail: int = 4) -> Figure:
    """
    Return the frame (H, W, 3) on screen at `time_s` with the fixation of that moment as a disc with its number, and
    the last `trail` fixations before it as rings, which fade. Nothing later is shown, and without a scanpath the frame
    alone.
    """
    figure, axis = _picture(frame)
    _show(axis, frame)
    past = np.flatnonzero(scanpath.begin_s <= time_s) if scanpath is not None else []  # and the present one
    for age, index in enumerate(reversed(past[-trail - 1 :])):
        fade = 1 - age / (trail + 1)
        if age < min(trail, len(past) - 1):
            _draw_line(axis, frame, scanpath, index, fade)
        if scanpath.end_s[index] > time_s:
            write_labels(axis, [_draw_disc(axis, frame, scanpath, index, 0.75)])
        else:
            _draw_ring(axis, frame, scanpath, index, fade)
    return figure


def draw_effect(
    frames: np.ndarray,
    step_spans_s: np.ndarray,
    scanpath: Scanpath,
    weights: np.ndarray,
    residuals: np.ndarray,
    probabilities: dict[str, dict[str, float]],
    title: str = "",
    snapped: int | None = None,
) -> Figure:
    """
    Return a figure of what gaze does to an answer. Above, a panel per temporal step as in `draw_scanpath`; below,
    `residuals` (T, H, W), how much is added to each visual token; right, the `probabilities` of each option, by name
    of the answer.
    """
    height, width = frames.shape[1:3]
    panel, bars = 2.0, 3.4
    figure = Figure(figsize=(len(frames) * panel + bars, 2 * panel * height / width + 1.0), layout="constrained")
    grid = figure.add_gridspec(2, len(frames) + 1, width_ratios=[panel] * len(frames) + [bars])
    for step, frame in enumerate(frames):
        frame_axis, residual_axis = (figure.add_subplot(grid[row, step]) for row in (0, 1))
        step_snapped = snapped if step == len(frames) - 1 else None
        _draw_step(frame_axis, frame, scanpath, weights[step], None, step_snapped)
        shares = shares_text(scanpath, weights[step], step_snapped)
        frame_axis.set_title(f"{span_text(*step_spans_s[step])}\n{shares}", fontsize=8, **FONT)
        # On the frame's own extent, so that a token lies where it is seen.
        residual_axis.imshow(
            residuals[step],
            cmap="inferno",
            vmin=0,
            vmax=residuals.max(),
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        )
        residual_axis.axis("off")
    _draw_probabilities(figure.add_subplot(grid[:, -1]), probabilities)
    figure.suptitle(title, fontsize=11, **FONT)
    return figure


def _draw_probabilities(axis: Axes, probabilities: dict[str, dict[str, float]]) -> None:
    """Draw horizontal bars: for each option one of each answer."""
    options, thickness = list(next(iter(probabilities.values()))), 0.8 / len(probabilities)
    colors = (GAZE_COLOR, "#9aa0a6")
    for number, ((name, by_option), color) in enumerate(zip(probabilities.items(), colors, strict=False)):
        places = [place + (number - (len(probabilities) - 1) / 2) * thickness for place in range(len(options))]
        axis.barh(places, [100 * by_option[option] for option in options], thickness, color=color, label=name)
    axis.set_yticks(range(len(options)), options, fontsize=9, **FONT)
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    axis.set_xlabel("probability, %", fontsize=9, **FONT)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize=8)


def span_text(begin_s: float, end_s: float) -> str:
    """Return when a temporal step is, such as `0:04.0 to 0:06.0`."""
    return f"{_clock(begin_s)} to {_clock(end_s)}"


def shares_text(scanpath: Scanpath, shares: np.ndarray, snapped: int | None = None) -> str:
    """
    Return which fixations cover which share of a temporal step, `shares` (F,): `#3: 80 %, #4: 20 %`. `snapped`: the
    fixation (id) that snapping put there, which is marked.
    """
    indices = np.flatnonzero(shares > 0)
    if len(indices) > 3:
        first, last = scanpath.ids[indices[[0, -1]]]
        return f"#{first} to #{last}: {100 * shares.sum():.0f} %"
    parts = []
    for index in indices:
        mark = " (snapped)" if scanpath.ids[index] == snapped else ""
        parts.append(f"#{scanpath.ids[index]}: {100 * shares[index]:.0f} %{mark}")
    return ", ".join(parts) or "no fixation"


def _picture(frame: np.ndarray) -> tuple[Figure, Axes]:
    """Return a figure that one frame fills."""
    height, width = frame.shape[:2]
    figure = Figure(figsize=(_PANEL * width / max(width, height), _PANEL * height / max(width, height)))
    return figure, figure.add_axes((0, 0, 1, 1))


def _show(axis: Axes, frame: np.ndarray) -> None:
    """Draw a frame to its edges, without ticks."""
    height, width = frame.shape[:2]
    axis.axis("off")
    axis.imshow(frame)
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _draw_step(
    axis: Axes,
    frame: np.ndarray,
    scanpath: Scanpath,
    shares: np.ndarray,
    attention: np.ndarray | None,
    snapped: int | None,
) -> None:
    """Draw a temporal step as `draw_step` does, on an axis."""
    _show(axis, frame if attention is None else _darkened(frame, attention))
    indices = np.flatnonzero(shares > 0)
    for index in indices:
        if index > 0:
            _draw_line(axis, frame, scanpath, index, 0.8)
    labels = []
    for index in sorted(indices, key=lambda index: shares[index]):  # the main fixation last, over the others
        if scanpath.ids[index] == snapped:
            labels.append(_draw_ring(axis, frame, scanpath, index, 1.0, label=f"{snapped} snapped", dashed=True))
        elif index == shares.argmax():
            labels.append(_draw_disc(axis, frame, scanpath, index, 0.15 + 0.6 * min(1.0, float(shares[index]))))
        else:
            labels.append(_draw_ring(axis, frame, scanpath, index, 1.0, label=str(scanpath.ids[index])))
    write_labels(axis, labels[::-1])  # the main fixation's number has its place before the others


def _place_px(frame: np.ndarray, scanpath: Scanpath, index: int) -> np.ndarray:
    """Return (x, y) of a fixation in pixels of the frame as matplotlib counts them, from the first pixel's centre."""
    height, width = frame.shape[:2]
    return scanpath.table[index, :2] * (width, height) - 0.5


def _draw_line(axis: Axes, frame: np.ndarray, scanpath: Scanpath, index: int, opacity: float) -> None:
    """Draw a thin line from the previous fixation's place to this one's."""
    (x0, y0), (x, y) = (_place_px(frame, scanpath, place) for place in (index - 1, index))
    axis.plot([x0, x], [y0, y], color=PATH_COLOR, linewidth=1.2, alpha=opacity)


def _draw_disc(axis: Axes, frame: np.ndarray, scanpath: Scanpath, index: int, opacity: float) -> Label:
    """Draw the fixation of the frame's own moment, and return its number, which is to be written."""
    radius = 0.04 * math.hypot(*frame.shape[:2])
    place = _place_px(frame, scanpath, index)
    axis.add_patch(Circle(place, radius, facecolor=(*rgb(GAZE_COLOR), opacity), edgecolor="white"))
    return Label(*place, str(scanpath.ids[index]), 8)


def _draw_ring(
    axis: Axes,
    frame: np.ndarray,
    scanpath: Scanpath,
    index: int,
    opacity: float,
    label: str = "",
    dashed: bool = False,
) -> Label:
    """
    Draw a fixation of another moment: small and hollow; the dashed ring of a snapped one is as large as a disc. Return
    its label, which is to be written.
    """
    radius = (0.04 if dashed else 0.025) * math.hypot(*frame.shape[:2])
    x, y = _place_px(frame, scanpath, index)
    ring = Circle((x, y), radius, fill=False, edgecolor=(*rgb(GAZE_COLOR), opacity), linewidth=1.5)
    ring.set_linestyle("--" if dashed else "-")
    if label:  # seen on every ground, as it is to be found by its number
        ring.set_path_effects([withStroke(linewidth=3, foreground="white")])
    axis.add_patch(ring)
    if not dashed:
        return Label(x, y, label, 6)
    below = y + 1.8 * radius < frame.shape[0]  # else above, where there is room
    return Label(x, y + (1.8 if below else -1.8) * radius, label, 8)


def _darkened(frame: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """Return the frame, dark where attention (H, W) is low."""
    height, width = frame.shape[:2]
    rows, columns = (
        np.arange(size) * cells // size for size, cells in zip((height, width), attention.shape, strict=True)
    )
    light = (attention / (attention.max() or 1.0))[rows][:, columns, None]
    return (frame * (0.25 + 0.75 * light)).astype(np.uint8)


def _clock(seconds: float) -> str:
    """Return seconds as minutes and seconds, such as `0:04.0`."""
    return f"{int(seconds // 60)}:{seconds % 60:04.1f}"
