"""
What answers are worth: scorers of StreamGaze's tasks.

A run is a list of `GradedAnswer`, one for each question that should have been answered (of proactive tasks, for each
test point). Every accuracy is from 0 to 1.
"""

import json
import lzma
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path

from gazeqwen.questions.prompts import OPTION_LETTERS
from gazeqwen.questions.tasks import TASKS, task_info

SCORERS = ("strict", "streamgaze")
GROUPS = tuple(dict.fromkeys(task.group for task in TASKS.values()))
YES_NO = ("Yes", "No")


# ------------------------------------------------------------------ questions with their answers
@dataclass(frozen=True)
class GradedAnswer:
    """
    Hold a question that was expected to be answered, with a model's answer. `answer`: index of the right option; of
    proactive tasks 0 is Yes, 1 is No. `options`: how many were offered, or their texts. The answer given: `logits` of
    the offered options in their order, or a generated `response` ("" if generation failed); neither if the question
    was not answered at all. `order`: if options were permuted, which original option stood at each place. `source`:
    see `Question`.

    Raises ValueError naming the key and what is wrong with it.
    """

    key: str
    video_name: str
    task: str
    answer: int
    options: int | Sequence[str]
    logits: Sequence[float] | None = None
    response: str | None = None
    order: Sequence[int] | None = None
    source: str | None = None

    def __post_init__(self):
        def check(valid: bool, name: str, expected: str) -> None:
            if not valid:
                raise ValueError(f"question {self.key!r}: {name} is {getattr(self, name)!r}, expected {expected}")

        most, count = len(OPTION_LETTERS), self.options if isinstance(self.options, int) else len(self.options)
        check(not isinstance(self.options, str), "options", "a number, or a list of texts")
        check(2 <= count <= most and (count == 2 or not self.proactive), "options", f"2 (Yes, No), or up to {most}")
        check(isinstance(self.answer, int) and 0 <= self.answer < count, "answer", f"an index below {count}")
        check(self.response is None or isinstance(self.response, str), "response", "text")
        check(self.response is None or self.logits is None, "response", "none where there are logits")
        finite = self.logits is None or (len(self.logits) == count and all(map(math.isfinite, self.logits)))
        check(finite, "logits", f"{count} finite numbers")
        check(self.order is None or sorted(self.order) == list(range(count)), "order", f"0 to {count - 1}, permuted")

    @property
    def proactive(self) -> bool:
        return task_info(self.task).group == "proactive"

    @property
    def choice(self) -> int | None:
        """
        Return the index of the option with the largest logit (of equals the first), or of the one that the response
        names, see `named_choice`; None if it names none, or there is neither.
        """
        if self.logits is not None:
            return max(range(len(self.logits)), key=self.logits.__getitem__)
        return None if self.response is None else named_choice(self.response, self.options, self.proactive)

    def original(self, index: int | None) -> int | None:
        """Return the option's index before options were permuted, None for None."""
        if index is None or self.order is None:
            return index
        return self.order[index]


def as_graded_answer(row: dict | GradedAnswer, where: str = "a question") -> GradedAnswer:
    """
    Return the graded answer that a dict holds, such as a line of a predictions file. Keys that are no field are passed
    over. The video's name and the options may be left out where `key` is a question's of the package, which holds
    them. Raises ValueError that begins with `where`.
    """
    if isinstance(row, GradedAnswer):
        return row
    if not isinstance(row, dict):
        raise ValueError(f"{where}: got {row!r}, expected key, video_name, task, answer, options")
    values = {field.name: row[field.name] for field in fields(GradedAnswer) if field.name in row}
    if not {"video_name", "options"} <= set(values):
        try:
            video_name, _, _, _, options = json.loads(values["key"])
        except (KeyError, TypeError, ValueError):
            pass
        else:
            values = {"video_name": video_name, "options": tuple(options), **values}
    try:
        return GradedAnswer(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def read_predictions(path: str | PathLike) -> dict[str | None, list[GradedAnswer]]:
    """
    Return the graded answers of a JSONL file, which may be compressed (`.xz`), by the `condition` in their lines, None
    where there is none. Raises ValueError naming file and line for what is no graded answer.
    """
    answers, content = defaultdict(list), Path(path).read_bytes()
    if Path(path).suffix == ".xz":
        try:
            content = lzma.decompress(content)
        except lzma.LZMAError as error:
            raise ValueError(f"{path}: cannot be decompressed ({error})") from None
    for number, line in enumerate(content.splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number}: not JSON ({error}): {line[:80].decode(errors='replace')!r}"
            ) from None
        condition = row.get("condition") if isinstance(row, dict) else None
        answers[condition].append(as_graded_answer(row, f"{path}, line {number}"))
    return {name: graded_answers(items, f"{path}, condition {name}: ") for name, items in answers.items()}


