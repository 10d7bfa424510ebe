"""How sure a score is: intervals over videos and seeds, tests, calibration, robustness to the options' order."""

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
    Return percentile bootstrap intervals [low, high] in the shape of `score`: `tasks`, `groups`, `macro`, `micro`; and
    `confidence`, `videos`, `seeds`, `resamples`. Videos are drawn with replacement, each with all its questions; None
    where there are fewer than two. A draw without any question of a task says nothing of that task. Where all draws
    are the same, such as at 100 %, see `_widened`.

    This is `scipy.stats.bootstrap(method="percentile")` of the videos, except that it takes all values from the same
    draws, and passes over draws that lack a task.
    """
    return intervals_over_seeds([items], scorer, confidence, resamples, seed)


def intervals_over_seeds(
    runs: Sequence[Iterable[dict | GradedAnswer]],
    scorer: str = "strict",
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict:
    """
    Return `intervals` of the mean over runs that differ in the seed of training and answered the same questions: of
    what to expect of another seed on other videos. Raises ValueError if the questions differ.

    Every draw has two parts. Videos are drawn as for one run, the same ones for every seed: seeds are crossed with
    videos, not nested in them, and a video that is hard is hard for all of them (Owen, "The pigeonhole bootstrap",
    2007). What seeds add is drawn from Student's t with one degree of freedom less than seeds, times the standard
    error of their mean, as for any few measurements; three or five are too few to draw from, since the percentiles of
    such draws can not reach beyond the best and the worst seed. The sum of both is the Behrens-Fisher distribution,
    whose intervals hold at least the stated confidence or nearly so (tests/test_statistics.py).
    """
    tasks, correct, total = _counts_of_runs(runs, scorer)
    draws = _draws(total.shape[1], resamples, seed)
    values = _accuracies_of_runs(tasks, correct, total, draws)
    bounds = _intervals_like_score(tasks, values, total, confidence, (0, 1), seed)
    return bounds | {"videos": total.shape[1], "seeds": len(runs), "resamples": resamples}


def paired_difference(
    first: Iterable[dict | GradedAnswer],
    second: Iterable[dict | GradedAnswer],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict:
    """
    Return the accuracy of `first` minus that of `second` on the same questions, as {"tasks", "groups", "macro",
    "micro"}, and their bootstrap `intervals`, from the same videos in both. Raises ValueError if the questions differ.
    """
    return paired_difference_over_seeds([first], [second], confidence, resamples, seed)


def paired_difference_over_seeds(
    first: Sequence[Iterable[dict | GradedAnswer]],
    second: Sequence[Iterable[dict | GradedAnswer]],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict:
    """
    Return `paired_difference` of the means over seeds, with intervals as `intervals_over_seeds` makes them of the
    differences between the runs with the same seed. A single run, such as a model that is not trained, is set against
    each seed of the other. Raises ValueError if questions or numbers of seeds differ.
    """
    seeds = max(len(first), len(second))
    if min(len(first), len(second)) not in (1, seeds) or not seeds:
        raise ValueError(f"got {len(first)} and {len(second)} seeds, expected as many in both, or one beside several")
    _pair_runs(first[0], second[0])
    tasks, *first_counts = _counts_of_runs(first, "strict")
    _, *second_counts = _counts_of_runs(second, "strict")
    return difference_of_counts(tasks, first_counts, second_counts, confidence, resamples, seed)


def difference_of_counts(
    tasks: list[str],
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict:
    """
    Return `paired_difference_over_seeds` from counts: `first` and `second` are each the numbers of questions answered
    right and of all questions, (S, V, tasks).
    """
    draws = _draws(first[0].shape[1], resamples, seed)
    values, others = (_accuracies_of_runs(tasks, *counts, draws) for counts in (first, second))
    differences = {name: accuracies - others[name] for name, accuracies in values.items()}
    points = {name: float(of_seeds[:, 0].mean()) for name, of_seeds in differences.items()}
    bounds = _intervals_like_score(tasks, differences, first[1], confidence, (-1, 1), seed)
    seeds = len(next(iter(differences.values())))
    return {
        "tasks": {task: points["task", task] for task in tasks},
        "groups": {group: points["group", group] for group in tasks_by_group(tasks)},
        "macro": points["macro"],
        "micro": points["micro"],
        "intervals": bounds | {"videos": first[0].shape[1], "seeds": seeds, "resamples": resamples},
    }


def _counts_of_runs(runs: Sequence, scorer: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return tasks, and (S, V, tasks) numbers of questions answered right and counted in each run of the same ones."""
    if not runs:
        raise ValueError("no runs, expected one for each seed")
    first = graded_answers(runs[0])
    counts = [_counts_by_video(_pair_runs(first, run)[1], scorer) for run in runs]
    tasks = counts[0][0]
    return tasks, *(np.stack([of_run[place] for of_run in counts]) for place in (1, 2))


