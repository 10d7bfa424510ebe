"""What a run keeps on disk: checkpoints to go on from, the log, and the best adapter."""

import dataclasses
import hashlib
import json
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file

from gazeqwen.adapter_files_gazeqwen import write_tensors
from gazeqwen.training.recipe import changed_settings
from gazeqwen.utils.files import atomic_folder, sync, write_json, write_text
from gazeqwen.utils.settings import differences

MANIFEST = "files.json"  # of a checkpoint: {file: {"bytes", "sha256"}}


# What a run writes into its folder, and in what order it is removed: where a recipe is, there is a run.
RUN_FILES = (
    *("checkpoints", "best", "tracker", "curves.png", "validation_predictions.jsonl", "validation.json", "log.jsonl"),
    *("provenance.json", "recipe.yaml"),
)


@dataclass
class Progress:
    """
    Hold where a run stands: `batches` micro-batches of `epoch` of `stage` are done, after `steps` optimizer steps of
    that stage. `best`: the best validation score with its stage and epoch, None before the first; `epochs_since_best`:
    epochs validated after it.
    """

    stage: int = 1
    epoch: int = 1
    batches: int = 0
    steps: int = 0
    epochs_since_best: int = 0
    best: dict | None = None
    finished: bool = False


def check_removable(run: Path) -> None:
    """Raise ValueError if the folder `run` holds a recipe.yaml beside no provenance that a run wrote."""
    if not (run / "recipe.yaml").exists():
        return
    try:
        ours = {"gazeqwen", "dataset_from_hub"} <= json.loads((run / "provenance.json").read_text("utf-8")).keys()
    except (OSError, AttributeError, ValueError):
        ours = False
    if not ours:
        raise ValueError(
            f"{run} holds a recipe.yaml, and no provenance.json of a run: --restart removes runs of train.py alone; "
            "choose another output_dir"
        )


def remove_run(run: Path) -> None:
    """Remove what a run wrote into the folder `run`, and nothing else. Raises ValueError as `check_removable` does."""
    check_removable(run)
    if (run / "recipe.yaml").exists():
        for name in RUN_FILES:
            if (run / name).is_dir():
                shutil.rmtree(run / name)
            else:
                (run / name).unlink(missing_ok=True)
        sync(run)


def check_settings(run: Path, settings: dict) -> None:
    """
    Raise ValueError if the folder `run` holds a run with other settings than a recipe's, a dictionary, naming the
    differences, or one whose recipe cannot be read.
    """
    recipe = run / "recipe.yaml"
    if not recipe.exists():
        return
    try:
        before = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{recipe}: not YAML ({error})") from None
    if not isinstance(before, dict):
        size = recipe.stat().st_size
        raise ValueError(
            f"{recipe}: holds no recipe ({size} bytes), as after a power cut, so that nobody knows what was trained; "
            "choose another output_dir, or --restart"
        )
    changed = changed_settings(before, settings)
    if changed:
        raise ValueError(
            f"{run} holds a run with other settings; choose another output_dir, or --restart:\n  "
            + "\n  ".join(changed)
        )


