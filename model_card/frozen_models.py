"""The frozen models of an adapter: ids, revisions, licences."""

import json
import re
from pathlib import Path

from gazeqwen.backbones_gazeqwen import FAMILIES, Family
from gazeqwen.configuration_gazeqwen import GazeQwenConfig
from gazeqwen.questions.question import TOY_SOURCE
from gazeqwen.utils.tables import NO_VALUE, Table

_APACHE = {"license": "apache-2.0"}
# Of the ids in the table of families those that are not under Apache-2.0, by their own cards: name, and in words. That
# of Qwen2-VL-72B was not at hand: Qwen's README says "the Qwen license", OpenRouter's page Tongyi Qianwen.
_OTHER_LICENSES = {
    "Qwen/Qwen2-VL-72B-Instruct": ("tongyi-qianwen", "Tongyi Qianwen License: commercial use under conditions"),
    "Qwen/Qwen2.5-VL-3B-Instruct": ("qwen-research", "Qwen Research License: not for commercial use"),
    "Qwen/Qwen2.5-VL-72B-Instruct": ("qwen", "Qwen License: commercial use under conditions"),
}


def is_hub_id(source: str | None) -> bool:
    """Return whether a source is an id on the Hub, by its form (user/name), and no folder that is there."""
    return bool(source) and re.fullmatch(r"[\w.-]+/[\w.-]+", source) is not None and not Path(source).is_dir()


def display_name(source: str) -> str:
    """Return an id as it is, of a folder its last name: where it lies is nobody else's business."""
    return source if is_hub_id(source) else Path(source).name


def is_toy_backbone(base: str | None) -> bool:
    """Return whether a base model is the toy world's, by what its own configuration says it was trained on."""
    path = Path(base or "") / "config.json"
    return path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("trained_on") == TOY_SOURCE


def family_of_adapter(folder: Path, base: str) -> Family:
    """
    Return the family of the base model of an adapter in a folder: by its id, or else as the processor beside it says;
    adapters without that word are older than all families but Qwen2.5-VL.
    """
    for family in FAMILIES.values():
        if base in family.ids:
            return family
    path, model_type = folder / "processor_config.json", "qwen2_5_vl"
    if path.is_file():
        model_type = json.loads(path.read_text(encoding="utf-8")).get("base_model_type", model_type)
    if model_type not in FAMILIES:
        raise ValueError(f"{path}: base_model_type is {model_type!r}, expected one of {sorted(FAMILIES)}")
    return FAMILIES[model_type]


def license_of(base: str, toy: bool) -> tuple[dict[str, str], str]:
    """Return the licence of an adapter on a base model: the card's metadata, and the base model's licence in words."""
    if toy:
        return _APACHE, "Apache-2.0, with the code"
    if base in _OTHER_LICENSES:
        name, words = _OTHER_LICENSES[base]
        link = f"https://huggingface.co/{base}/blob/main/LICENSE"
        return {"license": "other", "license_name": name, "license_link": link}, words
    if any(base in family.ids for family in FAMILIES.values()):
        return _APACHE, "Apache-2.0"
    if not is_hub_id(base):
        return {"license": "unknown"}, "not known here: check where it came from"
    link = f"https://huggingface.co/{base}"
    data = {"license": "other", "license_name": "see-base-model", "license_link": link}
    return data, "not known here: see its own card"


def uses_vjepa(config: GazeQwenConfig, toy: bool) -> bool:
    """Return whether the encoder is V-JEPA. Others are timm's, and the toy world's, which was never trained."""
    return config.has_video_encoder and not toy and "dinov2" not in config.video_encoder_name_or_path.lower()


def frozen_models_table(config: GazeQwenConfig, toy: bool) -> Table:
    """Return a table of the frozen models: where they are loaded from, which revision, whose terms."""
    base, encoder = config.base_model_name_or_path, config.video_encoder_name_or_path
    _, license_words = license_of(base, toy)
    rows = [["base model", base, config.base_model_revision, license_words]]
    if config.has_video_encoder:
        words = "see below" if uses_vjepa(config, toy) else "see its own card"
        if toy:
            words = "Apache-2.0, with the code: random weights"
        rows.append(["video encoder", encoder, config.video_encoder_revision, words])
    lines = []
    for part, source, revision, words in rows:
        place, version = f"a folder, `{display_name(source)}`", NO_VALUE
        if is_hub_id(source):
            place, version = f"[{source}](https://huggingface.co/{source})", "newest, not pinned"
        lines.append([part, place, f"`{revision}`" if revision else version, words])
    return Table(["frozen model", "from", "revision", "licence"], lines)
