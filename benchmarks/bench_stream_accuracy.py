"""
What a stream's memory and the video encoder's window cost in accuracy, on the toy world with the shipped adapter.

    python benchmarks/bench_stream_accuracy.py --output benchmarks/results/stream_accuracy.json

Two tables. `window`: clips as the adapter was trained (12 frames spread over each), the video encoder seeing the
whole clip or a window of steps that ends with each; with the time that the encoder takes. `memory`: all questions of a
video asked on one stream of it, of each budget and policy; beside it the last frames alone, encoded anew. The
shipped adapter was trained neither with windows nor on a grid: what its tables compare are their rows. `--adapter`
takes another one. Intervals are bootstrap intervals over videos. After an hour of stream: `bench_stream_hour.py`.
"""

import argparse
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from gazeqwen.evaluation.scoring import GradedAnswer, score
from gazeqwen.evaluation.statistics import intervals, paired_difference
from gazeqwen.pipeline.answers import answer_tokens, option_logits
from gazeqwen.questions.dataset import load_questions
from gazeqwen.questions.prompts import chat_message
from gazeqwen.questions.question import Question
from gazeqwen.questions.release import build
from gazeqwen.streaming import POLICIES
from gazeqwen.streaming.stream import GazeStream
from gazeqwen.toyworld.generate import generate
from gazeqwen.utils.adapters import load_model, load_processor
from gazeqwen.utils.command_line import one_line_errors
from gazeqwen.utils.files import write_json
from gazeqwen.utils.provenance import provenance
from gazeqwen.video_gazeqwen import grid_frame_at, grid_times_s, read_clip, read_frames, video_info

ADAPTER = Path(__file__).parent.parent / "toyworld" / "adapter"
STEP_TOKENS = 16
TABLES = ("window", "memory")


def graded(question: Question, logits: list[float]) -> GradedAnswer:
    """Return a question with its answer."""
    return GradedAnswer(question.key, question.video_name, question.task, question.answer, question.options, logits)


def snap_of(processor, question: Question) -> float:
    """Return within how many seconds a question is snapped."""
    return processor.snap_s if question.snapped else 0.0


@torch.no_grad()
def asked_anew(model, processor, question: Question, start_s: float, **frames) -> tuple[GradedAnswer, float]:
    """Return the answer about a clip read for this question, and the seconds that the video encoder took."""
    clip = read_clip(question.video, start_s, question.end_s, **frames)
    prompt, answers = question.prompt(processor.prompt_style)
    text = processor.apply_chat_template(chat_message(prompt), add_generation_prompt=True)
    processed = processor.process_clip(clip)
    pixels = processed.pop("video_encoder_pixel_values")[None]
    began = time.perf_counter()
    processed["video_encoder_features"] = model.encode_video(pixels, processed["video_grid_thw"][None])[0]
    taken = time.perf_counter() - began
    inputs = processor.collate([text], [processed], [question.scanpath], snap_s=[snap_of(processor, question)])
    logits = option_logits(model, inputs, [answer_tokens(processor.tokenizer, answers)])[0]
    return graded(question, logits.tolist()), taken


def streamed(model, processor, questions: list[Question], fps: float, **memory) -> list[GradedAnswer]:
    """Return the answers to all questions of a video on one stream of it."""
    answers, path = [], questions[0].video
    end_s = video_info(path).end_s
    waiting = sorted(questions, key=lambda question: question.end_s)
    with GazeStream(model, processor, fps=fps, max_gap_s=8 / fps, **memory) as stream:
        stream.push_fixation(questions[0].scanpath, until_s=end_s)
        frames, _ = read_frames(path, grid_times_s(np.arange(grid_frame_at(end_s, fps) + 1), fps))
        for number, frame in enumerate(frames):
            moment_s = grid_times_s(number, fps)
            while waiting and waiting[0].end_s < moment_s:
                answers.append(_ask(stream, waiting.pop(0)))
            stream.push(frame, moment_s)
        answers += [_ask(stream, question) for question in waiting]
    return [answer for answer in answers if answer is not None]


def _ask(stream: GazeStream, question: Question) -> GradedAnswer | None:
    """Return the answer at the end of a question's clip; None before the first frame."""
    prompt, answers = question.prompt(stream.processor.prompt_style)
    if stream.now_s is None:
        return None
    time_s = max(question.end_s, stream.now_s)
    snap_s = snap_of(stream.processor, question)
    answer = stream.ask_prompt(prompt, {each: each for each in answers}, time_s=time_s, snap_s=snap_s)
    return graded(question, list(answer.logits.values()))


