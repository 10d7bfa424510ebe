"""Questions -> batches of model inputs, read ahead by loader workers; which questions an epoch holds, and when."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from gazeqwen.pipeline.answers import answer_tokens
from gazeqwen.pipeline.clip_cache import ClipCache
from gazeqwen.pipeline.conditions import Condition, assign_scanpaths, noisy
from gazeqwen.pipeline.overlays import Drawing, gaze_in_words
from gazeqwen.processing_gazeqwen import GazeQwenInputs
from gazeqwen.questions.prompts import chat_message
from gazeqwen.questions.question import Question
from gazeqwen.scanpath_gazeqwen import Scanpath

OWN_GAZE = Condition("model")


@dataclass
class Batch:
    """
    Hold the model's `inputs` for some `questions`, whose places in the dataset are `indices`. Prompts end at the last
    position. `answer_tokens`: per question, the token of each answer it offers. Of open-ended questions the answer's
    text ends at the last position instead, and `labels` (B, K) are the tokens of the last K positions, -100 where
    there is none.
    """

    indices: list[int]
    questions: list[Question]
    inputs: GazeQwenInputs
    answer_tokens: list[list[int]]
    labels: torch.Tensor | None = None


@dataclass(frozen=True)
class Augmentation:
    """
    Change scanpaths in training: add normal noise to x and y, `noise` of the frame's size, and leave out each fixation
    with probability `dropout`, but never all. Neither is in the paper; the reference code has .02 and .1. `seed`: of
    what is drawn anew in each epoch. `keep_tokens`: how many visual tokens stay (`GazeQwenProcessor`), one of these
    for each batch, so that one adapter learns to do with more and with fewer.
    """

    noise: float = 0.0
    dropout: float = 0.0
    seed: int = 0
    keep_tokens: tuple[float, ...] = ()

    def drawn_keep_tokens(self, epoch: int, indices: list[int]) -> float | None:
        """Return how many visual tokens of a batch of questions stay; None: as the processor says."""
        if not self.keep_tokens:
            return None
        rng = np.random.default_rng([self.seed, epoch, *indices, 1])
        return self.keep_tokens[int(rng.integers(len(self.keep_tokens)))]

    def __call__(self, scanpath: Scanpath, rng: np.random.Generator) -> Scanpath:
        if len(scanpath) and self.noise:
            scanpath = noisy(scanpath, self.noise, rng)
        if len(scanpath) and self.dropout:
            kept = rng.random(len(scanpath)) >= self.dropout
            fallback = rng.integers(len(scanpath))  # drawn always, so that later draws do not depend on `kept`
            if not kept.any():
                kept[fallback] = True
            scanpath = Scanpath(scanpath.table[kept], scanpath.ids[kept])
        return scanpath


def prompt_under(
    condition: Condition, question: Question, scanpath: Scanpath | None, style: str
) -> tuple[str, list[str]]:
    """Return the user turn of a question under a condition, and the answers it offers."""
    prompt, answers = question.prompt(style)
    if "text" in condition.channels and scanpath is not None:
        prompt = f"{gaze_in_words(scanpath, question.start_s, question.end_s)}\n{prompt}"
    return prompt, answers


class QuestionDataset(torch.utils.data.Dataset):
    """
    Read (index, question, its scanpath after snapping, its clip) in the loader's workers: there clips are decoded,
    and gaze is snapped once for all channels that it is given by. `condition` says whose gaze is given, and how;
    `seed` draws what of it is random. `scanpaths_of`: for each question, the video whose gaze is in `scanpaths`, if
    any.
    """

    def __init__(
        self,
        cache: ClipCache,
        questions: list[Question],
        condition: Condition = OWN_GAZE,
        seed: int = 0,
        augmentation: Augmentation | None = None,
    ):
        self.cache, self.questions, self.condition, self.augmentation = cache, questions, condition, augmentation
        assigned = assign_scanpaths(condition, questions, seed, cache.processor.snap_s)
        self.scanpaths_of, self.scanpaths = [video for video, _ in assigned], [scanpath for _, scanpath in assigned]
        self.epoch = 0

    @property
    def drawings(self) -> list[Drawing | None]:
        """Return what is drawn on each question's clip, for `ClipCache.fill`."""
        return [self.condition.drawing(scanpath) for scanpath in self.scanpaths]

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> tuple[int, Question, Scanpath | None, dict | None]:
        question, scanpath, augmentation = self.questions[index], self.scanpaths[index], self.augmentation
        if self.condition.text_only:
            return index, question, None, None
        if scanpath is not None and augmentation is not None:
            scanpath = augmentation(scanpath, np.random.default_rng([augmentation.seed, self.epoch, index]))
        clip = self.cache.read(question, self.condition.drawing(scanpath))
        return index, question, question.seen(scanpath, clip["step_spans_s"], self.cache.processor.snap_s), clip

    def collate(self, samples: list[tuple]) -> Batch:
        """Return a batch. Raises ValueError if the tokens of an answer change when it follows its prompt."""
        processor = self.cache.processor
        indices, questions, scanpaths, clips = (list(column) for column in zip(*samples, strict=True))
        prompts, answers = self._prompts(questions, scanpaths)
        if questions[0].answer_text is None:
            texts, labels = prompts, None
        else:  # all of a batch are open-ended, or none
            texts, labels = self._append_answers(prompts, questions)
        if self.condition.text_only:
            inputs = processor.collate(texts, [], padding_side="left")
        else:
            model_scanpaths = scanpaths if "model" in self.condition.channels else None
            keep_tokens = self.augmentation and self.augmentation.drawn_keep_tokens(self.epoch, indices)
            inputs = processor.collate(texts, clips, model_scanpaths, padding_side="left", keep_tokens=keep_tokens)
        if labels is not None:
            self._check_labels(inputs["input_ids"], labels)
        tokens = [answer_tokens(processor.tokenizer, question_answers) for question_answers in answers]
        return Batch(indices, questions, inputs, tokens, labels)

    def _prompts(
        self, questions: list[Question], scanpaths: list[Scanpath | None]
    ) -> tuple[list[str], list[list[str]]]:
        """Return the prompt of each question, in the model's chat template, and the answers each offers."""
        processor, with_video = self.cache.processor, not self.condition.text_only
        prompts, answers = [], []
        for question, scanpath in zip(questions, scanpaths, strict=True):
            turn, question_answers = prompt_under(self.condition, question, scanpath, processor.prompt_style)
            message = chat_message(turn, with_video=with_video)
            prompts.append(processor.apply_chat_template(message, add_generation_prompt=True))
            answers.append(question_answers)
        return prompts, answers

    def _append_answers(self, prompts: list[str], questions: list[Question]) -> tuple[list[str], torch.Tensor]:
        """Return the prompts of open-ended questions with their answers, and the answers' tokens as (B, K) labels."""
        tokenizer = self.cache.processor.tokenizer
        answers = [question.answer_text + tokenizer.eos_token for question in questions]
        tokens = [tokenizer.encode(answer, add_special_tokens=False) for answer in answers]
        labels = torch.full((len(tokens), max(map(len, tokens))), -100)
        for row, ids in zip(labels, tokens, strict=True):
            row[len(row) - len(ids) :] = torch.tensor(ids)
        return [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)], labels

    @staticmethod
    def _check_labels(input_ids: torch.Tensor, labels: torch.Tensor) -> None:
        """Raise ValueError unless (B, L) `input_ids` end with the tokens of the (B, K) labels."""
        is_answer = labels != -100
        if not torch.equal(input_ids[:, -labels.shape[1] :][is_answer], labels[is_answer]):
            raise ValueError("the tokens of an answer change when it follows its prompt")


