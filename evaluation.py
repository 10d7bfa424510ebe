"""Answers of a model to multiple-choice questions, under conditions that show whether gaze made the difference."""

import json
import random
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from .batches import Batch, QuestionData, loader_of
from .clip_cache import ClipCache
from .runs import write_text
from .scanpath_gazeqwen import Scanpath
from .streamgaze import TASKS, Question, task_info

CONDITIONS = ("gaze", "none", "shuffled")


@dataclass(frozen=True)
class Prediction:
    """`logits`: one for each offered letter, in order. `scanpath_of`: the video whose gaze was given, if any."""

    key: str
    task: str
    answer: int
    logits: list[float]
    scanpath_of: str | None

    @property
    def correct(self) -> bool:
        return max(range(len(self.logits)), key=self.logits.__getitem__) == self.answer


def trained_counts(model) -> str:
    """How many parameters of the adapter are trained, in words."""
    counts = {name: value.numel() for name, value in model.trained_parameters().items()}
    lora = sum(count for name, count in counts.items() if "lora_" in name)
    return f"{sum(counts.values()) - lora:,} resampler and {lora:,} LoRA parameters"


def option_logits(model, inputs, tokens: list[list[int]]) -> torch.Tensor:
    """(B, most answers) float32 logits of the answers that each question offers, -inf where it offers fewer."""
    logits = model(**inputs, logits_to_keep=1).logits[:, -1]
    most = max(map(len, tokens))
    padded = torch.tensor([row + [0] * (most - len(row)) for row in tokens], device=logits.device)
    offered = torch.tensor([len(row) for row in tokens], device=logits.device)[:, None]
    chosen = logits.gather(1, padded).float()
    return chosen.masked_fill(torch.arange(most, device=logits.device) >= offered, float("-inf"))


def gaze_under(
    condition: str, questions: list[Question], seed: int = 0
) -> list[tuple[str, Scanpath] | tuple[None, None]]:
    """
    The gaze each question gets, as (video it is of, scanpath): its own (`gaze`), none (`none`: the base model), or
    that of another video, drawn at random for each question (`shuffled`).
    """
    own = [
        (None, None) if question.scanpath is None else (question.video_name, question.scanpath)
        for question in questions
    ]
    if condition == "gaze":
        return own
    if condition == "none":
        return [(None, None)] * len(questions)
    if condition != "shuffled":
        raise ValueError(f"condition {condition!r}, expected one of {CONDITIONS}")
    videos = {name: scanpath for name, scanpath in own if name is not None}
    if len(videos) < 2:
        raise ValueError(f"shuffled gaze needs the scanpaths of at least 2 videos, got {len(videos)}")
    draw, names = random.Random(seed), sorted(videos)
    others = [draw.choice([name for name in names if name != question.video_name]) for question in questions]
    return [(name, videos[name]) for name in others]


def _loaders(accelerator, cache: ClipCache, questions, scanpaths, batch_size: int, num_workers: int, desc: str):
    """This process's batches of some questions, clips of similar length together, with a progress bar."""
    data = QuestionData(cache, questions, scanpaths)
    order = sorted(range(len(questions)), key=lambda index: questions[index].end_s - questions[index].start_s)
    mine = order[accelerator.process_index :: accelerator.num_processes]
    chunks = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
    loader = loader_of(data, batch_sampler=chunks, collate_fn=data.collate, num_workers=num_workers)
    with tqdm(total=len(mine), desc=desc, unit="question", disable=not accelerator.is_main_process) as bar:
        for batch in loader:
            yield batch
            bar.update(len(batch.indices))


@torch.no_grad()
def predict(
    accelerator: Accelerator,
    model,
    cache: ClipCache,
    questions: list[Question],
    condition: str = "gaze",
    batch_size: int = 8,
    seed: int = 0,
    num_workers: int = 0,
    between_batches: Callable[[], None] = lambda: None,
) -> list[Prediction]:
    """Predictions for all questions with options, in their order, on every process. `cache` has been filled."""
    model.eval()
    gaze = gaze_under(condition, questions, seed)
    scanpaths, mine = [scanpath for _, scanpath in gaze], []
    for batch in _loaders(accelerator, cache, questions, scanpaths, batch_size, num_workers, condition):
        logits = option_logits(model, batch.inputs.to(accelerator.device), batch.answer_tokens)
        for index, question, row in zip(batch.indices, batch.questions, logits.tolist(), strict=True):
            row = row[: len(question.options)]
            mine.append((index, Prediction(question.key, question.task, question.answer, row, gaze[index][0])))
        between_batches()
    return [prediction for _, prediction in sorted(gather_object(mine), key=lambda pair: pair[0])]


