"""Tiny models from configs, inputs for them, and real files: shared by the tests."""

import contextlib
import io
import json
import runpy
import shutil
import subprocess
import sys
import tomllib
from fractions import Fraction
from pathlib import Path
from unittest import mock

import av
import numpy as np
import torch
from packaging.requirements import Requirement
from transformers import Qwen2_5_VLConfig

from gazeqwen.backbones_gazeqwen import positions_of
from gazeqwen.configuration_gazeqwen import GazeQwenConfig
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.modeling_vjepa2_1 import VJEPA21Config

ROOT = Path(__file__).parent.parent
FIXTURES = ROOT / "tests" / "fixtures"
# Invented, with the columns, the grid of 1/24 s and the digits of the release's tables, and as long as one; its
# question is worded as the release's. `REAL`: samples of the release, read in addition where they are.
STREAMGAZE = FIXTURES / "streamgaze"
FIXATION_TABLE = STREAMGAZE / "OP99-R01-Invented_fixation_filtered.csv"
REAL = ROOT.parent / "shared" / "real"
FIXATION_TABLES = [FIXATION_TABLE, *sorted(REAL.glob("*_fixation_filtered.csv"))]
BACKBONE, VIDEO_ENCODER = ROOT / "toyworld" / "backbone", ROOT / "toyworld" / "video_encoder"
VIDEO_TOKEN, VISION_START, VISION_END = 98, 96, 95


def tiny_config(**kwargs) -> GazeQwenConfig:
    """A 4-layer Qwen2.5-VL of width 32 and a 2-layer V-JEPA 2.1 of width 24, from configs alone."""
    text = {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 100,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 64,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [1],
    }
    backbone = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        video_token_id=VIDEO_TOKEN,
        image_token_id=97,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )
    encoder = VJEPA21Config(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    sizes = {"latent_dim": 16, "num_latents": 4, **kwargs}
    return GazeQwenConfig(backbone_config=backbone, video_encoder_config=encoder, **sizes)


def another_backbone(folder: Path) -> str:
    """A copy of the toy backbone in `folder` that does not say that it is the toy world's."""
    shutil.copytree(BACKBONE, folder)
    config = json.loads((folder / "config.json").read_text())
    del config["trained_on"]
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def perturb(model: GazeQwenForConditionalGeneration) -> GazeQwenForConditionalGeneration:
    """Move every trained tensor off its initial value, so that no test passes because something is zero."""
    with torch.no_grad():
        for parameter in model.resampler.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn_like(parameter))
    return model


def tiny_model(lora: bool = False, perturbed: bool = True, **kwargs) -> GazeQwenForConditionalGeneration:
    torch.manual_seed(1)
    model = GazeQwenForConditionalGeneration(tiny_config(**kwargs)).eval()
    if lora:
        model.add_lora(rank=2, alpha=4)
    return perturb(model) if perturbed else model


def video_inputs(grids, scanpaths, seed: int = 0, padding_side: str = "left", text_lengths=None) -> dict:
    """
    Model inputs for samples of one video each. `grids`: (T, H, W) in visual tokens per sample; `scanpaths`: per sample
    an (F, 4) list or None. Pixels depend on the sample alone, so that a batch can be compared with its parts.
    """
    samples = []
    for index, (steps, height, width) in enumerate(grids):
        draw = torch.Generator().manual_seed(seed + index)
        length = 4 + index if text_lengths is None else text_lengths[index]
        text = torch.randint(3, 90, (length,), generator=draw)
        ids = torch.cat(
            [
                torch.tensor([VISION_START]),
                torch.full((steps * height * width,), VIDEO_TOKEN),
                torch.tensor([VISION_END]),
                text,
            ]
        )
        samples.append(
            {
                "ids": ids,
                "pixels": torch.randn(steps * height * width * 4, 1176, generator=draw),
                "frames": torch.randn(2 * steps, 3, 32, 32, generator=draw),
            }
        )
    longest = max(len(sample["ids"]) for sample in samples)
    most_steps = max(grid[0] for grid in grids)
    ids = torch.zeros(len(grids), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    frames = torch.zeros(len(grids), 2 * most_steps, 3, 32, 32)
    spans = torch.zeros(len(grids), most_steps, 2)
    for row, (sample, (steps, _, _)) in enumerate(zip(samples, grids, strict=True)):
        length = len(sample["ids"])
        place = slice(longest - length, None) if padding_side == "left" else slice(length)
        ids[row, place], mask[row, place] = sample["ids"], 1
        frames[row, : 2 * steps] = sample["frames"]
        spans[row, :steps] = torch.stack([torch.arange(steps), torch.arange(1, steps + 1)], dim=1).float()
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": 2 * (ids == VIDEO_TOKEN).int(),
        "pixel_values_videos": torch.cat([sample["pixels"] for sample in samples]),
        "video_grid_thw": torch.tensor([[t, 2 * h, 2 * w] for t, h, w in grids]),
        "second_per_grid_ts": torch.ones(len(grids)),
    }
    if any(scanpath is not None for scanpath in scanpaths):
        most = max(len(scanpath or ()) for scanpath in scanpaths)
        table, present = torch.zeros(len(grids), most, 4), torch.zeros(len(grids), most, dtype=torch.bool)
        for row, scanpath in enumerate(scanpaths):
            for column, fixation in enumerate(scanpath or ()):
                table[row, column], present[row, column] = torch.tensor(fixation), True
        inputs |= {
            "scanpaths": table,
            "scanpath_mask": present,
            "has_scanpath": torch.tensor([scanpath is not None for scanpath in scanpaths]),
            "video_encoder_pixel_values": frames,
            "step_spans_s": spans,
        }
    return inputs


