"""
What answers are worth: scorers of StreamGaze's tasks, and how sure one may be of their accuracies.

A run is a list of `Scored`, one for each question that should have been answered (of proactive tasks, for each test
point). Every accuracy is from 0 to 1. Resampling and permutations are by video, since questions of one video are not
independent; each has a fixed seed. Comparisons of runs are scored `strict`.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path

import numpy as np

from gazeqwen.questions.streamgaze import OPTION_LETTERS, TASKS, task_info

SCORERS = ("strict", "compat")
GROUPS = tuple(dict.fromkeys(task.group for task in TASKS.values()))
YES_NO = ("Yes", "No")


# ------------------------------------------------------------------ questions with their answers
@dataclass(frozen=True)
class Scored:
    """
    A question that was expected to be answered. `answer`: index of the right option; of proactive tasks 0 is Yes, 1 is
    No. `options`: how many were offered, or their texts. The answer given: `logits` of the offered options in their
    order, or a generated `response` ("" if generation failed); neither if the question was not answered at all.
    `order`: if options were permuted, which original option stood at each place.

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

    def __post_init__(self):
        def check(right: bool, name: str, expected: str) -> None:
            if not right:
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
        """The option with the largest logit (of equals the first), or the one that the response says exactly."""
        if self.logits is not None:
            return int(np.argmax(self.logits))
        return None if self.response is None else exact_choice(self.response, self.options, self.proactive)

    def original(self, index: int | None) -> int | None:
        """The option's index before options were permuted."""
        return index if index is None or self.order is None else self.order[index]


def as_scored(row: dict | Scored, where: str = "a question") -> Scored:
    """
    From a dict, such as a line of a predictions file. Keys that are no field are passed over. The video's name and the
    number of options may be left out where `key` is a `streamgaze.Question`'s, which holds them.
    """
    if isinstance(row, Scored):
        return row
    if not isinstance(row, dict):
        raise ValueError(f"{where}: got {row!r}, expected key, video_name, task, answer, options")
    values = {field.name: row[field.name] for field in fields(Scored) if field.name in row}
    if not {"video_name", "options"} <= set(values):
        try:
            video_name, _, _, _, options = json.loads(values["key"])
        except (KeyError, TypeError, ValueError):
            pass
        else:
            values = {"video_name": video_name, "options": tuple(options), **values}
    try:
        return Scored(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def read_predictions(path: str | PathLike) -> dict[str | None, list[Scored]]:
    """The questions of a JSONL file by the `condition` in their lines, None where there is none."""
    found = defaultdict(list)
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error}): {line[:80]!r}") from None
        found[row.get("condition") if isinstance(row, dict) else None].append(as_scored(row, f"{path}, line {number}"))
    return {condition: checked(items, f"{path}, condition {condition}: ") for condition, items in found.items()}


def checked(items: Iterable[dict | Scored], where: str = "") -> list[Scored]:
    """A run's questions. Raises ValueError if there are none, or some twice."""
    items = [as_scored(item, f"{where}question {number}") for number, item in enumerate(items, 1)]
    if not items:
        raise ValueError(f"{where}no questions to score")
    seen, again = set(), set()
    for item in items:
        (again if item.key in seen else seen).add(item.key)
    if again:
        raise ValueError(f"{where}{len(again)} of {len(seen)} questions are there twice or more, such as {min(again)}")
    return items


# ------------------------------------------------------------------ responses -> answers
_LETTERED = re.compile(rf"\(?([{OPTION_LETTERS}])([).:,;-]*)(\s*)(.*)", re.DOTALL)


def exact_choice(response: str, options: int | Sequence[str], proactive: bool = False) -> int | None:
    """
    The option that a response names, None if it names none for certain: a capital letter alone ("B", "(B)", "B."), or
    first and followed by `.`, `)` or `:` and a space, or by its option's text; to proactive questions also Yes or No,
    in any case. A letter with the text of another option names none.
    """
    text = response.strip()
    texts = YES_NO if proactive else () if isinstance(options, int) else options

    def plain(words: str) -> str:
        return words.strip().rstrip(".!").casefold()

    if proactive and plain(text) in ("yes", "no"):
        return ("yes", "no").index(plain(text))
    match = _LETTERED.fullmatch(text)
    if match is None:
        return None
    letter, marks, space, rest = match.groups()
    index = OPTION_LETTERS.index(letter)
    if index >= (options if isinstance(options, int) else len(options)):
        return None
    named = [place for place, option in enumerate(texts) if plain(option) == plain(rest)]
    if rest and named:
        return index if index in named and (marks or space) else None
    return index if not rest or (space and set(marks) & set(".):")) else None


