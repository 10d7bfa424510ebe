"""
A stream beside re-encoding the clip: time of a temporal step and of a question, and memory, by the length of history.

    python benchmarks/bench_stream.py --scale toy --output benchmarks/results/stream_toy_cpu.json
    python benchmarks/bench_stream.py --scale 3b --output benchmarks/results/stream_3b_cpu.json
    python benchmarks/bench_stream.py --scale 7b --threads 8 --output benchmarks/results/stream_7b_h200.json
    python benchmarks/bench_stream.py --draw benchmarks/results/stream_{toy_cpu,3b_cpu,7b_h200}.json \\
        --figure docs/images/stream.png

`toy` is the toy adapter; `3b` has the widths of Qwen2.5-VL-3B and of V-JEPA 2.1's, random weights, and two layers each
of decoder, vision tower and video encoder, so that these weigh as they do in the real model; `7b` is the whole shape
of Qwen2.5-VL-7B and V-JEPA 2.1's, random weights in bfloat16, for a GPU of 80 GB. Frames are noise, a step has two of
them. For each history: the stream's last steps and a question at its end (medians); the same question asked anew, from
decoded frames (`again`) and from embeddings and features that are kept (`decoder`); and, of the toy adapter, a stream
that forgets beyond `--budget`. All of a history is measured in one run, one after the other; steps that are not timed
run several at once. Memory is the cache's keys and values, the process's resident set, and on CUDA the most that
tensors took, weights included: in the last steps and questions, and in asking anew. cuDNN's attention is off there: it
plans anew for each length of the cache.
"""

import argparse
import copy
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import Qwen2_5_VLConfig

from gazeqwen.benchmarks.bench_model import SCALES, random_model
from gazeqwen.configuration_gazeqwen import GazeQwenConfig
from gazeqwen.modeling_vjepa2_1 import VJEPA21Config
from gazeqwen.pipeline.answers import answer_tokens, build_prompt, option_logits
from gazeqwen.plots.style import FONT, save_png
from gazeqwen.questions.prompts import chat_message
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.streaming.stream import GazeStream, run_due
from gazeqwen.utils.adapters import load_model, load_processor
from gazeqwen.utils.command_line import one_line_errors
from gazeqwen.utils.files import write_json
from gazeqwen.utils.provenance import provenance
from gazeqwen.video_gazeqwen import Clip, sample_times

ADAPTER = Path(__file__).parent.parent / "toyworld" / "adapter"
QUESTION, OPTIONS = "What is the wearer looking at?", ["tomato", "knife", "bowl", "pan"]
# Per scale: pixels of a frame's side, and the histories in minutes.
HISTORIES = {"toy": (112, (1, 2, 5, 10, 20, 40, 60)), "3b": (448, (0.25, 0.5, 1)), "7b": (448, (0.5, 1, 2, 5))}
TIMED_STEPS = 9  # the last of each history
STEPS_AT_ONCE = 16  # of the others


def build(scale: str, window: int, device: str):
    """Return model and processor; positions of an hour fit in their range."""
    processor = load_processor(ADAPTER)
    if scale == "toy":
        model = load_model(ADAPTER, device)
    else:
        text, vision, encoder, _ = copy.deepcopy(SCALES[scale])
        if scale == "3b":
            text |= {"num_hidden_layers": 2, "vocab_size": 1000, "bos_token_id": 1, "eos_token_id": 2}
            vision |= {"depth": 2, "fullatt_block_indexes": [1]}
            encoder |= {"num_hidden_layers": 2}
        tokens = {"video_token_id": processor.video_token_id, "image_token_id": processor.image_token_id}
        torch.manual_seed(0)
        config = GazeQwenConfig(
            backbone_config=Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens),
            video_encoder_config=VJEPA21Config(**encoder),
        )
        model = random_model(config, device, torch.bfloat16 if scale == "7b" else torch.float32)
        processor.video_encoder_size = 384
        side = HISTORIES[scale][0]
        processor.video_processor.size = {"shortest_edge": side**2, "longest_edge": side**2}
    model.config.video_encoder_window = window
    model.backbone.config.get_text_config().max_position_embeddings = 2**17
    return model, processor


def now(device: str) -> float:
    """Return the time, seconds, once the device has done all that it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter()


def timed(call, device: str) -> float:
    """Return the seconds that a call takes."""
    began = now(device)
    call()
    return now(device) - began


def peak_mb(device: str) -> float | None:
    """Return the most memory, MB, that tensors took on CUDA since this was last asked; None on the CPU."""
    if not device.startswith("cuda"):
        return None
    peak = torch.cuda.max_memory_allocated(device) / 1e6
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def resident_mb() -> float:
    """Return the process's resident set, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def cache_mb(stream: GazeStream) -> float:
    """Return the size of a stream's keys and values, MB."""
    parts = [part for layer in stream.context.cache.layers for part in (layer.keys, layer.values)]
    return sum(part.numel() * part.element_size() for part in parts) / 1e6


