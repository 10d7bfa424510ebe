"""
What a budget costs after an hour of stream, on the toy world's backbone that reads streams.

    python benchmarks/bench_stream_hour.py --output benchmarks/results/stream_hour.json

A stream is 30 slow scenes of two minutes (`toyworld/streams.py`), one after the other, 360 steps of ten seconds, with
a ring around what gaze is on. In the last scenes, after a minute, a minute and a half and two of each, questions are
asked: about the last minute (what gaze is on, what is visible), and about the scene's past; `long past`: those of
these that are asked after two minutes. Each is asked of a memory that holds all, of a budget by each policy, and
`alone`, of a stream that begins with the scene. There is no gaze module: the ring tells the backbone where gaze is,
and fixations tell the policy what stays. Intervals are bootstrap intervals over scenes.
"""

import argparse
import time
from dataclasses import dataclass

import numpy as np
import torch
from transformers import AutoProcessor

from gazeqwen.benchmarks.bench_stream import cache_mb, resident_mb
from gazeqwen.evaluation.scoring import GradedAnswer, score
from gazeqwen.evaluation.statistics import intervals, paired_difference
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.pipeline.answers import build_prompt
from gazeqwen.questions.prompts import format_alert
from gazeqwen.streaming import POLICIES
from gazeqwen.streaming.stream import GazeStream
from gazeqwen.toyworld.backbone import gazeqwen_processor
from gazeqwen.toyworld.highlights import Drawer
from gazeqwen.toyworld.highlights import Question as Asked
from gazeqwen.toyworld.pretrain_streams import STREAM_BACKBONE_DIR
from gazeqwen.toyworld.questions import EASY, FAP, GAZE, GSM, GTA, NFI, OAA, OAR, SR
from gazeqwen.toyworld.streams import FRAMES_PER_SECOND, MOST_STEPS, STEP_S, GridView, SlowScene, draw_slow_scene
from gazeqwen.utils.command_line import one_line_errors
from gazeqwen.utils.files import write_json
from gazeqwen.utils.provenance import provenance

LAST_MINUTE = {"which": EASY, "color": OAR, "shape": OAR, "alert now": GTA, "alert visible": OAA, "not visible": SR}
PAST = {"order": GSM, "never": NFI, "longest": FAP}
MOMENTS = (6, 9, 12)  # steps into a scene
GROUPS = {"last minute": (LAST_MINUTE, MOMENTS), "past": (PAST, MOMENTS), "long past": (PAST, MOMENTS[-1:])}
PAST_QUESTIONS = 2  # of each kind at each moment


def draw_questions(rng: np.random.Generator, scene: SlowScene) -> dict[int, list[Asked]]:
    """
    Return the questions about a scene, of each kind that it allows, by how many of its steps were seen: one about the
    last minute, two about the past.
    """
    asked = {}
    for steps in MOMENTS:
        drawer = Drawer(rng, GridView.first_steps(scene.recording, steps), (GAZE,))
        asked[steps] = []
        for kind in (*LAST_MINUTE, *list(PAST) * PAST_QUESTIONS):
            drawn = getattr(drawer, "draw_" + kind.replace(" ", "_"))(GAZE)
            if drawn:
                text, options, answer = drawn
                asked[steps].append(Asked(kind, text, options, answer))
    return asked


@dataclass(frozen=True)
class Answered:
    """An answer to a question of a kind, asked after `steps` of its scene."""

    kind: str
    steps: int
    answer: GradedAnswer


def ask(stream: GazeStream, scene: str, steps: int, number: int, asked: Asked) -> Answered:
    """Return the answer to a question; `number`: of those that are asked then."""
    style = stream.processor.prompt_style
    if asked.options == ["Yes", "No"]:
        prompt, letters = format_alert(asked.text, style)
        answers = dict(zip(letters, asked.options, strict=True))
    else:
        prompt, answers = build_prompt(asked.text, asked.options, style)
    logits = list(stream.ask_prompt(prompt, answers).logits.values())
    task = (LAST_MINUTE | PAST)[asked.kind]
    right = asked.options.index(asked.answer)
    answer = GradedAnswer(f"{scene}/{steps}/{number}", scene, task, right, asked.options, logits)
    return Answered(asked.kind, steps, answer)


