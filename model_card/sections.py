"""What stands in the sections of an adapter's card: tables and sentences."""

import json
import math
import re
from pathlib import Path

from safetensors import safe_open

from gazeqwen.configuration_gazeqwen import GazeQwenConfig
from gazeqwen.evaluation.report import sampling
from gazeqwen.evaluation.results import CENTRE, OTHER, STREAMGAZE, TOY_WORLD, WITHOUT_GAZE, Result
from gazeqwen.evaluation.scoring import sorted_tasks
from gazeqwen.model_card.result_groups import ResultGroup
from gazeqwen.model_card.runs import Run
from gazeqwen.questions.tasks import task_info
from gazeqwen.utils.hub import ADAPTER_WEIGHTS
from gazeqwen.utils.tables import Table, percent

BENCHMARKS = Path(__file__).parent.parent / "benchmarks" / "results"
SHUFFLED = "shuffled"
_CONDITIONS = {
    "gaze": "**its own gaze**",
    WITHOUT_GAZE: "no gaze: the base model (control)",
    SHUFFLED: "another video's gaze (control)",
    CENTRE: "gaze held in the middle of the frame (control)",
    "random_place": "gaze at its own times, at places drawn evenly (control)",
    "permuted_times": "its own places, in another order (control)",
    "shifted": "its own gaze, moved by half the clip",
    "zero": "gaze without a fixation",
    "text": "its own gaze, as coordinates in the prompt",
    "overlay": "its own gaze, drawn on the frames",
    "ring": "its own gaze, drawn as a white ring on the frames",
    "saliency": "its own gaze, as a saliency map on the frames",
    "text_only": "no video: the question alone",
}


def _describe_condition(condition: str) -> str:
    """Return a condition of `eval.py` in words; one without words as it is."""
    if noise := re.fullmatch(r"noise(\d+)", condition):
        return f"its own gaze, with noise of {noise[1]} % of the frame"
    return _CONDITIONS.get(condition, condition)


def result_section(group: ResultGroup) -> dict[str, str]:
    """Return title, table and sentences of the results on the same questions, in Markdown."""
    result = group.headline
    tasks = sorted_tasks(result.tasks)
    first = [result.headline, WITHOUT_GAZE, SHUFFLED, CENTRE]
    conditions = [(one, condition) for one in group.own + group.base for condition in one.scores]
    conditions.sort(key=lambda row: first.index(row[1]) if row[1] in first else len(first))
    rows, means = [], {}
    for one, condition in conditions:
        values = one.scores[condition]
        label = _describe_condition(condition)
        # Without gaze the adapter is its base model.
        if one in group.own or (condition == WITHOUT_GAZE and condition not in means):
            means[condition] = values["macro"]
        else:
            label = f"base model: {label.split(':')[0] if condition == WITHOUT_GAZE else label}"
        accuracies = {task: score["accuracy"] for task, score in values["tasks"].items()}
        mean = percent(values["macro"], one.intervals.get(condition, {}).get("macro"))
        rows.append([label, *(percent(accuracies.get(task)) for task in tasks), mean])
    counts = {name.removeprefix("questions of "): n for name, n in result.same.items() if name.startswith("questions")}
    rows.append(["answers", *(str(counts[task]) for task in tasks), str(sum(counts.values()))])
    interval = " [95 %]" if any(one.intervals for one in group.own) else ""
    table = Table(["gaze given", *(task_info(task).abbreviation for task in tasks), f"mean{interval}"], rows)
    return {
        "title": f"{_data_name(result)}, split `{result.same['split']}`",
        "table": table.markdown(),
        "says": _gain_sentence(means, result),
        "how": _method_sentence(result),
    }


def _data_name(result: Result) -> str:
    names = {STREAMGAZE: "StreamGaze", TOY_WORLD: "Toy world (not StreamGaze)", OTHER: result.data_name}
    config = result.same["config"]
    return names[result.kind] + ("" if config == "default" else f", splits of `{config}`")


def _gain_sentence(means: dict[str, float], result: Result) -> str:
    """Return what the controls say of the headline of a result, and which of them were not run."""
    headline = result.headline
    controls = {
        WITHOUT_GAZE: "no gaze",
        SHUFFLED: "another video's gaze",
        CENTRE: "gaze held in the middle of the frame",
    }
    run = [
        f"{100 * (means[headline] - means[control]):+.1f} points over {words}"
        for control, words in controls.items()
        if control in means and control != headline
    ]
    absent = [f"**{controls[name]}** (`{name}`)" for name in (WITHOUT_GAZE, SHUFFLED) if name not in means]
    says = [f"Mean over the tasks with {_describe_condition(headline).strip('*')}: {percent(means[headline])} %"]
    if run:
        says[0] += f", {', '.join(run[:-1])}{' and ' if run[1:] else ''}{run[-1]}"
    if absent:
        says.append(
            f"Controls that were not run: {' and '.join(absent)}. Without them these numbers do not show that gaze "
            "made the difference"
        )
    if CENTRE not in means:
        says.append(f"Whether a point that never moves does as well is not known: `{CENTRE}` was not run")
    elif headline != CENTRE and result.is_reached(headline, means[CENTRE]):
        says.append("**A constant centre explains the answers as well**: it is not below the interval of the mean")
    return ". ".join(says) + "."


