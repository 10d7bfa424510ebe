"""Draw the figures of a report from plain numbers: accuracies and gains with their intervals, reliability."""

import math

import matplotlib
from matplotlib.figure import Figure

from gazeqwen.plots.style import save_png

PALETTE = ["#1a73e8", "#9aa0a6", "#f29900", "#12a4af", "#9334e6", "#d01884", "#188038", "#b06000"]
PUBLISHED_COLOR = "#bdc1c6"

# A value from 0 to 1, and its interval where it is known.
Estimate = tuple[float, list[float] | None]


def draw_estimates(
    path,
    title: str,
    columns: list[str],
    rows: dict[str, dict[str, Estimate]],
    colors: dict[str, str],
    unit: str,
    span: tuple[float, float] | None = None,
) -> None:
    """
    Draw a panel for each column (a task, or a group of tasks), and in it a line for each of `rows` ({label: {column:
    estimate}}): a dot at the value in percent, and a bar as long as its interval where that is known. `colors` by
    label; `unit` says what is drawn, `span` from where to where (default: what the values need, and 0).
    """
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(3.6 + 1.15 * len(columns), 1.4 + 0.27 * len(rows)), layout="constrained")
        panels = figure.subplots(1, len(columns), sharex=True, sharey=True, squeeze=False)[0]
        for axis, column in zip(panels, columns, strict=True):
            axis.axvline(0, color="#202124", linewidth=0.8)
            for place, (label, estimates) in enumerate(rows.items()):
                if column in estimates:
                    _draw_estimate(axis, place, estimates[column], colors[label])
            axis.set_title(column, fontsize=10)
            axis.grid(axis="both", color="#e8eaed", linewidth=0.8)
            axis.set_axisbelow(True)
            axis.tick_params(length=0, labelsize=8)
            axis.spines[:].set_visible(False)
        panels[0].set_yticks(range(len(rows)), rows)
        panels[0].set_ylim(len(rows) - 0.5, -0.5)  # the first row above
        if span is not None:
            panels[0].set_xlim(*span)
        figure.supxlabel(unit, fontsize=9)
        figure.suptitle(title, fontsize=11)
        save_png(figure, path)


def _draw_estimate(axis, place: int, estimate: Estimate, color: str) -> None:
    """Draw a dot on the line `place` of a panel, and its interval where it is known."""
    value, interval = estimate
    if interval is not None:
        axis.hlines(place, 100 * interval[0], 100 * interval[1], color=color, linewidth=5, alpha=0.4)
    axis.plot(100 * value, place, "o", color=color, markersize=4.5, clip_on=False)


def draw_reliability(path, title: str, panels: dict[str, dict], columns: int = 3) -> None:
    """
    Draw accuracy by the probability of the chosen option, a panel for each label: {"bins": [{"low", "high", "count",
    "confidence", "accuracy"}], "count", "ece"}, as `evaluation.statistics.calibration` returns it.
    """
    columns = min(columns, len(panels))
    lines = math.ceil(len(panels) / columns)
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(3.4 * columns, 3.5 * lines + 0.4), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False).ravel()
        for axis in axes[len(panels) :]:
            axis.axis("off")
        for axis, (label, panel) in zip(axes, panels.items(), strict=False):
            bins = [row for row in panel["bins"] if row["count"]]
            shares = [row["count"] / panel["count"] for row in bins]
            middle, width = [(row["low"] + row["high"]) / 2 for row in bins], 1 / len(panel["bins"])
            axis.bar(middle, shares, width, color="#e8eaed", label="share of questions")
            axis.plot([0, 1], [0, 1], color="#9aa0a6", linewidth=0.8, linestyle="--")
            accuracies = [row["accuracy"] for row in bins]
            axis.plot([row["confidence"] for row in bins], accuracies, "o-", color=PALETTE[0], label="accuracy")
            axis.set_title(f"{label}\nECE {100 * panel['ece']:.1f} %, {panel['count']} questions", fontsize=9)
            axis.set_xlim(0, 1)
            axis.set_ylim(0, 1.02)
            axis.set_xlabel("probability of the chosen option")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
        figure.suptitle(title, fontsize=11)
        save_png(figure, path)