def check_data(run: Path, data: dict) -> None:
    """
    Raise ValueError if the folder `run` holds a run on other data, naming what differs: `data` are the digests of the
    questions of each split (`questions.digest`), as the run's provenance has them.
    """
    if not (run / "recipe.yaml").exists():
        return
    provenance = run / "provenance.json"
    try:
        before = dict(json.loads(provenance.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"{provenance}: does not say what data the run has ({error}); choose another output_dir, or --restart"
        ) from None
    if "data" not in before:
        print(f"{provenance}: of an older version, nobody can tell whether questions, gaze and videos are the same")
        return
    changed = differences(before["data"], data)
    if changed:
        raise ValueError(
            f"{run} holds a run on other data; choose another output_dir, or --restart:\n  " + "\n  ".join(changed)
        )


def last_checkpoint(run: Path) -> tuple[Path | None, dict[Path, str]]:
    """
    Return the last checkpoint of a run that is whole, None if it has none at all, and the damage of each later one, in
    words. Raises ValueError, naming checkpoints and damage, if none is whole.
    """
    damages: dict[Path, str] = {}
    for checkpoint in reversed(_checkpoints(run)):
        damage = _damage(checkpoint)
        if damage is None:
            return checkpoint, damages
        damages[checkpoint] = damage
    if damages:
        lines = [f"{checkpoint}: {damage}" for checkpoint, damage in damages.items()]
        raise ValueError(
            f"{run}: no checkpoint is whole; choose another output_dir, or --restart:\n  " + "\n  ".join(lines)
        )
    return None, {}


def _checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run, the oldest first: stage, epoch and step are written with leading zeros."""
    return sorted((run / "checkpoints").glob("stage*"))


def _damage(checkpoint: Path) -> str | None:
    """
    Return what a checkpoint lacks, in words; None if all its files have the sizes and digests of its manifest. Those
    that were written before there were manifests have to be readable.
    """
    try:
        if not (checkpoint / MANIFEST).exists():
            for name in ("trained", "optimizer", "random"):
                load_file(checkpoint / f"{name}.safetensors")
            read_progress(checkpoint)
            return None
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        for name, expected in manifest.items():
            content = (checkpoint / name).read_bytes()
            if len(content) != expected["bytes"]:
                return f"{name} has {len(content)} bytes, expected {expected['bytes']}"
            if hashlib.sha256(content).hexdigest() != expected["sha256"]:
                return f"{name} has another content than was written"
    except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        return str(error)
    return None


def _write_manifest(checkpoint: Path) -> None:
    """Write the sizes and digests of a checkpoint's files into it."""
    manifest = {}
    for path in sorted(checkpoint.iterdir()):
        content = path.read_bytes()
        manifest[path.name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    write_json(checkpoint / MANIFEST, manifest)


def read_progress(checkpoint: Path) -> tuple[Progress, list[dict]]:
    """Return where the run stood, and its log until then. Raises ValueError for files that do not say so."""
    progress = Progress(**json.loads((checkpoint / "progress.json").read_text(encoding="utf-8")))
    lines = (checkpoint / "log.jsonl").read_text(encoding="utf-8").splitlines()
    log = [json.loads(line) for line in lines]
    if not log:
        raise ValueError("log.jsonl is empty")
    return progress, log


def write_log(folder: Path, log: list[dict]) -> None:
    """Write the log, a line of JSON for each entry."""
    write_text(folder / "log.jsonl", "".join(json.dumps(line) + "\n" for line in log))


def save_checkpoint(
    run: Path,
    accelerator: Accelerator,
    model,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    log: list[dict],
    keep: int,
) -> None:
    """
    Write a checkpoint into the run's folder, and remove all but the last `keep`. It holds what `model` trains, the
    optimizer's moments, every process's random states, the progress and the log, and the sizes and digests of these.
    All processes call this; the main one writes.
    """
    random_states = gather_object([_random_states()])
    if accelerator.is_main_process:
        name = f"stage{progress.stage}-epoch{progress.epoch:04d}-step{progress.steps:08d}"
        trained = model.trained_parameters()
        with atomic_folder(run / "checkpoints" / name) as folder:
            write_tensors(folder / "trained.safetensors", {name: value.data for name, value in trained.items()})
            write_tensors(folder / "optimizer.safetensors", _moments(trained, optimizer))
            write_tensors(
                folder / "random.safetensors",
                {
                    f"{device}-{rank}": state
                    for rank, states in enumerate(random_states)
                    for device, state in states.items()
                },
            )
            write_log(folder, log)
            write_json(folder / "progress.json", dataclasses.asdict(progress))
            _write_manifest(folder)
        for old in _checkpoints(run)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def load_checkpoint(checkpoint: Path, accelerator: Accelerator, model, optimizer: torch.optim.Optimizer) -> None:
    """
    Put a checkpoint's weights into `model`, its moments into `optimizer`, and this process's random states in force.
    Raises ValueError, with the names, if the weights are not those that `model` trains.
    """
    trained, weights = model.trained_parameters(), load_file(checkpoint / "trained.safetensors")
    if weights.keys() != trained.keys():
        raise ValueError(
            f"{checkpoint}/trained.safetensors does not fit this model: {sorted(weights.keys() ^ trained.keys())}"
        )
    with torch.no_grad():
        for name, value in trained.items():
            value.copy_(weights[name])
    _load_moments(load_file(checkpoint / "optimizer.safetensors"), trained, optimizer)
    random_states, rank = load_file(checkpoint / "random.safetensors"), accelerator.process_index
    if f"cpu-{rank}" in random_states:
        torch.set_rng_state(random_states[f"cpu-{rank}"])
    if f"cuda-{rank}" in random_states and torch.cuda.is_available():
        torch.cuda.set_rng_state(random_states[f"cuda-{rank}"])


def _random_states() -> dict[str, torch.Tensor]:
    """Return the states of this process's random generators, by kind of device: `cpu` and, if there is one, `cuda`."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _moments(trained: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the optimizer's state by `<parameter>/<kind>`, such as `resampler.latents/exp_avg`."""
    return {
        f"{name}/{kind}": value
        for name, parameter in trained.items()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def _load_moments(moments: dict[str, torch.Tensor], trained: dict[str, torch.nn.Parameter], optimizer) -> None:
    """Put moments, as `_moments` returns them, into the optimizer of the parameters `trained`."""
    by_parameter: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, value in moments.items():
        parameter, _, kind = name.rpartition("/")
        by_parameter[parameter][kind] = value
    names = {id(parameter): name for name, parameter in trained.items()}
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    state = optimizer.state_dict()
    state["state"] = {index: by_parameter[name] for index, name in enumerate(order) if name in by_parameter}
    optimizer.load_state_dict(state)


def save_adapter(folder: Path, model, processor) -> None:
    """Write the adapter and its processor, in place of what `folder` holds, whole or not at all."""
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