def graded_answers(items: Iterable[dict | GradedAnswer], where: str = "") -> list[GradedAnswer]:
    """Return the questions of a run. Raises ValueError if there are none, or some twice."""
    items = [as_graded_answer(item, f"{where}question {number}") for number, item in enumerate(items, 1)]
    if not items:
        raise ValueError(f"{where}no questions to score")
    counts = Counter(item.key for item in items)
    repeated = [key for key, count in counts.items() if count > 1]
    if repeated:
        raise ValueError(
            f"{where}{len(repeated)} of {len(counts)} questions are there twice or more, such as {min(repeated)}"
        )
    return items


# ------------------------------------------------------------------ responses -> answers
_LEAD = re.compile(
    r"(?:(?:so|thus|hence|therefore|then),? )?"
    r"(?:I (?:think|believe|would say)(?: that)? )?"
    r"(?:I (?:would )?(?:choose|pick|select)|"
    r"(?:(?:the|my) )?(?:(?:best|correct|right|final) )?(?:answer|option|choice))\b"
    r"(?: (?:is|would be|should be))?\s*:?\s*(?:(?:the )?(?:answer|option|choice|letter) )?",
    re.IGNORECASE,
)
_LETTERED = re.compile(rf"[(\[]?([{OPTION_LETTERS}])([)\].:,;-]*)(\s*)(.*)", re.DOTALL | re.IGNORECASE)
_CONFIRMED = re.compile(
    r"is (?:the )?(?:best|correct|right)(?: (?:answer|option|choice))?|(?:because|since)\b.*", re.DOTALL
)
_OTHER_LETTER = re.compile(rf"(?<!\w)[(\[]?[{OPTION_LETTERS}](?:[)\].:](?:\s|$)|$)")
_ALTERNATIVE = re.compile(r"(?:or|and|but|nor|maybe|perhaps)\b|[/&]", re.IGNORECASE)
_YES_NO_FIRST = re.compile(r"(yes|no)\s*[,.!:;–—-]+\s*(.*)", re.DOTALL | re.IGNORECASE)


