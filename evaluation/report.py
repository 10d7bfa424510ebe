"""
Results beside the published ones, as a table in the shape of the paper's Table 1, figures, and model card metadata.

    python -m gazeqwen.evaluation.report results/*.json -o report/ [--latex] [--mixed]

A result file is what `eval.py --output` writes: `scores` ({condition: {"tasks", "macro"}}, as `scoring.score` or
`evaluation.accuracy` give them), `settings` and `provenance`. The report uses these keys too where they are there:

- `name`: what the rows are called; otherwise the file's name.
- `scorer`: see `scoring.SCORERS`; otherwise `strict`, which the largest logit of all questions is.
- `predictions`: a JSONL file beside the result (`scoring.read_predictions`), with `condition` in its lines: gives
  intervals, tests against the condition `none`, what is said of test points, and reliability.
- `intervals`, `counts` and `options_permuted` of a condition, as `scoring.intervals`, `scoring.score` and
  `scoring.option_robustness` give them.
- of `settings`: `parameters` (text), and `toy_world` (whether the data are the toy world's).
"""

import argparse
import itertools
import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path

import matplotlib
import numpy as np
from huggingface_hub import EvalResult, ModelCardData
from matplotlib.figure import Figure

from gazeqwen.evaluation.scoring import (
    GROUPS,
    SCORERS,
    Scored,
    calibration,
    gains,
    intervals,
    mcnemar,
    permutation_test,
    read_predictions,
    score,
)
from gazeqwen.plots.scanpath import save_png
from gazeqwen.questions.streamgaze import TASKS, task_info
from gazeqwen.utils.files import clear_errors, flat, write_json, write_text

PUBLISHED = Path(__file__).parent.parent / "results" / "published.json"

# Each in a table of its own; the published rows stand beside the first alone.
STREAMGAZE, TOY_WORLD, OTHER = KINDS = ("StreamGaze", "Toy world", "Other data")
WITHOUT_GAZE = "none"
NO_VALUE = "–"


# ------------------------------------------------------------------ result files
@dataclass(frozen=True, eq=False)
class Result:
    """A result file; `items`: {condition: questions with their answers} where predictions are at hand."""

    path: Path
    name: str
    scores: dict[str, dict]
    settings: dict
    provenance: dict
    scorer: str
    items: dict[str, list[Scored]]

    @cached_property
    def kind(self) -> str:
        """
        Data are the toy world's if the settings say so, if the data's or the base model's path does, or if a video's
        name is one that `toyworld.generate` gives.
        """
        paths = [self.settings.get("data"), (self.settings.get("adapter") or {}).get("base_model_name_or_path")]
        videos = {item.video_name for items in self.items.values() for item in items}
        toy = any(map(is_toy_world, [*filter(None, paths), *videos]))
        if self.settings.get("toy_world", toy):
            return TOY_WORLD
        return STREAMGAZE if all(task in TASKS for task in self.tasks) else OTHER

    @cached_property
    def tasks(self) -> set[str]:
        return {task for values in self.scores.values() for task in values["tasks"]}

    @cached_property
    def headline(self) -> str:
        """The condition that stands for the model: `gaze` (also called `model`), or the file's first."""
        return next((name for name in ("gaze", "model") if name in self.scores), next(iter(self.scores)))

    @cached_property
    def intervals(self) -> dict[str, dict]:
        """{condition: `scoring.intervals`}, where the file has them or predictions are at hand."""
        found = {name: values["intervals"] for name, values in self.scores.items() if values.get("intervals")}
        return {name: intervals(items, self.scorer) for name, items in self.items.items()} | found

    @cached_property
    def against_none(self) -> dict[str, dict]:
        """{condition: `scoring.gains` over the same run without gaze}, where predictions are at hand."""
        base = self.items.get(WITHOUT_GAZE)
        others = {name: items for name, items in self.items.items() if name != WITHOUT_GAZE}
        return {name: gains(items, base) for name, items in others.items()} if base else {}

    @property
    def pooled(self) -> dict[str, list]:
        """`seeds` of the models whose mean it is, if it is that of several."""
        seeds = self.settings.get("seeds") or []
        return {"seeds": seeds} if len(seeds) > 1 else {}

    @property
    def data_name(self) -> str:
        """What the data are called: where a folder lies is nobody else's business."""
        data = str(self.same["data"])
        return {STREAMGAZE: "StreamGaze", TOY_WORLD: "toy world (not StreamGaze)"}.get(
            self.kind, Path(data).name if Path(data).is_absolute() else data
        )

    @property
    def same(self) -> dict:
        """What results of one table must share."""
        totals, seeds = {}, len(self.pooled.get("seeds", [0]))  # each answers the same questions
        for values in self.scores.values():
            for task, of in values["tasks"].items():
                totals[f"questions of {task}"] = of.get("expected", of["total"]) // seeds
        settings = {"data": self.settings.get("data"), "config": self.settings.get("config", "default")}
        return settings | {"split": self.settings.get("split"), "scorer": self.scorer} | totals


