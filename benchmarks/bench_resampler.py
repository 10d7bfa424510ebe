"""
The batched, factored resampler against a straightforward loop over layers and steps that gives the same numbers.

    python benchmarks/bench_resampler.py [--device cuda] [--output benchmarks/results/resampler_cpu.json]

Both compute all residuals of one video and add them to hidden states, layer after layer; products are included. Memory
is what is held until the layers use it: factors, or dense residuals.
"""

import argparse
import ctypes
import math
import statistics
import time
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from transformers import Qwen2_5_VLConfig

from gazeqwen.configuration_gazeqwen import GazeQwenConfig
from gazeqwen.modeling_vjepa2_1 import VJEPA21Config
from gazeqwen.resampler_gazeqwen import GazeResampler, fixation_weights, gaussian_heat, mean_coordinate_encoding
from gazeqwen.utils.command_line import one_line_errors
from gazeqwen.utils.files import write_json
from gazeqwen.utils.provenance import provenance


def loop(resampler: GazeResampler, features, scanpath, spans, grid) -> list[torch.Tensor]:
    """The paper's section 2.2 as one writes it first: per layer, per step, with keys, values, and dense residuals."""
    weights = fixation_weights(resampler.weighting, scanpath, spans)
    present = torch.tensor([grid], device=features.device)
    dim, residuals = resampler.latents.shape[-1], []
    for layer in range(resampler.latents.shape[0]):
        steps = []
        for step in range(len(features)):
            one = weights[None, step : step + 1]
            visual = F.linear(features[step], resampler.proj_in.weight[layer])  # (N, d)
            if resampler.gaze_encoding == "coord_pe":
                gaze = mean_coordinate_encoding(scanpath[None], one, dim, resampler.gaze_coordinate_scale)[0, 0]
            else:
                heat = gaussian_heat(scanpath[None], one, present, len(visual), resampler.sigmas)[0, 0]  # (N, S)
            latents = resampler.latents[layer]
            for index, block in enumerate(resampler.blocks):
                together = torch.cat([visual, latents])
                query = F.linear(latents, block.query.weight[layer], block.query.bias[layer])
                key = F.linear(together, block.key.weight[layer], block.key.bias[layer])
                value = F.linear(together, block.value.weight[layer], block.value.bias[layer])
                if resampler.gaze_encoding == "coord_pe":
                    where = torch.cat([gaze.expand(len(visual), -1), torch.zeros_like(latents)])
                    key = key + F.linear(where, block.gaze.weight[layer], block.gaze.bias[layer])
                logits = query @ key.T / math.sqrt(dim)
                if resampler.gaze_encoding == "foveated":
                    bias = F.softplus(resampler.foveal_gain[layer, index]) @ heat.T
                    logits = logits + F.pad(bias, (0, len(latents)))
                latents = latents + logits.softmax(-1) @ value
                norm = block.feed_forward_norm
                hidden = F.layer_norm(latents, (dim,), norm.weight[layer], norm.bias[layer])
                hidden = F.gelu(
                    F.linear(hidden, block.feed_forward_up.weight[layer], block.feed_forward_up.bias[layer])
                )
                down = block.feed_forward_down
                latents = latents + F.linear(hidden, down.weight[layer], down.bias[layer])
                latents = F.layer_norm(latents, (dim,), block.norm.weight[layer], block.norm.bias[layer])
            query = visual
            if resampler.gaze_encoding == "foveated":
                query = visual + heat @ resampler.foveal_query[layer]
            read = (query @ latents.T / math.sqrt(dim)).softmax(-1) @ latents  # (N, d)
            steps.append(F.linear(read, resampler.proj_out.weight[layer]) * resampler.amplitude[layer])
        residuals.append(torch.stack(steps))
    return residuals


def batched(resampler: GazeResampler, features, scanpath, spans, grid) -> Iterator[torch.Tensor]:
    """What the model does: factors for all layers at once, and in each hook one product."""
    present = torch.ones(1, len(scanpath), dtype=torch.bool, device=features.device)
    grids = torch.tensor([grid], device=features.device)
    factors = resampler.factors(features[None], scanpath[None], present, spans[None], grids)
    return (factors.layer(index)[0] for index in range(len(factors)))


