"""
What the evidence shows, from the committed results: `python -m gazeqwen.toyworld.evidence_report`.

Writes the tables into `docs/evidence.md` and `README.md`, between their markers, and the figures beside them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from gazeqwen.evaluation.scoring import read_predictions, score, sorted_tasks
from gazeqwen.evaluation.statistics import intervals_over_seeds
from gazeqwen.inference.answering import Comparison, ask
from gazeqwen.plots.scanpath import draw_effect, draw_scanpath
from gazeqwen.plots.style import save_png
from gazeqwen.questions.dataset import load_questions
from gazeqwen.questions.question import Question
from gazeqwen.questions.tasks import TASKS, task_info
from gazeqwen.toyworld.evidence import pooled
from gazeqwen.toyworld.kitchen.difficulty import SMALL_PX
from gazeqwen.toyworld.questions import SCENE_TASKS
from gazeqwen.toyworld.studies import KITCHEN, NOISE, ROOT, SEEDS, SHAPES, Study, under
from gazeqwen.utils.adapters import load_model, load_processor
from gazeqwen.utils.command_line import one_line_errors
from gazeqwen.utils.files import write_text
from gazeqwen.utils.tables import Table, fill, percent
from gazeqwen.video_gazeqwen import read_frames

DOCUMENT, README = ROOT / "docs" / "evidence.md", ROOT / "README.md"
CHANCE = 0.25
OWN_GAZE = ("gaze", "ring", "overlay+model")  # conditions with the question's own gaze
EFFECT_SHOWN = "present_object_identification_easy"

# (row, condition): what it is called; in the order of the main table.
MAIN = {
    ("ringed", "none"): "Frozen, what is fixated is ringed: the ceiling",
    ("gazeqwen", "gaze"): "**GazeQwen** (with LoRA: its best epoch is of stage 2)",
    ("heatmap-vector", "gaze"): "Heatmap times one vector per layer, no resampler",
    ("ring", "ring"): "Frozen, gaze drawn as the ring of its pretraining",
    ("lora-overlay", "overlay+model"): "LoRA, gaze drawn as StreamGaze's disc and red ring",
    ("paper", "gaze"): "Paper's formula after the paper's layers (`coord_pe`)",
    ("gazeqwen-controls", "permuted_times"): "GazeQwen, its places in another order at test",
    ("gazeqwen", "shifted"): "GazeQwen, gaze moved by half the clip at test",
    ("gazeqwen", "shuffled"): "GazeQwen, another video's gaze at test",
    ("gazeqwen-controls", "random_place"): "GazeQwen, fixations at random places at test",
    ("gazeqwen-controls", "centre"): "GazeQwen, gaze in the middle of the frame at test",
    ("gazeqwen", "zero"): "GazeQwen, no fixation at test",
    ("heatmap-vector", "shuffled"): "Heatmap times one vector, another video's gaze at test",
    ("heatmap-vector-controls", "centre"): "Heatmap times one vector, gaze in the middle of the frame at test",
    ("ring", "ring+shuffled"): "Frozen, that ring at another video's gaze",
    ("ring-centre", "ring+centre"): "Frozen, that ring in the middle of the frame",
    ("shuffled", "gaze"): "GazeQwen trained on shuffled gaze",
    ("lora", "gaze"): "LoRA alone, no gaze",
    ("frozen", "overlay"): "Frozen, gaze drawn as StreamGaze's disc and red ring",
    ("frozen", "saliency"): "Frozen, gaze as a saliency map",
    ("frozen", "text"): "Frozen, gaze as coordinates in the prompt",
    ("frozen", "none"): "Frozen, no gaze",
    ("frozen", "text_only"): "Frozen, the text alone",
}

# The same for the backbone of the second family.
SECOND_FAMILY = {
    ("qwen3-vl-ringed", "none"): "Frozen, what is fixated is ringed: the ceiling",
    ("qwen3-vl-gazeqwen", "gaze"): "**GazeQwen**",
    ("qwen3-vl-gazeqwen", "shuffled"): "GazeQwen, another video's gaze at test",
    ("qwen3-vl-shuffled", "gaze"): "GazeQwen trained on shuffled gaze",
    ("qwen3-vl-lora", "gaze"): "LoRA alone, no gaze",
    ("qwen3-vl-frozen", "none"): "Frozen, no gaze",
}

# The same for the kitchen.
KITCHEN_MAIN = {
    ("gazeqwen", "gaze"): "**GazeQwen**",
    ("own-embeddings", "gaze"): "GazeQwen on the base model's own embeddings, no video encoder",
    ("normalized-embeddings", "gaze"): "GazeQwen on own embeddings, normalised",
    ("dinov2", "gaze"): "GazeQwen on a pretrained DINOv2-S",
    ("dinov2-normalized", "gaze"): "GazeQwen on a pretrained DINOv2-S, normalised",
    ("heatmap-vector", "gaze"): "Heatmap times one vector per layer, no resampler",
    ("heatmap-vector-narrow", "gaze"): "Heatmap half as wide times one vector per layer",
    ("lora-ring", "ring+model"): "LoRA, gaze drawn as a ring",
    ("lora-cross", "cross+model"): "LoRA, gaze drawn as a cross",
    ("lora-saliency", "saliency+model"): "LoRA, gaze as a heat map",
    ("lora-text", "text+model"): "LoRA, gaze as places in words",
    ("frozen", "ring"): "Frozen, gaze drawn as a ring",
    ("frozen", "cross"): "Frozen, gaze drawn as a cross",
    ("frozen", "saliency"): "Frozen, gaze as a heat map",
    ("frozen", "text"): "Frozen, gaze as places in words",
    ("paper", "gaze"): "Paper's formula after the paper's layers (`coord_pe`)",
    ("gazeqwen", "shuffled"): "GazeQwen, another video's gaze at test",
    ("gazeqwen", "centre"): "GazeQwen, gaze in the middle of the frame at test",
    ("gazeqwen", "zero"): "GazeQwen, no fixation at test",
    ("gazeqwen-controls", "random_place"): "GazeQwen, fixations at random places at test",
    ("gazeqwen-controls", "permuted_times"): "GazeQwen, its places in another order at test",
    ("gazeqwen-controls", "shifted"): "GazeQwen, gaze moved by half the clip at test",
    ("heatmap-vector", "shuffled"): "Heatmap times one vector, another video's gaze at test",
    ("heatmap-vector", "centre"): "Heatmap times one vector, gaze in the middle of the frame at test",
    ("heatmap-vector-narrow", "shuffled"): "Heatmap half as wide, another video's gaze at test",
    ("heatmap-vector-narrow", "centre"): "Heatmap half as wide, gaze in the middle of the frame at test",
    ("own-embeddings", "shuffled"): "GazeQwen on own embeddings, another video's gaze at test",
    ("own-embeddings", "centre"): "GazeQwen on own embeddings, gaze in the middle of the frame at test",
    ("normalized-embeddings", "shuffled"): "GazeQwen on own embeddings, normalised, another video's gaze at test",
    ("normalized-embeddings", "centre"): "GazeQwen on own embeddings, normalised, gaze in the middle at test",
    ("dinov2", "shuffled"): "GazeQwen on a DINOv2-S, another video's gaze at test",
    ("dinov2", "centre"): "GazeQwen on a DINOv2-S, gaze in the middle of the frame at test",
    ("dinov2-normalized", "shuffled"): "GazeQwen on a DINOv2-S, normalised, another video's gaze at test",
    ("dinov2-normalized", "centre"): "GazeQwen on a DINOv2-S, normalised, gaze in the middle at test",
    ("paper", "shuffled"): "Paper's formula, another video's gaze at test",
    ("paper", "centre"): "Paper's formula, gaze in the middle of the frame at test",
    ("lora-ring", "ring+model+shuffled"): "LoRA, that ring at another video's gaze",
    ("lora-ring", "ring+model+centre"): "LoRA, that ring in the middle of the frame",
    ("lora-cross", "cross+model+shuffled"): "LoRA, that cross at another video's gaze",
    ("lora-saliency", "saliency+model+shuffled"): "LoRA, that heat map of another video's gaze",
    ("lora-text", "text+model+shuffled"): "LoRA, places of another video's gaze in words",
    ("frozen-controls", "ring+shuffled"): "Frozen, that ring at another video's gaze",
    ("frozen-controls", "ring+centre"): "Frozen, that ring in the middle of the frame",
    ("frozen-controls", "cross+shuffled"): "Frozen, that cross at another video's gaze",
    ("frozen-controls", "saliency+shuffled"): "Frozen, that heat map of another video's gaze",
    ("frozen-controls", "text+shuffled"): "Frozen, places of another video's gaze in words",
    ("shuffled", "gaze"): "GazeQwen trained on shuffled gaze",
    ("lora", "gaze"): "LoRA alone, no gaze",
    ("frozen", "none"): "Frozen, no gaze",
    ("frozen", "text_only"): "Frozen, the text alone",
}


@dataclass(frozen=True)
class Evidence:
    """The committed results by row."""

    results: dict[str, dict]

    @classmethod
    def read(cls, folder: Path = SHAPES.results) -> Evidence:
        return cls({path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")})

    def score(self, row: str, condition: str) -> dict | None:
        return self.results.get(row, {}).get("scores", {}).get(condition)

    def spread(self, row: str, condition: str) -> str:
        """Return the lowest and highest of the seeds' means, as text."""
        means = [np.mean(list(seed[condition].values())) for seed in self.results[row]["seeds"].values()]
        return f"{100 * min(means):.1f} to {100 * max(means):.1f}" if len(means) > 1 else ""


