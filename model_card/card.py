"""
Cards for the Hub, of what is known and no more: an adapter's from its files and results, a dataset's from its report.

    gazeqwen card runs/x/best --results runs/x/results.json
    gazeqwen card data/streamgaze --push user/name

Every number comes from a file that `eval.py`, `train.py` or a benchmark wrote. A result stands beside its controls (no
gaze, another video's gaze), or beside the sentence that they were not run.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import eq
from os import PathLike
from pathlib import Path

import yaml
from huggingface_hub import DatasetCard, ModelCard, ModelCardData
from safetensors import safe_open

from gazeqwen.configuration_gazeqwen import GazeQwenConfig
from gazeqwen.evaluation.report import model_index, sampling
from gazeqwen.evaluation.results import OTHER, STREAMGAZE, TOY_WORLD, WITHOUT_GAZE, Result, read_result
from gazeqwen.evaluation.scoring import sorted_tasks
from gazeqwen.questions.dataset_folder import VIDEO_SOURCES, render_dataset_card
from gazeqwen.questions.question import TOY_SOURCE
from gazeqwen.questions.tasks import task_info
from gazeqwen.utils.hub import ADAPTER_WEIGHTS, digest_of_adapter
from gazeqwen.utils.tables import Table, percent

TEMPLATE = Path(__file__).parent / "template.md"
BENCHMARKS = Path(__file__).parent.parent / "benchmarks" / "results"

SHUFFLED = "shuffled"
_CONDITIONS = {
    "gaze": "**its own gaze**",
    WITHOUT_GAZE: "no gaze: the base model (control)",
    SHUFFLED: "another video's gaze (control)",
    "shifted": "its own gaze, moved by half the clip",
    "zero": "gaze without a fixation",
    "text": "its own gaze, as coordinates in the prompt",
    "overlay": "its own gaze, drawn on the frames",
    "ring": "its own gaze, drawn as a white ring on the frames",
    "saliency": "its own gaze, as a saliency map on the frames",
    "text_only": "no video: the question alone",
}

# Licences as metadata, and in words; of other base models the card says where to look.
_APACHE = {"license": "apache-2.0"}
_QWEN_3B, _QWEN_7B = (f"Qwen/Qwen2.5-VL-{size}B-Instruct" for size in (3, 7))
_LICENSES = {
    _QWEN_7B: (_APACHE, "Apache-2.0"),
    _QWEN_3B: (
        {
            "license": "other",
            "license_name": "qwen-research",
            "license_link": f"https://huggingface.co/{_QWEN_3B}/blob/main/LICENSE",
        },
        "Qwen Research License: not for commercial use",
    ),
}


def render_card(
    folder: str | PathLike, results: Sequence[str | PathLike] = (), repository: str | None = None
) -> ModelCard | DatasetCard:
    """
    The card of what a folder holds, an adapter or a dataset. Raises what `render_model_card` and `render_dataset_card`
    raise, and ValueError for results of a dataset, FileNotFoundError for a folder that holds neither.
    """
    folder = Path(folder)
    if (folder / "config.json").is_file():
        return render_model_card(folder, results, repository)
    if not (folder / "report.json").is_file():
        raise FileNotFoundError(f"{folder}: neither an adapter (config.json) nor a built dataset (report.json)")
    if results:
        raise ValueError(f"{folder}: a dataset, of which there are no results; got {', '.join(map(str, results))}")
    return render_dataset_card(folder, repository=repository)


# ------------------------------------------------------------------ an adapter
def render_model_card(
    folder: str | PathLike, results: Sequence[str | PathLike] = (), repository: str | None = None
) -> ModelCard:
    """
    The card of a saved adapter.

    Args:
        folder: what `save_pretrained` wrote. Where its parent is a run of `train.py`, the card says how it was
            trained; without results, also the validation accuracy by which it was chosen.
        results: files of `eval.py --output`, of this adapter; those of its base model may be among them, on the same
            questions, for its row without gaze.
        repository: where it is, or will be, on the Hub.

    Raises FileNotFoundError for a folder or result that is not there, and ValueError naming the file for a result of
    another adapter, for results that contradict each other, or that were measured on the same data in different ways.
    """
    folder = Path(folder)
    config = _adapter_config(folder)
    run = Run.of(folder)
    groups = _grouped(folder, config, [_result(path) for path in results])
    base = config.base_model_name_or_path
    on_toy_world = run.on_toy_world or {group.kind for group in groups} == {TOY_WORLD}
    toy = _is_toy_backbone(base) or (on_toy_world and not _is_id(base))
    title = f"GazeQwen on {'the toy world' if toy else _shown(base)}"
    name = repository.split("/")[-1] if repository else (groups[0].own[0].name if groups else title)
    license_data, _ = _license(base, toy)
    tags = ["gaze", "eye-tracking", "egocentric-video", "qwen2.5-vl", *(["toy-world"] if toy else [])]
    data = ModelCardData(
        base_model=base if _is_id(base) else None,
        base_model_relation="adapter" if _is_id(base) else None,
        datasets=run.dataset_ids or None,
        language="en",
        library_name="transformers",
        pipeline_tag="video-text-to-text",
        tags=tags,
        metrics=["accuracy"] if groups else None,
        **license_data,
        **({"model-index": _one_model(name, groups)} if groups else {}),
    )
    validation = run.validation if not groups else None
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=title,
        toy=toy,
        on_toy_world=on_toy_world,
        local_base=None if _is_id(base) or toy else _shown(base),
        source=repository or "path/to/this/folder",
        weights=_weights(folder, config),
        has_resampler=config.has_resampler,
        has_lora=config.has_lora,
        results=[_section(group) for group in groups],
        validation=validation and _validation(validation, run.recipe),
        settings=_settings(folder, config).markdown(),
        parts=_parts(config, toy).markdown(),
        training=run.recipe and _training(run, on_toy_world),
        streamgaze=run.on_streamgaze,
        vjepa=_is_vjepa(config, toy),
        timings=_timings(base, toy),
    )


def _adapter_config(folder: Path) -> GazeQwenConfig:
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no adapter here, expected config.json")
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if kind != "gazeqwen":
        raise ValueError(f"{path}: model_type is {kind!r}, expected 'gazeqwen'")
    return GazeQwenConfig.from_pretrained(folder)


@dataclass(frozen=True)
class Run:
    """
    What a run of `train.py` left beside its adapter: its recipe, where its data came from, and how the kept epoch did
    in validation. `sources`: where the videos that it was trained on come from, see `Question`.
    """

    recipe: dict | None = None
    dataset_from_hub: bool = False
    validation: dict | None = None
    sources: tuple[str, ...] = ()

    @classmethod
    def of(cls, folder: Path) -> "Run":
        run = folder.resolve().parent
        if not (run / "recipe.yaml").is_file():
            return cls()
        recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
        provenance, validation = (
            json.loads((run / name).read_text(encoding="utf-8")) if (run / name).is_file() else None
            for name in ("provenance.json", "validation.json")
        )
        provenance = provenance or {}
        from_hub, sources = bool(provenance.get("dataset_from_hub")), tuple(provenance.get("sources", ()))
        return cls(recipe, from_hub, validation, sources)

    @property
    def dataset(self) -> str:
        """Id or folder of what it was trained on; empty where that is not known."""
        return self.recipe["data"]["dataset"] if self.recipe else ""

    @property
    def on_toy_world(self) -> bool:
        return self.sources == (TOY_SOURCE,)

    @property
    def on_streamgaze(self) -> bool:
        return bool(self.sources) and set(self.sources) <= VIDEO_SOURCES.keys()

    @property
    def dataset_ids(self) -> list[str]:
        """Ids on the Hub of what it was trained on; what was built from StreamGaze is StreamGaze's, too."""
        own = [self.dataset] * self.dataset_from_hub
        return own + ["danaleee/StreamGaze"] * (self.on_streamgaze and "danaleee/StreamGaze" not in own)