def row(name: str, answers: list[GradedAnswer], reference: list[GradedAnswer] | None = None, **more) -> dict:
    """Return a table's row: accuracies by group with intervals, and the differences from a reference."""
    scores, bounds = score(answers), intervals(answers)
    result = {"name": name, "questions": len(answers), **more}
    for group, accuracy in scores["groups"].items():
        result[group] = {"accuracy": accuracy, "interval": bounds["groups"][group]}
    if reference is not None:
        difference = paired_difference(answers, reference)
        for group in scores["groups"]:
            bounds = difference["intervals"]["groups"][group]
            result[group] |= {"difference": difference["groups"][group], "difference_interval": bounds}
    shown = "  ".join(
        f"{group} {100 * result[group]['accuracy']:5.1f} [{100 * result[group]['interval'][0]:5.1f}, "
        f"{100 * result[group]['interval'][1]:5.1f}]"
        for group in scores["groups"]
    )
    print(f"{name:28} {len(answers):5}  {shown}  {more}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", default=str(ADAPTER))
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--videos", type=int, default=30)
    parser.add_argument("--per_task", type=int, default=1, help="most questions of a task in a video")
    parser.add_argument("--alerts", type=int, default=60, help="most test points of an alert's task")
    parser.add_argument("--fps", type=float, default=0.5, help="of the grid")
    parser.add_argument("--window", type=int, default=4, help="of the streams")
    parser.add_argument("--budgets", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, processor = load_model(arguments.adapter), load_processor(arguments.adapter)
    with tempfile.TemporaryDirectory() as folder:
        world, data = Path(folder) / "world", Path(folder) / "data"
        counts = {"train": 1, "val": 1, "test": arguments.videos}
        most = (arguments.alerts,) * 3
        generate(world, **counts, seed=arguments.seed, per_task=arguments.per_task, most=most, progress=False)
        build(world, data, progress=False)
        questions = load_questions(data, "test")
        tables = measure(model, processor, questions, arguments)
    if arguments.output:
        write_json(arguments.output, {"settings": vars(arguments), **tables, "provenance": provenance()})


def measure(model, processor, questions: list[Question], arguments) -> dict[str, list[dict]]:
    """Return the tables that are asked for."""
    tables = defaultdict(list)
    for window in (None, 1, 2, 4) if "window" in arguments.tables else ():
        model.config.video_encoder_window = window
        pairs = [asked_anew(model, processor, q, q.start_s, num_frames=processor.num_frames) for q in questions]
        answers, seconds = [answer for answer, _ in pairs], sum(taken for _, taken in pairs)
        whole = whole if window else answers  # noqa: F821  (the first is the whole clip's)
        name = "whole clip" if window is None else f"window of {window}"
        tables["window"].append(row(name, answers, whole, encoder_s_per_clip=seconds / len(pairs)))

    model.config.video_encoder_window = arguments.window
    by_video = defaultdict(list)
    for question in questions:
        by_video[question.video].append(question)
    videos, fps = list(by_video.values()), arguments.fps
    asked = {question.key for question in questions if question.end_s >= 0.5 / fps}
    memories = {"all stays": {}}
    for budget in arguments.budgets:
        memories |= {f"{policy} {budget}": {"budget": budget, "policy": policy} for policy in POLICIES}
    reference, shown = None, "memory" in arguments.tables
    for name, memory in memories.items() if shown else ():
        answers = [answer for video in videos for answer in streamed(model, processor, video, fps, **memory)]
        answers = [answer for answer in answers if answer.key in asked]
        reference = reference or answers
        tables["memory"].append(row(name, answers, reference, **memory))
    for budget in arguments.budgets if shown else ():
        frames = 2 * budget // STEP_TOKENS
        sampling = {"fps": fps, "max_frames": frames, "sampling": "grid"}
        answers = [asked_anew(model, processor, q, 0.0, **sampling)[0] for q in questions if q.key in asked]
        tables["memory"].append(row(f"last {frames} frames alone", answers, reference, budget=budget))
    return tables


if __name__ == "__main__":
    with one_line_errors():
        main()
