"""Figures of a report: accuracy by task, gains over no gaze, reliability."""

import math

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from gazeqwen.evaluation.results import WITHOUT_GAZE, Result, group_gains, task_columns
from gazeqwen.evaluation.scoring import GROUPS
from gazeqwen.evaluation.statistics import calibration
from gazeqwen.plots.style import save_png
from gazeqwen.questions.tasks import task_info

PALETTE = ["#1a73e8", "#9aa0a6", "#f29900", "#12a4af", "#9334e6", "#d01884", "#188038", "#b06000"]


_NAMED = {"Human": "o", "GPT-4o": "s", "Qwen2.5-VL": "D", "GazeQwen": "*"}


def draw_accuracies(path, results: list[Result], published: dict, beside: bool, title: str) -> bool:
    """Bars: accuracy per task and condition, with intervals where known; marks: published rows, if `beside`. True."""
    tasks = [task for task in task_columns(published, results) if any(task in result.tasks for result in results)]
    rows = shown_rows(results)
    left = -0.2 if beside else -0.4  # beside the bars there is room for the published marks
    width = (0.4 - left) / len(rows)
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(max(7.0, 2.0 + 1.1 * len(tasks)), 4.6), layout="constrained")
        axis = figure.subplots()
        for number, ((result, condition), (label, color)) in enumerate(rows.items()):
            of = result.scores[condition]["tasks"]
            there = [place for place, task in enumerate(tasks) if task in of]
            heights = np.array([100 * of[tasks[place]]["accuracy"] for place in there])
            found = result.intervals.get(condition, {"tasks": {}})["tasks"]
            ends = [found.get(tasks[place]) for place in there]
            ends = np.array([[np.nan, np.nan] if end is None else [100 * value for value in end] for end in ends])
            axis.bar(
                np.array(there) + left + (number + 0.5) * width,
                heights,
                width,
                yerr=np.abs(ends - heights[:, None]).T if np.isfinite(ends).any() else None,
                color=color,
                hatch="//" if number >= len(PALETTE) else None,
                ecolor="#202124",
                capsize=2,
                label=label,
            )
        if beside:
            _draw_published(axis, tasks, published["table_1"])
        axis.set_xticks(range(len(tasks)), [task_info(task).abbreviation for task in tasks])
        axis.set_ylabel("accuracy, %")
        axis.set_ylim(0, 105)
        axis.spines[["top", "right"]].set_visible(False)
        figure.suptitle(title, fontsize=11)
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        save_png(figure, path)
    return True


def _draw_published(axis, tasks: list[str], table: dict) -> None:
    others = [row for row in table["rows"] if row["method"] not in _NAMED]
    series = [(others, ".", "#bdc1c6", f"{len(others)} other published rows")]
    for row in table["rows"]:
        if row["method"] in _NAMED:
            series.append(([row], _NAMED[row["method"]], "#202124", f"{row['method']} (published)"))
    for rows, marker, color, label in series:
        points = [
            (place - 0.32, 100 * row["accuracy"][task_info(task).abbreviation])
            for row in rows
            for place, task in enumerate(tasks)
            if task_info(task).abbreviation in row["accuracy"]
        ]
        axis.scatter(*zip(*points, strict=True), marker=marker, color=color, s=36, zorder=3, label=label)


def draw_gains(path, results: list[Result], title: str) -> bool:
    """Gain over the condition without gaze by group of tasks; False, and no file, if no result has that condition."""
    series = [
        (*look, group_gains(result, condition))
        for (result, condition), look in shown_rows(results).items()
        if WITHOUT_GAZE in result.scores and condition != WITHOUT_GAZE
    ]
    if not series:
        return False
    names = [name for name in (*GROUPS, "own", "overall") if any(name in gain for *_, gain in series)]
    known = any(interval for *_, gain in series for _, interval in gain.values())
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(7.0, 4.2), layout="constrained")
        axis = figure.subplots()
        axis.axhline(0, color="#202124", linewidth=0.8)
        for number, (label, color, gain) in enumerate(series):
            shift = 0.6 * ((number + 0.5) / len(series) - 0.5)
            points = [(names.index(name) + shift, *gain[name]) for name in names if name in gain]
            axis.scatter(*zip(*((x, 100 * y) for x, y, _ in points), strict=True), color=color, label=label, zorder=3)
            for x, _, interval in points:
                if interval:
                    axis.vlines(x, 100 * interval[0], 100 * interval[1], color=color, linewidth=1.6)
        axis.set_xticks(range(len(names)), names)
        axis.set_xlim(-0.5, len(names) - 0.5)
        axis.set_ylabel("gain over no gaze, points")
        axis.spines[["top", "right", "bottom"]].set_visible(False)
        bars = (
            "scored strict; lines: 95 % intervals by video" if known else "no intervals: predictions are not at hand"
        )
        figure.suptitle(f"{title}\n({bars})", fontsize=11)
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        save_png(figure, path)
    return True


def draw_reliability(path, results: list[Result], title: str, columns: int = 3) -> bool:
    """Accuracy by the probability of the chosen option, a panel each; False, and no file, if none has logits."""
    panels = [
        (f"{result.name}, {condition}", calibration(items))
        for result in results
        for condition, items in result.items.items()
        if any(item.logits is not None for item in items)
    ]
    if not panels:
        return False
    columns = min(columns, len(panels))
    lines = math.ceil(len(panels) / columns)
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(3.4 * columns, 3.5 * lines + 0.4), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False).ravel()
        for axis in axes[len(panels) :]:
            axis.axis("off")
        for axis, (label, found) in zip(axes, panels, strict=False):
            bins = [row for row in found["bins"] if row["count"]]
            shares = [row["count"] / found["count"] for row in bins]
            middle, width = [(row["low"] + row["high"]) / 2 for row in bins], 1 / len(found["bins"])
            axis.bar(middle, shares, width, color="#e8eaed", label="share of questions")
            axis.plot([0, 1], [0, 1], color="#9aa0a6", linewidth=0.8, linestyle="--")
            accuracies = [row["accuracy"] for row in bins]
            axis.plot([row["confidence"] for row in bins], accuracies, "o-", color=PALETTE[0], label="accuracy")
            axis.set_title(f"{label}\nECE {100 * found['ece']:.1f} %, {found['count']} questions", fontsize=9)
            axis.set_xlim(0, 1)
            axis.set_ylim(0, 1.02)
            axis.set_xlabel("probability of the chosen option")
        axes[0].legend(loc="upper left", frameon=False, fontsize=8)
        figure.suptitle(title, fontsize=11)
        save_png(figure, path)
    return True


def shown_rows(results: list[Result]) -> dict[tuple[Result, str], tuple[str, str]]:
    """{(result, condition): (label, colour)}, the same in every figure."""
    rows = [(result, condition) for result in results for condition in result.scores]
    return {
        (result, condition): (f"{result.name}, {condition}", PALETTE[number % len(PALETTE)])
        for number, (result, condition) in enumerate(rows)
    }
