"""
The evidence table: `python -m gazeqwen.toyworld.evidence`, or `make evidence`.

Trains and evaluates every row of the table with train.py and eval.py, several at a time, with three seeds, and pools
the seeds' answers. Where a row names learning rates, each is tried first with the first seed, and the one that is best
on the validation split is used for all seeds. A run that was stopped goes on when the same command is given again:
what has been done is kept in `runs/evidence`. Results are written to `results/toyworld`, one file for each row as soon
as its seeds are done. `--study kitchen` does the same for the kitchen, in `runs/kitchen` and `results/kitchen`.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import re
import subprocess
import sys
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from threading import Lock

import torch
from tqdm import tqdm

from gazeqwen.evaluation.scoring import GradedAnswer, read_predictions, score
from gazeqwen.evaluation.statistics import intervals_over_seeds, paired_difference_over_seeds
from gazeqwen.pipeline.batches import QuestionDataset
from gazeqwen.pipeline.clip_cache import ClipCache
from gazeqwen.pipeline.conditions import Condition
from gazeqwen.questions.dataset import load_questions
from gazeqwen.questions.release import build
from gazeqwen.toyworld.generate import generate
from gazeqwen.toyworld.random_video_encoder import random_dinov2
from gazeqwen.toyworld.studies import ROOT, STUDIES, Row, Study
from gazeqwen.training.recipe import Recipe
from gazeqwen.training.setup import build_accelerator, build_model, build_processor, load_splits
from gazeqwen.utils.command_line import one_line_errors
from gazeqwen.utils.files import atomic_folder, write_bytes, write_json
from gazeqwen.utils.settings import read_recipe

# Of a prediction, what is kept beside the results.
_KEPT = ("key", "task", "answer", "logits", "response", "order", "source", "condition")
_VIDEO = re.compile(r"toy-test-\d{4}")  # of a ringed clip, the video that it is from


# ------------------------------------------------------------------ what the runs need
def prepare(work: Path, world: dict, rings: bool) -> None:
    """Make the toy world, perhaps its ringed twin, and video encoders with random weights; what is there is kept."""
    worlds = [("world", "data", world)]
    if rings:
        worlds.append(("ringed", "ringed_data", world | {"train": 0, "val": 0, "rings": True}))
    for release, data, settings in worlds:
        if (work / data).exists():
            continue
        if not (work / release / "splits.json").exists():
            generate(work / release, **settings)
        build(work / release, work / data)
    if not (work / "video_encoders" / "dinov2").exists():
        with atomic_folder(work / "video_encoders" / "dinov2") as folder:
            random_dinov2().save_pretrained(folder)


def fill_cache(study: Study, rows: list[Row], work: Path, overrides: list[str], processes: int) -> None:
    """
    Compute what the frozen networks make of each clip that trained rows are shown, once, with so many processes that
    decode and draw: of runs that start together, all would wait for the one that does it, alone. Clips that are drawn
    on for evaluation alone are not kept (`AdapterEvaluator`).
    """
    filled = set()
    for row in rows:
        recipe = read_recipe(Recipe, study.recipe, _settings(row, work, overrides))
        kind = recipe.adapter.resampler_type, recipe.adapter.resampler_features
        if row.overrides is None or (clips := repr((recipe.model, recipe.data, kind))) in filled:
            continue
        filled.add(clips)
        accelerator, condition = build_accelerator(recipe), Condition.parse(recipe.data.gaze)
        model, processor = build_model(recipe, accelerator.device), build_processor(recipe.model)
        cache = ClipCache.from_model(model, processor, recipe.data.cache, recipe.data.cache_dir)
        splits = list(load_splits(recipe.data))
        if not condition.draws:
            splits.append(load_questions(recipe.data.dataset, "test"))
        datasets = [QuestionDataset(cache, questions, condition, recipe.seed) for questions in splits]
        questions = [question for data in datasets for question in data.questions]
        drawings = [drawing for data in datasets for drawing in data.drawings]
        cache.fill(accelerator, model, questions, num_workers=processes, drawings=drawings)


# ------------------------------------------------------------------ one row with one seed
def _run(command: list[str], log: Path, threads: int) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    with log.open("a") as file:
        done = subprocess.run(
            [sys.executable, *command], stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=ROOT
        )
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise RuntimeError(f"{' '.join(command)} failed ({done.returncode}); the end of {log}:\n{tail}")


def run_folder(row: Row, seed: int, work: Path, rate: float | None) -> Path:
    """Return where one run is kept; `rate` is None where the recipe's own learning rate is used."""
    return work / (f"{row.name}-{seed}" if rate is None else f"{row.name}-rate{rate:g}-{seed}")


