"""Answers of a model to multiple-choice questions, under conditions that show whether gaze made the difference."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from gazeqwen.evaluation.prediction_file import Prediction, PredictionFile
from gazeqwen.evaluation.scoring import sorted_tasks
from gazeqwen.pipeline.answers import memory_errors_name, option_logits, text_losses
from gazeqwen.pipeline.batches import Batch, QuestionDataset
from gazeqwen.pipeline.clip_cache import ClipCache
from gazeqwen.pipeline.conditions import Condition
from gazeqwen.questions.question import Question
from gazeqwen.questions.tasks import task_info
from gazeqwen.utils.loading import repeatable_loader
from gazeqwen.utils.tables import NO_VALUE, percent

# What is asked of an adapter unless told otherwise. `centre` is among them because people look near the middle of the
# frame for much of the time. `random_place` and `permuted_times` are for evidence: each takes as long as `gaze` again.
CONDITIONS = ("gaze", "none", "shuffled", "centre")


def length_sorted_batches(questions: list[Question], batch_size: int) -> list[list[int]]:
    """
    Return the indices of all questions in batches of clips of similar length. The batches do not depend on what is
    answered already, nor on the number of processes, so that padding, and with it the numbers, stays the same.
    """
    order = sorted(range(len(questions)), key=lambda index: (questions[index].end_s - questions[index].start_s, index))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


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
    file: PredictionFile | None = None,
) -> list[Prediction]:
    """
    Return predictions for all questions with options, in their order, on every process. `cache` has been filled. With
    a `file`, what it holds is not asked again, and what is answered is in it at once. `between_batches` is called
    after each batch.
    """
    data = QuestionDataset(cache, questions, Condition.parse(condition), seed)

    def answers(batch: Batch) -> list[dict]:
        logits = option_logits(model, batch.inputs.to(accelerator.device), batch.answer_tokens)
        return [{"logits": row[: len(q.options)]} for q, row in zip(batch.questions, logits.tolist(), strict=True)]

    model.eval()
    return run_predictions(accelerator, data, answers, condition, batch_size, num_workers, between_batches, file)


def run_predictions(
    accelerator: Accelerator,
    data,
    answers: Callable[[Batch], list[dict]],
    condition: str,
    batch_size: int,
    num_workers: int = 0,
    between_batches: Callable[[], None] = lambda: None,
    file: PredictionFile | None = None,
    batches: list[list[int]] | None = None,
) -> list[Prediction]:
    """
    Return predictions as `predict` does, for any dataset and any model.

    `data`: a dataset with `questions` and `scanpaths_of`, whose batches have `indices` and `questions`. `answers`:
    takes a batch and returns for each of its questions {"logits": ...} or {"response": ...}. `batches`: the indices of
    questions that are answered together, in place of `batch_size` of similar length. Raises ValueError where a batch
    does not fit the device's memory.
    """
    questions = data.questions
    if file is not None and file.condition:
        condition = file.condition
    answered = {} if file is None else file.read_condition(condition)
    batches = [
        indices
        for indices in batches or length_sorted_batches(questions, batch_size)
        if any(questions[index].key not in answered for index in indices)
    ]
    process_batches = batches[accelerator.process_index :: accelerator.num_processes]
    accelerator.wait_for_everyone()  # all have read before any writes

    loader = repeatable_loader(data, batch_sampler=process_batches, collate_fn=data.collate, num_workers=num_workers)
    total, predictions = sum(map(len, process_batches)), []
    with tqdm(total=total, desc=condition, unit="question", disable=not accelerator.is_main_process) as bar:
        for batch in loader:
            batch_predictions = _predict_batch(batch, answers, condition, data.scanpaths_of)
            if file is not None:
                file.append(accelerator.process_index, batch_predictions)
            predictions += batch_predictions
            bar.update(len(batch.indices))
            between_batches()

    predictions_by_key = _gather(accelerator, predictions, condition, file)
    return [predictions_by_key[question.key] for question in questions]


def _predict_batch(
    batch: Batch, answers: Callable[[Batch], list[dict]], condition: str, scanpaths_of: list[str | None]
) -> list[Prediction]:
    """Return the predictions of one batch; `scanpaths_of`: whose gaze is given, for each question of the dataset."""
    with memory_errors_name(batch.questions):
        batch_answers = answers(batch)
    return [
        Prediction(
            question.key,
            question.video_name,
            question.task,
            question.answer,
            list(question.options),
            order=question.order,
            source=question.source,
            condition=condition,
            scanpath_of=scanpaths_of[index],
            time_s=question.end_s,
            **answer,
        )
        for index, question, answer in zip(batch.indices, batch.questions, batch_answers, strict=True)
    ]


def _gather(
    accelerator: Accelerator, predictions: list[Prediction], condition: str, file: PredictionFile | None
) -> dict[str, Prediction]:
    """Return the predictions of all processes by the question's key, with those of earlier runs where a file is."""
    if file is None:
        return {prediction.key: prediction for prediction in gather_object(predictions)}
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        file.merge()
    accelerator.wait_for_everyone()
    return file.read_condition(condition)


@torch.no_grad()
def text_loss(
    accelerator: Accelerator,
    model,
    cache: ClipCache,
    questions: list[Question],
    condition: str = "gaze",
    batch_size: int = 8,
    seed: int = 0,
    num_workers: int = 0,
    between_batches: Callable[[], None] = lambda: None,
) -> float:
    """Return the mean over open-ended questions of their answers' loss per token, on every process."""
    model.eval()
    data, losses = QuestionDataset(cache, questions, Condition.parse(condition), seed), []
    batches = length_sorted_batches(questions, batch_size)[accelerator.process_index :: accelerator.num_processes]
    for batch in repeatable_loader(data, batch_sampler=batches, collate_fn=data.collate, num_workers=num_workers):
        batch.inputs.to(accelerator.device)
        losses += text_losses(model, batch.inputs, batch.labels).tolist()
        between_batches()
    losses = gather_object(losses)
    return sum(losses) / len(losses)


def accuracy_table(scores: dict[str, dict]) -> str:
    """
    Return a text table of the scores by condition, in %. Rows are conditions; columns are tasks, their mean, and of
    Yes/No tasks the balanced accuracy, which is 50 for the same answer always.
    """
    tasks = sorted_tasks(task for score in scores.values() for task in score["tasks"])
    alerts = [task for task in tasks if task_info(task).group == "proactive"]
    header = ["gaze given", *(task_info(task).abbreviation for task in tasks), "mean"]
    header += [f"{task_info(task).abbreviation} bal." for task in alerts]
    rows = [
        [condition]
        + [percent(score["tasks"][task]["accuracy"]) for task in tasks]
        + [percent(score["macro"])]
        + [percent(score["tasks"][task].get("balanced_accuracy")) or NO_VALUE for task in alerts]
        for condition, score in scores.items()
    ]
    totals = [str(next(iter(scores.values()))["tasks"][task]["total"]) for task in tasks]
    rows.append(["questions", *totals, str(sum(map(int, totals))), *("" for _ in alerts)])
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = []
    for row in [header, *rows]:
        numbers = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *numbers]).rstrip())
    return "\n".join(lines)
