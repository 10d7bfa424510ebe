"""
The adapter that comes with the package: GazeQwen trained on the toy world, to try things with at once.

    python -m gazeqwen.toyworld.trained runs/evidence/gazeqwen-0/best    # keep another one
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from gazeqwen.configuration_gazeqwen import GazeQwenConfig
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.processing_gazeqwen import GazeQwenProcessor
from gazeqwen.toyworld.backbone import BACKBONE_DIR
from gazeqwen.toyworld.random_video_encoder import VIDEO_ENCODER_DIR
from gazeqwen.utils.command_line import one_line_errors
from gazeqwen.utils.files import atomic_folder, write_json

ADAPTER_DIR = Path(__file__).parent / "adapter"
PARTS = {"base_model_name_or_path": str(BACKBONE_DIR), "video_encoder_name_or_path": str(VIDEO_ENCODER_DIR)}


def _config() -> GazeQwenConfig:
    return GazeQwenConfig.from_pretrained(ADAPTER_DIR, **PARTS)


def trained_model() -> GazeQwenForConditionalGeneration:
    """Return GazeQwen as it was trained on the toy world, in evaluation mode."""
    return GazeQwenForConditionalGeneration.from_pretrained(ADAPTER_DIR, config=_config()).eval()


def trained_processor() -> GazeQwenProcessor:
    """Return the trained adapter's processor."""
    # Given the config, the tokenizer is not looked up by model type, of which transformers would know none.
    return GazeQwenProcessor.from_pretrained(ADAPTER_DIR, config=_config())


def keep(best: Path, folder: Path = ADAPTER_DIR) -> None:
    """Copy a run's adapter of the toy world, without code files and the paths of the machine that it ran on."""
    with atomic_folder(folder) as files:
        shutil.copytree(best, files, ignore=shutil.ignore_patterns("*.py", "__pycache__"), dirs_exist_ok=True)
        for file in (files / "config.json", files / "processor_config.json"):
            write_json(file, _without(json.loads(file.read_text()), {"auto_map", *PARTS}))


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