def named_choice(response: str, options: int | Sequence[str], proactive: bool = False) -> int | None:
    """
    Return the index of the option that a response names, None if it names none for certain. Form does not matter where
    the meaning is clear, so that models that answer in sentences lose nothing to models whose logits are read:

    - a letter alone, in any case ("C", "(c)", "**C**."), or followed by its option's text ("C cup", "c, cup");
    - a letter followed by `.`, `)`, `]` or `:`, a space, and anything that lists no other letter ("C. the cup there");
    - an option's text alone, if no other option has it ("cup");
    - any of these behind "Answer:", "The best option is", "I think the answer is" and the like; "C is correct";
    - to proactive questions Yes or No, in any case, alone or followed by a mark and a reason ("No, not yet").

    What stays none: a letter with the text of another option, two letters ("A or B", the options listed again),
    negations ("Not A", "The answer is not C"), and a letter that may be the article ("I think it is a cup").
    """
    whole = _without_markup(response)
    texts = [_plain(words) for words in (YES_NO if proactive else () if isinstance(options, int) else options)]
    lead = _LEAD.match(whole)
    text = whole[lead.end() :] if lead else whole
    if proactive and (match := _YES_NO_FIRST.fullmatch(text)):
        word, reason = match[1].casefold(), match[2].casefold()
        contradicted = re.match(r"(?:yes|no)\b", reason) or (word == "yes" and re.match(r"not\b", reason))
        return None if contradicted or _ALTERNATIVE.match(reason) else ("yes", "no").index(word)
    match = _LETTERED.fullmatch(text)
    if match is None or match[4]:
        places = [place for place, words in enumerate(texts) if words in (_plain(whole), _plain(text))]
        if len(places) == 1:
            return places[0]
    if match is None:
        return None
    letter, marks, space, rest = match.groups()
    index = OPTION_LETTERS.index(letter.upper())
    if index >= (options if isinstance(options, int) else len(options)):
        return None
    if not rest:
        return index
    places = [place for place, words in enumerate(texts) if words == _plain(rest)]
    if places:
        return index if index in places and (marks or space) else None
    marked = any(mark in marks for mark in ".)]:") and not _ALTERNATIVE.match(rest)
    clear = space and (marked or _CONFIRMED.fullmatch(_plain(rest))) and not _OTHER_LETTER.search(rest)
    return index if clear else None


def _without_markup(response: str) -> str:
    """Return a response without Markdown's emphasis, LaTeX's box, and quotation marks around all of it."""
    text = re.sub(r"\\boxed\{([^{}]*)\}", r"\1", response)
    return re.sub(r"[*`$]", "", text).strip(" \t\r\n\"'_“”")


def _plain(words: str) -> str:
    """Return words to compare: in lower case, without the article "the" and a mark at the end."""
    return words.strip().rstrip(".!").casefold().removeprefix("the ")


@dataclass(frozen=True)
class _Grade:
    """
    Hold what a scorer makes of an answer. `correct`: None for a question that it leaves out of its denominator.
    `is_yes`: the answer is Yes, in proactive tasks. `readable`: the scorer found an answer.
    """

    correct: bool | None
    is_yes: bool
    readable: bool


def _strict(item: GradedAnswer) -> _Grade:
    choice = item.choice
    return _Grade(choice == item.answer, choice == 0, choice is not None)


def _streamgaze(item: GradedAnswer) -> _Grade:
    response = item.response
    if item.logits is not None:
        response = (YES_NO if item.proactive else OPTION_LETTERS)[item.choice]
    text = (response or "").strip().upper()
    if item.proactive:
        words = [word.upper() in text for word in YES_NO]
        return _Grade(words[item.answer], words[0], any(words))
    letter = re.search(r"\b[A-D]\b", text)
    correct = (letter[0] if letter else text) == OPTION_LETTERS[item.answer]
    return _Grade(None if response is None else correct, False, letter is not None)


def grade(item: GradedAnswer, scorer: str) -> _Grade:
    """Return what a scorer makes of an answer. Raises ValueError for a scorer that is not in `SCORERS`."""
    if scorer not in SCORERS:
        raise ValueError(f"scorer {scorer!r}, expected one of {SCORERS}")
    return (_strict if scorer == "strict" else _streamgaze)(item)