def is_toy_world(name: str) -> bool:
    """Whether a folder or an id is called after the toy world, or a video as `toyworld.generate` calls it."""
    return re.search(r"toy[-_ ]?world|^toy-\w+-\d{4}", name) is not None


def is_published(value) -> bool:
    return isinstance(value, dict) and "table_1" in value


def read_result(path: str | PathLike) -> Result | None:
    """
    A result file; None for the published rows, which are in every report. Raises ValueError naming the file and the
    value that is not as it should be, also where accuracies are not those of the counts or of the predictions.
    """
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if is_published(value):
        return None

    def check(right, what: str) -> None:
        if not right:
            raise ValueError(f"{path}: {what}")

    check(isinstance(value, dict), f"got {str(value)[:80]}, expected scores, settings and provenance")
    for key in ("scores", "settings", "provenance"):
        shown = str(value.get(key))[:80]
        check(isinstance(value.get(key), dict) and value[key], f"{key} is {shown}, expected an object")
    for condition, values in value["scores"].items():
        tasks = values.get("tasks") if isinstance(values, dict) else None
        check(isinstance(tasks, dict) and tasks, f"scores, {condition}: tasks are {tasks!r}, expected an object")
        for task, of in tasks.items():
            numbers = [of.get(key) if isinstance(of, dict) else None for key in ("correct", "total", "accuracy")]
            right = all(isinstance(number, (int, float)) and number >= 0 for number in numbers)
            right = right and math.isclose(numbers[0], numbers[1] * numbers[2], abs_tol=1e-6)
            shown = dict(zip(("correct", "total", "accuracy"), numbers, strict=True))
            check(right, f"scores, {condition}, {task}: {shown} do not fit")
        mean = sum(of["accuracy"] for of in tasks.values()) / len(tasks)
        macro = values.get("macro")
        right = isinstance(macro, (int, float)) and math.isclose(macro, mean, abs_tol=1e-6)
        check(right, f"scores, {condition}: macro is {macro!r}, but the mean of its {len(tasks)} tasks is {mean:.6f}")
    scorer = value.get("scorer", "strict")
    check(scorer in SCORERS, f"scorer is {scorer!r}, expected one of {SCORERS}")
    items = {}
    if value.get("predictions"):
        file = path.parent / value["predictions"]
        check(file.is_file(), f"its predictions {file} are not there")
        items = read_predictions(file)
        if set(items) == {None} and len(value["scores"]) == 1:
            items = {next(iter(value["scores"])): items[None]}
        known = sorted(map(str, value["scores"]))
        check(set(items) & set(value["scores"]), f"{file} has conditions {sorted(map(str, items))}, scores {known}")
        items = {condition: items[condition] for condition in value["scores"] if condition in items}
        for condition, answers in items.items():
            found, macro = score(answers, scorer)["macro"], value["scores"][condition]["macro"]
            right = math.isclose(found, macro, abs_tol=1e-6)
            check(right, f"scores, {condition}: macro is {macro:.6f}, but that of {file} is {found:.6f}")
    name = str(value.get("name") or path.stem)
    return Result(path, name, value["scores"], value["settings"], value["provenance"], scorer, items)


def check_comparable(results: list[Result]) -> None:
    """Raise ValueError with what differs between results that would share a table."""
    for first, other in itertools.combinations(results, 2):
        keys = [key for key in first.same if key in other.same and first.same[key] != other.same[key]]
        if keys:
            shown = "; ".join(f"{key}: {first.same[key]!r} and {other.same[key]!r}" for key in keys)
            raise ValueError(
                f"{first.path} and {other.path} differ, so that their rows do not compare ({shown}); "
                "--mixed shows them in one table, with these settings in a column"
            )