def watch(
    model, processor, name: str, scenes: list[SlowScene], asked: dict[int, dict[int, list[Asked]]], **memory
) -> tuple[list[Answered], dict]:
    """
    Return the answers to what is `asked` (of a scene's number, after how many of its steps) on one stream of scenes;
    and what it held at the end of each: seconds, MB of keys and values, MB of the resident set.
    """
    answers, sizes, begin = [], [], scenes[0].begin
    with GazeStream(model, processor, fps=FRAMES_PER_SECOND, **memory) as stream:
        for number, scene in enumerate(scenes):
            offset_s = (scene.begin - begin) * STEP_S
            seen = scene.recording.scanpath.clip(0.0, scene.view.time_s)
            stream.push_fixation(seen.table + np.array([0, 0, offset_s, 0]), until_s=offset_s + scene.view.time_s)
            frames, times_s = scene.frames, offset_s + scene.view.frame_times_s
            for step in range(scene.steps):
                stream.push(frames[2 * step : 2 * step + 2], times_s[2 * step : 2 * step + 2])
                stream.wait(offset_s + (step + 1) * STEP_S)
                questions = asked.get(number, {}).get(step + 1, [])
                answers += [ask(stream, f"{name}/{scene.begin}", step + 1, *each) for each in enumerate(questions)]
            sizes.append([offset_s + scene.view.time_s, cache_mb(stream), resident_mb()])
        held = {"visual_tokens": stream.context.video_tokens, "seconds_and_mb": sizes}
    return answers, held


def chosen(answers: list[Answered], group: str) -> list[GradedAnswer]:
    """Return the answers of a group of questions."""
    kinds, moments = GROUPS[group]
    return [each.answer for each in answers if each.kind in kinds and each.steps in moments]


def row(name: str, answers: list[Answered], references: dict[str, list[Answered]], **more) -> dict:
    """Return a table's row: accuracies by group and kind with intervals, and the differences from other rows."""
    result = {"name": name, "questions": len(answers), **more}
    for group, (kinds, moments) in GROUPS.items():
        own = chosen(answers, group)
        result[group] = {"questions": len(own), "accuracy": score(own)["micro"], "interval": intervals(own)["micro"]}
        of_kinds = {kind: [a.answer for a in answers if a.kind == kind and a.steps in moments] for kind in kinds}
        result[group]["kinds"] = {kind: score(own)["micro"] for kind, own in of_kinds.items() if own}
        for other, theirs in references.items():
            if other == name:
                continue
            difference = paired_difference(own, chosen(theirs, group))
            bounds = difference["intervals"]["micro"]
            result[group][f"against {other}"] = {"difference": difference["micro"], "interval": bounds}
    return result


def shown(result: dict) -> str:
    """Return a row as a line."""
    parts = [f"{result['name']:12} {result['questions']:5}"]
    for group in GROUPS:
        (low, high), text = result[group]["interval"], f"{group} {100 * result[group]['accuracy']:.1f}"
        text += f" [{100 * low:.1f}, {100 * high:.1f}]"
        for other, cell in result[group].items():
            if other.startswith("against "):
                low, high = cell["interval"]
                text += f" {other} {100 * cell['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
        parts.append(text)
    return "  ".join(parts)


def measure(model, processor, seed: int, streams: int, scenes: int, asked_scenes: int, budget: int) -> list[dict]:
    """Return the table's rows."""
    memories = {"all stays": {}, **{f"{policy} {budget}": {"budget": budget, "policy": policy} for policy in POLICIES}}
    answers = {name: [] for name in ("alone", *memories)}
    held, alone = {}, answers["alone"]
    for number in range(streams):
        rng, name = np.random.default_rng([seed, 80, number]), str(number)
        watched = [draw_slow_scene(rng, index * MOST_STEPS, MOST_STEPS) for index in range(scenes)]
        asked = {index: draw_questions(rng, watched[index]) for index in range(scenes - asked_scenes, scenes)}
        for index, questions in asked.items():
            alone += watch(model, processor, name, [watched[index]], {0: questions})[0]
        for memory, settings in memories.items():
            began = time.perf_counter()
            own, sizes = watch(model, processor, name, watched, asked, **settings)
            answers[memory] += own
            held.setdefault(memory, sizes)
            print(f"stream {number}, {memory}: {time.perf_counter() - began:.0f} s", flush=True)
        compared = {each: answers[each] for each in ("alone", "all stays", f"recent {budget}")}
        rows = [row(each, own, compared, **held.get(each, {})) for each, own in answers.items()]
        print(*map(shown, rows), sep="\n", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default=str(STREAM_BACKBONE_DIR))
    parser.add_argument("--streams", type=int, default=6)
    parser.add_argument("--scenes", type=int, default=30, help="of a stream, two minutes each")
    parser.add_argument("--asked_scenes", type=int, default=8, help="the last ones, about which questions are asked")
    parser.add_argument("--budget", type=int, default=96, help="visual tokens; a step has 16")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = GazeQwenForConditionalGeneration.from_base(arguments.backbone, resampler_type="none").eval()
    processor = gazeqwen_processor(model.backbone.config, AutoProcessor.from_pretrained(arguments.backbone))
    sizes = (arguments.streams, arguments.scenes, arguments.asked_scenes, arguments.budget)
    rows = measure(model, processor, arguments.seed, *sizes)
    if arguments.output:
        write_json(arguments.output, {"settings": vars(arguments), "hour": rows, "provenance": provenance()})


if __name__ == "__main__":
    with one_line_errors():
        main()