def _settings(row: Row, work: Path, overrides: list[str]) -> list[str]:
    """Return what a row's runs change of the recipe: where data are, `overrides` of all rows, and the row's own."""
    settings = [f"data.dataset={work / 'data'}", f"data.cache_dir={work / 'cache'}", *overrides]
    if row.base_model is not None:
        settings.append(f"model.base_model={row.base_model}")
    return [*settings, *(override.replace("=WORK/", f"={work}/") for override in row.overrides or ())]


def train(
    study: Study, row: Row, seed: int, work: Path, overrides: list[str], threads: int, rate: float | None = None
) -> None:
    """Train one row with one seed, unless that has been done: a file `trained` in the run's folder."""
    folder = run_folder(row, seed, work, rate)
    if (folder / "trained").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    settings = [f"output_dir={folder}", f"seed={seed}", *_settings(row, work, overrides)]
    if row.start_from is not None:
        settings.append(f"start_from={_trained_adapter(study, row.start_from, seed, work)}")
    if rate is not None:
        settings.append(f"{row.rate_key}={rate}")
    _run(["train.py", str(study.recipe), *settings], folder / "log.txt", threads)
    (folder / "trained").touch()


def _trained_adapter(study: Study, name: str, seed: int, work: Path) -> Path:
    """Return where the adapter of a row is. Raises FileNotFoundError where it has not been trained."""
    row = study.row(name)
    adapter = run_folder(row, seed, work, best_rate(row, work)) / "best"
    if not adapter.exists():
        raise FileNotFoundError(f"{adapter}: not there, so that no other row can use it: run {name} first")
    return adapter


def run_seed(study: Study, row: Row, seed: int, work: Path, overrides: list[str], threads: int) -> None:
    """
    Train and evaluate one row with one seed, unless that has been done: `results.json` in the run's folder, with all
    of the row's conditions.
    """
    rate = best_rate(row, work)
    folder = run_folder(row, seed, work, rate)
    if _is_done(row, folder):
        return
    folder.mkdir(parents=True, exist_ok=True)
    settings = read_recipe(Recipe, study.recipe, _settings(row, work, overrides))
    model = settings.model.base_model
    if row.adapter_of is not None:
        model = _trained_adapter(study, row.adapter_of, seed, work)
    elif row.overrides is not None:
        train(study, row, seed, work, overrides, threads, rate)
        model = folder / "best"
    command = ["eval.py", "--model", str(model), "--data", str(work / ("ringed_data" if row.ringed else "data"))]
    command += ["--gaze", *row.conditions, "--seed", str(seed), "--batch_size", "64"]
    command += ["--num_workers", str(settings.data.num_workers)]
    command += ["--cache", "embeddings", "--cache_dir", str(work / "cache"), "--name", row.title]
    if row.overrides is None:
        command += ["--num_frames", str(settings.model.num_frames), "--snap_s", str(settings.model.snap_s)]
        command += ["--prompt_style", settings.model.prompt_style]
    _run([*command, "--output", str(folder / "results.json")], folder / "log.txt", threads)


def _is_done(row: Row, folder: Path) -> bool:
    """Return whether a run's folder holds the results of all of the row's conditions."""
    file = folder / "results.json"
    return file.exists() and set(row.conditions) <= set(json.loads(file.read_text())["scores"])


# ------------------------------------------------------------------ the learning rate of a row
def validation_accuracies(row: Row, work: Path) -> dict[float, float]:
    """Return, for each of the row's learning rates, the best mean accuracy on the validation split (first seed)."""
    files = {rate: run_folder(row, row.seeds[0], work, rate) / "validation.json" for rate in row.rates}
    return {rate: json.loads(file.read_text())["macro"] for rate, file in files.items()}