def _cells(score: dict, tasks: list[str]) -> list[str]:
    return [percent(score["tasks"][task]["accuracy"]) for task in tasks]


def condition_table(evidence: Evidence, titles: dict[tuple[str, str], str]) -> Table:
    """Show the accuracies of (row, condition) by task, and beside their mean the balanced ones of Yes/No tasks."""
    tasks = sorted_tasks(TASKS)
    alerts = [task for task in tasks if TASKS[task].group == "proactive"]
    rows = []
    for (row, condition), title in titles.items():
        if score := evidence.score(row, condition):
            mean = percent(score["macro"], score["intervals"]["macro"])
            balanced = [percent(score["tasks"][task]["balanced_accuracy"]) for task in alerts]
            rows.append([title, *_cells(score, tasks), mean, evidence.spread(row, condition), *balanced])
    header = ["condition", *(TASKS[task].abbreviation for task in tasks), "mean [95 %]", "seeds"]
    return Table([*header, *(f"{TASKS[task].abbreviation} balanced" for task in alerts)], rows)


def task_table(evidence: Evidence) -> Table:
    """Show by task the ceiling, what GazeQwen makes of it, and what is there without gaze."""
    columns = {
        "ceiling": ("ringed", "none"),
        "GazeQwen": ("gazeqwen", "gaze"),
        "shuffled gaze": ("gazeqwen", "shuffled"),
        "LoRA alone": ("lora", "gaze"),
        "frozen, no gaze": ("frozen", "none"),
        "text alone": ("frozen", "text_only"),
    }
    scores = {name: evidence.score(*cell) for name, cell in columns.items()}
    rows = []
    for task in sorted_tasks(TASKS):
        count, baseline = _baseline(evidence, task)
        values = [score and score["tasks"][task]["accuracy"] for score in scores.values()]
        below = "" if None in values[:2] else f"{100 * (values[1] - values[0]):+.1f}"
        rows.append([f"{TASKS[task].abbreviation}", str(count), *map(percent, values), below, baseline])
    return Table(["task", "answers", *columns, "GazeQwen - ceiling", "constant guess"], rows)