def _counts_by_video(items: list[GradedAnswer], scorer: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return tasks, and (V, tasks) numbers of questions answered right and counted, videos sorted by name."""
    tasks = sorted_tasks(item.task for item in items)
    videos = {name: row for row, name in enumerate(sorted({item.video_name for item in items}))}
    correct, total = np.zeros((2, len(videos), len(tasks)))
    for item in items:
        mark, place = grade(item, scorer), (videos[item.video_name], tasks.index(item.task))
        if mark.correct is not None:
            correct[place] += mark.correct
            total[place] += 1
    return tasks, correct, total


def _draws(videos: int, resamples: int, seed: int) -> np.ndarray:
    """Return how often each video is drawn, as (1 + resamples, videos); in row 0 each video once: the value itself."""
    drawn = np.random.default_rng(seed).multinomial(videos, [1 / videos] * videos, size=resamples)
    return np.vstack([np.ones(videos), drawn])


def _accuracies_of_runs(tasks: list[str], correct: np.ndarray, total: np.ndarray, draws: np.ndarray) -> dict:
    """Return (S, R) accuracies by name, see `_accuracies`, from (S, V, tasks) counts and (R, V) draws of videos."""
    values = [
        _accuracies(tasks, draws @ right, draws @ counted) for right, counted in zip(correct, total, strict=True)
    ]
    return {name: np.stack([of_run[name] for of_run in values]) for name in values[0]}


def _accuracies(tasks: list[str], correct: np.ndarray, total: np.ndarray) -> dict:
    """Return (R,) accuracies from (R, tasks) counts, by task, group, macro and micro; NaN where nothing is counted."""
    with np.errstate(invalid="ignore"):
        accuracy = correct / total
        micro = correct.sum(1) / total.sum(1)

    def mean(columns: list[int]) -> np.ndarray:
        counted = total[:, columns] > 0
        included = counted | ~counted.any(0)  # a task never counted is 0, as in `score`
        with np.errstate(invalid="ignore"):
            return np.where(counted, accuracy[:, columns], 0).sum(1) / included.sum(1)

    accuracies = {("task", task): accuracy[:, column] for column, task in enumerate(tasks)}
    for group, members in tasks_by_group(tasks).items():
        accuracies["group", group] = mean([tasks.index(task) for task in members])
    return accuracies | {"macro": mean(list(range(len(tasks)))), "micro": micro}


def _intervals_like_score(
    tasks: list[str], values: dict, total: np.ndarray, confidence: float, span: tuple[float, float], seed: int
) -> dict:
    """
    Return the intervals of values in the shape of `score`. `values`: (S, 1 + R) by name, the value itself and its
    draws; `total`: (S, V, tasks) questions; `span`: the least and the largest that a value can be.
    """
    count, draws = next(iter(values.values())).shape
    of_seeds = np.random.default_rng([seed, 1]).standard_t(count - 1, draws - 1) if count > 1 else np.zeros(draws - 1)

    def interval(name, columns: list[int]) -> list[float] | None:
        videos = int((total[:, :, columns].sum((0, 2)) > 0).sum())
        if videos < 2:
            return None
        of_runs = values[name]
        error = of_runs[:, 0].std(ddof=1) / np.sqrt(count) if count > 1 else 0.0
        drawn = of_runs[:, 1:].mean(0) + error * of_seeds
        drawn = drawn[~np.isnan(drawn)]
        if np.ptp(drawn) < 1e-12:
            return _widened(float(of_runs[:, 0].mean()), videos, confidence, span)
        tail = (1 - confidence) / 2
        return [float(value) for value in np.quantile(drawn, [tail, 1 - tail]).clip(*span)]

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


def _widened(value: float, videos: int, confidence: float, span: tuple[float, float]) -> list[float]:
    """
    Return the interval of a value that is the same in every video, so that a bootstrap of them has no width. They say
    only how rare other videos are: of such that none is among `videos`, the share is at most 1 - tail ** (1 / videos)
    (Clopper and Pearson, 1934). In that share of videos anything within `span` may happen.

    At 100 % (span 0 to 1) this is the exact binomial interval with videos in place of questions. That is the smallest
    number of independent answers, and the honest one where nothing varies: the correlation within videos, from which
    Korn and Graubard (1998) take the effective number for clustered data, can not be estimated there.
    """
    unlike = 1 - ((1 - confidence) / 2) ** (1 / videos)
    low, high = span
    return [value - unlike * (value - low), value + unlike * (high - value)]


def _pair_runs(first, second) -> tuple[list[GradedAnswer], list[GradedAnswer]]:
    """Return both runs in the order of the first. Raises ValueError if their questions differ."""
    first, second = graded_answers(first), graded_answers(second)
    first_keys, second_keys = {item.key for item in first}, {item.key for item in second}
    if first_keys != second_keys:
        raise ValueError(
            f"runs of different questions cannot be compared: {len(first_keys)} and {len(second_keys)}, "
            f"of which {len(first_keys - second_keys)} and {len(second_keys - first_keys)} are not in the other"
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
    Return McNemar's test (statsmodels) of whether two runs get as many questions right: exact below 25 questions that
    only one of them gets right, chi-square with continuity correction from there. It takes questions for independent;
    see `permutation_test`.
    """
    from statsmodels.stats.contingency_tables import mcnemar as test

    table = np.zeros((2, 2), int)
    for item, other in zip(*_pair_runs(first, second), strict=True):
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
    Return a test of the difference of macro accuracy (first minus second): the share of exchanges between the runs,
    each video's answers exchanged together or not at all, that give as large a difference (scipy, two-sided; all
    exchanges if they are no more than `resamples`).
    """
    from scipy import stats

    pair = _pair_runs(first, second)
    (_, first_correct, total), (_, second_correct, _) = (_counts_by_video(items, "strict") for items in pair)
    share = 1 / total.sum(0) / total.shape[1]  # what a right answer to each task adds to the macro accuracy
    sums = first_correct @ share, second_correct @ share
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
    Return whether answers are as often right as the model's probability of them says. `bins`: equal widths from 0 to 1
    (upper ends belong to them), each with `low`, `high`, `count`, `confidence` (mean probability of the chosen option
    among the offered) and `accuracy`, None where empty; `ece`: the mean of their gaps by count; `count`: questions
    with logits, no others count.
    """
    items = [item for item in graded_answers(items) if item.logits is not None]
    if not items:
        raise ValueError("calibration needs logits, no question has them")
    probability = np.array([1 / np.exp(np.subtract(item.logits, max(item.logits))).sum() for item in items])
    correct = np.array([item.choice == item.answer for item in items], float)
    bin_of_answer = np.clip(np.ceil(probability * bins).astype(int) - 1, 0, bins - 1)
    table = []
    for index in range(bins):
        inside = bin_of_answer == index
        count = int(inside.sum())
        row = {"low": index / bins, "high": (index + 1) / bins, "count": count}
        row["confidence"] = float(probability[inside].mean()) if count else None
        row["accuracy"] = float(correct[inside].mean()) if count else None
        table.append(row)
    gaps = sum(row["count"] * abs(row["confidence"] - row["accuracy"]) for row in table if row["count"])
    return {"ece": gaps / len(items), "count": len(items), "bins": table}


def option_robustness(runs: Sequence[Iterable[dict | GradedAnswer]]) -> dict:
    """
    Return how runs of the same questions with their options permuted (`GradedAnswer.order`) agree: `accuracies`
    (micro) and `macros` of each, the means of both, and `same_share`, the share of questions answered with the same
    option in all of them (a failed answer is none). Raises ValueError for fewer than two runs.
    """
    first, *others = runs
    if not others:
        raise ValueError("got 1 permutation of the options, expected at least 2")
    runs = [_pair_runs(first, other) for other in others]
    runs = [runs[0][0], *(other for _, other in runs)]
    scores = [score(run) for run in runs]
    choices = [[item.original(item.choice) for item in items] for items in zip(*runs, strict=True)]
    steady = [len(set(options)) == 1 and options[0] is not None for options in choices]
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
