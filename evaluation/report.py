"""
Results beside the published ones, as a table in the shape of the paper's Table 1, figures, and model card metadata.

    gazeqwen report results/*.json -o report/ [--latex] [--mixed]

A result file is what `eval.py --output` writes: `scores` ({condition: {"tasks", "macro"}}, as `scoring.score` or
`evaluation.accuracy` give them), `settings` and `provenance`. The report uses these keys too where they are there:

- `name`: what the rows are called; otherwise the file's name.
- `scorer`: see `scoring.SCORERS`; otherwise `strict`, which the largest logit of all questions is.
- `predictions`: a JSONL file beside the result (`scoring.read_predictions`), with `condition` in its lines: gives
  intervals, tests against the condition `none`, what is said of test points, and reliability.
- `intervals`, `counts` and `options_permuted` of a condition, as `statistics.intervals`, `scoring.score` and
  `statistics.option_robustness` give them.
- `gaze_centrality`: how near to the middle of the frame people look, as `questions.centrality` gives it.
- of `settings`: `parameters` (text), and `sources` (where the videos come from; `["toyworld"]`: the toy world).
"""

import argparse
import json
import re
from collections import defaultdict
from os import PathLike
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from gazeqwen.evaluation.results import (
    FEWEST_VIDEOS,
    KINDS,
    OTHER,
    PUBLISHED,
    STREAMGAZE,
    TOY_WORLD,
    WITHOUT_GAZE,
    Result,
    check_comparable,
    differing,
    group_gains,
    read_result,
    task_columns,
)
from gazeqwen.evaluation.scoring import GROUPS, score
from gazeqwen.evaluation.statistics import calibration, mcnemar, permutation_test
from gazeqwen.plots.report import PALETTE, PUBLISHED_COLOR, draw_estimates, draw_reliability
from gazeqwen.questions.centrality import CENTRALITY_HEADER, EVEN_PLACES, UNITS, centrality_cells
from gazeqwen.questions.tasks import TASKS, task_info
from gazeqwen.utils.command_line import one_line_errors
from gazeqwen.utils.files import write_json, write_text
from gazeqwen.utils.tables import NO_VALUE, Table, percent

_INTERVALS_NOTE = "; bars: 95 % intervals by video"
_FEW_VIDEOS_NOTE = (
    f"Of fewer than {FEWEST_VIDEOS} videos no interval is given: a bootstrap of so few does not hold what it promises."
)


def _overall(accuracies: dict[str, float], shown: float | None = None) -> str:
    """Return `shown`, else the mean over the tasks, in percent, and the number of tasks unless it is StreamGaze's."""
    mean = sum(accuracies.values()) / len(accuracies) if shown is None else shown
    if len(accuracies) == len(TASKS):
        return percent(mean)
    return f"{percent(mean)} ({len(accuracies)} tasks)"


def sampling(settings: dict) -> str:
    """Return how many frames of a clip are shown, as text."""
    if settings.get("num_frames"):
        return str(settings["num_frames"])
    rate = f"{settings['fps']} fps" if settings.get("fps") else "adaptive"
    if settings.get("sampling") == "grid":
        rate += " on a grid"
    if settings.get("streamed"):
        rate += ", streamed"
    return f"{rate}, at most {settings['max_frames']}" if settings.get("max_frames") else rate


def result_table(results: list[Result], published: dict, beside: bool, mixed: bool = False) -> Table:
    """
    Return a table with one row for each result and condition, below the published ones if `beside`; with settings that
    may differ in a last column if `mixed`.
    """
    tasks = task_columns(published, results, all_of_streamgaze=beside)
    names = [task_info(task).abbreviation for task in tasks]
    header = ["method", "params", "frames", *names, "overall", "source"]
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
    if mixed:
        header.append("settings")
        rows = [[*row, ""] for row in rows]
    for result in results:
        for condition, values in result.scores.items():
            accuracies = {task: counts["accuracy"] for task, counts in values["tasks"].items()}
            about = [f"{result.name}, {condition}", result.settings.get("parameters") or NO_VALUE]
            cells = [percent(accuracies.get(task)) for task in tasks]
            row = [*about, sampling(result.settings), *cells, _overall(accuracies), "measured here"]
            if mixed:
                row.append(", ".join(f"{key} {result.same[key]}" for key in ("data", "config", "split", "scorer")))
            rows.append(row)
    return Table(header, rows)