def best_rate(row: Row, work: Path) -> float | None:
    """Return the learning rate with the best validation accuracy, the lowest of equals; None if it names none."""
    if not row.rates:
        return None
    accuracies = validation_accuracies(row, work)
    return max(sorted(accuracies), key=accuracies.get)


# ------------------------------------------------------------------ a row's result
def _answers(row: Row, work: Path) -> dict[int, dict[str, list[GradedAnswer]]]:
    """Return {seed: {condition: answers}} of the seeds that are done, each to the same questions."""
    answers_by_seed, rate = {}, best_rate(row, work)
    for seed in row.seeds:
        folder = run_folder(row, seed, work, rate)
        if _is_done(row, folder):
            answers = read_predictions(folder / "results.predictions.jsonl")
            answers_by_seed[seed] = {
                condition: [replace(item, video_name=_VIDEO.match(item.video_name)[0]) for item in answers[condition]]
                for condition in row.conditions
            }
    return answers_by_seed


def pooled(runs: dict[int, list[GradedAnswer]]) -> list[GradedAnswer]:
    """Return the answers of all seeds as one run, in which each seed's are questions of their own."""
    return [replace(item, key=f"seed {seed}: {item.key}") for seed, items in runs.items() for item in items]


def pool(study: Study, row: Row, work: Path) -> dict:
    """
    Return the row's result in eval.py's own form, of all answers of the seeds that are done, so that an accuracy is
    the mean over seeds, and intervals are over seeds and videos. `seeds`: each seed's accuracies by condition and
    task; `against_default`: the gain of its first condition over the default with the same seeds, where those have
    been run; of a row with several learning rates `rate_search`: what was tried, and which was best on the validation
    split.
    """
    answers = _answers(row, work)
    scores = {}
    for condition in row.conditions:
        runs = {seed: by_condition[condition] for seed, by_condition in answers.items()}
        scores[condition] = score(pooled(runs)) | {"intervals": intervals_over_seeds(list(runs.values()))}
    seeds = {
        str(seed): {
            condition: {task: round(values["accuracy"], 4) for task, values in score(items)["tasks"].items()}
            for condition, items in by_condition.items()
        }
        for seed, by_condition in answers.items()
    }
    against = {}
    default_row = study.row(study.default)
    comparable = row.name != default_row.name and row.base_model is None and row.adapter_of is None
    if comparable and len(row.seeds) == len(default_row.seeds):
        default = _answers(replace(default_row, seeds=tuple(answers)), work)
        if set(default) == set(answers):
            gain = paired_difference_over_seeds(
                [answers[seed][row.conditions[0]] for seed in answers], [default[seed]["gaze"] for seed in answers]
            )
            against = {"against_default": {"macro": gain["macro"], "interval": gain["intervals"]["macro"]}}
    rate, search = best_rate(row, work), {}
    if rate is not None:
        tried = {f"{each:g}": round(score, 4) for each, score in validation_accuracies(row, work).items()}
        search = {"rate_search": {"key": row.rate_key, "seed": row.seeds[0], "validation": tried, "best": rate}}
    first = json.loads((run_folder(row, next(iter(answers)), work, rate) / "results.json").read_text())
    settings = json.loads(json.dumps(first["settings"]).replace(f"{ROOT}/", ""))
    return {
        "name": row.title,
        "row": row.name,
        "group": row.group,
        "overrides": row.overrides,
        "scorer": "strict",
        "scores": scores,
        **against,
        **search,
        "seeds": seeds,
        "settings": settings | {"world": study.world, "seeds": list(answers)},
        "provenance": first["provenance"],
    }