class Recording:
    """Noise at one frame a second, and a fixation in each."""

    def __init__(self, side: int, seed: int = 0):
        draw = np.random.default_rng(seed)
        self.pictures = draw.integers(0, 255, (32, side, side, 3), dtype=np.uint8)
        self.places = draw.uniform(0.1, 0.9, (4000, 2))

    def frame(self, second: int) -> np.ndarray:
        return self.pictures[second % len(self.pictures)]

    def scanpath(self, seconds: int) -> Scanpath:
        times = np.column_stack([np.arange(seconds) + 0.5, np.full(seconds, 0.8)])
        return Scanpath.from_array(np.column_stack([self.places[:seconds], times]))

    def clip(self, seconds: int) -> Clip:
        times = sample_times(0, seconds, fps=1.0, max_frames=seconds + 2, sampling="grid")
        frames = np.stack([self.frame(int(time_s)) for time_s in times])
        return Clip(frames, times, 0.0, float(seconds), grid_fps=1.0)


@torch.no_grad()
def asked_anew(model, processor, recording: Recording, seconds: int, device: str) -> tuple[float, float, list[float]]:
    """Return how long a question takes from decoded frames, and from what is kept of them, and its logits."""
    prompt, answers = build_prompt(QUESTION, OPTIONS, processor.prompt_style)
    tokens = [answer_tokens(processor.tokenizer, list(answers))]
    text = processor.apply_chat_template(chat_message(prompt), add_generation_prompt=True)
    scanpath, clip = recording.scanpath(seconds), recording.clip(seconds)
    began = now(device)
    processed = processor.process_clip(clip)
    grid = processed["video_grid_thw"][None].to(device)
    pixels = processed.pop("video_encoder_pixel_values")[None].to(device)
    processed["video_encoder_features"] = model.encode_video(pixels, grid)[0]
    processed["video_embeds"] = model.embed_video(processed.pop("pixel_values_videos").to(device), grid)
    kept = now(device)
    inputs = processor.collate([text], [processed], [scanpath]).to(device)
    logits = option_logits(model, inputs, tokens)[0].tolist()
    ended = now(device)
    return ended - began, ended - kept, logits


def measure(scale: str, arguments) -> None:
    """Measure and write a row for each history of a scale."""
    (side, minutes), device = HISTORIES[scale], arguments.device
    began = now(device)
    model, processor = build(scale, arguments.window, device)
    print(f"{scale}: built on {device} in {now(device) - began:.1f} s", flush=True)
    recording, rows = Recording(side), []
    streams = {"stream": GazeStream(model, processor, fps=1.0)}
    if scale == "toy":
        streams["budget"] = GazeStream(model, processor, fps=1.0, budget=arguments.budget, policy="gaze")
    for stream in streams.values():
        stream.push_fixation(recording.scanpath(4000), until_s=4000)
        stream.push(recording.frame(0), 0.0)
    times = {name: [] for name in streams}
    marks = {int(60 * minute): minute for minute in minutes}
    print(
        f"{scale}: {'minutes':>7} {'tokens':>7} {'step':>8} {'question':>9} {'again':>8} {'decoder':>8} seconds, times"
    )
    for second in range(1, max(marks) + 1):
        is_timed = any(0 <= mark - second < 2 * TIMED_STEPS for mark in marks)
        for name, stream in streams.items():
            stream.runs_steps = is_timed
            while is_timed and run_due([stream], STEPS_AT_ONCE):
                peak_mb(device)  # what follows is that of the timed steps alone
            taken = timed(lambda: stream.push(recording.frame(second), float(second)), device)  # noqa: B023
            if second % 2 == 0:
                times[name].append(taken)
        if second not in marks:
            continue
        row = {"scale": scale, "minutes": marks[second], "tokens": streams["stream"].context.video_tokens}
        for name, stream in streams.items():
            answers = [stream.ask(QUESTION, OPTIONS) for _ in range(arguments.repeats)]
            row[name] = {
                "step_s": statistics.median(times[name][-TIMED_STEPS:]),
                "question_s": statistics.median(answer.seconds for answer in answers),
                "questions_s": [answer.seconds for answer in answers],
                "cache_mb": cache_mb(stream),
            }
        row["resident_mb"], row["stream_peak_mb"] = resident_mb(), peak_mb(device)
        repeats = 3 if row["tokens"] < 6000 else 1
        anew = [asked_anew(model, processor, recording, second, device) for _ in range(repeats)]
        row["again_peak_mb"] = peak_mb(device)
        row["again_s"], row["decoder_s"] = (
            statistics.median(times_s) for times_s in list(zip(*anew, strict=True))[:2]
        )
        logits = np.array(list(streams["stream"].ask(QUESTION, OPTIONS).logits.values()))
        row["largest_difference"] = float(abs(logits - anew[0][2]).max())
        own = row["stream"]
        row["times_faster"] = row["again_s"] / own["question_s"]
        row["times_faster_than_decoder"] = row["decoder_s"] / own["question_s"]
        numbers = own["step_s"], own["question_s"], row["again_s"], row["decoder_s"], row["times_faster"]
        shown = " ".join(f"{number:8.4f}" for number in numbers)
        print(f"{scale}: {row['minutes']:7} {row['tokens']:7} {shown}", flush=True)
        rows.append(row)
        if arguments.output:  # each row as soon as it is there
            write_json(arguments.output, {"settings": vars(arguments), "rows": rows, "provenance": provenance()})


