"""
What is lost and what is gained when a part of the visual tokens stays: accuracy on the toy world, and prefill.

    python benchmarks/bench_keep_tokens.py accuracy --adapters 'runs/evidence/gazeqwen-{seed}/best' \\
        --data runs/evidence/data --cache_dir runs/evidence/cache --output benchmarks/results/keep_accuracy.json
    python benchmarks/bench_keep_tokens.py accuracy --adapters 'runs/keep/{rule}-{seed}/best' \\
        --reference 'runs/evidence/gazeqwen-{seed}/best' --data runs/evidence/data --cache_dir runs/evidence/cache \\
        --output benchmarks/results/keep_accuracy_trained.json
    python benchmarks/bench_keep_tokens.py prefill --scale 3b --output benchmarks/results/keep_prefill_3b_cpu.json
    python benchmarks/bench_keep_tokens.py draw

`accuracy`: adapters of several seeds answer the test questions with a share of each step's tokens, by every rule; by
gaze also with another video's. With `{rule}` in their path, adapters that were trained by each rule, with shares drawn
for each batch (docs/foveated-memory.md has the command); `--reference`: those that were trained with all tokens.
`prefill`: time of the decoder and memory of its cache, in one run, at the shape of a released model with fewer layers.
`draw` makes the pictures and the tables of docs/foveated-memory.md from the results.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from matplotlib.figure import Figure
from transformers import DynamicCache

from gazeqwen.benchmarks.bench_model import SCALES, build
from gazeqwen.evaluation.predictions import predict
from gazeqwen.evaluation.scoring import GradedAnswer
from gazeqwen.evaluation.statistics import intervals_over_seeds, paired_difference_over_seeds
from gazeqwen.pipeline.clip_cache import ClipCache
from gazeqwen.plots.style import save_png
from gazeqwen.questions.dataset import load_questions
from gazeqwen.questions.tasks import TASKS
from gazeqwen.token_selection_gazeqwen import KEEP_RULES, choose_tokens
from gazeqwen.utils.adapters import load_model, load_processor
from gazeqwen.utils.command_line import one_line_errors
from gazeqwen.utils.files import write_json, write_text
from gazeqwen.utils.provenance import provenance
from gazeqwen.utils.tables import Table, fill, percent

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENT = ROOT / "docs" / "foveated-memory.md"
SHARES = (1 / 2, 1 / 4, 1 / 8, 1 / 16)
# What the tasks ask about, by their short names.
GROUPS = {
    "what is looked at": ("OI-E", "OI-H", "OAR", "GTA"),
    "where gaze moved": ("GSM", "FAP"),
    "what was not looked at": ("NFI", "OTP", "SR", "OAA"),
}


def group_of(task: str) -> str:
    """Return what a task asks about."""
    return next(group for group, names in GROUPS.items() if TASKS[task].abbreviation in names)


# ------------------------------------------------------------------ accuracy
def summary(name: str, runs: list[list[GradedAnswer]], reference: list[list[GradedAnswer]] | None) -> dict:
    """
    Return accuracies by group, means over the runs (one for each seed), with intervals over seeds and videos, and the
    differences from the runs of a reference.
    """
    result = {"name": name, "answers": sum(map(len, runs))}
    for group in (*GROUPS, "all"):
        parts = [[a for a in run if group in ("all", group_of(a.task))] for run in runs]
        values = [_macro(part) for part in parts]
        result[group] = {
            "accuracy": statistics.mean(values),
            "interval": intervals_over_seeds(parts)["macro"],
            "seeds": values,
        }
        if reference is not None:
            others = [[a for a in run if group in ("all", group_of(a.task))] for run in reference]
            gain = paired_difference_over_seeds(parts, others)
            result[group] |= {"difference": gain["macro"], "difference_interval": gain["intervals"]["macro"]}
    shown = ", ".join(f"{group} {100 * result[group]['accuracy']:.1f}" for group in (*GROUPS, "all"))
    print(f"{name}: {shown}", flush=True)
    return result


def _macro(answers: list[GradedAnswer]) -> float:
    by_task: dict[str, list[bool]] = {}
    for answer in answers:
        by_task.setdefault(answer.task, []).append(answer.choice == answer.answer)
    return statistics.mean(statistics.mean(right) for right in by_task.values())


def measure_accuracy(arguments, shares=SHARES) -> list[dict]:
    """Return the rows of all rules and shares, behind that of the reference with all tokens."""
    accelerator, questions = Accelerator(), load_questions(arguments.data, "test")
    reference = arguments.reference or arguments.adapters
    cells = [("all tokens", 1, "gaze", "gaze"), ("all tokens, another video's gaze", 1, "gaze", "shuffled")]
    for rule in arguments.rules:
        if "{rule}" in arguments.adapters:
            cells.append((f"{rule} 1", 1, rule, "gaze"))
        cells += [(f"{rule} {share:g}", share, rule, "gaze") for share in shares]
    if "gaze" in arguments.rules:
        cells += [(f"gaze {share:g}, another video's gaze", share, "gaze", "shuffled") for share in shares]
    runs: dict[str, list] = {name: [] for name, *_ in cells}
    for seed in arguments.seeds:
        loaded, model, processor = "", None, None
        for name, share, rule, condition in cells:
            adapter = (reference if name.startswith("all") else arguments.adapters).format(rule=rule, seed=seed)
            if adapter != loaded:
                loaded, model, processor = adapter, load_model(adapter), load_processor(adapter)
            processor.keep_tokens, processor.keep_by = share, rule
            cache = ClipCache.from_model(model, processor, "embeddings", arguments.cache_dir)
            cache.fill(accelerator, model, questions, arguments.batch_size)
            runs[name].append(predict(accelerator, model, cache, questions, condition, arguments.batch_size, seed))
    rows = []
    for name, share, rule, condition in cells:
        whole = runs["all tokens"] if name != "all tokens" else None
        rows.append({"share": share, "keep_by": rule, "condition": condition} | summary(name, runs[name], whole))
    return rows


# ------------------------------------------------------------------ prefill
@torch.no_grad()
def measure_prefill(scale: str, layers: int, device: str, dtype: torch.dtype, repeats: int) -> list[dict]:
    """
    Return seconds of the decoder's prefill, and MB of its cache, for each share of the visual tokens: medians of
    `repeats` rounds in which every share has its turn.
    """
    text = SCALES[scale][0]
    text["num_hidden_layers"] = layers
    SCALES[scale][1]["depth"] = 1
    model = build(scale, device, dtype)
    steps, side, _ = SCALES[scale][3]
    tokens, embed = steps * side * side, text["hidden_size"]
    grid = torch.tensor([[steps, 2 * side, 2 * side]], device=device)
    spans = torch.stack([torch.arange(steps), torch.arange(1, steps + 1)], dim=1).float()
    scanpath = torch.cat([torch.rand(20, 2), torch.rand(20, 1) * steps, torch.full((20, 1), 0.5)], dim=1)
    video_embeds = torch.randn(tokens, embed, device=device, dtype=dtype)
    cases, times = {}, {}
    for share in (1, *SHARES):
        kept = choose_tokens(share, "gaze", (steps, side, side), spans, scanpath)
        video = torch.full((int(kept.sum()),), model.backbone.config.video_token_id)
        ids = torch.cat([torch.arange(3, 10), video, torch.arange(10, 60)])[None].to(device)
        cases[share] = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": 2 * (ids == model.backbone.config.video_token_id).int(),
            "video_embeds": video_embeds,
            "video_grid_thw": grid,
            "second_per_grid_ts": torch.full((1,), 1.0, device=device),
            "kept_tokens": None if share == 1 else kept[None].to(device),
        }
        times[share] = []
    sizes = {}
    for number in range(repeats + 1):
        for share, case in cases.items():
            cache = DynamicCache()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            began = time.perf_counter()
            model(**case, past_key_values=cache, use_cache=True, logits_to_keep=1)
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            if number:  # the first round warms up
                times[share].append(time.perf_counter() - began)
            sizes[share] = sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values)) / 1e6
    whole = statistics.median(times[1])
    rows = []
    for share, measured in times.items():
        seconds = statistics.median(measured)
        rows.append(
            {
                "share": share,
                "prompt_tokens": cases[share]["input_ids"].shape[1],
                "seconds": seconds,
                "of_all": seconds / whole,
                "cache_mb": sizes[share],
            }
        )
        print(rows[-1], flush=True)
    return rows


# ------------------------------------------------------------------ pictures and tables
COLORS = {
    "gaze": "#1a73e8",
    "uniform": "#188038",
    "random": "#9aa0a6",
    "centre": "#e8710a",
    "similarity": "#a142f4",
}


def draw_accuracy(path: Path, tables: dict[str, list[dict]]) -> None:
    """
    Draw accuracy against the share of tokens that stay: a row of panels for each of the named tables, in it a panel
    for each group of tasks, a line for each rule.
    """
    figure = Figure(figsize=(10.5, 0.9 + 3 * len(tables)), layout="constrained")
    grid = figure.subplots(len(tables), len(GROUPS), sharey=True, squeeze=False)
    for (name, rows), axes in zip(tables.items(), grid, strict=True):
        _draw_panels(axes, rows)
        axes[0].set_ylabel(f"{name}\naccuracy, %", fontsize=9)
    for axis in grid[-1]:
        axis.set_xlabel("share of the visual tokens that stay", fontsize=8)
    for axis, (group, tasks) in zip(grid[0], GROUPS.items(), strict=True):
        axis.set_title(f"{group}\n({', '.join(tasks)})", fontsize=9)
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    save_png(figure, path)


def _draw_panels(axes, rows: list[dict]) -> None:
    whole = next(row for row in rows if row["name"] == "all tokens")
    for axis, group in zip(axes, GROUPS, strict=True):
        for rule, color in COLORS.items():
            for condition, style in (("gaze", "o-"), ("shuffled", "o--")):
                own = [row for row in rows if row["keep_by"] == rule and row["condition"] == condition]
                own = [row for row in own if not row["name"].startswith("all tokens")]
                if not own:
                    continue
                shares = [row["share"] for row in own]
                values = [100 * row[group]["accuracy"] for row in own]
                low, high = zip(*([100 * v for v in row[group]["interval"]] for row in own), strict=True)
                label = rule if condition == "gaze" else f"{rule}, another video's gaze"
                axis.plot(shares, values, style, color=color, linewidth=1.6, markersize=4, label=label)
                axis.fill_between(shares, low, high, color=color, alpha=0.12, linewidth=0)
        axis.axhline(100 * whole[group]["accuracy"], color="black", linestyle=":", linewidth=1, label="all tokens")
        axis.set_xscale("log", base=2)
        shares = sorted({row["share"] for row in rows if not row["name"].startswith("all tokens")})
        axis.set_xticks(shares, [f"1/{round(1 / share)}" if share < 1 else "1" for share in shares])
        axis.set_xlim(shares[0] / 1.15, shares[-1] * 1.15)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylim(0, 102)


def accuracy_table(rows: list[dict]) -> Table:
    lines = []
    for row in rows:
        cells = []
        for group in (*GROUPS, "all"):
            cell = percent(row[group]["accuracy"], row[group]["interval"])
            if "difference" in row[group]:
                cell += f" ({100 * row[group]['difference']:+.1f})"
            cells.append(cell)
        lines.append([row["name"], *cells])
    return Table(["kept", *GROUPS, "all tasks"], lines)


def prefill_table(rows: list[dict]) -> Table:
    lines = [
        [
            "all" if row["share"] == 1 else f"1/{round(1 / row['share'])}",
            f"{row['prompt_tokens']:,}",
            f"{row['seconds']:.2f}",
            f"{row['of_all']:.3f}",
            f"{row['cache_mb']:.1f}",
        ]
        for row in rows
    ]
    return Table(["kept", "tokens of the prompt", "seconds", "of all", "cache, MB"], lines)


def tables() -> dict[str, Table]:
    """Return the document's tables, from the committed results."""
    return {
        "accuracy": accuracy_table(rows_of("keep_accuracy.json")),
        "trained": accuracy_table(rows_of("keep_accuracy_trained.json")),
        "prefill": prefill_table(rows_of("keep_prefill_3b_cpu.json")),
        "prefill 7b": prefill_table(rows_of("keep_prefill_7b_cpu.json")),
    }