def _baseline(evidence: Evidence, task: str) -> tuple[int, str]:
    """Return how many answers a task expects, and how often the best constant answer is right."""
    values = evidence.score("frozen", "none")["tasks"][task]
    return values["total"], percent(values.get("majority_baseline", CHANCE))


def ablation_table(evidence: Evidence) -> Table:
    rows = []
    for row in [SHAPES.row(SHAPES.default), *(row for row in SHAPES.rows if row.group == "ablations")]:
        score = evidence.score(row.name, "gaze")
        if score:
            name = "**Default**" if row.name == SHAPES.default else row.title
            groups = [percent(score["groups"][group]) for group in ("past", "present", "proactive")]
            mean = percent(score["macro"], score["intervals"]["macro"])
            shuffled = percent(evidence.score(row.name, "shuffled")["macro"])
            rows.append([name, *groups, mean, _against_default(evidence, row.name), shuffled])
    return Table(
        ["changed", "past", "present", "proactive", "mean [95 %]", "against the default", "shuffled gaze"], rows
    )


# How a condition is called at the head of a column.
LONG_COLUMNS = {"shuffled": "shuffled gaze", "noise5": "noise of 5 %", "noise10": "of 10 %"}


def long_table(evidence: Evidence, study: Study = SHAPES, longer: str = "ten times that") -> Table:
    """Show what more training makes of what the recipe's may be too short for: means, and under other conditions."""
    rows, columns = [], []
    for row in (row for row in study.rows if row.group == "long"):
        own, *others = row.conditions
        if evidence.score(row.name, own):
            columns = [LONG_COLUMNS[condition.split("+")[-1]] for condition in others]
            shorter = row.name.removesuffix("-long").removesuffix("-augmented")
            scores = [evidence.score(name, own) for name in (shorter, row.name)]
            means = [percent(score["macro"], score["intervals"]["macro"]) for score in scores]
            rows.append([row.title, *means, *(percent(evidence.score(row.name, name)["macro"]) for name in others)])
    return Table(["row", "the recipe's training [95 %]", f"{longer} [95 %]", *columns], rows)


def _against_default(evidence: Evidence, row: str) -> str:
    """
    Return the gain in points over GazeQwen on the same questions, with its interval; empty where it is not known.
    """
    gain = evidence.results[row].get("against_default")
    return "" if gain is None else _gain(gain)


def _gain(gain: dict) -> str:
    low, high = (100 * value for value in gain["interval"])
    return f"{100 * gain['macro']:+.1f} [{low:+.1f}, {high:+.1f}]"