def _line(color: str, style: str = "-") -> dict:
    """Return how a line is drawn."""
    return {"color": color, "linestyle": style, "marker": "o", "markersize": 3}


def figure_of(rows: list[dict]) -> Figure:
    """Return the picture: seconds of a question and of a step, below the cache's size; a column for each scale."""
    scales = list(dict.fromkeys(row["scale"] for row in rows))
    figure = Figure(figsize=(4.6 * len(scales), 6.4), layout="constrained")
    axes = figure.subplots(2, len(scales), squeeze=False, height_ratios=(3, 2))
    titles = {
        "toy": "toy adapter, 16 tokens a step",
        "3b": "widths of 3B, two layers, 256 tokens a step",
        "7b": "7B on an H200, 256 tokens a step",
    }
    for column, scale in enumerate(scales):
        own = [row for row in rows if row["scale"] == scale]
        minutes = [row["minutes"] for row in own]
        upper, lower = axes[:, column]
        upper.plot(minutes, [row["again_s"] for row in own], **_line("#1f77b4"), label="question, from frames anew")
        kept = "question, from kept features anew"
        upper.plot(minutes, [row["decoder_s"] for row in own], **_line("#1f77b4", ":"), label=kept)
        for name, ending, style in (("stream", "", "-"), ("budget", " with a budget", ":")):
            if name not in own[0]:
                continue
            for part, color in (("question", "#ff2d55"), ("step", "#555555")):
                seconds = [row[name][f"{part}_s"] for row in own]
                upper.plot(minutes, seconds, **_line(color, style), label=f"{part}, stream{ending}")
            sizes = [row[name]["cache_mb"] for row in own]
            lower.plot(minutes, sizes, **_line("#555555", style), label=f"stream{ending}")
        upper.set_yscale("log")
        upper.set_title(titles.get(scale, scale), fontsize=10, **FONT)
        upper.set_ylabel("seconds", **FONT)
        lower.set_ylabel("MB of keys and values", **FONT)
        lower.set_xlabel("minutes of history", **FONT)
        lower.set_ylim(0)
        for axis in (upper, lower):
            axis.set_xscale("log")
            axis.set_xticks(minutes, [f"{minute:g}" for minute in minutes])
            axis.minorticks_off()
            axis.grid(alpha=0.25)
    axes[0, 0].legend(fontsize=7.5)
    axes[1, 0].legend(fontsize=7.5)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=HISTORIES, default="toy")
    parser.add_argument("--window", type=int, default=4, help="temporal steps that the video encoder sees")
    parser.add_argument("--budget", type=int, default=1024, help="visual tokens of the toy stream that forgets")
    parser.add_argument("--repeats", type=int, default=7, help="questions at each history")
    parser.add_argument("--device", help="default: cuda for 7b where there is one, else cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output")
    parser.add_argument("--draw", nargs="+", help="measure nothing, draw these results")
    parser.add_argument("--figure")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not arguments.draw:
        on_gpu = arguments.scale == "7b" and torch.cuda.is_available()
        arguments.device = arguments.device or ("cuda" if on_gpu else "cpu")
        torch.backends.cuda.enable_cudnn_sdp(False)
        measure(arguments.scale, arguments)
        return
    results = [json.loads(Path(path).read_text()) for path in arguments.draw]
    save_png(figure_of([row for result in results for row in result["rows"]]), arguments.figure)


if __name__ == "__main__":
    with one_line_errors():
        main()
