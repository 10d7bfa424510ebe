"""Draw the figures of a report from plain numbers: accuracy by task, gains over no gaze, reliability."""

import math
from collections.abc import Iterable

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from gazeqwen.plots.style import save_png

PALETTE = ["#1a73e8", "#9aa0a6", "#f29900", "#12a4af", "#9334e6", "#d01884", "#188038", "#b06000"]

# Published methods with a mark of their own; the others share one.
_MARKERS = {"Human": "o", "GPT-4o": "s", "Qwen2.5-VL": "D", "GazeQwen": "*"}

# A value from 0 to 1, and its interval where it is known.
Estimate = tuple[float, list[float] | None]


def series_colors(labels: Iterable[str]) -> dict[str, str]:
    """Return {label: colour}, so that a series looks the same in every figure."""
    return {label: PALETTE[number % len(PALETTE)] for number, label in enumerate(labels)}


def draw_accuracies(
    path,
    title: str,
    tasks: list[str],
    series: dict[str, dict[str, Estimate]],
    colors: dict[str, str],
    published: list[dict] | None = None,
) -> None:
    """
    Draw bars, the accuracy of each series ({label: {task: estimate}}) by task, with intervals where known; and marks
    for `published` rows ({"method", "accuracy": {task: value}}).
    """
    left = -0.4 if published is None else -0.2  # beside the bars there is room for the published marks
    width = (0.4 - left) / len(series)
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(max(7.0, 2.0 + 1.1 * len(tasks)), 4.6), layout="constrained")
        axis = figure.subplots()
        for number, (label, estimates) in enumerate(series.items()):
            places = [place for place, task in enumerate(tasks) if task in estimates]
            heights, errors = _heights_and_errors([estimates[tasks[place]] for place in places])
            axis.bar(
                np.array(places) + left + (number + 0.5) * width,
                heights,
                width,
                yerr=errors,
                color=colors[label],
                hatch="//" if number >= len(PALETTE) else None,
                ecolor="#202124",
                capsize=2,
                label=label,
            )
        if published is not None:
            _draw_published(axis, tasks, published)
        axis.set_xticks(range(len(tasks)), tasks)
        axis.set_ylabel("accuracy, %")
        axis.set_ylim(0, 105)
        axis.spines[["top", "right"]].set_visible(False)
        figure.suptitle(title, fontsize=11)
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        save_png(figure, path)


def _heights_and_errors(estimates: list[Estimate]) -> tuple[np.ndarray, np.ndarray | None]:
    """Return values (N,) in percent, and how far intervals reach below and above (2, N), None if none is known."""
    heights = np.array([100 * value for value, _ in estimates])
    ends = np.array([(np.nan, np.nan) if interval is None else interval for _, interval in estimates])
    if np.isnan(ends).all():
        return heights, None
    return heights, np.abs(100 * ends - heights[:, None]).T


def _draw_published(axis, tasks: list[str], rows: list[dict]) -> None:
    """Draw published accuracies by task: a mark for each well-known method, dots for the others."""
    others = [row for row in rows if row["method"] not in _MARKERS]
    series = [(others, ".", "#bdc1c6", f"{len(others)} other published rows")]
    for row in rows:
        if row["method"] in _MARKERS:
            series.append(([row], _MARKERS[row["method"]], "#202124", f"{row['method']} (published)"))
    for members, marker, color, label in series:
        points = [
            (place - 0.32, 100 * row["accuracy"][task])
            for row in members
            for place, task in enumerate(tasks)
            if task in row["accuracy"]
        ]
        axis.scatter(*zip(*points, strict=True), marker=marker, color=color, s=36, zorder=3, label=label)


def draw_gains(
    path, title: str, groups: list[str], series: dict[str, dict[str, Estimate]], colors: dict[str, str]
) -> None:
    """Draw the gain over no gaze of each series ({label: {group: estimate}}) by group of tasks."""
    known = any(interval for estimates in series.values() for _, interval in estimates.values())
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(7.0, 4.2), layout="constrained")
        axis = figure.subplots()
        axis.axhline(0, color="#202124", linewidth=0.8)
        for number, (label, estimates) in enumerate(series.items()):
            shift = 0.6 * ((number + 0.5) / len(series) - 0.5)
            names = [name for name in groups if name in estimates]
            places = [groups.index(name) + shift for name in names]
            gains = [100 * estimates[name][0] for name in names]
            axis.scatter(places, gains, color=colors[label], label=label, zorder=3)
            for place, name in zip(places, names, strict=True):
                interval = estimates[name][1]
                if interval:
                    axis.vlines(place, 100 * interval[0], 100 * interval[1], color=colors[label], linewidth=1.6)
        axis.set_xticks(range(len(groups)), groups)
        axis.set_xlim(-0.5, len(groups) - 0.5)
        axis.set_ylabel("gain over no gaze, points")
        axis.spines[["top", "right", "bottom"]].set_visible(False)
        bars = (
            "scored strict; lines: 95 % intervals by video" if known else "no intervals: predictions are not at hand"
        )
        figure.suptitle(f"{title}\n({bars})", fontsize=11)
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        save_png(figure, path)


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
        axes[0].legend(loc="upper left", frameon=False, fontsize=8)
        figure.suptitle(title, fontsize=11)
        save_png(figure, path)