def rate_table(evidence: Evidence, study: Study = SHAPES) -> Table:
    """Show each learning rate's validation accuracy of the rows that name several, and the best one on the test."""
    rows = []
    for row in study.rows:
        search = evidence.results.get(row.name, {}).get("rate_search")
        if search:
            tried = ", ".join(f"{rate}: {percent(accuracy)}" for rate, accuracy in search["validation"].items())
            score = evidence.score(row.name, row.conditions[0])
            mean = percent(score["macro"], score["intervals"]["macro"])
            rows.append([row.title, tried, f"{search['best']:g}", mean, _against_default(evidence, row.name)])
    return Table(["row", "rate: validation", "best", "test, mean [95 %]", "against GazeQwen"], rows)


VIDEO_ENCODER = {
    "own": "its own",
    "other_video": "another video's",
    "zeros": "zeros",
    "noise": "noise of the same mean and variance",
}


def video_encoder_table(evidence: Evidence, result: str = "video-encoder") -> Table:
    """Show a row with its own gaze, and other features than the video encoder's."""
    rows, gains = [], evidence.results.get(result, {}).get("against_own", {})
    for name, title in VIDEO_ENCODER.items():
        score = evidence.score(result, name)
        if score is None:
            continue
        groups = [percent(score["groups"][group]) for group in ("past", "present", "proactive")]
        mean = percent(score["macro"], score["intervals"]["macro"])
        rows.append([title, *groups, mean, "" if name == "own" else _gain(gains[name])])
    return Table(["video encoder's features", "past", "present", "proactive", "mean [95 %]", "against its own"], rows)


# Of the kitchen, asked at noise of 10 % of the frame: how an adapter is called, and its result.
FEATURES_UNDER_NOISE = {
    "DINOv2-S, normalised": "video-encoder-dinov2-normalized-noise10",
    "DINOv2-S, normalised, stage 1 five times as long": "video-encoder-dinov2-normalized-long-noise10",
    "DINOv2-S, normalised, then trained with noise": "video-encoder-dinov2-normalized-then-noise-noise10",
    "own embeddings, normalised": "video-encoder-normalized-embeddings-noise10",
    "own embeddings, normalised, then trained with noise": "video-encoder-normalized-embeddings-then-noise-noise10",
}


def features_table(evidence: Evidence, results: dict[str, str]) -> Table:
    """Show what other features than their own cost several rows: the mean with their own, and gains over it."""
    rows = []
    for title, result in results.items():
        own = evidence.score(result, "own")
        if own is not None:
            gains = evidence.results[result]["against_own"]
            seeds = len(evidence.results[result]["seeds"])
            mean = percent(own["macro"], own["intervals"]["macro"])
            rows.append([title, str(seeds), mean, *(_gain(gains[name]) for name in VIDEO_ENCODER if name != "own")])
    others = [name for name in VIDEO_ENCODER.values() if name != "its own"]
    return Table(["GazeQwen on", "seeds", "its own features [95 %]", *others], rows)


def _with_noise(
    row: str, condition: str, noisy_rows: dict[str | None, tuple[int, ...]] | None = None
) -> dict[int, tuple[str, str]]:
    """
    Return {noise in percent of the frame: the (row, condition) with it}. `noisy_rows`: the levels by the row that has
    them, None for `row`; none: 5 and 10 in the row itself.
    """
    cells = {0: (row, condition)}
    for noisy_row, levels in (noisy_rows or {None: (5, 10)}).items():
        cells |= {level: (noisy_row or row, under(condition, f"noise{level}")) for level in levels}
    return cells


def _up_to_20(row: str, condition: str = "gaze") -> dict[int, tuple[str, str]]:
    """Return the same of a kitchen's row whose adapters are asked under more noise in a row of their own."""
    return _with_noise(row, condition, {None: (5, 10), f"{row}-more-noise": (15, 20)})