def rows_of(name: str) -> list[dict]:
    """Return the rows of a committed result."""
    return json.loads((RESULTS / name).read_text())["rows"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    accuracy = commands.add_parser("accuracy")
    accuracy.add_argument("--adapters", required=True, help="path of one, with {seed}, and {rule} if each has its own")
    accuracy.add_argument("--reference", help="path of an adapter for all tokens, with {seed} (default: the adapters)")
    accuracy.add_argument("--rules", nargs="+", choices=KEEP_RULES, default=list(KEEP_RULES))
    accuracy.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    accuracy.add_argument("--data", type=Path, required=True)
    accuracy.add_argument("--cache_dir", type=Path, required=True)
    accuracy.add_argument("--batch_size", type=int, default=64)
    prefill = commands.add_parser("prefill")
    prefill.add_argument("--scale", choices=list(SCALES), default="3b")
    prefill.add_argument("--layers", type=int, default=2)
    prefill.add_argument("--device", default="cpu")
    prefill.add_argument("--dtype", default="float32")
    prefill.add_argument("--repeats", type=int, default=5)
    for command in (accuracy, prefill):
        command.add_argument("--threads", type=int, default=1)
        command.add_argument("--output", type=Path, required=True)
    commands.add_parser("draw")
    arguments = parser.parse_args()
    if arguments.command == "draw":
        shown = {
            "trained with all tokens": rows_of("keep_accuracy.json"),
            "trained with drawn shares": rows_of("keep_accuracy_trained.json"),
        }
        draw_accuracy(DOCUMENT.parent / "images" / "keep_tokens.png", shown)
        write_text(DOCUMENT, fill(DOCUMENT.read_text(), tables()))
        return
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    settings = {name: value for name, value in vars(arguments).items() if name not in ("command", "output")}
    settings = json.loads(json.dumps(settings, default=str))
    if arguments.command == "accuracy":
        rows = measure_accuracy(arguments)
        settings = {name: settings[name] for name in ("rules", "seeds", "batch_size", "threads")}
    else:
        dtype = getattr(torch, arguments.dtype)
        rows = measure_prefill(arguments.scale, arguments.layers, arguments.device, dtype, arguments.repeats)
    write_json(arguments.output, {"settings": settings, "rows": rows, "provenance": provenance()})


if __name__ == "__main__":
    with one_line_errors():
        main()