# ------------------------------------------------------------------ scores
def score(items: Iterable[dict | GradedAnswer], scorer: str = "strict") -> dict:
    """
    Return the accuracies of a run.

    `strict`: every expected question is in the denominator; a response counts as what `named_choice` reads, or as
    wrong.
    `streamgaze`: as `evaluate_results.py` of StreamGaze. The first letter A to D that stands alone in the upper-cased
    response (the article "A" is one; where there are more than four options, the others match only as the whole
    response); to proactive questions, whether it contains YES or NO (which "KNOW" does, and "Yes ... not" contains
    both). Questions that were not answered at all leave the denominator, except proactive ones; a task without any
    answer is 0. Logits count as the letter of the largest.

    `tasks`: of each {"expected", "answered" (an answer was found), "failed" (the others), "total" (the denominator),
    "correct", "accuracy"}, of proactive tasks also what `_detection` says. `macro`: the unweighted mean over the tasks
    that are there, `macro_10` over StreamGaze's ten, None unless all are; `micro`: over questions; `groups`: the mean
    of each group's tasks. `counts`: the sums over tasks; `failed`: each failed question and why.
    """
    by_task, failed = defaultdict(list), []
    for item in graded_answers(items):
        by_task[item.task].append((item, grade(item, scorer)))
    tasks = {}
    for task in sorted_tasks(by_task):
        pairs = by_task[task]
        counted = [mark.correct for _, mark in pairs if mark.correct is not None]
        answered = sum(mark.readable for _, mark in pairs)
        tasks[task] = {
            "expected": len(pairs),
            "answered": answered,
            "failed": len(pairs) - answered,
            "total": len(counted),
            "correct": sum(counted),
            "accuracy": sum(counted) / len(counted) if counted else 0.0,
        }
        if task_info(task).group == "proactive":
            tasks[task] |= _detection(pairs)
        for item, mark in pairs:
            if not mark.readable:
                why = "not answered" if item.response is None else f"response {item.response!r}"
                failed.append({"key": item.key, "task": task, "why": why})
    counts = {name: sum(values[name] for values in tasks.values()) for name in ("expected", "answered", "failed")}
    correct, total = (sum(values[name] for values in tasks.values()) for name in ("correct", "total"))
    accuracies = {task: values["accuracy"] for task, values in tasks.items()}
    groups = tasks_by_group(accuracies)
    return {
        "scorer": scorer,
        "tasks": tasks,
        "macro": unweighted_mean(accuracies.values()),
        "macro_10": unweighted_mean(accuracies[task] for task in TASKS) if set(TASKS) <= set(accuracies) else None,
        "micro": correct / total if total else 0.0,
        "groups": {group: unweighted_mean(map(accuracies.get, members)) for group, members in groups.items()},
        "counts": counts,
        "failed": failed,
    }


def _detection(pairs: list[tuple[GradedAnswer, _Grade]]) -> dict:
    """
    Return the detection measures of test points: `yes_share`, how many are due; `yes_rate`, how many were answered
    Yes; `majority_baseline`, the accuracy of the same answer always; `balanced_accuracy`, the mean of both classes'
    accuracies; `precision`, `recall` and `f1` of Yes. None where a ratio has no denominator.
    """

    def share(part: float, whole: float) -> float | None:
        return part / whole if whole else None

    due = [mark for item, mark in pairs if item.answer == 0]
    others = [mark for item, mark in pairs if item.answer == 1]
    true_yes, all_yes = sum(mark.is_yes for mark in due), sum(mark.is_yes for _, mark in pairs)
    class_accuracies = [share(sum(mark.correct for mark in marks), len(marks)) for marks in (due, others)]
    return {
        "yes_share": len(due) / len(pairs),
        "yes_rate": all_yes / len(pairs),
        "majority_baseline": max(len(due), len(others)) / len(pairs),
        "balanced_accuracy": None if None in class_accuracies else sum(class_accuracies) / 2,
        "precision": share(true_yes, all_yes),
        "recall": share(true_yes, len(due)),
        "f1": share(2 * true_yes, all_yes + len(due)),
    }


def sorted_tasks(tasks: Iterable[str]) -> list[str]:
    """Return each task once: StreamGaze's in its order, then others by name."""
    tasks = set(tasks)
    return [task for task in TASKS if task in tasks] + sorted(tasks - set(TASKS))


def tasks_by_group(tasks: Iterable[str]) -> dict[str, list[str]]:
    """Return {group: its tasks}, StreamGaze's groups first; `own` are tasks of people's own data."""
    members = defaultdict(list)
    for task in tasks:
        members[task_info(task).group].append(task)
    return {group: members[group] for group in (*GROUPS, "own") if group in members}


def unweighted_mean(values: Iterable[float]) -> float:
    """Return the mean of at least one value."""
    values = list(values)
    return sum(values) / len(values)