@dataclass(frozen=True)
class _Grade:
    """`correct`: None for a question that the scorer leaves out of its denominator. `read`: an answer was found."""

    correct: bool | None
    said_yes: bool
    read: bool


def _strict(item: Scored) -> _Grade:
    choice = item.choice
    return _Grade(choice == item.answer, choice == 0, choice is not None)


def _compat(item: Scored) -> _Grade:
    response = item.response
    if item.logits is not None:
        response = (YES_NO if item.proactive else OPTION_LETTERS)[item.choice]
    said = (response or "").strip().upper()
    if item.proactive:
        words = [word.upper() in said for word in YES_NO]
        return _Grade(words[item.answer], words[0], any(words))
    letter = re.search(r"\b[A-D]\b", said)
    right = (letter[0] if letter else said) == OPTION_LETTERS[item.answer]
    return _Grade(None if response is None else right, False, letter is not None)


def grade(item: Scored, scorer: str) -> _Grade:
    if scorer not in SCORERS:
        raise ValueError(f"scorer {scorer!r}, expected one of {SCORERS}")
    return (_strict if scorer == "strict" else _compat)(item)


# ------------------------------------------------------------------ scores
def score(items: Iterable[dict | Scored], scorer: str = "strict") -> dict:
    """
    Accuracies of a run.

    `strict`: a response counts as `exact_choice` reads it; every expected question is in the denominator.
    `compat`: as `evaluate_results.py` of StreamGaze. The first letter A to D that stands alone in the upper-cased
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
    for item in checked(items):
        by_task[item.task].append((item, grade(item, scorer)))
    tasks = {}
    for task in sorted_tasks(by_task):
        pairs = by_task[task]
        counted = [mark.correct for _, mark in pairs if mark.correct is not None]
        answered = sum(mark.read for _, mark in pairs)
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
            if not mark.read:
                why = "not answered" if item.response is None else f"response {item.response!r}"
                failed.append({"key": item.key, "task": task, "why": why})
    counts = {name: sum(values[name] for values in tasks.values()) for name in ("expected", "answered", "failed")}
    correct, total = (sum(values[name] for values in tasks.values()) for name in ("correct", "total"))
    accuracies = {task: values["accuracy"] for task, values in tasks.items()}
    return {
        "scorer": scorer,
        "tasks": tasks,
        "macro": _mean(accuracies.values()),
        "macro_10": _mean(accuracies[task] for task in TASKS) if set(TASKS) <= set(accuracies) else None,
        "micro": correct / total if total else 0.0,
        "groups": {group: _mean(accuracies[task] for task in members) for group, members in _groups(accuracies)},
        "counts": counts,
        "failed": failed,
    }


def _detection(pairs: list[tuple[Scored, _Grade]]) -> dict:
    """
    Of test points: `yes_share`, how many are due; `yes_rate`, how many were answered Yes; `majority_baseline`, the
    accuracy of the same answer always; `balanced_accuracy`, the mean of both classes' accuracies; `precision`,
    `recall` and `f1` of Yes. None where a ratio has no denominator.
    """

    def share(part: float, whole: float) -> float | None:
        return part / whole if whole else None

    due = [mark for item, mark in pairs if item.answer == 0]
    others = [mark for item, mark in pairs if item.answer == 1]
    found, said = sum(mark.said_yes for mark in due), sum(mark.said_yes for _, mark in pairs)
    of_both = [share(sum(mark.correct for mark in marks), len(marks)) for marks in (due, others)]
    return {
        "yes_share": len(due) / len(pairs),
        "yes_rate": said / len(pairs),
        "majority_baseline": max(len(due), len(others)) / len(pairs),
        "balanced_accuracy": None if None in of_both else sum(of_both) / 2,
        "precision": share(found, said),
        "recall": share(found, len(due)),
        "f1": share(2 * found, said + len(due)),
    }


def sorted_tasks(tasks: Iterable[str]) -> list[str]:
    """StreamGaze's in its order, then others by name."""
    tasks = set(tasks)
    return [task for task in TASKS if task in tasks] + sorted(tasks - set(TASKS))


def _groups(tasks: Iterable[str]) -> list[tuple[str, list[str]]]:
    """(group, its tasks), StreamGaze's groups first; `own` are tasks of people's own data."""
    members = defaultdict(list)
    for task in tasks:
        members[task_info(task).group].append(task)
    return [(group, members[group]) for group in (*GROUPS, "own") if group in members]


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


