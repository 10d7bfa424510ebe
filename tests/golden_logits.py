"""
Logits of a tiny model of each family, with weights and pixels drawn by name: equal on every version of transformers.

Written with the newest one by `.venv/bin/python tests/golden_logits.py`.
"""

import math
import sys
import tempfile
import zlib
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from bases import Base, scanpath_of
from safetensors.torch import save_file
from support import FIXTURES

from gazeqwen.backbones_gazeqwen import FAMILIES
from gazeqwen.video_gazeqwen import Clip

GOLDEN = FIXTURES / "golden_logits.safetensors"
PIXELS = ("pixel_values", "pixel_values_videos", "video_encoder_pixel_values")
ANSWER = 4  # how many of a prompt's last positions are kept


def drawn(name: str, shape) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def _clip(frames: int, apart_s: float) -> Clip:
    return Clip(np.zeros((frames, 64, 64, 3), np.uint8), 30 + apart_s * np.arange(frames), 30.0, 30 + apart_s * frames)


def golden_base(model_type: str, folder: Path) -> Base:
    """A base model with its processor and an adapter with LoRA; how transformers initialises may change."""
    base = Base(model_type, folder)
    base.model.add_lora(rank=2, alpha=4)
    with torch.no_grad():
        for part in (base.model.backbone, base.model.resampler):
            for name, parameter in part.named_parameters():
                values = drawn(name, parameter.shape)
                if parameter.dim() == 1:
                    parameter.copy_(0.1 * values + ("norm" in name and name.endswith("weight")))
                else:
                    parameter.copy_(values / math.sqrt(parameter.shape[-1]))
    return base


def golden_inputs(base: Base, gaze: bool = True) -> dict[str, torch.Tensor]:
    """Two prompts, with an image and a video each, of steps that last .5 and .3 s; the second has no gaze."""
    clips = [_clip(8, 0.25), _clip(4, 0.15)]
    scanpaths = [scanpath_of(clips[0]), None] if gaze else None
    inputs = dict(base.inputs(clips, scanpaths, ["Which object?", "Which object is held now?"], image=True))
    # Not what processors make of pixels, which depends on the version of torchvision.
    return inputs | {name: drawn(name, inputs[name].shape) for name in PIXELS if name in inputs}


def logits_of(base: Base) -> dict[str, torch.Tensor]:
    """Return (2, ANSWER, vocabulary) logits, with gaze and without."""
    with torch.no_grad():
        return {
            f"{Path(base.folder).name} {name}": base.model(**golden_inputs(base, gaze)).logits[:, -ANSWER:]
            for name, gaze in (("with gaze", True), ("without gaze", False))
        }


def main() -> None:
    tensors = {}
    with tempfile.TemporaryDirectory() as folder:
        for model_type in FAMILIES:
            tensors |= logits_of(golden_base(model_type, Path(folder)))
    versions = {name: version(name) for name in ("torch", "transformers")}
    save_file({name: value.contiguous() for name, value in tensors.items()}, GOLDEN, metadata=versions)
    sys.stdout.write(f"{GOLDEN}: {len(tensors)} tensors, {versions}\n")


if __name__ == "__main__":
    main()
