"""Answers of a model to multiple-choice questions, under conditions that show whether gaze made the difference."""

import json
import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from .runs import write_text
from .scanpath_gazeqwen import Scanpath
from .streamgaze import OPTION_LETTERS, TASKS, Question, chat_message

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


class SampleReader:
    """
    Questions -> model inputs. What is the same for every question about a clip (decoded pixels, frozen video features)
    is computed once and, with `keep=True`, kept in memory.
    """

    def __init__(self, model, processor, keep: bool = False):
        self.model, self.processor, self.keep = model, processor, keep
        self._clips: dict[tuple, dict] = {}
        self._scanpaths: dict[Path, Scanpath] = {}
        self.clips_encoded = 0

    def clip(self, question: Question) -> dict[str, torch.Tensor]:
        key = (question.video, question.start_s, question.end_s)
        if key in self._clips:
            return self._clips[key]
        clip = self.processor.read_clip(question.video, question.start_s, question.end_s)
        inputs = self.processor.process_clip(clip)
        pixels = inputs.pop("video_encoder_pixel_values").to(self.model.device)
        grid = inputs["video_grid_thw"].to(self.model.device)
        inputs["video_encoder_features"] = self.model.encode_video(pixels[None], grid[None])[0].cpu()
        self.clips_encoded += 1
        if self.keep:
            self._clips[key] = inputs
        return inputs

    def scanpath(self, path: Path) -> Scanpath:
        if path not in self._scanpaths:
            self._scanpaths[path] = Scanpath.from_csv(path)
        return self._scanpaths[path]

    def batch(self, questions: list[Question], scanpaths: list[Path | None]):
        """Model inputs for questions, each with the fixation table given for it; prompts end at the last position."""
        texts = [
            self.processor.apply_chat_template(chat_message(question.prompt), add_generation_prompt=True)
            for question in questions
        ]
        given = [None if path is None else self.scanpath(path) for path in scanpaths]
        clips = [self.clip(question) for question in questions]
        return self.processor.collate(texts, clips, given, padding_side="left")


def trained_counts(model) -> str:
    """How many parameters of the adapter are trained, in words."""
    counts = {name: value.numel() for name, value in model.trained_parameters().items()}
    lora = sum(count for name, count in counts.items() if "lora_" in name)
    return f"{sum(counts.values()) - lora:,} resampler and {lora:,} LoRA parameters"


def letter_ids(tokenizer) -> list[int]:
    """The token of each option letter; ValueError if a letter is not one token."""
    ids = [tokenizer.encode(letter, add_special_tokens=False) for letter in OPTION_LETTERS]
    for letter, tokens in zip(OPTION_LETTERS, ids, strict=True):
        if len(tokens) != 1:
            raise ValueError(f"the tokenizer splits the letter {letter!r} into {len(tokens)} tokens, expected 1")
    return [tokens[0] for tokens in ids]


def option_logits(model, inputs, letters: list[int], num_options: list[int]) -> torch.Tensor:
    """(B, most options) float32 logits of the letters that each question offers, -inf where it offers fewer."""
    logits = model(**inputs, logits_to_keep=1).logits[:, -1, letters[: max(num_options)]].float()
    offered = torch.tensor(num_options, device=logits.device)[:, None]
    return logits.masked_fill(torch.arange(logits.shape[1], device=logits.device) >= offered, float("-inf"))


def scanpaths_under(condition: str, questions: list[Question], seed: int = 0) -> list[Path | None]:
    """
    The fixation table each question gets: its own (`gaze`), none (`none`: the base model), or that of another video,
    drawn at random for each question (`shuffled`).
    """
    if condition == "gaze":
        return [question.scanpath for question in questions]
    if condition == "none":
        return [None] * len(questions)
    if condition != "shuffled":
        raise ValueError(f"condition {condition!r}, expected one of {CONDITIONS}")
    tables = sorted({question.scanpath for question in questions if question.scanpath is not None})
    if len(tables) < 2:
        raise ValueError(f"shuffled gaze needs the scanpaths of at least 2 videos, got {len(tables)}")
    draw = random.Random(seed)
    return [draw.choice([table for table in tables if table != question.scanpath]) for question in questions]


@torch.no_grad()
def predict(
    accelerator: Accelerator,
    model,
    reader: SampleReader,
    questions: list[Question],
    condition: str = "gaze",
    batch_size: int = 8,
    seed: int = 0,
) -> list[Prediction]:
    """Predictions for all questions, in their order, on every process."""
    model.eval()
    letters = letter_ids(reader.processor.tokenizer)
    scanpaths = scanpaths_under(condition, questions, seed)
    order = list(range(len(questions)))[accelerator.process_index :: accelerator.num_processes]
    mine = []
    with tqdm(total=len(order), desc=condition, unit="question", disable=not accelerator.is_main_process) as bar:
        for chunk in _chunks(order, batch_size):
            asked, given = [questions[i] for i in chunk], [scanpaths[i] for i in chunk]
            inputs = reader.batch(asked, given).to(accelerator.device)
            logits = option_logits(model, inputs, letters, [len(question.options) for question in asked])
            for index, question, table, row in zip(chunk, asked, given, logits.tolist(), strict=True):
                of = None if table is None else table.name.removesuffix("_fixation_filtered.csv")
                row = row[: len(question.options)]
                mine.append((index, Prediction(question.key, question.task, question.answer, row, of)))
            bar.update(len(chunk))
    return [prediction for _, prediction in sorted(gather_object(mine), key=lambda pair: pair[0])]


def _chunks(values: list, size: int) -> Iterator[list]:
    return (values[start : start + size] for start in range(0, len(values), size))


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
    tasks = sorted({task for score in scores.values() for task in score["tasks"]}, key=list(TASKS).index)
    header = ["gaze given"] + [TASKS[task].abbreviation for task in tasks] + ["mean"]
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
