"""
The adapter that comes with the package: GazeQwen trained on the toy world, to try things with at once. Its folder is
loaded like any other adapter's.

    python -m gazeqwen.toyworld.trained runs/evidence/gazeqwen-0/best    # keep another one
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from gazeqwen.questions.question import TOY_SOURCE
from gazeqwen.utils.command_line import one_line_errors
from gazeqwen.utils.files import atomic_folder, write_json

ADAPTER_DIR = Path(__file__).parent / "adapter"
PARTS = {"base_model_name_or_path": "../backbone", "video_encoder_name_or_path": "../video_encoder"}

TOY_NOTE = (
    "This is the toy model. It knows its toy world alone, where kitchen things are coloured shapes (a tomato is a red "
    "circle), so its answers about any other video mean nothing. The scanpath, its alignment and the pictures do."
)


def is_toy(model) -> bool:
    """Return whether a GazeQwen's base model is the toy world's, as the base model's own config says."""
    return getattr(model.backbone.config, "trained_on", None) == TOY_SOURCE


def keep(best: Path, folder: Path = ADAPTER_DIR) -> None:
    """Copy a run's adapter of the toy world, without code files, and with paths to the frozen models beside it."""
    with atomic_folder(folder) as files:
        shutil.copytree(best, files, ignore=shutil.ignore_patterns("*.py", "__pycache__"), dirs_exist_ok=True)
        for file in (files / "config.json", files / "processor_config.json"):
            write_json(file, _without(json.loads(file.read_text()), {"auto_map"}))
        config = json.loads((files / "config.json").read_text())
        write_json(files / "config.json", config | PARTS)
        for file in files.glob("lora/adapter_config.json"):
            name = "base_model_name_or_path"
            write_json(file, json.loads(file.read_text()) | {name: PARTS[name]})


def _without(values, names: set[str]):
    """Return the same JSON without the entries of these names, however deep."""
    if not isinstance(values, dict):
        return values
    return {name: _without(value, names) for name, value in values.items() if name not in names}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("best", type=Path, help="adapter of a run on the toy world")
    keep(parser.parse_args().best)


if __name__ == "__main__":
    with one_line_errors():
        main()
