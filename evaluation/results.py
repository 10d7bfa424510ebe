"""Result files, read and checked."""

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path

from gazeqwen.evaluation.scoring import GROUPS, SCORERS, GradedAnswer, read_predictions, score
from gazeqwen.evaluation.statistics import intervals, paired_difference
from gazeqwen.questions.centrality import EVEN_PLACES
from gazeqwen.questions.question import TOY_SOURCE, sources_of
from gazeqwen.questions.tasks import TASKS, task_info
from gazeqwen.utils.settings import flat

PUBLISHED = Path(__file__).parent.parent / "results" / "published.json"


# Each in a table of its own; the published rows stand beside the first alone.
STREAMGAZE, TOY_WORLD, OTHER = KINDS = ("StreamGaze", "Toy world", "Other data")


WITHOUT_GAZE = "none"

# Of fewer, a bootstrap's interval is too narrow: one of 95 % holds the mean in half of all cases with two videos, and
# in nine of ten with ten (simulated, normal values).
FEWEST_VIDEOS = 10
CENTRE = "centre"  # the control that holds gaze in the middle of the frame


@dataclass(frozen=True, eq=False)
class Result:
    """
    Hold a result file; `items`: {condition: graded answers} where predictions are at hand; `gaze_centrality`: what
    `questions.centrality` says of the questions' gaze, where the file has it.
    """

    path: Path
    name: str
    scores: dict[str, dict]
    settings: dict
    provenance: dict
    scorer: str
    items: dict[str, list[GradedAnswer]]
    gaze_centrality: dict[str, float] | None = None

    @cached_property
    def kind(self) -> str:
        """Return whose data it is: the toy world's if all its videos come from there, otherwise by its tasks."""
        if self.sources == [TOY_SOURCE]:
            return TOY_WORLD
        return STREAMGAZE if all(task in TASKS for task in self.tasks) else OTHER

    @property
    def sources(self) -> list[str]:
        """Return where its videos come from, by the settings, or else by the predictions; empty if neither says."""
        questions = (item for items in self.items.values() for item in items)
        return self.settings.get("sources") or sources_of(questions)

    @cached_property
    def tasks(self) -> set[str]:
        return {task for values in self.scores.values() for task in values["tasks"]}

    @cached_property
    def headline(self) -> str:
        """Return the condition that stands for the model: `gaze` (also called `model`), or the file's first."""
        for name in ("gaze", "model"):
            if name in self.scores:
                return name
        return next(iter(self.scores))

    @cached_property
    def intervals(self) -> dict[str, dict]:
        """Return {condition: `statistics.intervals`}, where the file has them or predictions are at hand."""
        bounds = {name: intervals(items, self.scorer) for name, items in self.items.items()}
        bounds |= {name: values["intervals"] for name, values in self.scores.items() if values.get("intervals")}
        return {name: _of_enough_videos(values, self.items.get(name, [])) for name, values in bounds.items()}

    @cached_property
    def against_none(self) -> dict[str, dict]:
        """Return {condition: `paired_difference` from the same run without gaze}, where predictions are at hand."""
        base = self.items.get(WITHOUT_GAZE)
        if not base:
            return {}
        differences = {}
        for name, items in self.items.items():
            if name != WITHOUT_GAZE:
                difference = paired_difference(items, base)
                differences[name] = difference | {"intervals": _of_enough_videos(difference["intervals"], items)}
        return differences

    @property
    def has_few_videos(self) -> bool:
        """Return whether an interval is left out because too few videos stand behind it."""
        bounds = [*self.intervals.values(), *(difference["intervals"] for difference in self.against_none.values())]
        return any(None in (values["macro"], *values["tasks"].values()) for values in bounds)

    def is_reached(self, condition: str, accuracy: float) -> bool:
        """
        Return whether an accuracy lies within the interval of a condition's mean over the tasks, or above it. False
        where no interval is known: then nobody can say.
        """
        interval = self.intervals.get(condition, {}).get("macro")
        return interval is not None and accuracy >= interval[0]

    @property
    def explained_by_centre(self) -> dict[str, str]:
        """Return {condition: the same with gaze held at the centre} of those that the latter reaches."""
        pairs = {condition: _with_centre(condition, self.scores) for condition in self.scores}
        return {
            condition: control
            for condition, control in pairs.items()
            if control is not None and self.is_reached(condition, self.scores[control]["macro"])
        }

    @property
    def pooled(self) -> dict[str, list]:
        """Return {"seeds": those of the models whose mean it is}, empty if it is one model's."""
        seeds = self.settings.get("seeds") or []
        return {"seeds": seeds} if len(seeds) > 1 else {}

    @property
    def data_name(self) -> str:
        """Return what the data are called: where a folder lies is nobody else's business."""
        data = str(self.same["data"])
        return {STREAMGAZE: "StreamGaze", TOY_WORLD: "toy world (not StreamGaze)"}.get(
            self.kind, Path(data).name if Path(data).is_absolute() else data
        )

    @property
    def same(self) -> dict:
        """Return what results of one table must share."""
        totals, seeds = {}, len(self.pooled.get("seeds", [0]))  # each answers the same questions
        for values in self.scores.values():
            for task, counts in values["tasks"].items():
                totals[f"questions of {task}"] = counts.get("expected", counts["total"]) // seeds
        settings = {"data": self.settings.get("data"), "config": self.settings.get("config", "default")}
        return settings | {"split": self.settings.get("split"), "scorer": self.scorer} | totals