def add_all(residuals: Iterable[torch.Tensor], hidden_states: torch.Tensor) -> None:
    """What the decoder's layers do with them, one after the other."""
    for residual in residuals:
        hidden_states += residual


def keep_freed_memory() -> None:
    """
    Have glibc reuse freed blocks, as the allocators of GPUs do: without it half the time on a CPU goes into page
    faults of fresh 110 MB blocks, in both versions, and varies from run to run.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return  # another C library: the times then include its page faults
    libc.mallopt(-4, 0)  # M_MMAP_MAX
    libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def median_seconds(function, arguments, hidden_states: torch.Tensor, device: str, repeats: int) -> float:
    times = []
    for repeat in range(repeats + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        add_all(function(*arguments), hidden_states)
        if device == "cuda":
            torch.cuda.synchronize()
        if repeat:  # the first warms up
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def training_seconds(case, factors, device: str, repeats: int) -> float:
    """Median time of a step's forward and backward through the resampler and its products."""
    _, features, scanpath, spans, grid = case
    present = torch.ones(1, len(scanpath), dtype=torch.bool, device=device)
    grids, times = torch.tensor([grid], device=device), []
    for _ in range(repeats + 1):
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        with torch.enable_grad():
            found = factors(features[None], scanpath[None], present, spans[None], grids)
            sum(found.layer(index).square().mean() for index in range(len(found))).backward()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])  # the first compiles


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--height", type=int, default=16)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=3584)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="also forward and backward, eager against inductor")
    parser.add_argument("--output")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    keep_freed_memory()
    text = {"hidden_size": arguments.hidden, "num_hidden_layers": 28, "num_attention_heads": 28}
    rows = []
    for encoding in ("foveated", "coord_pe"):
        config = GazeQwenConfig(
            gaze_encoding=encoding,
            backbone_config=Qwen2_5_VLConfig(text_config=text),
            video_encoder_config=VJEPA21Config(),
        )
        resampler = GazeResampler(config).to(arguments.device)
        torch.nn.init.normal_(resampler.proj_out.weight, std=0.02)
        grid = (arguments.height, arguments.width)
        features = torch.randn(arguments.steps, grid[0] * grid[1], 768, device=arguments.device)
        extent = torch.tensor([1, 1, 2 * arguments.steps, 3.0], device=arguments.device)
        scanpath = torch.rand(20, 4, device=arguments.device) * extent
        spans = 2.0 * torch.arange(arguments.steps + 1, device=arguments.device)
        case = (resampler, features, scanpath, torch.stack([spans[:-1], spans[1:]], dim=1), grid)
        differences = [(a - b).abs().max().item() for a, b in zip(loop(*case), batched(*case), strict=True)]
        hidden = torch.zeros(arguments.steps, grid[0] * grid[1], arguments.hidden, device=arguments.device)
        slow, fast = (median_seconds(f, case, hidden, arguments.device, arguments.repeats) for f in (loop, batched))
        layers = len(differences)
        tokens = arguments.steps * grid[0] * grid[1]
        dense = 4 * layers * tokens * arguments.hidden
        factored = 4 * layers * config.num_latents * (tokens + arguments.steps * config.latent_dim)
        rows.append(
            {
                "encoding": encoding,
                "loop_s": slow,
                "batched_s": fast,
                "ratio": slow / fast,
                "largest_difference": max(differences),
                "dense_mb": dense / 1e6,
                "factors_mb": factored / 1e6,
            }
        )
        print(
            f"{encoding:10} loop {slow:.3f} s, batched {fast:.3f} s: {slow / fast:.1f} times faster; "
            f"{dense / 1e6:.0f} MB of residuals, {factored / 1e6:.0f} MB of factors; differ by {max(differences):.1e}"
        )
        if arguments.compile:
            eager, compiled = (
                training_seconds(case, factors, arguments.device, arguments.repeats)
                for factors in (resampler.factors, torch.compile(resampler.factors))
            )
            rows[-1] |= {
                "training_eager_s": eager,
                "training_compiled_s": compiled,
                "compiled_ratio": eager / compiled,
            }
            print(f"{encoding:10} forward and backward: {eager:.3f} s, compiled {compiled:.3f} s")
    if arguments.output:
        write_json(arguments.output, {"settings": vars(arguments), "rows": rows, "provenance": provenance()})


if __name__ == "__main__":
    with one_line_errors():
        main()
