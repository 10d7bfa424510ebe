"""How sure a score is: intervals and tests that draw videos, calibration, robustness to the options' order."""

from collections.abc import Iterable, Sequence

import numpy as np

from gazeqwen.evaluation.scoring import (
    GradedAnswer,
    grade,
    graded_answers,
    score,
    sorted_tasks,
    tasks_by_group,
    unweighted_mean,
)


def intervals(
    items: Iterable[dict | GradedAnswer],
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
    tasks, correct, total = _by_video(graded_answers(items), scorer)
    weights = _draws(len(total), resamples, seed)
    found = _quantities(tasks, weights @ correct, weights @ total)
    return _shaped(tasks, found, total, confidence) | {"videos": len(total), "resamples": resamples}


def paired_difference(
    first: Iterable[dict | GradedAnswer],
    second: Iterable[dict | GradedAnswer],
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
        "groups": {group: points["group", group] for group in tasks_by_group(tasks)},
        "macro": points["macro"],
        "micro": points["micro"],
        "intervals": spread | {"videos": len(ours[1]), "resamples": resamples},
    }


def _by_video(items: list[GradedAnswer], scorer: str) -> tuple[list[str], np.ndarray, np.ndarray]:
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
    for group, members in tasks_by_group(tasks).items():
        found["group", group] = mean([tasks.index(task) for task in members])
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
            for group, members in tasks_by_group(tasks).items()
        },
        "macro": interval("macro", every),
        "micro": interval("micro", every),
        "confidence": confidence,
    }


def _paired(first, second) -> tuple[list[GradedAnswer], list[GradedAnswer]]:
    first, second = graded_answers(first), graded_answers(second)
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


def mcnemar(first: Iterable[dict | GradedAnswer], second: Iterable[dict | GradedAnswer]) -> dict:
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
    first: Iterable[dict | GradedAnswer], second: Iterable[dict | GradedAnswer], resamples: int = 9999, seed: int = 0
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


def calibration(items: Iterable[dict | GradedAnswer], bins: int = 10) -> dict:
    """
    Whether answers are as often right as the model's probability of them says. `bins`: equal widths from 0 to 1 (upper
    ends belong to them), each with `low`, `high`, `count`, `confidence` (mean probability of the chosen option among
    the offered) and `accuracy`, None where empty; `ece`: the mean of their gaps by count; `count`: questions with
    logits, no others count.
    """
    items = [item for item in graded_answers(items) if item.logits is not None]
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


def option_robustness(runs: Sequence[Iterable[dict | GradedAnswer]]) -> dict:
    """
    Runs of the same questions with their options permuted (`GradedAnswer.order`): `accuracies` (micro) and
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
        "accuracy": unweighted_mean(accuracies),
        "macros": macros,
        "macro": unweighted_mean(macros),
        "same_share": unweighted_mean(steady),
    }