def _of_enough_videos(bounds: dict, items: list[GradedAnswer]) -> dict:
    """
    Return intervals with None in place of those that fewer than `FEWEST_VIDEOS` videos stand behind, by the answers
    where they are at hand, else by the number of videos of all tasks, where that is recorded.
    """
    videos = defaultdict(set)
    for item in items:
        videos[item.task].add(item.video_name)

    def kept(interval: list[float] | None, tasks: Iterable[str]) -> list[float] | None:
        count = len(set().union(*(videos[task] for task in tasks))) if items else bounds.get("videos", FEWEST_VIDEOS)
        return interval if count >= FEWEST_VIDEOS else None

    tasks = bounds["tasks"]
    groups = {
        group: kept(interval, [task for task in tasks if task_info(task).group == group])
        for group, interval in bounds.get("groups", {}).items()
    }
    means = {name: kept(bounds[name], tasks) for name in ("macro", "micro") if name in bounds}
    return bounds | {"tasks": {task: kept(tasks[task], [task]) for task in tasks}, "groups": groups} | means


def _with_centre(condition: str, conditions: Iterable[str]) -> str | None:
    """Return which of some conditions is `condition` with gaze held at the centre; None: none of them."""

    def words(name: str) -> frozenset[str]:
        return frozenset("model" if word == "gaze" else word for word in name.split("+"))

    wanted = [words(condition) | {CENTRE}]
    if words(condition) == {"model"}:  # which needs not be said
        wanted.append(frozenset({CENTRE}))
    return next((name for name in conditions if name != condition and words(name) in wanted), None)


def is_published(value) -> bool:
    """Return whether a file's content is that of the published rows."""
    return isinstance(value, dict) and "table_1" in value


