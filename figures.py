"""Pictures of what the wearer looked at."""

import math
import os
from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.patheffects import withStroke

from .scanpath_gazeqwen import Scanpath
from .video_gazeqwen import Clip

_GAZE_COLOR, _PATH_COLOR = "#ff2d55", "#ffd60a"


def draw_scanpath(
    path,
    clip: Clip,
    scanpath: Scanpath,
    weights: np.ndarray,
    title: str = "",
    columns: int = 5,
    attention: np.ndarray | None = None,
) -> None:
    """
    Write a PNG with one panel per temporal step: the step's last frame and the fixations that count in it.
    `scanpath` (F fixations) is cut to the clip; `weights` (T, F) says how much each counts in each step. A disc
    carries the fixation's number, its opacity shows the weight; the thin line leads from the previous fixation. Where
    `attention` (T, H, W), on the grid of visual tokens, is low, the frame is dark.
    """
    spans = clip.step_spans_s()
    if weights.shape != (len(spans), len(scanpath)):
        raise ValueError(f"weights are {weights.shape}, expected {(len(spans), len(scanpath))}: steps, fixations")
    frames = clip.padded(2).frames[1::2]
    height, width = frames.shape[1:3]
    columns = min(columns, len(frames))
    rows = math.ceil(len(frames) / columns)
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        panel_width = 3.0
        figure = Figure(
            figsize=(columns * panel_width, rows * (panel_width * height / width + 0.5) + 0.15), layout="constrained"
        )
        axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
        for axis in axes:
            axis.axis("off")
        radius, edge = 0.04 * math.hypot(width, height), "white"
        for step, (axis, frame) in enumerate(zip(axes, frames, strict=False)):
            axis.imshow(frame if attention is None else _lit(frame, attention[step]))
            counted = np.flatnonzero(weights[step] > 0)
            shares = ", ".join(f"#{scanpath.ids[index]}: {100 * weights[step, index]:.0f} %" for index in counted)
            if len(counted) > 3:
                first, last, share = *scanpath.ids[counted[[0, -1]]], weights[step].sum()
                shares = f"#{first} to #{last}: {100 * share:.0f} %"
            when = f"{_clock(spans[step, 0])} to {_clock(spans[step, 1])}"
            axis.set_title(f"{when}\n{shares or 'no fixation'}", fontsize=9)
            for index in counted:
                x, y = scanpath.table[index, 0] * width - 0.5, scanpath.table[index, 1] * height - 0.5
                if index > 0:
                    before = scanpath.table[index - 1, :2] * (width, height) - 0.5
                    axis.plot([before[0], x], [before[1], y], color=_PATH_COLOR, linewidth=1.2, alpha=0.8)
                opacity = 0.15 + 0.6 * min(1.0, float(weights[step, index]))
                axis.add_patch(Circle((x, y), radius, facecolor=(*_rgb(_GAZE_COLOR), opacity), edgecolor=edge))
                number = axis.text(x, y, str(scanpath.ids[index]), ha="center", va="center", fontsize=8, color="white")
                number.set_path_effects([withStroke(linewidth=2, foreground="black")])
            axis.set_xlim(-0.5, width - 0.5)
            axis.set_ylim(height - 0.5, -0.5)
        figure.suptitle(title, fontsize=11)
        save_png(figure, path)


def draw_curves(path, log: list[dict]) -> None:
    """Write a PNG of a run's log: the loss by optimizer step, and validation, stages one after the other."""
    steps, losses, marks, shown = 0, [], [], defaultdict(list)
    for line in log:
        if "loss" in line:
            steps += 1
            losses.append(line["loss"])
            if not marks or marks[-1][1] != line["stage"]:
                marks.append((steps, line["stage"]))
        for name in ("validation_macro", "validation_text_loss"):
            if name in line:
                shown[name].append((steps, line[name]))
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axis = figure.subplots()
    axis.plot(np.arange(1, steps + 1), losses, color="#9aa0a6", linewidth=0.8, label="loss, each step")
    window = max(1, steps // 50)
    if steps > 2 * window > 2:
        smooth = np.convolve(losses, np.ones(window) / window, "valid")
        axis.plot(
            np.arange(window, steps + 1), smooth, color="#202124", linewidth=1.6, label=f"mean of {window} steps"
        )
    if shown["validation_text_loss"]:
        axis.plot(
            *zip(*shown["validation_text_loss"], strict=True), "s-", color="#1a73e8", label="open-ended validation"
        )
    axis.set_xlabel("optimizer step")
    axis.set_ylabel("loss")
    axis.set_ylim(bottom=0)
    for step, stage in marks:
        axis.axvline(step, color="#dadce0", zorder=0)
        axis.text(step, 1.0, f" stage {stage}", transform=axis.get_xaxis_transform(), va="bottom", fontsize=9)
    if shown["validation_macro"]:
        right = axis.twinx()
        right.plot(*zip(*shown["validation_macro"], strict=True), "o-", color=_GAZE_COLOR, label="validation accuracy")
        right.set_ylabel("validation accuracy, mean over tasks")
        right.set_ylim(0, 1)
        right.legend(loc="lower right", frameon=False)
    axis.legend(loc="lower left", frameon=False)
    save_png(figure, path)


def save_png(figure: Figure, path) -> None:
    """Write the figure so that a reader sees no file or the whole file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    figure.savefig(temporary, format="png", dpi=110)
    temporary.replace(path)


def _lit(frame: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """The frame, dark where attention (H, W) is low."""
    height, width = frame.shape[:2]
    rows, columns = (
        np.arange(size) * cells // size for size, cells in zip((height, width), attention.shape, strict=True)
    )
    light = (attention / attention.max())[rows][:, columns, None]
    return (frame * (0.25 + 0.75 * light)).astype(np.uint8)


def _clock(seconds: float) -> str:
    return f"{int(seconds // 60)}:{seconds % 60:04.1f}"


def _rgb(color: str) -> tuple[float, float, float]:
    return matplotlib.colors.to_rgb(color)
