"""Answers that a question offers, as tokens, logits and losses, and the one that a model gives."""

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from gazeqwen.questions.prompts import OPTION_LETTERS, format_question
from gazeqwen.questions.question import Question


@dataclass(frozen=True)
class Answer:
    """A model's answer: the option it finds most probable, or its own words (`probabilities` is then empty)."""

    text: str
    probabilities: dict[str, float]

    def __str__(self) -> str:
        return f"{self.text} ({100 * self.probabilities[self.text]:.1f} %)" if self.probabilities else self.text


def build_prompt(question: str, options: list[str], style: str) -> tuple[str, dict[str, str]]:
    """
    Return the user turn, and for each answer that it offers, one token each, what it stands for. Without options the
    model is to answer in its own words. Raises ValueError for a number of options that cannot be lettered.
    """
    if not options:
        return question, {}
    labels = {letter: f"{letter}. {option}" for letter, option in zip(OPTION_LETTERS, options, strict=False)}
    return format_question(question, options, style), labels


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


def check_finite_logits(logits: torch.Tensor) -> None:
    """Raise ValueError for logits of which one is NaN or infinite: no answer follows from them."""
    if not torch.isfinite(logits).all():
        raise ValueError(
            f"the model's logits are not finite: {logits.flatten()[:8].tolist()}; its numbers overflow in its dtype, "
            "try another (bfloat16, float32)"
        )


@contextmanager
def memory_errors_name(questions: Sequence[Question]):
    """Raise ValueError naming the first of the questions, and a remedy, where the device's memory is too small."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"out of memory on {len(questions)} questions such as {questions[0].key}; inputs are never made smaller "
            "silently: choose a smaller batch_size, fewer frames or fewer pixels, and in training "
            f"gradient_checkpointing ({error})"
        ) from None


def own_words(model, processor, inputs, max_new_tokens: int) -> str:
    """Return what the model says after the prompt, decoded greedily. Raises ValueError where it has no answer."""
    output = model.generate(
        **inputs, max_new_tokens=max_new_tokens, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    check_finite_logits(output.logits[0])
    new_tokens = output.sequences[:, inputs["input_ids"].shape[1] :]
    return processor.batch_decode(new_tokens, skip_special_tokens=True)[0].strip()


def text_losses(model, inputs, labels: torch.Tensor) -> torch.Tensor:
    """(B,) cross-entropy of open-ended answers, `labels` (B, tokens) with -100 for padding, mean over their tokens."""
    logits = model(**inputs, logits_to_keep=labels.shape[1] + 1).logits[:, :-1].float()
    labels = labels.to(logits.device)
    losses = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100)
    return losses.sum(1) / (labels != -100).sum(1)