# ------------------------------------------------------------------ all of them
def keep_predictions(row: Row, seed: int, work: Path, folder: Path) -> None:
    """
    Write the answers of one run to `folder`, compressed, as `read_predictions` reads them: what scoring needs, logits
    with the nine digits that tell one float32 from another.
    """
    lines, run = [], run_folder(row, seed, work, best_rate(row, work))
    for line in (run / "results.predictions.jsonl").read_text(encoding="utf-8").splitlines():
        kept = {name: value for name, value in json.loads(line).items() if name in _KEPT and value is not None}
        if "logits" in kept:
            kept["logits"] = [float(f"{value:.9g}") for value in kept["logits"]]
        if kept["condition"] in row.conditions:
            lines.append(json.dumps(kept) + "\n")
    write_bytes(folder / f"{row.name}-{seed}.jsonl.xz", lzma.compress("".join(lines).encode(), preset=9))


def run(
    study: Study,
    rows: list[Row],
    work: Path,
    results: Path,
    overrides: list[str],
    workers: int = 1,
    threads: int = 1,
) -> None:
    """
    Run every row with every seed, `workers` at a time, the main table first; before that, the search for the learning
    rates of the rows that name several. A row's result is written when its first seed is done, and again after each
    further one, and at the end, when the default is there to compare it with.
    """
    work, writing = work.resolve(), Lock()
    prepare(work, study.world, any(row.ringed for row in rows))
    runs = [(row, seed) for row in rows for seed in row.seeds]
    # The rows with several rates take longest, and may wait for these.
    uses = {row.name: row.adapter_of or row.start_from for row in rows}
    runs.sort(key=lambda run: (uses[run[0].name] is not None, run[0].group != "main", not run[0].rates, run[1]))
    searches = [(row, rate) for row in rows for rate in row.rates]
    if workers > 1:
        fill_cache(study, rows, work, overrides, min(workers, os.cpu_count() or 1))
    with ThreadPoolExecutor(workers) as executor, tqdm(total=len(searches) + len(runs), unit="run") as bar:

        def try_rate(row: Row, rate: float) -> None:
            train(study, row, row.seeds[0], work, overrides, threads, rate)
            with writing:
                bar.update()

        def finish_seed(row: Row, seed: int, before: list[Future]) -> None:
            for future in before:  # has begun earlier, as jobs begin in order
                future.result()
            run_seed(study, row, seed, work, overrides, threads)
            with writing:
                keep_predictions(row, seed, work, results / "predictions")
                write_json(results / f"{row.name}.json", pool(study, row, work))
                bar.update()

        tried = {(row.name, rate): executor.submit(try_rate, row, rate) for row, rate in searches}
        finished: dict[tuple[str | None, int], Future] = {}
        for row, seed in runs:
            before = [tried[row.name, rate] for rate in row.rates]
            if (uses[row.name], seed) in finished:
                before.append(finished[uses[row.name], seed])
            finished[row.name, seed] = executor.submit(finish_seed, row, seed, before)
        done, pending = wait([*tried.values(), *finished.values()], return_when=FIRST_EXCEPTION)
        for future in pending:
            future.cancel()
        for future in done:
            future.result()
    for row in rows:
        write_json(results / f"{row.name}.json", pool(study, row, work))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=list(STUDIES), default="shapes", help="of which world")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="default: all")
    parser.add_argument("--work", type=Path, help="where runs are kept (default: the study's)")
    parser.add_argument("--results", type=Path, help="default: the study's")
    parser.add_argument("--workers", type=int, default=1 if torch.cuda.is_available() else os.cpu_count())
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each run")
    parser.add_argument("overrides", nargs="*", help="of the recipe, for all rows, such as stage1.epochs=1")
    args = parser.parse_intermixed_args()
    study = STUDIES[args.study]
    work, results = args.work or study.work, args.results or study.results
    rows = list(study.rows) if args.rows is None else [study.row(name) for name in args.rows]
    for row in [row for row in rows if row.needs and not (work / row.needs).exists()]:
        missing = f"{work / row.needs} (docs/natural-video.md), which is not there"
        if args.rows is not None:
            raise FileNotFoundError(f"row {row.name} needs {missing}")
        print(f"row {row.name} is left out: it needs {missing}")
        rows.remove(row)
    run(study, rows, work, results, args.overrides, args.workers, args.threads)


if __name__ == "__main__":
    with one_line_errors():
        main()