def _measured_table(results: list[Result]) -> Table:
    header = ["result", "data", "split", "scorer", "condition", "expected", "answered", "failed", "code", "device"]
    rows = []
    for result in results:
        git = result.provenance.get("git")
        code = re.sub(r"^([0-9a-f]{10})[0-9a-f]+", r"\1", git) if git else "unknown"
        for condition, values in result.scores.items():
            total = sum(task["total"] for task in values["tasks"].values())
            counts = values.get("counts") or {"expected": total, "answered": NO_VALUE, "failed": NO_VALUE}
            about = [result.name, *(str(result.same[key]) for key in ("data", "split", "scorer")), condition]
            numbers = [str(counts.get(key, NO_VALUE)) for key in ("expected", "answered", "failed")]
            rows.append([*about, *numbers, code, str(result.provenance.get("device", "unknown"))])
    return Table(header, rows)


def _interval_table(results: list[Result], published: dict) -> Table:
    tasks, rows = task_columns(published, results), []
    for result in results:
        for condition, bounds in result.intervals.items():
            scores = result.scores[condition]
            accuracies = {task: values["accuracy"] for task, values in scores["tasks"].items()}
            cells = [percent(accuracies.get(task), bounds["tasks"].get(task)) for task in tasks]
            rows.append([f"{result.name}, {condition}", *cells, percent(scores["macro"], bounds["macro"])])
    return Table(["method", *(task_info(task).abbreviation for task in tasks), "overall"], rows)


def _gain_table(results: list[Result], published: dict) -> Table:
    rows = []
    for result in results:
        for condition, difference in result.against_none.items():
            items, base = result.items[condition], result.items[WITHOUT_GAZE]
            bounds = difference["intervals"]
            label = f"{result.name}, {condition}"
            for task in [task for task in task_columns(published, results) if task in difference["tasks"]]:
                pair = [[item for item in run if item.task == task] for run in (items, base)]
                test = f"McNemar, p = {mcnemar(*pair)['pvalue']:.2g}"
                gain = percent(difference["tasks"][task], bounds["tasks"][task])
                rows.append([label, task_info(task).abbreviation, str(len(pair[0])), gain, test])
            test = f"permutation by video, p = {permutation_test(items, base)['pvalue']:.2g}"
            rows.append([label, "overall", str(len(items)), percent(difference["macro"], bounds["macro"]), test])
    return Table(["method", "task", "questions", f"gain over {WITHOUT_GAZE}, points", "test"], rows)


def _test_point_table(results: list[Result]) -> Table:
    names = ("accuracy", "balanced_accuracy", "majority_baseline", "yes_share", "yes_rate")
    names += ("precision", "recall", "f1")
    rows = []
    for result in results:
        for condition, values in result.scores.items():
            details = score(result.items[condition], result.scorer)["tasks"] if condition in result.items else {}
            for task, measures in (values["tasks"] | details).items():
                if task_info(task).group == "proactive" and "majority_baseline" in measures:
                    label = [f"{result.name}, {condition}", task_info(task).abbreviation, str(measures["total"])]
                    rows.append([*label, *(percent(measures.get(name)) or NO_VALUE for name in names)])
    return Table(["method", "task", "test points", *(name.replace("_", " ") for name in names)], rows)


def _permuted_table(results: list[Result]) -> Table:
    header = ["method", "orders", "questions", "accuracy in each", "mean", "answered the same in all"]
    rows = []
    for result in results:
        for condition, values in result.scores.items():
            if robustness := values.get("options_permuted"):
                each = ", ".join(map(percent, robustness["accuracies"]))
                numbers = [str(robustness["permutations"]), str(robustness["questions"]), each]
                means = [percent(robustness["accuracy"]), percent(robustness["same_share"])]
                rows.append([f"{result.name}, {condition}", *numbers, *means])
    return Table(header, rows)


