"""
Ask a trained GazeQwen about a video and a fixation table.

    gazeqwen ask --video V.mp4 --scanpath F.csv --time 276 \\
        --question "Which object is the user currently gazing at?" --options box spices knife jar

Prints the answer with its probability, with gaze and without, which fixations counted for which temporal step, and
whether one was snapped to the question; `--plot out.png` draws the frames with the scanpath on them. Without
`--options` the model answers freely. With `--json` stdout is one JSON object, and all else goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

from gazeqwen.questions.tasks import window_start_s
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.toyworld.trained import ADAPTER_DIR, TOY_NOTE, is_toy
from gazeqwen.utils.command_line import add_model_flags, one_line_errors
from gazeqwen.video_gazeqwen import read_frames, video_info

if TYPE_CHECKING:
    from gazeqwen.inference.answering import Comparison


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default=ADAPTER_DIR, help="folder or Hub id of an adapter (default: the toy world's)"
    )
    parser.add_argument("--video", required=True)
    parser.add_argument("--scanpath", help="StreamGaze-style fixation table (CSV); without it: the base model")
    parser.add_argument("--question", required=True)
    parser.add_argument("--options", nargs="+", default=[], help="the answers to choose from")
    parser.add_argument("--time", type=float, help="when the question is asked, seconds (default: the video's end)")
    parser.add_argument("--start", type=float, help="where the clip begins, seconds (default: 60 s before --time)")
    parser.add_argument(
        "--snap_s",
        type=float,
        help="bring a fixation that begins so near to --time into view, seconds; 0: off (default: as trained)",
    )
    parser.add_argument("--num_frames", type=int, help="default: as the model was trained")
    add_model_flags(parser)
    parser.add_argument("--plot", help="draw the frames with the scanpath to this PNG")
    parser.add_argument("--json", action="store_true", help="print one JSON object, and notes to stderr")
    arguments = parser.parse_args()
    if arguments.plot and not arguments.scanpath:
        parser.error("--plot draws a scanpath: give --scanpath")

    with redirect_stdout(sys.stderr if arguments.json else sys.stdout):
        comparison = compare(arguments)
    if arguments.json:
        print(json.dumps(as_json(comparison)))


def compare(arguments: argparse.Namespace) -> Comparison:
    """Ask what the command line says, print how it was asked and what came out, and draw it if that is asked for."""
    # Seconds, which --help and mistakes in the arguments need not wait for.
    from gazeqwen.inference.answering import ask, scanpath_doubts
    from gazeqwen.pipeline.answers import build_prompt
    from gazeqwen.utils.adapters import is_in_4bit, load_model_by_flags, load_processor
    from gazeqwen.utils.provenance import describe_trained_parameters

    # Inputs first: a mistake in them should not cost the loading of a large model.
    scanpath = Scanpath.from_csv(arguments.scanpath) if arguments.scanpath else None
    processor = load_processor(arguments.model, trust_remote_code=arguments.trust_remote_code)
    prompt, answers = build_prompt(arguments.question, arguments.options, processor.prompt_style)
    start_s = arguments.start
    if start_s is None:
        start_s = 0.0 if arguments.time is None else window_start_s(arguments.time)
    if scanpath is not None:
        for doubt in scanpath_doubts(scanpath, video_info(arguments.video).end_s):
            print(f"warning: {arguments.scanpath}: {doubt}", file=sys.stderr)
    clip = processor.read_clip(arguments.video, start_s, arguments.time, num_frames=arguments.num_frames)
    model = load_model_by_flags(arguments)
    if is_toy(model):
        print(f"warning: {TOY_NOTE}")
    print(f"adapter: {describe_trained_parameters(model)}")
    if is_in_4bit(model):
        print("base model: in 4 bits")
    print(f"{clip.source}: {clip.start_s:g} to {clip.end_s:g} s, {len(clip.frames)} frames")

    snap_s = processor.snap_s if arguments.snap_s is None else arguments.snap_s
    if scanpath is not None and arguments.snap_s is None:
        print(f"asked as trained: snap_s {snap_s:g}, for questions about what is looked at now; --snap_s 0 for others")
    comparison = ask(model, processor, clip, scanpath, prompt, answers, snap_s)
    print_comparison(comparison)
    if arguments.plot:
        from gazeqwen.plots.scanpath import draw_scanpath
        from gazeqwen.plots.style import save_png

        answers_text = [f"{name}: {answer}" for name, answer in comparison.answers.items()]
        frames, _ = read_frames(arguments.video, comparison.moments_s())
        figure = draw_scanpath(
            frames,
            comparison.step_spans_s,
            comparison.scanpath,
            comparison.weights,
            "  |  ".join([arguments.question, *answers_text]),
            snapped=comparison.snapped_in(len(frames) - 1),
        )
        save_png(figure, arguments.plot)
        print(f"drawn to {arguments.plot}")
    return comparison


def as_json(comparison: Comparison) -> dict:
    """
    Return the answers, by `with gaze` and `without gaze`, with the probability of each option, and what the model saw:
    the clip and, for each temporal step, the share that each fixation (its id) covers. Times in seconds of the video.
    """
    clip = comparison.clip
    return {
        "video": str(clip.source),
        "start_s": clip.start_s,
        "end_s": clip.end_s,
        "answers": {
            name: {"answer": answer.text, "probabilities": answer.probabilities}
            for name, answer in comparison.answers.items()
        },
        "steps": [
            {"begin_s": step.begin_s, "end_s": step.end_s, "fixations": step.shares} for step in comparison.steps()
        ],
        "snapped": None if comparison.snap is None else comparison.snap.fixation,
    }


def print_comparison(comparison: Comparison) -> None:
    """Print which fixations counted, what snapping changed, and the answers with and without gaze."""
    if comparison.scanpath is not None:
        print(f"{len(comparison.scanpath)} fixations in the clip; share of each temporal step that each covers:")
        for step in comparison.steps():
            print(f"  {step.begin_s:8.2f} to {step.end_s:8.2f} s  {step}")
    if comparison.snap is not None:
        print(comparison.snap)
    for name, answer in comparison.answers.items():
        details = ", ".join(f"{option} {100 * p:.1f} %" for option, p in answer.probabilities.items())
        print(f"{name + ':':14}{answer}{'   of ' + details if details else ''}")


if __name__ == "__main__":
    with one_line_errors():
        main()