NOISY = _with_noise("gazeqwen", "gaze", {None: NOISE})
NOISY_RING = _with_noise("ring", "ring", {"ring-noise": (5, 10)})
KITCHEN_NOISE = {
    "GazeQwen": _up_to_20("gazeqwen"),
    "GazeQwen on own embeddings": _with_noise("own-embeddings", "gaze"),
    "GazeQwen on own embeddings, normalised": _up_to_20("normalized-embeddings"),
    "heatmap times one vector": _with_noise("heatmap-vector", "gaze"),
    "heatmap half as wide": _up_to_20("heatmap-vector-narrow"),
    "GazeQwen, trained with noise": _with_noise("gazeqwen-trained-with-noise", "gaze"),
    "GazeQwen on own embeddings, trained with noise": _with_noise("own-embeddings-trained-with-noise", "gaze"),
    "GazeQwen on own embeddings, normalised, trained with noise": _with_noise(
        "normalized-embeddings-trained-with-noise", "gaze"
    ),
    "heatmap times one vector, trained with noise": _with_noise("heatmap-vector-trained-with-noise", "gaze"),
    "GazeQwen on a DINOv2-S, normalised, then trained with noise": _with_noise("dinov2-normalized-then-noise", "gaze"),
    "GazeQwen on own embeddings, normalised, then trained with noise": _with_noise(
        "normalized-embeddings-then-noise", "gaze"
    ),
    "heatmap half as wide, then trained with noise": _with_noise("heatmap-vector-narrow-then-noise", "gaze"),
    "LoRA, the ring, then trained with noise": _with_noise("lora-ring-then-noise", "ring+model"),
    "LoRA, the ring": _up_to_20("lora-ring", "ring+model"),
    "frozen, the ring": _with_noise("frozen", "ring", {"frozen-noise": (5, 10), "frozen-more-noise": (15, 20)}),
}


def noise_table(evidence: Evidence, lines: dict[str, dict[int, tuple[str, str]]]) -> Table:
    """Show accuracies by the noise of the scanpath: `lines`, title -> noise in % of the frame -> (row, condition)."""

    def text(cell: tuple[str, str]) -> str:
        score = evidence.score(*cell)
        return percent(score["macro"], score["intervals"]["macro"]) if score else ""

    return _noise_table(lines, text)


def same_noise_table(evidence: Evidence, lines: dict[str, dict[int, tuple[str, str]]], seed: str = "0") -> Table:
    """Show the same of one seed, which draws the same noise for every row: what rows with one seed compare with."""

    def text(cell: tuple[str, str]) -> str:
        tasks = evidence.results.get(cell[0], {}).get("seeds", {}).get(seed, {}).get(cell[1])
        return percent(sum(tasks.values()) / len(tasks)) if tasks else ""

    return _noise_table(lines, text)


def _noise_table(lines: dict[str, dict[int, tuple[str, str]]], text: Callable[[tuple[str, str]], str]) -> Table:
    """Return the table of what there are results for, with the `text` of each (row, condition)."""
    cells = {title: {noise: text(cell) for noise, cell in by_noise.items()} for title, by_noise in lines.items()}
    levels = sorted({noise for by_noise in cells.values() for noise, value in by_noise.items() if value})
    rows = [[title, *(by_noise.get(noise, "") for noise in levels)] for title, by_noise in cells.items()]
    return Table(["noise, % of the frame", *map(str, levels)], [row for row in rows if any(row[1:])])


def _seeds(evidence: Evidence, cell: tuple[str, str]) -> int:
    """Return how many seeds the row of a (row, condition) has results of."""
    return len(evidence.results.get(cell[0], {}).get("seeds", {}))


FEW_THINGS = 4
# What the kitchen's questions are grouped by: column -> whether a question (see `difficulty.py`) belongs there.
DIFFICULTY = {
    f"a thing of up to {SMALL_PX} pixels": lambda task, of: of["size_px"] is not None and of["size_px"] <= SMALL_PX,
    "a larger thing": lambda task, of: of["size_px"] is not None and of["size_px"] > SMALL_PX,
    "past, up to 4 things looked at": lambda task, of: _past_gaze(task) and of["looked_at"] <= FEW_THINGS,
    "past, 5 or more": lambda task, of: _past_gaze(task) and of["looked_at"] > FEW_THINGS,
}
DIFFICULT_ROWS = {
    "GazeQwen": ("gazeqwen", "gaze"),
    "heatmap times one vector": ("heatmap-vector", "gaze"),
    "LoRA, the ring": ("lora-ring", "ring+model"),
    "frozen, the ring": ("frozen", "ring"),
    "frozen, no gaze": ("frozen", "none"),
}


def _past_gaze(task: str) -> bool:
    return TASKS[task].group == "past" and task not in SCENE_TASKS


def difficulty_table(evidence: Evidence, study: Study = KITCHEN) -> Table:
    """Show accuracies by how large the thing asked about is, and how many were looked at, from kept predictions."""
    questions = evidence.results["questions"]["questions"]
    counts, rows = dict.fromkeys(DIFFICULTY, 0), []
    for title, (row, condition) in DIFFICULT_ROWS.items():
        if evidence.score(row, condition) is None:
            continue
        files = [study.results / "predictions" / f"{row}-{seed}.jsonl.xz" for seed in evidence.results[row]["seeds"]]
        runs, cells = [read_predictions(file)[condition] for file in files], []
        for column, belongs in DIFFICULTY.items():
            chosen = [[item for item in run if belongs(item.task, questions[item.key])] for run in runs]
            counts[column] = len(chosen[0])
            cells.append(
                percent(score(pooled(dict(enumerate(chosen))))["micro"], intervals_over_seeds(chosen)["micro"])
            )
        rows.append([title, *cells])
    return Table(["asked about", *(f"{column} ({count})" for column, count in counts.items())], rows)