def text_losses(model, batch: Batch) -> torch.Tensor:
    """(B,) cross-entropy of open-ended answers, mean over each answer's tokens."""
    count = batch.labels.shape[1]
    logits = model(**batch.inputs, logits_to_keep=count + 1).logits[:, :-1].float()
    labels = batch.labels.to(logits.device)
    losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100)
    return losses.sum(1) / (labels != -100).sum(1)


@torch.no_grad()
def text_loss(
    accelerator: Accelerator,
    model,
    cache: ClipCache,
    questions: list[Question],
    batch_size: int,
    num_workers: int = 0,
    between_batches: Callable[[], None] = lambda: None,
) -> float:
    """Mean over open-ended questions of their answers' loss per token, with their own gaze."""
    model.eval()
    scanpaths, mine = [question.scanpath for question in questions], []
    for batch in _loaders(accelerator, cache, questions, scanpaths, batch_size, num_workers, "open-ended"):
        batch.inputs.to(accelerator.device)
        mine += text_losses(model, batch).tolist()
        between_batches()
    losses = gather_object(mine)
    return sum(losses) / len(losses)


def accuracy(predictions: list[Prediction]) -> dict:
    """`tasks`: {task: {"correct", "total", "accuracy"}}, and `macro`, the unweighted mean of the tasks' accuracies."""
    if not predictions:
        raise ValueError("no predictions to score")
    by_task = defaultdict(list)
    for prediction in predictions:
        by_task[prediction.task].append(prediction.correct)
    tasks = {
        task: {"correct": sum(right), "total": len(right), "accuracy": sum(right) / len(right)}
        for task, right in sorted(by_task.items())
    }
    return {"tasks": tasks, "macro": sum(score["accuracy"] for score in tasks.values()) / len(tasks)}


def accuracy_table(scores: dict[str, dict]) -> str:
    """A text table: conditions as rows, tasks and their mean as columns, in percent."""
    tasks = {task for score in scores.values() for task in score["tasks"]}
    tasks = [task for task in TASKS if task in tasks] + sorted(tasks - set(TASKS))
    header = ["gaze given"] + [task_info(task).abbreviation for task in tasks] + ["mean"]
    rows = [
        [condition]
        + [f"{100 * score['tasks'][task]['accuracy']:.1f}" for task in tasks]
        + [f"{100 * score['macro']:.1f}"]
        for condition, score in scores.items()
    ]
    totals = [str(next(iter(scores.values()))["tasks"][task]["total"]) for task in tasks]
    rows.append(["questions", *totals, str(sum(map(int, totals)))])
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = []
    for row in [header, *rows]:
        first, *others = (f"{cell:{width}}" for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join([first, *(cell.strip().rjust(len(cell)) for cell in others)]))
    return "\n".join(lines)


def save_predictions(path, predictions: list[Prediction]) -> None:
    """One JSON line per prediction."""
    write_text(path, "".join(json.dumps(vars(prediction), ensure_ascii=False) + "\n" for prediction in predictions))


def largest_logit_difference(path, predictions: list[Prediction]) -> tuple[float, int]:
    """Compare with saved predictions of the same questions: (largest difference of a logit, number of questions)."""
    saved = [Prediction(**json.loads(line)) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    before, now = {p.key: p for p in saved}, {p.key: p for p in predictions}
    if set(before) != set(now):
        left_out, others = len(set(before) - set(now)), len(set(now) - set(before))
        raise ValueError(f"{path}: {left_out} of its questions were not asked, {others} others were")
    differences = [abs(a - b) for key in before for a, b in zip(before[key].logits, now[key].logits, strict=True)]
    return max(differences), len(before)