# ------------------------------------------------------------------ whose results they are
@dataclass(frozen=True)
class Group:
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


def _result(path: str | PathLike) -> Result:
    result = read_result(path)
    if result is None:
        raise ValueError(f"{path}: published rows, nothing that was measured; expected what eval.py --output writes")
    return result


def _same_source(one: str | None, other: str | None) -> bool:
    """Whether two ids or folders are the same, where one may be a path from another folder."""
    if one is None or other is None:
        return one == other
    a, b = (Path(source).parts for source in (one, other))
    shorter = min(len(a), len(b))
    return a[-shorter:] == b[-shorter:]


def _check_adapter(result: Result, folder: Path, config: GazeQwenConfig) -> None:
    """Raise ValueError if a result says that it is of another adapter than the folder's."""
    said, here = dict(result.settings["adapter"]), config.to_dict()
    names = [name for name in GazeQwenConfig.__annotations__ if name in said and name in here]
    if result.settings.get("weights"):  # results of earlier versions do not say it
        said["weights"], here["weights"] = result.settings["weights"], digest_of_adapter(folder, None, config.has_lora)
        names.append("weights")
    changed = [
        f"{name}: {said[name]!r} there, {here[name]!r} here"
        for name in names
        if not (_same_source if name.endswith("_name_or_path") else eq)(said[name], here[name])
    ]
    if changed:
        raise ValueError(
            f"{result.path}: a result of {result.settings.get('model')}, which is another adapter than {folder} "
            f"({'; '.join(changed)})"
        )