# ------------------------------------------------------------------ how sure: resampling of videos
def intervals(
    items: Iterable[dict | Scored],
    scorer: str = "strict",
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict:
    """
    Percentile bootstrap intervals [low, high] in the shape of `score`: `tasks`, `groups`, `macro`, `micro`; and
    `confidence`, `videos`, `resamples`. Videos are drawn with replacement, each with all its questions; None where
    there are fewer than two. A draw without any question of a task says nothing of that task.

    This is `scipy.stats.bootstrap(method="percentile")` of the videos, except that it takes all values from the same
    draws, and passes over draws that lack a task.
    """
    tasks, correct, total = _by_video(checked(items), scorer)
    weights = _draws(len(total), resamples, seed)
    found = _quantities(tasks, weights @ correct, weights @ total)
    return _shaped(tasks, found, total, confidence) | {"videos": len(total), "resamples": resamples}


def gains(
    first: Iterable[dict | Scored],
    second: Iterable[dict | Scored],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict:
    """
    Accuracy of `first` minus that of `second` on the same questions, as {"tasks", "groups", "macro", "micro"}, and
    their bootstrap `intervals`, from the same videos in both.
    """
    pair = _paired(first, second)
    (tasks, *ours), (_, *theirs) = (_by_video(items, "strict") for items in pair)
    weights = np.vstack([np.ones(len(ours[1])), _draws(len(ours[1]), resamples, seed)])  # first: each video once
    here, there = (_quantities(tasks, weights @ correct, weights @ total) for correct, total in (ours, theirs))
    found = {name: here[name] - there[name] for name in here}
    points = {name: float(values[0]) for name, values in found.items()}
    spread = _shaped(tasks, {name: values[1:] for name, values in found.items()}, ours[1], confidence)
    return {
        "tasks": {task: points["task", task] for task in tasks},
        "groups": {group: points["group", group] for group, _ in _groups(tasks)},
        "macro": points["macro"],
        "micro": points["micro"],
        "intervals": spread | {"videos": len(ours[1]), "resamples": resamples},
    }


def _by_video(items: list[Scored], scorer: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Tasks, and (V, tasks) numbers of questions answered right and counted, videos sorted by name."""
    tasks = sorted_tasks(item.task for item in items)
    videos = {name: row for row, name in enumerate(sorted({item.video_name for item in items}))}
    correct, total = np.zeros((2, len(videos), len(tasks)))
    for item in items:
        mark, place = grade(item, scorer), (videos[item.video_name], tasks.index(item.task))
        correct[place] += mark.correct or 0
        total[place] += mark.correct is not None
    return tasks, correct, total


def _draws(videos: int, resamples: int, seed: int) -> np.ndarray:
    """(resamples, videos): how often each video is drawn."""
    return np.random.default_rng(seed).multinomial(videos, [1 / videos] * videos, size=resamples).astype(float)


def _quantities(tasks: list[str], correct: np.ndarray, total: np.ndarray) -> dict:
    """(R,) accuracies from (R, tasks) counts, by name; NaN where nothing was counted."""
    with np.errstate(invalid="ignore"):
        accuracy = correct / total
        micro = correct.sum(1) / total.sum(1)

    def mean(columns: list[int]) -> np.ndarray:
        there = (total[:, columns] > 0) | (total[:, columns].sum(0) == 0)  # a task never counted is 0, as in `score`
        with np.errstate(invalid="ignore"):
            return np.where(total[:, columns] > 0, accuracy[:, columns], 0).sum(1) / there.sum(1)

    found = {("task", task): accuracy[:, column] for column, task in enumerate(tasks)}
    found |= {("group", group): mean([tasks.index(task) for task in members]) for group, members in _groups(tasks)}
    return found | {"macro": mean(list(range(len(tasks)))), "micro": micro}


def _shaped(tasks: list[str], found: dict, total: np.ndarray, confidence: float) -> dict:
    def interval(name, columns: list[int]) -> list[float] | None:
        if (total[:, columns].sum(1) > 0).sum() < 2:
            return None
        tail = (1 - confidence) / 2
        return [float(value) for value in np.nanquantile(found[name], [tail, 1 - tail])]

    every = list(range(len(tasks)))
    return {
        "tasks": {task: interval(("task", task), [tasks.index(task)]) for task in tasks},
        "groups": {
            group: interval(("group", group), [tasks.index(task) for task in members])
            for group, members in _groups(tasks)
        },
        "macro": interval("macro", every),
        "micro": interval("micro", every),
        "confidence": confidence,
    }


# ------------------------------------------------------------------ two runs of the same questions
def _paired(first, second) -> tuple[list[Scored], list[Scored]]:
    first, second = checked(first), checked(second)
    here, there = {item.key for item in first}, {item.key for item in second}
    if here != there:
        raise ValueError(
            f"runs of different questions cannot be compared: {len(here)} and {len(there)}, "
            f"of which {len(here - there)} and {len(there - here)} are not in the other"
        )
    by_key = {item.key: item for item in second}
    second = [by_key[item.key] for item in first]
    for item, other in zip(first, second, strict=True):
        if (item.video_name, item.task, item.original(item.answer)) != (
            other.video_name,
            other.task,
            other.original(other.answer),
        ):
            raise ValueError(f"question {item.key!r}: its video, task or answer differs between the runs")
    return first, second


def mcnemar(first: Iterable[dict | Scored], second: Iterable[dict | Scored]) -> dict:
    """
    McNemar's test (statsmodels) of whether two runs get as many questions right: exact below 25
    questions that only one of them gets right, chi-square with continuity correction from there. It takes questions
    for independent; see `permutation_test`.
    """
    from statsmodels.stats.contingency_tables import mcnemar as test

    table = np.zeros((2, 2), int)
    for item, other in zip(*_paired(first, second), strict=True):
        table[int(item.choice != item.answer), int(other.choice != other.answer)] += 1
    (both, only_first), (only_second, neither) = table.tolist()
    exact = only_first + only_second < 25
    return {
        "both": both,
        "only_first": only_first,
        "only_second": only_second,
        "neither": neither,
        "exact": exact,
        "pvalue": float(test(table, exact=exact).pvalue),
    }


def permutation_test(
    first: Iterable[dict | Scored], second: Iterable[dict | Scored], resamples: int = 9999, seed: int = 0
) -> dict:
    """
    Of the difference of macro accuracy (first minus second): the share of exchanges between the runs, each
    video's answers exchanged together or not at all, that give as large a difference (scipy, two-sided; all exchanges
    if they are no more than `resamples`).
    """
    from scipy import stats

    pair = _paired(first, second)
    (_, ours, total), (_, theirs, _) = (_by_video(items, "strict") for items in pair)
    share = 1 / total.sum(0) / total.shape[1]  # what a right answer to each task adds to the macro accuracy
    sums = ours @ share, theirs @ share
    if len(total) < 2:  # scipy wants two; both exchanges of one video give the same size
        return {"difference": float(sums[0][0] - sums[1][0]), "pvalue": 1.0, "videos": 1}
    result = stats.permutation_test(
        sums,
        lambda x, y, axis: x.sum(axis) - y.sum(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        rng=np.random.default_rng(seed),
    )
    return {"difference": float(result.statistic), "pvalue": float(result.pvalue), "videos": len(total)}


# ------------------------------------------------------------------ probabilities; permuted options
def calibration(items: Iterable[dict | Scored], bins: int = 10) -> dict:
    """
    Whether answers are as often right as the model's probability of them says. `bins`: equal widths from 0 to 1 (upper
    ends belong to them), each with `low`, `high`, `count`, `confidence` (mean probability of the chosen option among
    the offered) and `accuracy`, None where empty; `ece`: the mean of their gaps by count; `count`: questions with
    logits, no others count.
    """
    items = [item for item in checked(items) if item.logits is not None]
    if not items:
        raise ValueError("calibration needs logits, no question has them")
    sure = np.array([1 / np.exp(np.subtract(item.logits, max(item.logits))).sum() for item in items])
    right = np.array([item.choice == item.answer for item in items], float)
    place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    table = []
    for index in range(bins):
        inside = place == index
        count = int(inside.sum())
        means = [float(values[inside].mean()) if count else None for values in (sure, right)]
        edges = {"low": index / bins, "high": (index + 1) / bins, "count": count}
        table.append(edges | dict(zip(("confidence", "accuracy"), means, strict=True)))
    gaps = sum(row["count"] * abs(row["confidence"] - row["accuracy"]) for row in table if row["count"])
    return {"ece": gaps / len(items), "count": len(items), "bins": table}


def option_robustness(runs: Sequence[Iterable[dict | Scored]]) -> dict:
    """
    Runs of the same questions with their options permuted (`Scored.order`): `accuracies` (micro) and
    `macros` of each, the means of both, and `same_share`, the share of questions answered with the same option in all
    of them (a failed answer is none).
    """
    first, *others = runs
    if not others:
        raise ValueError("got 1 permutation of the options, expected at least 2")
    runs = [_paired(first, other) for other in others]
    runs = [runs[0][0], *(other for _, other in runs)]
    scores = [score(run) for run in runs]
    answers = [[item.original(item.choice) for item in same] for same in zip(*runs, strict=True)]
    steady = [len(set(given)) == 1 and given[0] is not None for given in answers]
    accuracies, macros = ([values[name] for values in scores] for name in ("micro", "macro"))
    return {
        "permutations": len(runs),
        "questions": len(steady),
        "accuracies": accuracies,
        "accuracy": _mean(accuracies),
        "macros": macros,
        "macro": _mean(macros),
        "same_share": _mean(steady),
    }
