"""Write cards for the Hub: an adapter's from its files and results, a dataset's from its report."""

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from huggingface_hub import DatasetCard, ModelCard, ModelCardData

from gazeqwen.configuration_gazeqwen import GazeQwenConfig
from gazeqwen.evaluation.results import TOY_WORLD
from gazeqwen.model_card.frozen_models import (
    display_name,
    family_of_adapter,
    frozen_models_table,
    is_hub_id,
    is_toy_backbone,
    license_of,
    uses_vjepa,
)
from gazeqwen.model_card.result_groups import group_results, model_index_of_adapter, read_measured_result
from gazeqwen.model_card.runs import read_run
from gazeqwen.model_card.sections import (
    result_section,
    settings_table,
    timings_table,
    training_section,
    validation_section,
    weight_counts,
)
from gazeqwen.questions.dataset_folder import render_dataset_card

TEMPLATE = Path(__file__).parent / "template.md"


def render_card(
    folder: str | PathLike, results: Sequence[str | PathLike] = (), repository: str | None = None
) -> ModelCard | DatasetCard:
    """
    Return the card of what a folder holds, an adapter or a dataset. Raises what `render_model_card` and
    `render_dataset_card` raise, ValueError for results of a dataset, and FileNotFoundError for a folder that holds
    neither.
    """
    folder = Path(folder)
    if (folder / "config.json").is_file():
        return render_model_card(folder, results, repository)
    if not (folder / "report.json").is_file():
        raise FileNotFoundError(f"{folder}: neither an adapter (config.json) nor a built dataset (report.json)")
    if results:
        raise ValueError(f"{folder}: a dataset, of which there are no results; got {', '.join(map(str, results))}")
    return render_dataset_card(folder, repository=repository)


def render_model_card(
    folder: str | PathLike, results: Sequence[str | PathLike] = (), repository: str | None = None
) -> ModelCard:
    """
    Return the card of a saved adapter.

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
    config = _read_config(folder)
    run = read_run(folder)
    groups = group_results(folder, config, [read_measured_result(path) for path in results])
    base = config.base_model_name_or_path
    on_toy_world = run.on_toy_world or {group.kind for group in groups} == {TOY_WORLD}
    toy = is_toy_backbone(base) or (on_toy_world and not is_hub_id(base))
    title = f"GazeQwen on {'the toy world' if toy else display_name(base)}"
    name = repository.split("/")[-1] if repository else (groups[0].own[0].name if groups else title)
    license_data, _ = license_of(base, toy)
    family = family_of_adapter(folder, base)
    tags = ["gaze", "eye-tracking", "egocentric-video", family.name.lower().replace(" ", "-")]
    tags += ["toy-world"] if toy else []
    data = ModelCardData(
        base_model=base if is_hub_id(base) else None,
        base_model_relation="adapter" if is_hub_id(base) else None,
        datasets=run.dataset_ids or None,
        language="en",
        library_name="transformers",
        pipeline_tag="video-text-to-text",
        tags=tags,
        metrics=["accuracy"] if groups else None,
        **license_data,
        **({"model-index": model_index_of_adapter(name, groups)} if groups else {}),
    )
    validation = run.validation if not groups else None
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        title=title,
        family=family.name,
        report=family.report,
        toy=toy,
        on_toy_world=on_toy_world,
        local_base=None if is_hub_id(base) or toy else display_name(base),
        source=repository or "path/to/this/folder",
        weights=weight_counts(folder, config),
        has_resampler=config.has_resampler,
        has_video_encoder=config.has_video_encoder,
        has_lora=config.has_lora,
        results=[result_section(group) for group in groups],
        validation=validation and validation_section(validation, run.recipe),
        settings=settings_table(folder, config).markdown(),
        parts=frozen_models_table(config, toy).markdown(),
        training=run.recipe and training_section(run, on_toy_world),
        streamgaze=run.on_streamgaze,
        vjepa=uses_vjepa(config, toy),
        timings=timings_table(base, toy),
    )


def _read_config(folder: Path) -> GazeQwenConfig:
    """Read an adapter's `config.json`. Raises FileNotFoundError or ValueError where it is none of an adapter."""
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


__all__ = ["render_card", "render_model_card"]