def _grouped(folder: Path, config: GazeQwenConfig, results: list[Result]) -> list[Group]:
    found: dict[tuple, Group] = defaultdict(lambda: Group([], []))
    for result in results:
        key = tuple(result.same[name] for name in ("data", "config", "split", "scorer"))
        if result.settings.get("adapter"):
            _check_adapter(result, folder, config)
            found[key].own.append(result)
        elif _same_source(result.settings.get("model"), config.base_model_name_or_path):
            found[key].base.append(result)
        else:
            raise ValueError(
                f"{result.path}: a result of {result.settings.get('model')}, expected one of the adapter in {folder} "
                f"or of its base model {config.base_model_name_or_path}"
            )
    shown: dict[tuple, Group] = {}
    for group in found.values():
        _check_group(group)
        same = (group.kind, group.own[0].same["config"], group.own[0].same["split"])
        if same in shown:  # a model-index tells results apart by these alone
            paths = " and ".join(str(each.own[0].path) for each in (shown[same], group))
            raise ValueError(f"{paths}: both on {', '.join(map(str, same))}, measured differently; give one of them")
        shown[same] = group
    return list(found.values())


_ASKED = ("num_frames", "fps", "max_frames", "frame_size", "prompt_style", "snap_s", "tasks", "without_gaze")