def differing(results: list[Result]) -> dict[str, list]:
    """{setting: its value in each result}, of settings, provenance and scorer, of those that are not all the same."""
    settings = [
        flat({"scorer": result.scorer, **result.settings, "provenance": result.provenance}) for result in results
    ]
    names = dict.fromkeys(name for one in settings for name in one)
    found = {name: [one.get(name) for one in settings] for name in names}
    return {name: values for name, values in found.items() if len(set(map(repr, values))) > 1}


# ------------------------------------------------------------------ tables: a header and rows of texts
@dataclass(frozen=True)
class Table:
    header: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

    def latex(self) -> str:
        header, *rows = (" & ".join(map(_latex, line)) + r" \\" for line in [self.header, *self.rows])
        begin, rule, end = rf"\begin{{tabular}}{{{'l' * len(self.header)}}}", r"\hline", r"\end{tabular}"
        return "\n".join([begin, rule, header, rule, *rows, rule, end])


def _latex(text: str) -> str:
    signs = {"\\": r"\textbackslash{}", "–": "--", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    signs |= {sign: "\\" + sign for sign in "&%$#_{}"}
    return "".join(signs.get(sign, sign) for sign in text)


def percent(value: float | None, interval: list[float] | None = None) -> str:
    if value is None:
        return ""
    shown = f"{100 * value:.1f}"
    return shown if interval is None else f"{shown} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def _overall(accuracies: dict[str, float], shown: float | None = None) -> str:
    """The mean over the tasks that are there, and how many they are unless they are StreamGaze's ten."""
    mean = sum(accuracies.values()) / len(accuracies) if shown is None else shown
    return percent(mean) + ("" if len(accuracies) == len(TASKS) else f" ({len(accuracies)} tasks)")


def _columns(published: dict, results: list[Result]) -> list[str]:
    """Tasks: StreamGaze's in the order of the paper's table, then those of people's own data."""
    order = list(published["table_1"]["rows"][0]["accuracy"])
    ten = sorted(TASKS, key=lambda task: order.index(TASKS[task].abbreviation))
    return ten + sorted({task for result in results for task in result.tasks} - set(ten))


def sampling(settings: dict) -> str:
    """How many frames of a clip are shown."""
    if settings.get("num_frames"):
        return str(settings["num_frames"])
    rate = f"{settings['fps']} fps" if settings.get("fps") else "adaptive"
    return f"{rate}, at most {settings['max_frames']}" if settings.get("max_frames") else rate


def result_table(results: list[Result], published: dict, beside: bool, mixed: bool = False) -> Table:
    """One row for each result and condition, below the published ones if `beside`."""
    tasks = _columns(published, results)
    names = [task_info(task).abbreviation for task in tasks]
    header = ["method", "params", "frames", *names, "overall", "source"] + ["settings"] * mixed
    rows, table = [], published["table_1"]
    for row in table["rows"] if beside else []:
        values = [percent(row["accuracy"].get(name)) for name in names]
        about = [row["method"], row["params"] or NO_VALUE, row["frames"] or NO_VALUE]
        rows.append([*about, *values, _overall(row["accuracy"], row["overall"]), f"published: {table['source']}"])
    if beside:
        delta = table["delta"]
        values = [f"{delta['accuracy'][name]:+.1f}" if name in delta["accuracy"] else "" for name in names]
        label = f"{delta['method']}, {delta['unit']}"
        rows.append([label, "", "", *values, f"{delta['overall']:+.1f}", f"published: {table['source']}"])
    rows = [row + [""] * mixed for row in rows]
    for result in results:
        for condition, values in result.scores.items():
            accuracies = {task: of["accuracy"] for task, of in values["tasks"].items()}
            about = [f"{result.name}, {condition}", result.settings.get("parameters") or NO_VALUE]
            cells = [percent(accuracies.get(task)) for task in tasks]
            same = result.same
            shown = ", ".join(f"{key} {same[key]}" for key in ("data", "config", "split", "scorer"))
            row = [*about, sampling(result.settings), *cells, _overall(accuracies), "measured here"]
            rows.append(row + [shown] * mixed)
    return Table(header, rows)


def _measured_table(results: list[Result]) -> Table:
    header = ["result", "data", "split", "scorer", "condition", "expected", "answered", "failed", "code", "device"]
    rows = []
    for result in results:
        git = result.provenance.get("git")
        code = re.sub(r"^([0-9a-f]{10})[0-9a-f]+", r"\1", git) if git else "unknown"
        for condition, values in result.scores.items():
            total = sum(of["total"] for of in values["tasks"].values())
            counts = values.get("counts") or {"expected": total, "answered": NO_VALUE, "failed": NO_VALUE}
            about = [result.name, *(str(result.same[key]) for key in ("data", "split", "scorer")), condition]
            numbers = [str(counts.get(key, NO_VALUE)) for key in ("expected", "answered", "failed")]
            rows.append([*about, *numbers, code, str(result.provenance.get("device", "unknown"))])
    return Table(header, rows)


def _interval_table(results: list[Result], published: dict) -> Table:
    tasks = [task for task in _columns(published, results) if any(task in result.tasks for result in results)]
    rows = []
    for result in results:
        for condition, found in result.intervals.items():
            values = result.scores[condition]
            cells = []
            for task in tasks:
                of = values["tasks"].get(task)
                cells.append(percent(of and of["accuracy"], found["tasks"].get(task)))
            rows.append([f"{result.name}, {condition}", *cells, percent(values["macro"], found["macro"])])
    return Table(["method", *(task_info(task).abbreviation for task in tasks), "overall"], rows)


def _gain_table(results: list[Result], published: dict) -> Table:
    rows = []
    for result in results:
        for condition, found in result.against_none.items():
            ours, base = result.items[condition], result.items[WITHOUT_GAZE]
            spread = found["intervals"]
            label = f"{result.name}, {condition}"
            for task in [task for task in _columns(published, results) if task in found["tasks"]]:
                pair = [[item for item in items if item.task == task] for items in (ours, base)]
                test = f"McNemar, p = {mcnemar(*pair)['pvalue']:.2g}"
                gain = percent(found["tasks"][task], spread["tasks"][task])
                rows.append([label, task_info(task).abbreviation, str(len(pair[0])), gain, test])
            test = f"permutation by video, p = {permutation_test(ours, base)['pvalue']:.2g}"
            rows.append([label, "overall", str(len(ours)), percent(found["macro"], spread["macro"]), test])
    return Table(["method", "task", "questions", f"gain over {WITHOUT_GAZE}, points", "test"], rows)


def _test_point_table(results: list[Result]) -> Table:
    names = ("accuracy", "majority_baseline", "yes_share", "yes_rate", "balanced_accuracy")
    names += ("precision", "recall", "f1")
    rows = []
    for result in results:
        for condition, values in result.scores.items():
            details = score(result.items[condition], result.scorer)["tasks"] if condition in result.items else {}
            for task, of in (values["tasks"] | details).items():
                if task_info(task).group == "proactive" and "majority_baseline" in of:
                    label = [f"{result.name}, {condition}", task_info(task).abbreviation, str(of["total"])]
                    rows.append([*label, *(percent(of.get(name)) or NO_VALUE for name in names)])
    return Table(["method", "task", "test points", *(name.replace("_", " ") for name in names)], rows)


def _permuted_table(results: list[Result]) -> Table:
    header = ["method", "orders", "questions", "accuracy in each", "mean", "answered the same in all"]
    rows = []
    for result in results:
        for condition, values in result.scores.items():
            if found := values.get("options_permuted"):
                each = ", ".join(map(percent, found["accuracies"]))
                numbers = [str(found["permutations"]), str(found["questions"]), each]
                shown = [percent(found["accuracy"]), percent(found["same_share"])]
                rows.append([f"{result.name}, {condition}", *numbers, *shown])
    return Table(header, rows)


# ------------------------------------------------------------------ figures
_PALETTE = ["#1a73e8", "#9aa0a6", "#f29900", "#12a4af", "#9334e6", "#d01884", "#188038", "#b06000"]
_NAMED = {"Human": "o", "GPT-4o": "s", "Qwen2.5-VL": "D", "GazeQwen": "*"}


def _rows_of(results: list[Result]) -> dict[tuple[Result, str], tuple[str, str]]:
    """{(result, condition): (label, colour)}, the same in every figure."""
    rows = [(result, condition) for result in results for condition in result.scores]
    return {
        (result, condition): (f"{result.name}, {condition}", _PALETTE[number % len(_PALETTE)])
        for number, (result, condition) in enumerate(rows)
    }


def draw_accuracies(path, results: list[Result], published: dict, beside: bool, title: str) -> bool:
    """Bars: accuracy per task and condition, with intervals where known; marks: published rows, if `beside`. True."""
    tasks = [task for task in _columns(published, results) if any(task in result.tasks for result in results)]
    rows = _rows_of(results)
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
                hatch="//" if number >= len(_PALETTE) else None,
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


def group_gains(result: Result, condition: str) -> dict[str, tuple[float, list[float] | None]]:
    """{group, then `overall`: (gain over the same run without gaze, its interval where predictions are at hand)}."""
    if condition in result.against_none:
        found = result.against_none[condition]
        spread = found["intervals"]
        gain = {group: (value, spread["groups"][group]) for group, value in found["groups"].items()}
        return gain | {"overall": (found["macro"], spread["macro"])}
    ours, base = (result.scores[name]["tasks"] for name in (condition, WITHOUT_GAZE))
    each = {task: of["accuracy"] - base[task]["accuracy"] for task, of in ours.items() if task in base}
    gain = {}
    for group in (*GROUPS, "own"):
        members = [value for task, value in each.items() if task_info(task).group == group]
        if members:
            gain[group] = sum(members) / len(members), None
    return gain | ({"overall": (sum(each.values()) / len(each), None)} if each else {})


def draw_gains(path, results: list[Result], title: str) -> bool:
    """Gain over the condition without gaze by group of tasks; False, and no file, if no result has that condition."""
    series = [
        (*look, group_gains(result, condition))
        for (result, condition), look in _rows_of(results).items()
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
            axis.plot([row["confidence"] for row in bins], accuracies, "o-", color=_PALETTE[0], label="accuracy")
            axis.set_title(f"{label}\nECE {100 * found['ece']:.1f} %, {found['count']} questions", fontsize=9)
            axis.set_xlim(0, 1)
            axis.set_ylim(0, 1.02)
            axis.set_xlabel("probability of the chosen option")
        axes[0].legend(loc="upper left", frameon=False, fontsize=8)
        figure.suptitle(title, fontsize=11)
        save_png(figure, path)
    return True


# ------------------------------------------------------------------ model card metadata
def model_index(results: list[Result]) -> list[dict]:
    """`model-index` of a model card, one model for each result: its headline condition's accuracies, from 0 to 1."""
    found = []
    for result in results:
        condition = result.headline
        values = result.scores[condition]
        named = {task_info(task).abbreviation: of["accuracy"] for task, of in values["tasks"].items()}
        named[f"mean over {len(named)} tasks"] = values["macro"]
        about = {
            "task_type": "video-text-to-text",
            "dataset_type": {STREAMGAZE: "danaleee/StreamGaze", TOY_WORLD: "toy-world"}.get(result.kind, "other"),
            "dataset_name": result.data_name,
            "dataset_config": result.same["config"],
            "dataset_split": result.same["split"],
            "dataset_args": {"condition": condition, "scorer": result.scorer} | result.pooled,
            "metric_type": "accuracy",
        }
        rows = [EvalResult(**about, metric_name=f"accuracy, {name}", metric_value=of) for name, of in named.items()]
        found += ModelCardData(model_name=result.name, eval_results=rows).to_dict()["model-index"]
    return found


# ------------------------------------------------------------------ the report
def write_report(
    paths: list[str | PathLike], output: str | PathLike, latex: bool = False, mixed: bool = False
) -> list[Path]:
    """Write the report on some result files into a folder; the files written, `report.md` first."""
    results = [result for result in map(read_result, dict.fromkeys(map(Path, paths))) if result is not None]
    if not results:
        raise ValueError(f"no result among {', '.join(map(str, paths)) or 'no files'}")
    names = [result.name for result in results]
    for result in results:
        if names.count(result.name) > 1:
            same = ", ".join(str(other.path) for other in results if other.name == result.name)
            raise ValueError(f"{same}: all are named {result.name!r}; give each a `name`")
    by_kind = {kind: [result for result in results if result.kind == kind] for kind in KINDS}
    for members in by_kind.values():
        if members and not mixed:
            check_comparable(members)

    published = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    output = Path(output)
    parts = ["# Results", "Accuracies in %; overall: the unweighted mean over the tasks of the row."]
    tex, written = [], []
    for kind, members in sorted(by_kind.items(), key=lambda pair: not pair[1]):  # what was measured comes first
        if not members and kind != STREAMGAZE:
            continue
        beside = kind == STREAMGAZE
        table = result_table(members, published, beside, mixed)
        tex.append(f"% {kind}\n{table.latex()}")
        parts += [f"## {kind}", _introduction(kind, members, published), table.markdown()]
        if members:
            more, figures = _details(kind, members, published, output)
            parts += more
            written += figures
        if beside:
            parts += _card_section(published)
    write_text(output / "report.md", "\n\n".join(parts) + "\n")
    write_json(output / "model-index.json", {"model-index": model_index(results)})
    written = [output / "report.md", *written, output / "model-index.json"]
    if latex:
        write_text(output / "report.tex", "\n\n".join(tex) + "\n")
        written.append(output / "report.tex")
    return written


def _introduction(kind: str, members: list[Result], published: dict) -> str:
    if kind == TOY_WORLD:
        return (
            "**Toy world**: a tiny backbone on drawn videos. These numbers show that the mechanism works; they say "
            "nothing about StreamGaze and do not compare with any published row."
        )
    if kind == OTHER:
        return "Measured here on data that are not StreamGaze's; they do not compare with any published row."
    table = published["table_1"]
    notes = " ".join(f"{row['method']}: {row['note']}." for row in table["rows"] if "note" in row)
    rows = f"Published rows: {table['source']}, as printed there; nothing of them was measured here. {notes}"
    if not members:
        return f"{rows} No result on StreamGaze was measured here yet."
    return (
        f"{rows} Rows `measured here` are on the data, split and with the scorer given below the table; a published "
        "row is on the questions, frames and prompts of its authors."
    )


def _details(kind: str, members: list[Result], published: dict, output: Path) -> tuple[list[str], list[Path]]:
    """What is below a table: where rows come from, settings that differ, statistics, figures."""
    parts = ["### Measured here", _measured_table(members).markdown()]
    different = differing(members) if len(members) > 1 else {}
    if different:
        rows = [[name, *(json.dumps(one, ensure_ascii=False) for one in values)] for name, values in different.items()]
        parts += ["### Settings that differ", Table(["setting", *(r.name for r in members)], rows).markdown()]
    sections = {
        "### 95 % intervals, by bootstrap of videos": _interval_table(members, published),
        "### Gain over no gaze (scored strict)": _gain_table(members, published),
        "### Test points of proactive tasks": _test_point_table(members),
        "### Other orders of the options (over questions, scored strict)": _permuted_table(members),
    }
    for title, table in sections.items():
        if table.rows:
            parts += [title, table.markdown()]
    stem, figures = kind.lower().replace(" ", "_"), []
    title = {TOY_WORLD: "Toy world (not StreamGaze)"}.get(kind, kind)
    beside = kind == STREAMGAZE
    drawn = {
        "accuracy": draw_accuracies(output / f"{stem}_accuracy.png", members, published, beside, f"{title}: accuracy"),
        "gain": draw_gains(output / f"{stem}_gain.png", members, f"{title}: gain by gaze"),
        "reliability": draw_reliability(output / f"{stem}_reliability.png", members, f"{title}: reliability"),
    }
    for name, there in drawn.items():
        path = output / f"{stem}_{name}.png"
        if there:
            parts.append(f"![{title}: {name}]({path.name})")
            figures.append(path)
        else:
            path.unlink(missing_ok=True)  # of an earlier report, on other results
    return parts, figures


def _card_section(published: dict) -> list[str]:
    card = published["model_card_v2"]
    names = list(published["table_1"]["rows"][0]["accuracy"])
    rows = [
        [row["method"], *(percent(row["accuracy"].get(name)) for name in names), percent(row["overall"])]
        for row in card["rows"]
    ]
    table = Table(["method", *names, "overall, as printed"], rows)
    return ["### Published elsewhere", f"{card['source']}. {card['caveat']}", table.markdown()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", help="result files of eval.py --output")
    parser.add_argument("-o", "--output", required=True, help="folder that the report is written into")
    parser.add_argument("--latex", action="store_true", help="write the tables as report.tex too")
    parser.add_argument("--mixed", action="store_true", help="other data, split or scorer in one table, in a column")
    arguments = parser.parse_args()
    for path in write_report(arguments.results, arguments.output, arguments.latex, arguments.mixed):
        print(f"written to {path}")


if __name__ == "__main__":
    with clear_errors():
        main()
