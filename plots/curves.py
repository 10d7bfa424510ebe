"""Draw a run's losses and validation by optimizer step."""

from collections import defaultdict

import numpy as np
from matplotlib.figure import Figure

from gazeqwen.plots.style import GAZE_COLOR, save_png


def draw_curves(path, log: list[dict]) -> None:
    """Write a PNG of a run's log, see `curves`."""
    save_png(curves(log), path)


def curves(log: list[dict]) -> Figure:
    """Return a figure of a run's log: the loss by optimizer step, and validation, stages one after the other."""
    steps, losses, stage_begins, scores = 0, [], [], defaultdict(list)
    for line in log:
        if "loss" in line:
            steps += 1
            losses.append(line["loss"])
            if not stage_begins or stage_begins[-1][1] != line["stage"]:
                stage_begins.append((steps, line["stage"]))
        for name in ("validation_macro", "validation_text_loss"):
            if name in line:
                scores[name].append((steps, line[name]))
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    axis.plot(np.arange(1, steps + 1), losses, color="#9aa0a6", linewidth=0.8, label="loss, each step")
    window = max(1, steps // 50)
    if steps > 2 * window > 2:
        smooth = np.convolve(losses, np.ones(window) / window, "valid")
        axis.plot(
            np.arange(window, steps + 1), smooth, color="#202124", linewidth=1.6, label=f"mean of {window} steps"
        )
    if scores["validation_text_loss"]:
        axis.plot(
            *zip(*scores["validation_text_loss"], strict=True), "s-", color="#1a73e8", label="open-ended validation"
        )
    axis.set_xlabel("optimizer step")
    axis.set_ylabel("loss")
    axis.set_ylim(bottom=0)
    for step, stage in stage_begins:
        axis.axvline(step, color="#dadce0", zorder=0)
        axis.text(step, 1.0, f" stage {stage}", transform=axis.get_xaxis_transform(), va="bottom", fontsize=9)
    if scores["validation_macro"]:
        right = axis.twinx()
        right.plot(*zip(*scores["validation_macro"], strict=True), "o-", color=GAZE_COLOR, label="validation accuracy")
        right.set_ylabel("validation accuracy, mean over tasks")
        right.set_ylim(0, 1)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)  # on no curve
    return figure