def _check_group(group: Group) -> None:
    """Raise ValueError where rows of one table were not asked the same questions, in the same way, once."""
    everything = group.own + group.base
    if not group.own:
        raise ValueError(
            f"{everything[0].path}: a result of the base model, with none of the adapter on the same data"
        )
    first = everything[0]
    asked, *others = ({n: one.settings[n] for n in _ASKED if n in one.settings} | one.same for one in everything)
    for result, other in zip(everything[1:], others, strict=True):
        changed = [
            f"{name}: {asked[name]!r} and {other[name]!r}"
            for name in asked
            if name in other and asked[name] != other[name]
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


def _one_model(name: str, groups: list[Group]) -> list[dict]:
    """`report.model_index` of the adapter's results, under one name: a card is one model's."""
    index = model_index([replace(group.headline, name=name) for group in groups])
    return [{"name": name, "results": [row for entry in index for row in entry["results"]]}]


# ------------------------------------------------------------------ what the card shows
def _words(condition: str) -> str:
    noise = re.fullmatch(r"noise(\d+)", condition)
    return f"its own gaze, with noise of {noise[1]} % of the frame" if noise else _CONDITIONS.get(condition, condition)


def _section(group: Group) -> dict[str, str]:
    """Title, table and sentences of the results on the same questions."""
    result = group.headline
    tasks = sorted_tasks(result.tasks)
    first = [result.headline, WITHOUT_GAZE, SHUFFLED]
    conditions = [(one, condition) for one in group.own + group.base for condition in one.scores]
    conditions.sort(key=lambda row: first.index(row[1]) if row[1] in first else len(first))
    rows, means = [], {}
    for one, condition in conditions:
        values = one.scores[condition]
        label = _words(condition)
        # Without gaze the adapter is its base model.
        if one in group.own or (condition == WITHOUT_GAZE and condition not in means):
            means[condition] = values["macro"]
        else:
            label = f"base model: {label.split(':')[0] if condition == WITHOUT_GAZE else label}"
        accuracies = {task: of["accuracy"] for task, of in values["tasks"].items()}
        mean = percent(values["macro"], one.intervals.get(condition, {}).get("macro"))
        rows.append([label, *(percent(accuracies.get(task)) for task in tasks), mean])
    counts = {name.removeprefix("questions of "): n for name, n in result.same.items() if name.startswith("questions")}
    rows.append(["answers", *(str(counts[task]) for task in tasks), str(sum(counts.values()))])
    interval = " [95 %]" if any(one.intervals for one in group.own) else ""
    table = Table(["gaze given", *(task_info(task).abbreviation for task in tasks), f"mean{interval}"], rows)
    return {
        "title": f"{_data_name(result)}, split `{result.same['split']}`",
        "table": table.markdown(),
        "says": _gain(means, result.headline),
        "how": _how(result),
    }


def _data_name(result: Result) -> str:
    named = {STREAMGAZE: "StreamGaze", TOY_WORLD: "Toy world (not StreamGaze)", OTHER: result.data_name}
    config = result.same["config"]
    return named[result.kind] + ("" if config == "default" else f", splits of `{config}`")


def _gain(means: dict[str, float], headline: str) -> str:
    """What the controls say of the headline, and which of them were not run."""
    controls = {WITHOUT_GAZE: "no gaze", SHUFFLED: "another video's gaze"}
    run = [
        f"{100 * (means[headline] - means[control]):+.1f} points over {named}"
        for control, named in controls.items()
        if control in means and control != headline
    ]
    absent = [f"**{named}** (`{control}`)" for control, named in controls.items() if control not in means]
    says = [f"Mean over the tasks with {_words(headline).strip('*')}: {percent(means[headline])} %"]
    if run:
        says[0] += f", {' and '.join(run)}"
    if absent:
        says.append(
            f"Controls that were not run: {' and '.join(absent)}. Without them these numbers do not show that gaze "
            "made the difference"
        )
    return ". ".join(says) + "."


def _how(result: Result) -> str:
    settings, provenance = result.settings, result.provenance
    parts = [f"scored `{result.scorer}`", f"frames: {sampling(settings)}"]
    parts += [f"`{name}` {settings[name]}" for name in ("snap_s", "prompt_style") if settings.get(name) is not None]
    if seeds := result.pooled.get("seeds"):
        parts.append(f"mean of {len(seeds)} adapters, trained with the seeds {', '.join(map(str, seeds))}")
    code = (provenance.get("git") or "unknown")[:10]
    return f"{'; '.join(parts)}; code {code}, on {provenance.get('device', 'unknown')}"


def _validation(validation: dict, recipe: dict) -> dict[str, str]:
    """What is known before any test: by which accuracy the epoch was chosen."""
    gaze = recipe["data"]["gaze"]
    condition = _words(gaze) if gaze == "gaze" else f"gaze as in training: {_words(gaze)}"
    table = None
    if validation.get("macro") is not None:
        tasks = sorted_tasks(validation["tasks"])
        accuracies = [percent(validation["tasks"][task]["accuracy"]) for task in tasks]
        totals = [validation["tasks"][task]["total"] for task in tasks]
        header = ["gaze given", *(task_info(task).abbreviation for task in tasks), "mean"]
        rows = [[condition, *accuracies, percent(validation["macro"])]]
        rows.append(["answers", *map(str, totals), str(sum(totals))])
        table = Table(header, rows).markdown()
    loss = validation.get("text_loss")
    return {
        "split": recipe["data"]["validation_split"],
        "stage": validation["stage"],
        "epoch": validation["epoch"],
        "table": table,
        "text_loss": None if loss is None else f"{loss:.3f}",
    }


def _weights(folder: Path, config: GazeQwenConfig) -> dict[str, str]:
    """How much the adapter holds, by its files."""
    count, size = 0, 0
    for name in ADAPTER_WEIGHTS[: 1 + bool(config.has_lora)]:
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not there, so that this is no adapter to write a card of")
        with safe_open(path, "np") as file:
            shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118, no dictionary
        count += sum(map(math.prod, shapes))
        size += path.stat().st_size
    return {"parameters": f"{count:,}", "megabytes": f"{size / 1e6:.1f}"}


def _settings(folder: Path, config: GazeQwenConfig) -> Table:
    """How gaze enters, and how clips and questions are put."""
    rows = []
    if config.has_resampler:
        layers = config.injection_layers
        rows += [
            ["`resampler_type`", config.resampler_type],
            ["`gaze_encoding`", config.gaze_encoding],
            ["`injection_layers`", "four, evenly spaced from the first on" if layers is None else str(layers)],
        ]
        if config.resampler_type == "attention":
            size = f"{config.num_latents} latents of width {config.latent_dim}, {config.num_blocks} blocks"
            rows.append(
                ["resampler", size + (", shared by the layers" if config.share_resampler else ", one per layer")]
            )
    lora = "none"
    if config.has_lora:
        adapter = json.loads((folder / "lora" / "adapter_config.json").read_text(encoding="utf-8"))
        lora = f"rank {adapter['r']}, alpha {adapter['lora_alpha']:g}, on queries and values; off without gaze"
    rows.append(["LoRA", lora])
    path = folder / "processor_config.json"
    if path.is_file():
        processor = json.loads(path.read_text(encoding="utf-8"))
        rows.append(["frames of a clip", sampling(processor)])
        rows += [[f"`{name}`", str(processor[name])] for name in ("snap_s", "prompt_style") if name in processor]
    return Table(["setting", "value"], rows)


def _training(run: Run, on_toy_world: bool) -> dict[str, str]:
    recipe, data = run.recipe, run.recipe["data"]
    stages = []
    for number in (1, 2):
        stage = recipe[f"stage{number}"]
        if stage["epochs"]:
            resampler = recipe["adapter"]["resampler_type"] != "none"
            rates = [f"the resampler at a rate of {stage['learning_rate']:g}"] * resampler
            rates += [f"LoRA at {stage['lora_learning_rate']:g}"] * (number == 2)
            stages.append(f"Stage {number}, epochs: {stage['epochs']} at most, trains {' and '.join(rates)}.")
    samples = recipe["batch_size"] * recipe["gradient_accumulation_steps"]
    more = [
        f"gaze given in training: {_words(data['gaze']).strip('*')}",
        f"{samples} samples a step and process",
        f"seed {recipe['seed']}",
    ]
    if data["tasks"]:
        more.append(f"tasks: {', '.join(data['tasks'])}")
    if data["balance_tasks"]:
        more.append("every task drawn as often as the others")
    if data["scanpath_noise"] or data["fixation_dropout"]:
        more.append(f"noise of {data['scanpath_noise']:g}, {data['fixation_dropout']:g} of the fixations dropped")
    if recipe["model"]["load_in_4bit"]:
        more.append("base model in 4 bits")
    dataset = f"`{run.dataset if run.dataset_from_hub else Path(run.dataset).name}`"
    if on_toy_world:
        dataset = "The toy world"
    return {
        "data": f"{dataset}, split `{data['train_split']}`, config `{data['config']}`",
        "stages": " ".join(stages),
        "more": "; ".join(more),
    }


# ------------------------------------------------------------------ base model, encoder, data: ids and licences
def _is_id(source: str | None) -> bool:
    """Whether it is an id on the Hub, by its form; a folder of that form is none."""
    return bool(source) and re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None and not Path(source).is_dir()


def _is_toy_backbone(base: str | None) -> bool:
    """Say whether a base model is the toy world's, by what its own configuration says it was trained on."""
    path = Path(base or "") / "config.json"
    return path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("trained_on") == TOY_SOURCE


def _shown(source: str) -> str:
    """An id, or a folder's name: where it lies is nobody else's business."""
    return source if _is_id(source) else Path(source).name


def _license(base: str, toy: bool) -> tuple[dict[str, str], str]:
    """Of an adapter on this base model: as metadata, and the base model's in words."""
    if toy:
        return _APACHE, "Apache-2.0, with the code"
    if base in _LICENSES:
        return _LICENSES[base]
    if not _is_id(base):
        return {"license": "unknown"}, "not known here: check where it came from"
    link = f"https://huggingface.co/{base}"
    data = {"license": "other", "license_name": "see-base-model", "license_link": link}
    return data, "not known here: see its own card"


def _is_vjepa(config: GazeQwenConfig, toy: bool) -> bool:
    """The other encoders are timm's, and the toy world's, which was never trained."""
    return config.has_resampler and not toy and "dinov2" not in config.video_encoder_name_or_path.lower()


def _parts(config: GazeQwenConfig, toy: bool) -> Table:
    """The frozen models: where they are loaded from, which revision, whose terms."""
    base, encoder = config.base_model_name_or_path, config.video_encoder_name_or_path
    _, license_words = _license(base, toy)
    rows = [["base model", base, config.base_model_revision, license_words]]
    if config.has_resampler:
        words = "see below" if _is_vjepa(config, toy) else "see its own card"
        if toy:
            words = "Apache-2.0, with the code: random weights"
        rows.append(["video encoder", encoder, config.video_encoder_revision, words])
    return Table(
        ["frozen model", "from", "revision", "licence"],
        [
            [
                part,
                f"[{source}](https://huggingface.co/{source})" if _is_id(source) else f"a folder, `{_shown(source)}`",
                f"`{revision}`" if revision else ("newest, not pinned" if _is_id(source) else "–"),
                words,
            ]
            for part, source, revision, words in rows
        ],
    )


# ------------------------------------------------------------------ memory and time
def _timings(base: str, toy: bool) -> str | None:
    """A table of the committed measurement of a model of this size (benchmarks/bench_model.py), if there is one."""
    size = re.search(r"-(\d+b)\b", base.lower())
    scale = "tiny" if toy else size and size[1]
    rows = []
    for path in sorted(BENCHMARKS.glob("model_*.json")):
        benchmark = json.loads(path.read_text(encoding="utf-8"))
        if benchmark["settings"]["scale"] != scale:
            continue
        device = benchmark["provenance"]["device"]
        for row in benchmark["rows"]:
            cells = []
            for case in ("base", "gaze", "gaze and encoder"):
                peak = row[case]["peak_memory_gb"]
                cells.append(f"{1000 * row[case]['seconds']:.1f}" + (f" ({peak:.1f} GB)" if peak else ""))
            rows.append([device, row["attention"], str(row["batch_size"]), str(row["tokens"]), *cells])
    header = ["device", "attention", "batch", "tokens", "base model", "gaze, features given", "gaze, encoder run"]
    return Table(header, rows).markdown() if rows else None


__all__ = ["render_card", "render_model_card"]