def _centrality_section(results: list[Result]) -> list[str]:
    """Return how central the gaze of the questions is, and whether a constant centre is as good; empty if unknown."""
    parts, names = [], defaultdict(list)
    for result in results:
        if result.gaze_centrality is not None:  # the same for all that were asked the same
            names[tuple(centrality_cells(result.gaze_centrality))].append(result.name)
    if names:
        rows = [[", ".join(members), *cells] for cells, members in names.items()]
        rows.append(["evenly drawn places", *centrality_cells(EVEN_PLACES)])
        table = Table(["gaze of", *CENTRALITY_HEADER], rows)
        parts += [f"Of the clips that were asked about, up to the query. {UNITS}", table.markdown()]
    for result in results:
        for condition, control in result.explained_by_centre.items():
            interval, macro = result.intervals[condition]["macro"], result.scores[control]["macro"]
            where = "within" if macro <= interval[1] else "above"
            parts.append(
                f"**Warning: a constant centre explains the answers as well.** {result.name}: `{control}` "
                f"{percent(macro)}, {where} the interval of `{condition}`, "
                f"{percent(result.scores[condition]['macro'], interval)}."
            )
    return ["### How central the gaze is", *parts] if parts else []


# ------------------------------------------------------------------ model card metadata
def model_index(results: list[Result]) -> list[dict]:
    """
    Return `model-index` of a model card, one model for each result: its headline condition's accuracies, from 0 to 1.
    """
    models = []
    for result in results:
        condition = result.headline
        values = result.scores[condition]
        accuracies = {task_info(task).abbreviation: counts["accuracy"] for task, counts in values["tasks"].items()}
        accuracies[f"mean over {len(accuracies)} tasks"] = values["macro"]
        about = {
            "task_type": "video-text-to-text",
            "dataset_type": {STREAMGAZE: "danaleee/StreamGaze", TOY_WORLD: "toy-world"}.get(result.kind, "other"),
            "dataset_name": result.data_name,
            "dataset_config": result.same["config"],
            "dataset_split": result.same["split"],
            "dataset_args": {"condition": condition, "scorer": result.scorer} | result.pooled,
            "metric_type": "accuracy",
        }
        rows = [
            EvalResult(**about, metric_name=f"accuracy, {name}", metric_value=accuracy)
            for name, accuracy in accuracies.items()
        ]
        models += ModelCardData(model_name=result.name, eval_results=rows).to_dict()["model-index"]
    return models


# ------------------------------------------------------------------ the report
def write_report(
    paths: list[str | PathLike], output: str | PathLike, latex: bool = False, mixed: bool = False
) -> list[Path]:
    """
    Write the report on some result files into a folder, and return the files written, `report.md` first.
    Raises ValueError naming the files that cannot be read, share a name, or do not compare (unless `mixed`).
    """
    results = _read_results(paths)
    by_kind = {kind: [result for result in results if result.kind == kind] for kind in KINDS}
    for members in by_kind.values():
        if members and not mixed:
            check_comparable(members)
    published, output = json.loads(PUBLISHED.read_text(encoding="utf-8")), Path(output)
    parts = ["# Results", "Accuracies in %; overall: the unweighted mean over the tasks of the row."]
    tex, figures = [], []
    for kind, members in sorted(by_kind.items(), key=lambda pair: not pair[1]):  # what was measured comes first
        if members or kind == STREAMGAZE:
            table = result_table(members, published, kind == STREAMGAZE, mixed)
            tex.append(f"% {kind}\n{table.latex()}")
            section, section_figures = _section(kind, members, published, table, output)
            parts += section
            figures += section_figures
    written = [output / "report.md", *figures, output / "model-index.json"]
    write_text(output / "report.md", "\n\n".join(parts) + "\n")
    write_json(output / "model-index.json", {"model-index": model_index(results)})
    if latex:
        write_text(output / "report.tex", "\n\n".join(tex) + "\n")
        written.append(output / "report.tex")
    return written


def _read_results(paths: list[str | PathLike]) -> list[Result]:
    """Return the results of some files, each file once. Raises ValueError if there are none, or two of one name."""
    results = [result for result in map(read_result, dict.fromkeys(map(Path, paths))) if result is not None]
    if not results:
        raise ValueError(f"no result among {', '.join(map(str, paths)) or 'no files'}")
    names = [result.name for result in results]
    for result in results:
        if names.count(result.name) > 1:
            same = ", ".join(str(other.path) for other in results if other.name == result.name)
            raise ValueError(f"{same}: all are named {result.name!r}; give each a `name`")
    return results


