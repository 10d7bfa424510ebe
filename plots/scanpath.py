"""Pictures of what the wearer looked at."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.patheffects import withStroke

from gazeqwen.plots.style import FONT, GAZE_COLOR, PATH_COLOR, rgb
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.video_gazeqwen import Clip

_PANEL = 3.0  # inches, which fits the size of the numbers


def draw_scanpath(
    clip: Clip,
    scanpath: Scanpath,
    weights: np.ndarray,
    title: str = "",
    columns: int = 5,
    attention: np.ndarray | None = None,
) -> Figure:
    """
    One panel per temporal step: the step's last frame and the fixations that count in it, see `draw_step`. `scanpath`
    (F fixations) is cut to the clip; `weights` (T, F) says how much each counts in each step; `attention` (T, H, W) is
    on the grid of visual tokens.
    """
    spans, frames = clip.step_spans_s(), frames_of_steps(clip)
    if weights.shape != (len(spans), len(scanpath)):
        raise ValueError(f"weights are {weights.shape}, expected {(len(spans), len(scanpath))}: steps, fixations")
    height, width = frames.shape[1:3]
    columns = min(columns, len(frames))
    rows = math.ceil(len(frames) / columns)
    size = (columns * _PANEL, rows * (_PANEL * height / width + 0.5) + 0.15)
    figure = Figure(figsize=size, layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axis in axes:
        axis.axis("off")
    for step, (axis, frame) in enumerate(zip(axes, frames, strict=False)):
        _draw_step(axis, frame, scanpath, weights[step], None if attention is None else attention[step])
        axis.set_title(f"{span_text(*spans[step])}\n{shares_text(scanpath, weights[step])}", fontsize=9, **FONT)
    figure.suptitle(title, fontsize=11, **FONT)
    return figure


def draw_step(
    frame: np.ndarray, scanpath: Scanpath, shares: np.ndarray, attention: np.ndarray | None = None
) -> Figure:
    """
    A frame (H, W, 3) of a temporal step, and the fixations that cover a share of it, `shares` (F,): a disc carries the
    fixation's number, its opacity shows the share; the thin line leads from the previous fixation. Where `attention`,
    on the step's grid of visual tokens, is low, the frame is dark.
    """
    figure, axis = _picture(frame)
    _draw_step(axis, frame, scanpath, shares, attention)
    return figure


def draw_moment(frame: np.ndarray, scanpath: Scanpath | None, time_s: float, trail: int = 4) -> Figure:
    """
    The frame (H, W, 3) on screen at `time_s`, the fixation of that moment as a disc with its number, and the last
    `trail` fixations before it, which fade. Nothing later is shown, and without a scanpath the frame alone.
    """
    figure, axis = _picture(frame)
    _show(axis, frame)
    begun = np.flatnonzero(scanpath.begin_s <= time_s) if scanpath is not None else []
    for age, index in enumerate(reversed(begun[-trail - 1 :])):
        now = scanpath.end_s[index] > time_s
        fade = 1 - age / (trail + 1)
        line = fade if age < min(trail, len(begun) - 1) else 0.0
        _draw_fixation(axis, frame, scanpath, index, 0.75 if now else 0.4 * fade, line, numbered=now)
    return figure


def draw_effect(
    clip: Clip,
    scanpath: Scanpath,
    weights: np.ndarray,
    residuals: np.ndarray,
    probabilities: dict[str, dict[str, float]],
    title: str = "",
) -> Figure:
    """
    What gaze does to an answer. Above, a panel per temporal step as in `draw_scanpath`; below, `residuals` (T, H, W),
    how much is added to each visual token; right, the `probabilities` of each option, by name of the answer.
    """
    spans, frames = clip.step_spans_s(), frames_of_steps(clip)
    height, width = frames.shape[1:3]
    panel, bars = 2.0, 3.4
    figure = Figure(figsize=(len(frames) * panel + bars, 2 * panel * height / width + 1.0), layout="constrained")
    grid = figure.add_gridspec(2, len(frames) + 1, width_ratios=[panel] * len(frames) + [bars])
    for step, frame in enumerate(frames):
        seen, added = (figure.add_subplot(grid[row, step]) for row in (0, 1))
        _draw_step(seen, frame, scanpath, weights[step], None)
        seen.set_title(f"{span_text(*spans[step])}\n{shares_text(scanpath, weights[step])}", fontsize=8, **FONT)
        # On the frame's own extent, so that a token lies where it is seen.
        added.imshow(
            residuals[step],
            cmap="inferno",
            vmin=0,
            vmax=residuals.max(),
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
        )
        added.axis("off")
    _draw_probabilities(figure.add_subplot(grid[:, -1]), probabilities)
    figure.suptitle(title, fontsize=11, **FONT)
    return figure


def _draw_probabilities(axis: Axes, probabilities: dict[str, dict[str, float]]) -> None:
    """Horizontal bars: for each option one of each answer."""
    options, thickness = list(next(iter(probabilities.values()))), 0.8 / len(probabilities)
    for number, ((name, found), color) in enumerate(zip(probabilities.items(), (GAZE_COLOR, "#9aa0a6"), strict=False)):
        places = [place + (number - (len(probabilities) - 1) / 2) * thickness for place in range(len(options))]
        axis.barh(places, [100 * found[option] for option in options], thickness, color=color, label=name)
    axis.set_yticks(range(len(options)), options, fontsize=9, **FONT)
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    axis.set_xlabel("probability, %", fontsize=9, **FONT)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize=8)


def frames_of_steps(clip: Clip) -> np.ndarray:
    """(T, H, W, 3): the last frame of each temporal step."""
    return clip.padded(2).frames[1::2]


def span_text(begin_s: float, end_s: float) -> str:
    """When a temporal step is, such as `0:04.0 to 0:06.0`."""
    return f"{_clock(begin_s)} to {_clock(end_s)}"


def shares_text(scanpath: Scanpath, shares: np.ndarray) -> str:
    """Which fixations cover which share of a temporal step, `shares` (F,): `#3: 80 %, #4: 20 %`."""
    counted = np.flatnonzero(shares > 0)
    if len(counted) > 3:
        first, last = scanpath.ids[counted[[0, -1]]]
        return f"#{first} to #{last}: {100 * shares.sum():.0f} %"
    return ", ".join(f"#{scanpath.ids[index]}: {100 * shares[index]:.0f} %" for index in counted) or "no fixation"


def _picture(frame: np.ndarray) -> tuple[Figure, Axes]:
    """A figure that one frame fills."""
    height, width = frame.shape[:2]
    figure = Figure(figsize=(_PANEL * width / max(width, height), _PANEL * height / max(width, height)))
    return figure, figure.add_axes((0, 0, 1, 1))


def _show(axis: Axes, frame: np.ndarray) -> None:
    height, width = frame.shape[:2]
    axis.axis("off")
    axis.imshow(frame)
    axis.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))


def _draw_step(
    axis: Axes, frame: np.ndarray, scanpath: Scanpath, shares: np.ndarray, attention: np.ndarray | None
) -> None:
    _show(axis, frame if attention is None else _lit(frame, attention))
    for index in np.flatnonzero(shares > 0):
        opacity = 0.15 + 0.6 * min(1.0, float(shares[index]))
        _draw_fixation(axis, frame, scanpath, index, opacity, line=0.8 if index > 0 else 0.0)


def _draw_fixation(
    axis: Axes, frame: np.ndarray, scanpath: Scanpath, index: int, opacity: float, line: float, numbered: bool = True
) -> None:
    """A disc of this opacity, and a line of that opacity that leads there from the previous fixation."""
    height, width = frame.shape[:2]
    x, y = scanpath.table[index, :2] * (width, height) - 0.5
    if line:
        before = scanpath.table[index - 1, :2] * (width, height) - 0.5
        axis.plot([before[0], x], [before[1], y], color=PATH_COLOR, linewidth=1.2, alpha=line)
    radius = 0.04 * math.hypot(width, height)
    edge = "white" if numbered else (1, 1, 1, opacity)
    axis.add_patch(Circle((x, y), radius, facecolor=(*rgb(GAZE_COLOR), opacity), edgecolor=edge))
    if numbered:
        place = {"ha": "center", "va": "center"}
        number = axis.text(x, y, str(scanpath.ids[index]), fontsize=8, color="white", **place, **FONT)
        number.set_path_effects([withStroke(linewidth=2, foreground="black")])


def _lit(frame: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """The frame, dark where attention (H, W) is low."""
    height, width = frame.shape[:2]
    rows, columns = (
        np.arange(size) * cells // size for size, cells in zip((height, width), attention.shape, strict=True)
    )
    light = (attention / (attention.max() or 1.0))[rows][:, columns, None]
    return (frame * (0.25 + 0.75 * light)).astype(np.uint8)


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60)}:{seconds % 60:04.1f}"
