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
from .streamgaze import TASKS, Question, chat_message

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

    def batch(self, questions: list[Question], scanpaths: list[Scanpath | None]) -> tuple:
        """
        Model inputs for questions, each with the scanpath given for it, prompts ending at the last position; and, per
        question, the tokens of the answers it offers.
        """
        asked = [question.prompt(self.processor.prompt_style) for question in questions]
        texts = [
            self.processor.apply_chat_template(chat_message(prompt), add_generation_prompt=True) for prompt, _ in asked
        ]
        snap_s = [
            self.processor.snap_s if TASKS[question.task].asks_about_fixation_at_query else 0.0
            for question in questions
        ]
        clips = [self.clip(question) for question in questions]
        inputs = self.processor.collate(texts, clips, scanpaths, padding_side="left", snap_s=snap_s)
        return inputs, [answer_tokens(self.processor.tokenizer, answers) for _, answers in asked]


def trained_counts(model) -> str:
    """How many parameters of the adapter are trained, in words."""
    counts = {name: value.numel() for name, value in model.trained_parameters().items()}
    lora = sum(count for name, count in counts.items() if "lora_" in name)
    return f"{sum(counts.values()) - lora:,} resampler and {lora:,} LoRA parameters"


def answer_tokens(tokenizer, answers: list[str]) -> list[int]:
    """The token of each answer, such as the letters A to D; ValueError if one of them is not one token."""
    tokens = [tokenizer.encode(answer, add_special_tokens=False) for answer in answers]
    for answer, ids in zip(answers, tokens, strict=True):
        if len(ids) != 1:
            raise ValueError(f"the tokenizer splits the answer {answer!r} into {len(ids)} tokens, expected 1")
    return [ids[0] for ids in tokens]


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
    gaze = gaze_under(condition, questions, seed)
    order = list(range(len(questions)))[accelerator.process_index :: accelerator.num_processes]
    mine = []
    with tqdm(total=len(order), desc=condition, unit="question", disable=not accelerator.is_main_process) as bar:
        for chunk in _chunks(order, batch_size):
            inputs, tokens = reader.batch([questions[i] for i in chunk], [gaze[i][1] for i in chunk])
            logits = option_logits(model, inputs.to(accelerator.device), tokens)
            for index, row in zip(chunk, logits.tolist(), strict=True):
                question, row = questions[index], row[: len(questions[index].options)]
                mine.append((index, Prediction(question.key, question.task, question.answer, row, gaze[index][0])))
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