def _section(
    kind: str, members: list[Result], published: dict, table: Table, output: Path
) -> tuple[list[str], list[Path]]:
    """Return one kind's part of the report in Markdown, and its figures."""
    parts, figures = [f"## {kind}", _introduction(kind, members, published), table.markdown()], []
    if members:
        details, figures = _details(kind, members, published, output)
        parts += details
    if kind == STREAMGAZE:
        parts += _card_section(published)
    return parts, figures


def _introduction(kind: str, members: list[Result], published: dict) -> str:
    if kind == TOY_WORLD:
        return (
            "**Toy world**: a tiny backbone on drawn videos, pretrained also on vectors added to its hidden states "
            "and made receptive to them. These numbers show that the mechanism works; they say nothing about "
            "StreamGaze and do not compare with any published row."
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
    """
    Return what is below a table, in Markdown, and its figures: where rows come from, settings that differ, statistics.
    """
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
    if any(result.has_few_videos for result in members):
        parts.append(_FEW_VIDEOS_NOTE)
    parts += _centrality_section(members)
    figures = _draw_figures(kind, members, published, output)
    title = _figure_title(kind)
    parts += [f"![{title}: {name}]({path.name})" for name, path in figures.items()]
    return parts, list(figures.values())


def _figure_title(kind: str) -> str:
    return {TOY_WORLD: "Toy world (not StreamGaze)"}.get(kind, kind)


def _draw_figures(kind: str, members: list[Result], published: dict, output: Path) -> dict[str, Path]:
    """Draw what the results have numbers for, as {name: file}; files of an earlier report on other results go."""
    title, stem = _figure_title(kind), kind.lower().replace(" ", "_")
    paths = {name: output / f"{stem}_{name}.png" for name in ("accuracy", "gain", "reliability")}
    colors = {label: PALETTE[members.index(result) % len(PALETTE)] for label, result, _ in _series(members)}
    accuracies = {label: _accuracies(result, condition) for label, result, condition in _series(members)}
    for row in published["table_1"]["rows"] if kind == STREAMGAZE else []:
        label = f"{row['method']} (published)"
        accuracies[label] = {name: (accuracy, None) for name, accuracy in row["accuracy"].items()}
        colors[label] = PUBLISHED_COLOR
    names = [task_info(task).abbreviation for task in task_columns(published, members)]
    known = any(interval for estimates in accuracies.values() for _, interval in estimates.values())
    unit = f"accuracy, %{_INTERVALS_NOTE if known else ''}"
    draw_estimates(paths["accuracy"], f"{title}: accuracy", names, accuracies, colors, unit, (0, 100))
    gains = {
        label: group_gains(result, condition)
        for label, result, condition in _series(members)
        if WITHOUT_GAZE in result.scores and condition != WITHOUT_GAZE
    }
    if gains:
        groups = [name for name in (*GROUPS, "own", "overall") if any(name in gain for gain in gains.values())]
        known = any(interval for gain in gains.values() for _, interval in gain.values())
        unit = f"gain over no gaze, points, scored strict{_INTERVALS_NOTE if known else ''}"
        draw_estimates(paths["gain"], f"{title}: gain by gaze", groups, gains, colors, unit)
    panels = {
        label: calibration(result.items[condition])
        for label, result, condition in _series(members)
        if any(item.logits is not None for item in result.items.get(condition, ()))
    }
    if panels:
        draw_reliability(paths["reliability"], f"{title}: reliability", panels)
    for name, values in (("gain", gains), ("reliability", panels)):
        if not values:
            paths.pop(name).unlink(missing_ok=True)
    return paths


def _series(results: list[Result]) -> list[tuple[str, Result, str]]:
    """Return (label, result, condition) for each row of a table."""
    return [(f"{result.name}, {condition}", result, condition) for result in results for condition in result.scores]


def _accuracies(result: Result, condition: str) -> dict[str, tuple[float, list[float] | None]]:
    """Return {abbreviation of a task: (accuracy, its interval where known)}."""
    intervals = result.intervals.get(condition, {"tasks": {}})["tasks"]
    return {
        task_info(task).abbreviation: (values["accuracy"], intervals.get(task))
        for task, values in result.scores[condition]["tasks"].items()
    }


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
    with one_line_errors():
        main()