def read_result(path: str | PathLike) -> Result | None:
    """
    Return a result file's content; None for the published rows, which are in every report. Raises ValueError naming
    the file and the value that is not as it should be, also where accuracies are not those of the counts or of the
    predictions.
    """
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if is_published(value):
        return None

    def check(valid, message: str) -> None:
        if not valid:
            raise ValueError(f"{path}: {message}")

    check(isinstance(value, dict), f"got {str(value)[:80]}, expected scores, settings and provenance")
    for key in ("scores", "settings", "provenance"):
        shown = str(value.get(key))[:80]
        check(isinstance(value.get(key), dict) and value[key], f"{key} is {shown}, expected an object")
    for condition, values in value["scores"].items():
        tasks = values.get("tasks") if isinstance(values, dict) else None
        check(isinstance(tasks, dict) and tasks, f"scores, {condition}: tasks are {tasks!r}, expected an object")
        for task, counts in tasks.items():
            keys = ("correct", "total", "accuracy")
            numbers = {key: counts.get(key) if isinstance(counts, dict) else None for key in keys}
            valid = all(isinstance(number, (int, float)) and number >= 0 for number in numbers.values())
            valid = valid and math.isclose(numbers["correct"], numbers["total"] * numbers["accuracy"], abs_tol=1e-6)
            check(valid, f"scores, {condition}, {task}: {numbers} do not fit")
        mean = sum(counts["accuracy"] for counts in tasks.values()) / len(tasks)
        macro = values.get("macro")
        valid = isinstance(macro, (int, float)) and math.isclose(macro, mean, abs_tol=1e-6)
        check(valid, f"scores, {condition}: macro is {macro!r}, but the mean of its {len(tasks)} tasks is {mean:.6f}")
    scorer = value.get("scorer", "strict")
    check(scorer in SCORERS, f"scorer is {scorer!r}, expected one of {SCORERS}")
    items = {}
    if value.get("predictions"):
        name = value["predictions"]
        is_beside = isinstance(name, str) and (path.parent / name).resolve().is_relative_to(path.parent.resolve())
        check(is_beside, f"predictions: got {name!r}, expected the name of a file beside it")
        file = path.parent / name
        check(file.is_file(), f"its predictions {file} are not there")
        items = read_predictions(file)
        if set(items) == {None} and len(value["scores"]) == 1:
            items = {next(iter(value["scores"])): items[None]}
        conditions = sorted(map(str, value["scores"]))
        message = f"{file} has conditions {sorted(map(str, items))}, scores {conditions}"
        check(set(items) & set(value["scores"]), message)
        items = {condition: items[condition] for condition in value["scores"] if condition in items}
        for condition, answers in items.items():
            rescored, macro = score(answers, scorer)["macro"], value["scores"][condition]["macro"]
            valid = math.isclose(rescored, macro, abs_tol=1e-6)
            check(valid, f"scores, {condition}: macro is {macro:.6f}, but that of {file} is {rescored:.6f}")
    central = value.get("gaze_centrality")
    if central is not None:
        numbers = [central.get(key) if isinstance(central, dict) else None for key in EVEN_PLACES]
        valid = all(isinstance(number, (int, float)) for number in numbers)
        check(valid, f"gaze_centrality is {central!r}, expected null or numbers for {', '.join(EVEN_PLACES)}")
    name = str(value.get("name") or path.stem)
    return Result(path, name, value["scores"], value["settings"], value["provenance"], scorer, items, central)


def check_comparable(results: list[Result]) -> None:
    """Raise ValueError with what differs between results that would share a table."""
    for first, other in itertools.combinations(results, 2):
        keys = [key for key in first.same if key in other.same and first.same[key] != other.same[key]]
        if keys:
            shown = "; ".join(f"{key}: {first.same[key]!r} and {other.same[key]!r}" for key in keys)
            raise ValueError(
                f"{first.path} and {other.path} differ, so that their rows do not compare ({shown}); "
                "--mixed shows them in one table, with these settings in a column"
            )


def differing(results: list[Result]) -> dict[str, list]:
    """Return {setting: its value in each result} of the settings, provenance and scorer that are not all the same."""
    settings = [
        flat({"scorer": result.scorer, **result.settings, "provenance": result.provenance}) for result in results
    ]
    names = dict.fromkeys(name for one in settings for name in one)
    values_by_name = {name: [one.get(name) for one in settings] for name in names}
    return {name: values for name, values in values_by_name.items() if len(set(map(repr, values))) > 1}


def task_columns(published: dict, results: list[Result], all_of_streamgaze: bool = False) -> list[str]:
    """
    Return the tasks of some results: StreamGaze's (all of them, if that is asked for) in the order of the paper's
    table, then those of people's own data.
    """
    order = list(published["table_1"]["rows"][0]["accuracy"])
    ten = sorted(TASKS, key=lambda task: order.index(TASKS[task].abbreviation))
    answered = {task for result in results for task in result.tasks}
    return [task for task in ten if all_of_streamgaze or task in answered] + sorted(answered - set(ten))


def group_gains(result: Result, condition: str) -> dict[str, tuple[float, list[float] | None]]:
    """
    Return {group, then `overall`: (gain over the same run without gaze, its interval where predictions are at hand)}.
    Accuracies and gains are from 0 to 1.
    """
    if condition in result.against_none:
        difference = result.against_none[condition]
        bounds = difference["intervals"]
        gains = {group: (value, bounds["groups"][group]) for group, value in difference["groups"].items()}
        return gains | {"overall": (difference["macro"], bounds["macro"])}
    tasks, base = (result.scores[name]["tasks"] for name in (condition, WITHOUT_GAZE))
    task_gains = {task: values["accuracy"] - base[task]["accuracy"] for task, values in tasks.items() if task in base}
    gains = {}
    for group in (*GROUPS, "own"):
        members = [value for task, value in task_gains.items() if task_info(task).group == group]
        if members:
            gains[group] = sum(members) / len(members), None
    if task_gains:
        gains["overall"] = sum(task_gains.values()) / len(task_gains), None
    return gains
