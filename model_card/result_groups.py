"""Results of an adapter and its base model: whose they are, and which of them compare."""

from collections import defaultdict
from dataclasses import dataclass, replace
from operator import eq
from os import PathLike
from pathlib import Path

from gazeqwen.configuration_gazeqwen import GazeQwenConfig
from gazeqwen.evaluation.report import model_index
from gazeqwen.evaluation.results import Result, read_result
from gazeqwen.utils.hub import digest_of_adapter


@dataclass(frozen=True)
class ResultGroup:
    """Results on the same questions: of the adapter, and perhaps of its base model, which takes no gaze."""

    own: list[Result]
    base: list[Result]

    @property
    def kind(self) -> str:
        return self.own[0].kind

    @property
    def headline(self) -> Result:
        """The one that has the adapter's own gaze, or else the first."""
        return next((result for result in self.own if "gaze" in result.scores), self.own[0])


def read_measured_result(path: str | PathLike) -> Result:
    """Read a result file. Raises what `read_result` raises, and ValueError for the published rows."""
    result = read_result(path)
    if result is None:
        raise ValueError(f"{path}: published rows, nothing that was measured; expected what eval.py --output writes")
    return result


def _same_source(one: str | None, other: str | None) -> bool:
    """Return whether two ids or folders are the same, where one may be a path from another folder."""
    if one is None or other is None:
        return one == other
    parts, other_parts = Path(one).parts, Path(other).parts
    shorter = min(len(parts), len(other_parts))
    return parts[-shorter:] == other_parts[-shorter:]


def _check_adapter(result: Result, folder: Path, config: GazeQwenConfig) -> None:
    """Raise ValueError if a result says that it is of another adapter than the folder's."""
    there, here = dict(result.settings["adapter"]), config.to_dict()
    names = [name for name in GazeQwenConfig.__annotations__ if name in there and name in here]
    if result.settings.get("weights"):  # results of earlier versions do not say it
        there["weights"] = result.settings["weights"]
        here["weights"] = digest_of_adapter(folder, None, config.has_lora)
        names.append("weights")
    changed = []
    for name in names:
        same = _same_source if name.endswith("_name_or_path") else eq
        if not same(there[name], here[name]):
            changed.append(f"{name}: {there[name]!r} there, {here[name]!r} here")
    if changed:
        raise ValueError(
            f"{result.path}: a result of {result.settings.get('model')}, which is another adapter than {folder} "
            f"({'; '.join(changed)})"
        )


def group_results(folder: Path, config: GazeQwenConfig, results: list[Result]) -> list[ResultGroup]:
    """
    Return the results of an adapter and of its base model by what they were measured on. Raises ValueError naming the
    files for results of another model, and for those that cannot stand in one table or on one card.
    """
    groups: dict[tuple, ResultGroup] = defaultdict(lambda: ResultGroup([], []))
    for result in results:
        key = tuple(result.same[name] for name in ("data", "config", "split", "scorer"))
        if result.settings.get("adapter"):
            _check_adapter(result, folder, config)
            groups[key].own.append(result)
        elif _same_source(result.settings.get("model"), config.base_model_name_or_path):
            groups[key].base.append(result)
        else:
            raise ValueError(
                f"{result.path}: a result of {result.settings.get('model')}, expected one of the adapter in {folder} "
                f"or of its base model {config.base_model_name_or_path}"
            )
    rows: dict[tuple, ResultGroup] = {}  # of the card's metadata, which tell results apart by these three alone
    for group in groups.values():
        _check_group(group)
        row = (group.kind, group.own[0].same["config"], group.own[0].same["split"])
        if row in rows:
            paths = " and ".join(str(each.own[0].path) for each in (rows[row], group))
            raise ValueError(f"{paths}: both on {', '.join(map(str, row))}, measured differently; give one of them")
        rows[row] = group
    return list(groups.values())


# Settings of a result that two rows of one table must share.
_SHARED_SETTINGS = (
    *("num_frames", "fps", "max_frames", "sampling", "frame_size"),
    *("prompt_style", "snap_s", "tasks", "without_gaze"),
)


def _check_group(group: ResultGroup) -> None:
    """Raise ValueError naming two files whose rows do not belong in one table: asked differently, or given twice."""
    everything = group.own + group.base
    if not group.own:
        raise ValueError(
            f"{everything[0].path}: a result of the base model, with none of the adapter on the same data"
        )
    first = everything[0]
    expected = _shared_settings(first)
    for result in everything[1:]:
        settings = _shared_settings(result)
        changed = [
            f"{name}: {expected[name]!r} and {settings[name]!r}"
            for name in expected
            if name in settings and expected[name] != settings[name]
        ]
        if changed:
            raise ValueError(f"{first.path} and {result.path} do not compare: {'; '.join(changed)}")
    for results in (group.own, group.base):
        where: dict[str, Path] = {}
        for result in results:
            for condition in result.scores:
                if condition in where:
                    raise ValueError(f"{where[condition]} and {result.path}: both hold the condition {condition!r}")
                where[condition] = result.path


def _shared_settings(result: Result) -> dict:
    return {name: result.settings[name] for name in _SHARED_SETTINGS if name in result.settings} | result.same


def model_index_of_adapter(name: str, groups: list[ResultGroup]) -> list[dict]:
    """Return `report.model_index` of the adapter's results, under one name: a card is one model's."""
    index = model_index([replace(group.headline, name=name) for group in groups])
    return [{"name": name, "results": [row for entry in index for row in entry["results"]]}]
