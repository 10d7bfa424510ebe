"""
What each way to show gaze costs, with random weights: for a new video, and for another gaze on a known one.

    python benchmarks/bench_gaze_ways.py --scale kitchen --output benchmarks/results/gaze_ways_kitchen_cpu.json
    python benchmarks/bench_gaze_ways.py --scale 7b --device cuda --output benchmarks/results/gaze_ways_7b.json

A known video is one whose embeddings and video encoder features are kept, as training and evaluation keep them. A mark
drawn on frames changes what the vision tower sees, so that it runs again for each gaze. Decoding and drawing are left
out. Times are medians of the repeats, in which all ways take turns. LoRA adds the same to every way, and is left out.
"""

import argparse
import re
import statistics

import torch

from gazeqwen.benchmarks.bench_model import SCALES, build, inputs, prefill_s
from gazeqwen.pipeline.overlays import gaze_in_words
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.utils.command_line import one_line_errors
from gazeqwen.utils.files import write_json
from gazeqwen.utils.provenance import provenance

# way -> what of `GazeQwenConfig` it needs; None: the base model alone.
WAYS = {
    "no gaze": None,
    "a mark drawn on the frames": None,
    "places in words": None,
    "heatmap times one vector per layer": {"resampler_type": "heatmap_vector", "resampler_features": "base_model"},
    "GazeQwen on own embeddings": {"resampler_features": "base_model"},
    "GazeQwen": {},
}
KNOWN, NEW = "another gaze on a known video", "a new video"


def tokens_in_words(scanpath: torch.Tensor) -> int:
    """
    Return about how many tokens a scanpath (F, 4) takes in words. Qwen2.5's tokenizer makes one of each digit, mark
    and short word; it is not needed here.
    """
    table = scanpath.double().cpu()
    table[:, 2] = 3 * (1 + torch.arange(len(table)))  # none begins before the video or before the one before
    text = gaze_in_words(Scanpath.from_array(table), 0, 1e6)
    return len(re.findall(r"\d|[^\W\d]+|[^\w\s]", text))


def with_words(case: dict, count: int) -> dict:
    """Return the inputs with that many more text tokens at their end."""
    ids = case["input_ids"]
    ids = torch.cat([ids, ids[:, -1:].expand(-1, count)], 1)
    types = torch.nn.functional.pad(case["mm_token_type_ids"], (0, count))
    return case | {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": types}


def cases(models: dict, scale: str, device: str, dtype: torch.dtype) -> tuple[dict, int]:
    """Return {way: {new or known: (model, inputs)}}, and how many tokens the scanpath takes in words."""
    full = inputs(models["GazeQwen"], scale, 1, device, dtype)
    frames = full.pop("video_encoder_pixel_values")
    gaze = {name: full.pop(name) for name in ("scanpaths", "step_spans_s")}
    words = tokens_in_words(gaze["scanpaths"][0])
    pixels, grid = full.pop("pixel_values_videos"), full["video_grid_thw"]
    encoded = {
        NEW: {"video_encoder_pixel_values": frames},
        KNOWN: {"video_encoder_features": models["GazeQwen"].encode_video(frames, grid)},
    }
    result = {}
    for way, adapter in WAYS.items():
        seen = {NEW: {"pixel_values_videos": pixels}, KNOWN: {"video_embeds": models[way].embed_video(pixels, grid)}}
        result[way] = {}
        for when in (NEW, KNOWN):
            case = full | seen[NEW if way == "a mark drawn on the frames" else when]
            if way == "places in words":
                case = with_words(case, words)
            if adapter is not None:
                case = case | gaze
            if way == "GazeQwen":
                case = case | encoded[when]
            result[way][when] = models[way], case
    return result, words


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="kitchen")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    dtype = torch.float32 if arguments.device == "cpu" else torch.bfloat16
    adapters = {way: adapter for way, adapter in WAYS.items() if adapter is not None}
    models = {way: build(arguments.scale, arguments.device, dtype, **adapter) for way, adapter in adapters.items()}
    models |= {way: models["GazeQwen"] for way in WAYS if way not in models}
    measured, words = cases(models, arguments.scale, arguments.device, dtype)
    times = {way: {when: [] for when in by_when} for way, by_when in measured.items()}
    for repeat in range(arguments.repeats + 1):
        for way, by_when in measured.items():
            for when, (model, case) in by_when.items():
                taken = prefill_s(model, case, arguments.device)
                if repeat:  # the first warms up
                    times[way][when].append(taken)
    rows = []
    for way, by_when in times.items():
        trained = sum(p.numel() for p in models[way].resampler.parameters()) if WAYS[way] is not None else 0
        row = {"way": way, "trained": trained, "tokens_added": words if way == "places in words" else 0}
        rows.append(row | {when: statistics.median(taken) for when, taken in by_when.items()})
        print(f"{way:38}{row['trained']:12,}{row['tokens_added']:6}{rows[-1][NEW]:10.4f}{rows[-1][KNOWN]:10.4f} s")
    if arguments.output:
        write_json(arguments.output, {"settings": vars(arguments), "rows": rows, "provenance": provenance()})


if __name__ == "__main__":
    with one_line_errors():
        main()
