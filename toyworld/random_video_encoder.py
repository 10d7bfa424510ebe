"""
Write `toyworld/video_encoder`: a tiny V-JEPA 2.1 with random weights.

    python -m gazeqwen.toyworld.random_video_encoder toyworld/video_encoder --seed 0

It stands for V-JEPA 2.1 where no weights can be downloaded. Random weights keep what each patch shows (position,
colour, shape) in a fixed random code, which is all that the toy world's gaze module needs; they know nothing of video.
"""

import argparse
import json
from pathlib import Path

import torch

from gazeqwen.modeling_vjepa2_1 import VJEPA21Config, VJEPA21Model
from gazeqwen.utils.files import atomic_folder, write_json
from gazeqwen.video_encoders_gazeqwen import build_video_encoder, video_encoder_config

VIDEO_ENCODER_DIR = Path(__file__).parent / "video_encoder"


def random_video_encoder(seed: int = 0) -> VJEPA21Model:
    """
    Return a V-JEPA 2.1 that is 48 wide and has 2 layers, for 64x64 frames: 4x4 tokens per step, the visual token grid
    of 112x112 frames.
    """
    torch.manual_seed(seed)
    config = VJEPA21Config(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, image_size=64
    )
    return VJEPA21Model(config).eval()


def write_random_video_encoder(folder: Path, seed: int = 0) -> None:
    """Write a random video encoder without a copy of its code: what reads it has the package at hand."""
    with atomic_folder(folder) as files:
        random_video_encoder(seed).save_pretrained(files)
        for code in files.glob("*.py"):
            code.unlink()
        config = json.loads((files / "config.json").read_text())
        write_json(files / "config.json", {name: value for name, value in config.items() if name != "auto_map"})


def random_dinov2(seed: int = 0):
    """Return a tiny DINOv2 of timm, 48 wide, 4x4 tokens of each 56x56 frame."""
    torch.manual_seed(seed)
    sizes = {"embed_dim": 48, "depth": 2, "num_heads": 4, "img_size": 56}
    config = video_encoder_config({"architecture": "vit_small_patch14_dinov2", "model_args": sizes})
    return build_video_encoder(config).model.eval()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_random_video_encoder(arguments.out, arguments.seed)