COSTS = ROOT / "benchmarks" / "results" / "gaze_ways_kitchen_cpu.json"


def cost_table(measured: dict) -> Table:
    """Show what each way to give gaze costs beside the base model on the same video (`bench_gaze_ways.py`)."""
    rows, base = [], measured["rows"][0]
    for row in measured["rows"]:
        ratios = [f"{row[when] / base[when]:.2f}" for when in ("a new video", "another gaze on a known video")]
        rows.append([row["way"], f"{row['trained']:,}", str(row["tokens_added"]), *ratios])
    return Table(["way", "trained", "tokens", "a new video, times", "another gaze on a known video, times"], rows)


# ------------------------------------------------------------------ figures
def draw_conditions(path: Path, evidence: Evidence) -> None:
    """Draw the mean accuracy by condition, with 95 % intervals."""
    shown = {key: title.replace("*", "") for key, title in MAIN.items() if evidence.score(*key)}
    figure = Figure(figsize=(9, 0.36 * len(shown) + 1.2), layout="constrained")
    axis = figure.subplots()
    colors = {"gazeqwen": "#1a73e8", "ringed": "#5f6368"}
    for place, key in enumerate(reversed(shown)):
        score = evidence.score(*key)
        low, high = (100 * v for v in score["intervals"]["macro"])
        mean = 100 * score["macro"]
        axis.barh(
            place,
            mean,
            color=colors.get(key[0].removesuffix("-controls"), "#9aa0a6"),
            alpha=1 if key[1] in OWN_GAZE else 0.55,
        )
        axis.plot([low, high], [place, place], color="black", linewidth=1.4)
        axis.text(high + 1, place, f"{mean:.1f}", va="center", fontsize=8)
    axis.set_yticks(range(len(shown)), list(reversed(shown.values())), fontsize=8)
    axis.set_xlim(0, 108)
    axis.set_xlabel("accuracy, %: mean of ten tasks, 95 % interval over seeds and videos", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    save_png(figure, path)


def draw_noise(path: Path, evidence: Evidence) -> None:
    """Draw accuracy against the noise of the scanpath, for groups of tasks, beside the model without gaze."""
    scores = {noise: evidence.score(*cell) for noise, cell in NOISY.items()}
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axis = figure.subplots()
    for group, color in (("present", "#1a73e8"), ("past", "#188038"), ("proactive", "#e8710a")):
        values = [100 * score["groups"][group] for score in scores.values()]
        axis.plot(list(scores), values, "o-", color=color, linewidth=1, markersize=4, label=f"{group} tasks")
    means = [100 * score["macro"] for score in scores.values()]
    spans = np.array([score["intervals"]["macro"] for score in scores.values()]).T * 100
    axis.plot(list(scores), means, "o-", color="black", linewidth=2, label="mean over ten tasks")
    drawn = {noise: evidence.score(*cell) for noise, cell in NOISY_RING.items()}
    if None not in drawn.values():
        means = [100 * score["macro"] for score in drawn.values()]
        axis.plot(list(drawn), means, "s--", color="#a142f4", linewidth=1.5, markersize=4, label="drawn ring, frozen")
    axis.fill_between(list(scores), *spans, color="black", alpha=0.12, linewidth=0)
    for key, name, style in ((("lora", "gaze"), "LoRA alone", "--"), (("ringed", "none"), "ceiling", ":")):
        if score := evidence.score(*key):
            axis.axhline(100 * score["macro"], color="#5f6368", linestyle=style, linewidth=1, label=name)
    axis.set_xlabel("noise on each fixation: standard deviation in % of the frame\n(one visual token is 25 % wide)")
    axis.set_ylabel("accuracy, %")
    axis.set_ylim(0, 100)
    axis.legend(fontsize=8, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    save_png(figure, path)


def draw_examples(folder: Path, run: Path, data: Path) -> None:
    """
    Draw for each task a question that the trained adapter answers right with its gaze and wrong without a fixation, if
    there is one: frames, scanpath, and where the foveal latents of the first injection layer look.
    """
    model, processor = load_model(run / "best"), load_processor(run / "best")
    right = {}
    for condition, items in read_predictions(run / "results.predictions.jsonl").items():
        right[condition] = {item.key: item.choice == item.answer for item in items}
    questions = load_questions(data, "test")
    for task in sorted_tasks(TASKS):
        of_task = [q for q in questions if q.task == task]
        of_task.sort(key=lambda q: (right["gaze"][q.key], not right["zero"][q.key]), reverse=True)
        question = of_task[0]
        comparison = explain(model, processor, question)
        save_png(draw_example(comparison, question), folder / "evidence" / f"{TASKS[task].abbreviation}.png")


def draw_clear_effect(path: Path, run: Path, data: Path) -> None:
    """Draw what gaze adds where, and does to the answer to a question, of an adapter's `run` on a dataset."""
    model, processor = load_model(run / "best"), load_processor(run / "best")
    questions = [question for question in load_questions(data, "test") if question.task == EFFECT_SHOWN]
    save_png(draw_effect_of(*clear_effect(model, processor, questions)), path)


def clear_effect(model, processor, questions: list[Question]) -> tuple[Comparison, Question]:
    """
    Return the question of the shortest clip, asked in the middle of the fixation that it is about, that the model
    answers right with gaze and wrong without.
    """
    for question in sorted(filter(None, map(asked_in_the_middle, questions)), key=lambda q: q.end_s - q.start_s):
        comparison = explain(model, processor, question)
        texts = [comparison.answers[name].text for name in ("with gaze", "without gaze")]
        if [text == question.options[question.answer] for text in texts] == [True, False]:
            return comparison, question
    raise ValueError(f"gaze makes no difference to any of {len(questions)} questions")


def asked_in_the_middle(question: Question) -> Question | None:
    """
    Return the question asked again in the middle of the fixation that it asks about; None where that fixation, or the
    time to the next one, is so short that one would be snapped.
    """
    asked = question.scanpath.index_to_snap(question.end_s)
    if asked is None:
        return None
    middle_s = float(question.scanpath.table[asked, 2])
    return replace(question, end_s=middle_s) if question.scanpath.index_to_snap(middle_s) is None else None


def draw_effect_of(comparison: Comparison, question: Question) -> Figure:
    """Return what gaze does to the answer to a question, see `draw_effect`."""
    frames, _ = read_frames(question.video, comparison.moments_s())
    probabilities = {name: answer.probabilities for name, answer in comparison.answers.items()}
    title = f"{question.question}  Right: {question.options[question.answer]}"
    snapped = comparison.snapped_in(len(frames) - 1)
    seen = (comparison.step_spans_s, comparison.scanpath, comparison.weights)
    return draw_effect(frames, *seen, comparison.residuals, probabilities, title, snapped)


def draw_example(comparison: Comparison, question: Question) -> Figure:
    """Return the steps of a question's clip with its scanpath and where the foveal latents look."""
    frames, _ = read_frames(question.video, comparison.moments_s())
    answers = "  |  ".join(f"{name}: {answer}" for name, answer in comparison.answers.items())
    title = f"{task_info(question.task).abbreviation}: {question.question}\n"
    title += f"right: {question.options[question.answer]}  |  {answers}"
    snapped = comparison.snapped_in(len(frames) - 1)
    seen = (comparison.step_spans_s, comparison.scanpath, comparison.weights)
    return draw_scanpath(frames, *seen, title, columns=6, attention=comparison.attention, snapped=snapped)


def explain(model, processor, question: Question) -> Comparison:
    clip = processor.read_clip(question.video, question.start_s, question.end_s)
    prompt, tokens = question.prompt(processor.prompt_style)
    snap_s = processor.snap_s if question.snapped else 0.0
    answers = dict(zip(tokens, question.options, strict=True))
    return ask(model, processor, clip, question.scanpath, prompt, answers, snap_s, explain=True)


# (row, condition): what the README's table calls it, and its conditions with another video's gaze, with gaze in the
# middle of the frame, and with noise.
SUMMARY = {
    ("gazeqwen", "gaze"): (
        "**GazeQwen**",
        ("gazeqwen", "shuffled"),
        ("gazeqwen-controls", "centre"),
        NOISY[5],
        NOISY[10],
    ),
    ("heatmap-vector", "gaze"): (
        "a heatmap times one vector per layer",
        ("heatmap-vector", "shuffled"),
        ("heatmap-vector-controls", "centre"),
        None,
        None,
    ),
    ("ring", "ring"): (
        "the backbone's own ring, drawn",
        ("ring", "ring+shuffled"),
        ("ring-centre", "ring+centre"),
        NOISY_RING[5],
        NOISY_RING[10],
    ),
    ("video-encoder", "other_video"): ("GazeQwen, another video's features from the video encoder", *[None] * 4),
    ("video-encoder", "zeros"): ("GazeQwen, zeros as features", *[None] * 4),
    ("video-encoder", "noise"): ("GazeQwen, noise as features", *[None] * 4),
    ("frozen", "none"): ("no gaze: the base model", *[None] * 4),
}


def _with_controls(title: str, row: str, gaze: str = "") -> tuple:
    """Return how a trained row is called, and its (row, condition) by control; `gaze`: how it is drawn, if it is."""
    return (title, *((row, gaze + control) for control in ("shuffled", "centre", "noise5", "noise10")))


KITCHEN_SUMMARY = {
    ("gazeqwen", "gaze"): _with_controls("**GazeQwen**", "gazeqwen"),
    ("normalized-embeddings", "gaze"): _with_controls(
        "GazeQwen without a video encoder, as in our recipes", "normalized-embeddings"
    ),
    ("heatmap-vector", "gaze"): _with_controls("a heatmap times one vector per layer", "heatmap-vector"),
    ("heatmap-vector-narrow", "gaze"): _with_controls("the same, the heatmap half as wide", "heatmap-vector-narrow"),
    ("lora-ring", "ring+model"): _with_controls("a ring, drawn, with LoRA", "lora-ring", "ring+model+"),
    ("frozen", "ring"): (
        "a ring, drawn, nothing trained",
        ("frozen-controls", "ring+shuffled"),
        ("frozen-controls", "ring+centre"),
        KITCHEN_NOISE["frozen, the ring"][5],
        KITCHEN_NOISE["frozen, the ring"][10],
    ),
    ("frozen", "none"): ("no gaze: the base model", *[None] * 4),
}


def summary_table(evidence: Evidence, shown: dict[tuple[str, str], tuple]) -> Table:
    """Show the simplest ways to give gaze beside GazeQwen, for the README."""
    rows = []
    for (row, condition), (title, *controls) in shown.items():
        score = evidence.score(row, condition)
        if score is None:
            continue
        others = [evidence.score(*cell)["macro"] if cell and evidence.score(*cell) else None for cell in controls]
        rows.append([title, percent(score["macro"], score["intervals"]["macro"]), *map(percent, others)])
    columns = ["own gaze [95 %]", "another video's gaze", "in the middle", "noise of 5 % of the frame", "of 10 %"]
    return Table(["gaze is given as", *columns], rows)


def summaries(evidence: Evidence, kitchen: Evidence) -> dict[str, Table]:
    """Return the README's tables."""
    return {"kitchen": summary_table(kitchen, KITCHEN_SUMMARY), "summary": summary_table(evidence, SUMMARY)}


def tables(evidence: Evidence, kitchen: Evidence) -> dict[str, Table]:
    """Return the document's tables, those that there are results for."""
    of_kitchen = {
        "kitchen": condition_table(kitchen, KITCHEN_MAIN),
        "kitchen-rates": rate_table(kitchen, KITCHEN),
        "kitchen-noise": noise_table(
            kitchen,
            {title: cells for title, cells in KITCHEN_NOISE.items() if _seeds(kitchen, cells[10]) == len(SEEDS)},
        ),
        "kitchen-noise-same": same_noise_table(kitchen, KITCHEN_NOISE),
        "kitchen-long": long_table(kitchen, KITCHEN, "longer"),
        "kitchen-video-encoder": video_encoder_table(kitchen),
        "kitchen-dinov2": video_encoder_table(kitchen, "video-encoder-dinov2-normalized"),
        "kitchen-features-noise": features_table(kitchen, FEATURES_UNDER_NOISE),
        "kitchen-difficulty": difficulty_table(kitchen),
        "kitchen-costs": cost_table(json.loads(COSTS.read_text())),
    }
    of_shapes = {
        "main": condition_table(evidence, MAIN),
        "second-family": condition_table(evidence, SECOND_FAMILY),
        "rates": rate_table(evidence),
        "video-encoder": video_encoder_table(evidence),
        "tasks": task_table(evidence),
        "ablations": ablation_table(evidence),
        "long": long_table(evidence),
        "noise": noise_table(evidence, {"GazeQwen": NOISY, "frozen, the ring": NOISY_RING}),
    }
    return {name: table for name, table in (of_shapes | of_kitchen).items() if table.rows}


def main() -> None:
    evidence = Evidence.read()
    kitchen = Evidence.read(KITCHEN.results)
    write_text(DOCUMENT, fill(DOCUMENT.read_text(), tables(evidence, kitchen)))
    write_text(README, fill(README.read_text(), summaries(evidence, kitchen)))
    draw_conditions(DOCUMENT.parent / "images" / "evidence_conditions.png", evidence)
    draw_noise(DOCUMENT.parent / "images" / "evidence_noise.png", evidence)
    run, in_kitchen = SHAPES.work / "gazeqwen-0", KITCHEN.work / "gazeqwen-0"
    if (run / "results.json").exists():
        draw_examples(DOCUMENT.parent / "images", run, SHAPES.work / "data")
    if (in_kitchen / "results.json").exists():
        draw_clear_effect(DOCUMENT.parent / "images" / "effect.png", in_kitchen, KITCHEN.work / "data")
    print(f"written to {DOCUMENT}")


if __name__ == "__main__":
    with one_line_errors():
        main()