def _method_sentence(result: Result) -> str:
    """Return how a result was measured: scorer, frames, prompt, code, device."""
    settings, provenance = result.settings, result.provenance
    parts = [f"scored `{result.scorer}`", f"frames: {sampling(settings)}"]
    parts += [f"`{name}` {settings[name]}" for name in ("snap_s", "prompt_style") if settings.get(name) is not None]
    if seeds := result.pooled.get("seeds"):
        parts.append(f"mean of {len(seeds)} adapters, trained with the seeds {', '.join(map(str, seeds))}")
    code = (provenance.get("git") or "unknown")[:10]
    return f"{'; '.join(parts)}; code {code}, on {provenance.get('device', 'unknown')}"


def validation_section(validation: dict, recipe: dict) -> dict[str, str]:
    """Return what is known before any test: the accuracy by which the kept epoch was chosen."""
    gaze = recipe["data"]["gaze"]
    condition = _describe_condition(gaze) if gaze == "gaze" else f"gaze as in training: {_describe_condition(gaze)}"
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


def weight_counts(folder: Path, config: GazeQwenConfig) -> dict[str, str]:
    """Return how much an adapter's files hold. Raises FileNotFoundError for an absent one."""
    count, size = 0, 0
    for name in ADAPTER_WEIGHTS if config.has_lora else ADAPTER_WEIGHTS[:1]:
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not there, so that this is no adapter to write a card of")
        with safe_open(path, "np") as file:
            shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118, no dictionary
        count += sum(map(math.prod, shapes))
        size += path.stat().st_size
    return {"parameters": f"{count:,}", "megabytes": f"{size / 1e6:.1f}"}


def settings_table(folder: Path, config: GazeQwenConfig) -> Table:
    """Return a table of how gaze enters, and of how clips and questions are put to the model."""
    rows = []
    if config.has_resampler:
        layers = config.injection_layers
        rows += [
            ["`resampler_type`", config.resampler_type],
            ["`gaze_encoding`", config.gaze_encoding],
            ["`injection_layers`", "four, evenly spaced from the first on" if layers is None else str(layers)],
        ]
        if config.resampler_type == "attention":
            normalized = ", normalised" if config.normalize_features else ""
            rows.append(["`resampler_features`", config.resampler_features + normalized])
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


def training_section(run: Run, on_toy_world: bool) -> dict[str, str]:
    """Return what an adapter was trained on, in which stages, and with what else its recipe sets."""
    recipe, data = run.recipe, run.recipe["data"]
    stages = []
    for number in (1, 2):
        stage = recipe[f"stage{number}"]
        if stage["epochs"]:
            rates = []
            if recipe["adapter"]["resampler_type"] != "none":
                rates.append(f"the resampler at a rate of {stage['learning_rate']:g}")
            if number == 2:
                rates.append(f"LoRA at {stage['lora_learning_rate']:g}")
            stages.append(f"Stage {number}, epochs: {stage['epochs']} at most, trains {' and '.join(rates)}.")
    samples = recipe["batch_size"] * recipe["gradient_accumulation_steps"]
    more = [
        f"gaze given in training: {_describe_condition(data['gaze']).strip('*')}",
        f"{samples} samples a step and process",
        f"seed {recipe['seed']}",
    ]
    if data["tasks"]:
        more.append(f"tasks: {', '.join(data['tasks'])}")
    if data["balance_tasks"]:
        more.append("every task drawn as often as the others")
    if data["scanpath_noise"] or data["fixation_dropout"]:
        more.append(f"noise of {data['scanpath_noise']:g}, {data['fixation_dropout']:g} of the fixations dropped")
    if start := recipe.get("start_from"):  # of a folder nobody else knows the name
        more.append("began with a trained adapter" + ("" if Path(start).exists() else f", `{start}`"))
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


def timings_table(base: str, toy: bool) -> str | None:
    """
    Return a table of the committed measurement (benchmarks/bench_model.py) of a base model of this size; None if there
    is none.
    """
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
