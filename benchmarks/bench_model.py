"""
Prefill of the whole model with random weights: what gaze costs beside the base model.

    python benchmarks/bench_model.py --scale tiny --output benchmarks/results/model_tiny_cpu.json
    python benchmarks/bench_model.py --scale 7b --device cuda --output benchmarks/results/model_7b.json

For each attention implementation and batch size: the base model alone, with gaze and features computed before (as in
training), and with gaze and the video encoder run in the call. Time is the median of the repeats; peak memory is
measured on CUDA devices only.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from transformers import Qwen2_5_VLConfig

from gazeqwen.configuration_gazeqwen import GazeQwenConfig
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.modeling_vjepa2_1 import VJEPA21Config
from gazeqwen.utils.command_line import one_line_errors
from gazeqwen.utils.files import write_json
from gazeqwen.utils.provenance import provenance

TOYWORLD = Path(__file__).parent.parent / "toyworld"
ROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}


def _config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


KITCHEN = _config_of(TOYWORLD / "kitchen" / "backbone")
# The released models' sizes: text, vision, V-JEPA 2.1, then steps and visual tokens per side of a step.
SCALES = {
    "tiny": (
        {
            "hidden_size": 96,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "intermediate_size": 256,
            "vocab_size": 1000,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 4, 4]},
        },
        {
            "depth": 2,
            "hidden_size": 64,
            "num_heads": 4,
            "intermediate_size": 160,
            "out_hidden_size": 96,
            "fullatt_block_indexes": [0, 1],
        },
        {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96},
        (4, 4, 64),
    ),
    # The kitchen's backbone with the toy world's video encoder, as its evidence has them.
    "kitchen": (
        KITCHEN["text_config"],
        KITCHEN["vision_config"],
        _config_of(TOYWORLD / "video_encoder"),
        (6, 8, 64),
    ),
    "3b": (
        {
            "hidden_size": 2048,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "intermediate_size": 11008,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
            "rope_parameters": ROPE,
        },
        {"hidden_size": 1280, "out_hidden_size": 2048},
        {},
        (15, 16, 384),
    ),
    "7b": (
        {
            "hidden_size": 3584,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "intermediate_size": 18944,
            "vocab_size": 152064,
            "rope_parameters": ROPE,
        },
        {"hidden_size": 1280, "out_hidden_size": 3584},
        {},
        (15, 16, 384),
    ),
}


def build(scale: str, device: str, dtype: torch.dtype, **adapter) -> GazeQwenForConditionalGeneration:
    """Return a model of the scale with random weights; `adapter`: further arguments of `GazeQwenConfig`."""
    text, vision, encoder, _ = SCALES[scale]
    vocabulary = text["vocab_size"]
    config = GazeQwenConfig(
        backbone_config=Qwen2_5_VLConfig(
            text_config=text, vision_config=vision, video_token_id=vocabulary - 1, image_token_id=vocabulary - 2
        ),
        video_encoder_config=VJEPA21Config(**encoder),
        latent_dim=48 if scale in ("tiny", "kitchen") else 256,
        **adapter,
    )
    return random_model(config, device, dtype)


def random_model(config: GazeQwenConfig, device: str, dtype: torch.dtype) -> GazeQwenForConditionalGeneration:
    """Return a model with random weights that are made on the device, where gaze adds something."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = GazeQwenForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(before)
    model.resampler.float()
    added = model.resampler.vector if config.resampler_type == "heatmap_vector" else model.resampler.proj_out.weight
    torch.nn.init.normal_(added, std=0.02)
    return model


def inputs(model, scale: str, batch_size: int, device: str, dtype: torch.dtype) -> dict:
    steps, side, frame_px = SCALES[scale][3]
    tokens = torch.full((steps * side * side,), model.backbone.config.video_token_id)
    ids = torch.cat([torch.arange(3, 10), tokens, torch.arange(10, 60)]).expand(batch_size, -1).to(device)
    spans = 2.0 * torch.arange(steps + 1, device=device)
    scanpath = torch.rand(batch_size, 20, 4, device=device) * torch.tensor([1, 1, 2 * steps, 3.0], device=device)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": 2 * (ids == model.backbone.config.video_token_id).int(),
        "pixel_values_videos": torch.randn(batch_size * steps * side * side * 4, 1176, device=device, dtype=dtype),
        "video_grid_thw": torch.tensor([[steps, 2 * side, 2 * side]], device=device).repeat(batch_size, 1),
        "second_per_grid_ts": torch.full((batch_size,), 2.0, device=device),
        "scanpaths": scanpath,
        "step_spans_s": torch.stack([spans[:-1], spans[1:]], dim=1).repeat(batch_size, 1, 1),
        "video_encoder_pixel_values": torch.randn(
            batch_size, 2 * steps, 3, frame_px, frame_px, device=device, dtype=dtype
        ),
    }


def prefill_s(model, case: dict, device: str) -> float:
    """Return how long one prefill takes, in seconds."""
    synchronize = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    synchronize()
    started = time.perf_counter()
    model(**case, logits_to_keep=1, use_cache=False)
    synchronize()
    return time.perf_counter() - started


def measure(model, case: dict, device: str, repeats: int) -> dict:
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    times = [prefill_s(model, case, device) for _ in range(repeats + 1)][1:]  # the first warms up
    peak = torch.cuda.max_memory_allocated() / 1e9 if cuda else None
    return {"seconds": statistics.median(times), "peak_memory_gb": peak}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32 on the CPU, else bfloat16")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--attention", nargs="+", default=["sdpa", "eager"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    dtype = getattr(torch, arguments.dtype or ("float32" if arguments.device == "cpu" else "bfloat16"))
    model, rows = build(arguments.scale, arguments.device, dtype), []
    print(f"{'attention':10}{'batch':>6}{'base':>12}{'+ gaze':>12}{'+ encoder':>12}   seconds (peak GB)")
    for attention in arguments.attention:
        model.backbone.set_attn_implementation(attention)
        for batch_size in arguments.batch_sizes:
            full = inputs(model, arguments.scale, batch_size, arguments.device, dtype)
            pixels = full.pop("video_encoder_pixel_values")
            features = model.encode_video(pixels, full["video_grid_thw"])
            base = {name: value for name, value in full.items() if name not in ("scanpaths", "step_spans_s")}
            cases = {
                "base": base,
                "gaze": {**full, "video_encoder_features": features},
                "gaze and encoder": {**full, "video_encoder_pixel_values": pixels},
            }
            row = {"attention": attention, "batch_size": batch_size, "tokens": full["input_ids"].shape[1]}
            for name, case in cases.items():
                row[name] = measure(model, case, arguments.device, arguments.repeats)
            rows.append(row)
            shown = [
                f"{row[name]['seconds']:.4f}"
                + (f" ({row[name]['peak_memory_gb']:.1f})" if row[name]["peak_memory_gb"] else "")
                for name in cases
            ]
            print(f"{attention:10}{batch_size:6}" + "".join(f"{text:>12}" for text in shown))
    if arguments.output:
        write_json(arguments.output, {"settings": vars(arguments), "rows": rows, "provenance": provenance()})


if __name__ == "__main__":
    with one_line_errors():
        main()