@dataclass(frozen=True)
class MicroBatch:
    """
    Hold what one process runs at a time. `share` of the optimizer step's loss: its samples / all samples of the step,
    0 for one that only keeps the process in step with the others. `ends_step`: the optimizer steps after it.
    """

    indices: list[int]
    share: float
    ends_step: bool


class MicroBatchSampler:
    """
    Yield one process's micro-batches of an epoch to a data loader. Which samples make an optimizer step depends on the
    seed, the epoch and their number `step_size` alone, not on how many processes and micro-batches they are spread
    over. Clips of similar length come together, so that little is padded; open-ended questions are never mixed with
    others. With `balance_tasks` each epoch draws as many questions as there are, every task as often as the others,
    with replacement: of StreamGaze's samples more than half are test points of the two proactive tasks.

    `epoch` and `first`, the number of micro-batches to leave out at the start of an epoch gone on with, may be set.
    """

    def __init__(
        self,
        questions: list[Question],
        lengths: list[int],
        batch_size: int,
        accumulation: int = 1,
        seed: int = 0,
        balance_tasks: bool = False,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        self.batch_size, self.seed, self.balance_tasks = batch_size, seed, balance_tasks
        self.process_index, self.num_processes = process_index, num_processes
        self.step_size = batch_size * accumulation * num_processes
        self.epoch = self.first = 0
        self.lengths = np.asarray(lengths)
        self.is_open = np.array([question.answer_text is not None for question in questions])
        sizes = Counter(question.task for question in questions)
        weights = np.array([1 / sizes[question.task] for question in questions])
        self.weights = weights / weights.sum()

    def _steps(self) -> list[np.ndarray]:
        """Return the samples of each optimizer step of the epoch, as arrays of indices."""
        rng, count = np.random.default_rng([self.seed, self.epoch]), len(self.lengths)
        order = rng.choice(count, count, p=self.weights) if self.balance_tasks else rng.permutation(count)
        steps, size = [], self.step_size
        for kind in (False, True):
            samples = order[self.is_open[order] == kind]
            for start in range(0, len(samples), 50 * size):
                chunk = samples[start : start + 50 * size]
                chunk = chunk[np.argsort(self.lengths[chunk], kind="stable")]
                steps += [chunk[i : i + size] for i in range(0, len(chunk), size)]
        return [steps[i] for i in rng.permutation(len(steps))]

    def steps_per_epoch(self) -> int:
        """Return the number of optimizer steps of an epoch (with balanced tasks and open-ended questions: of this)."""
        return len(self._steps())

    def micro_batches(self) -> list[MicroBatch]:
        """Return this process's micro-batches of the epoch, in order, without the `first`."""
        micro_batches = []
        for step in self._steps():
            process_samples = step[self.process_index :: self.num_processes]
            rounds = math.ceil(len(step[:: self.num_processes]) / self.batch_size)  # of the process that has most
            for number in range(rounds):
                indices = process_samples[number * self.batch_size : (number + 1) * self.batch_size].tolist()
                share, ends_step = len(indices) / len(step), number == rounds - 1
                if not indices:  # nothing left for this process: any sample keeps it in step
                    indices = step[:1].tolist()
                micro_batches.append(MicroBatch(indices, share, ends_step))
        return micro_batches[self.first :]

    def __iter__(self) -> Iterator[list[int]]:
        return iter([micro_batch.indices for micro_batch in self.micro_batches()])

    def __len__(self) -> int:
        return len(self.micro_batches())


__all__ = [
    "Augmentation",
    "Batch",
    "MicroBatch",
    "MicroBatchSampler",
    "QuestionDataset",
    "answer_tokens",
    "prompt_under",
]
