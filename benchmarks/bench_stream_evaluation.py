"""
All test points of a proactive video in one pass over it (`eval.py --stream`), beside asking each anew.

    python benchmarks/bench_stream_evaluation.py --output benchmarks/results/stream_evaluation_cpu.json

The toy adapter at 1 fps on a grid, with a causal window of the video encoder, asks one proactive question every
`--every_s` seconds of a video of noise, one frame and one fixation a second. Both ways run in one process, one after
the other, after a first question each: the processor's seconds count, also where a machine does other work. Decoding
is part of both.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from gazeqwen.benchmarks.bench_stream import ADAPTER, Recording
from gazeqwen.evaluation.prediction_file import Prediction
from gazeqwen.evaluation.predictions import predict
from gazeqwen.evaluation.streamed import predict_streamed
from gazeqwen.pipeline.clip_cache import ClipCache
from gazeqwen.pipeline.conditions import Condition
from gazeqwen.questions.question import Question
from gazeqwen.toyworld.world import write_video
from gazeqwen.utils.adapters import load_model, load_processor
from gazeqwen.utils.command_line import one_line_errors
from gazeqwen.utils.files import write_json
from gazeqwen.utils.provenance import provenance

TASK, ALERT = "proactive_gaze_triggered_alert", "Monitor my gaze and alert me when I gaze on the <jar>."


def questions_of(video: Path, seconds: int, every_s: float) -> list[Question]:
    """Return the test points of a video that is written here."""
    recording = Recording(112)
    write_video(video, [recording.frame(second) for second in range(seconds)], np.arange(seconds))
    scanpath = recording.scanpath(seconds)
    points = np.arange(every_s, seconds, every_s).tolist()
    return [Question(video, video.name, scanpath, TASK, ALERT, ("Yes", "No"), 0, 0.0, point) for point in points]


def timed(answers: Callable[[list[Question]], list[Prediction]], questions: list[Question]) -> tuple[dict, np.ndarray]:
    """Return how long all questions take, and their logits (Q, 2)."""
    answers(questions[:1])
    cpu, wall = time.process_time(), time.perf_counter()
    predictions = answers(questions)
    seconds = {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}
    return seconds, np.array([prediction.logits for prediction in predictions])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600, help="of the video")
    parser.add_argument("--every_s", type=float, default=10.0, help="from one test point to the next")
    parser.add_argument("--window", type=int, default=4, help="temporal steps that the video encoder sees")
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, processor = load_model(ADAPTER), load_processor(ADAPTER)
    model.config.video_encoder_window = arguments.window
    processor.sampling, processor.fps, processor.num_frames = "grid", 1.0, None
    processor.max_frames = arguments.seconds
    accelerator, condition = Accelerator(cpu=True), Condition.parse("gaze")
    cache = ClipCache.from_model(model, processor, "none")
    with tempfile.TemporaryDirectory() as folder:
        questions = questions_of(Path(folder) / "video.mp4", arguments.seconds, arguments.every_s)
        streamed, logits = timed(
            lambda part: predict_streamed(accelerator, model, processor, part, condition), questions
        )
        anew, expected = timed(lambda part: predict(accelerator, model, cache, part, "gaze", batch_size=1), questions)
    result = {
        "settings": vars(arguments),
        "points": len(questions),
        "streamed": streamed,
        "anew": anew,
        "times_less_cpu": anew["cpu_s"] / streamed["cpu_s"],
        "times_less_wall": anew["wall_s"] / streamed["wall_s"],
        "largest_difference": float(abs(logits - expected).max()),
        "same_answers": int((logits.argmax(-1) == expected.argmax(-1)).sum()),
        "provenance": provenance(),
    }
    write_json(arguments.output, result)
    print({name: value for name, value in result.items() if name not in ("settings", "provenance")})


if __name__ == "__main__":
    with one_line_errors():
        main()