def with_positions(model, inputs: dict) -> dict:
    """The inputs for `model.backbone` itself, which would else take the positions of the installed library."""
    return {**inputs, "position_ids": positions_of(model.backbone.config, inputs)}


def write_video(
    path: Path,
    frames: np.ndarray,
    times_s=None,
    fps: int = 10,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict | None = None,
    container_options: dict | None = None,
    rotation: int = 0,
) -> Path:
    """
    A video file of (F, H, W, 3) uint8 frames at constant rate, or at the given times (millisecond grid). `rotation`:
    degrees counterclockwise that a player is told to turn it.
    """
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options={"crf": "10"} if options is None else options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pix_fmt
        if rotation:
            stream.set_display_rotation(rotation)
        if times_s is not None:
            stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for index, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            if times_s is not None:
                frame.pts, frame.time_base = round(1000 * times_s[index]), stream.codec_context.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def index_frames(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frames that carry their number: 8 vertical bars, dark or bright, are its bits."""
    bits = (np.arange(count)[:, None] >> np.arange(8)) & 1  # (F, 8)
    row = bits[:, np.arange(width) * 8 // width] * 200 + 20
    return np.repeat(np.repeat(row[:, None, :, None], height, 1), 3, 3).astype(np.uint8)


def frame_index(frame: np.ndarray) -> int:
    row = frame.mean(axis=(0, 2))
    bars = [row[np.arange(len(row)) * 8 // len(row) == bar].mean() for bar in range(8)]
    return int(((np.array(bars) > 120) << np.arange(8)).sum())


FIXATION_HEADER = "start_time,end_time,center_x,center_y,duration,fixation_id"


def write_fixations(path: Path, rows) -> Path:
    """A StreamGaze fixation table from (start_s, end_s, x_norm, y_norm) rows."""
    lines = [f"{start},{end},{x},{y},{end - start},{index}" for index, (start, end, x, y) in enumerate(rows)]
    path.write_text("\n".join([FIXATION_HEADER, *lines]) + "\n")
    return path


def run_in_process(command: str | Path, *arguments) -> subprocess.CompletedProcess:
    """
    Run a script (a path that ends with .py) or a module with arguments in this process, as `python` would: for many
    runs, each of which would take seconds to import what is imported here already.
    """
    printed, errors, code = io.StringIO(), io.StringIO(), 0
    words = [str(command), *map(str, arguments)]
    argv = mock.patch.object(sys, "argv", list(words))
    with argv, contextlib.chdir(ROOT), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        run = runpy.run_path if words[0].endswith(".py") else runpy.run_module
        try:
            run(words[0], run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
            errors.write(f"{end.code}\n" if isinstance(end.code, str) else "")
    return subprocess.CompletedProcess(words, code, printed.getvalue(), errors.getvalue())


def run_here(*command, expect: int = 0) -> str:
    """Return what `run_in_process` prints; what it writes to stderr where it is to fail."""
    result = run_in_process(*command)
    assert result.returncode == expect, result.stderr
    return result.stdout if expect == 0 else result.stderr


def requirements(*extras: str) -> list[Requirement]:
    """Return what `pip install gazeqwen[extras]` asks for, an extra that asks for other extras resolved."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"]]
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    resolved = {}
    for requirement in map(Requirement, lines):
        more = requirements(*requirement.extras) if requirement.name == "gazeqwen" else [requirement]
        resolved |= {each.name: each for each in more}
    return sorted(resolved.values(), key=lambda requirement: requirement.name)
