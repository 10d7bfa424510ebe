"""
Ask a trained GazeQwen about a video and a fixation table.

    gazeqwen ask --video V.mp4 --scanpath F.csv --time 276 \\
        --question "Which object is the user currently gazing at?" --options box spices knife jar

Prints the answer with its probability, with gaze and without, and which fixations counted for which temporal step;
`--plot out.png` draws the frames with the scanpath on them. Without `--options` the model answers freely.
"""

import argparse

import torch

from gazeqwen.inference.answering import ask, load_model, load_processor, offer
from gazeqwen.questions.tasks import window_start_s
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.toyworld.trained import ADAPTER_DIR
from gazeqwen.utils.command_line import one_line_errors
from gazeqwen.utils.provenance import describe_trained_parameters


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
        "--snap_s", type=float, default=0.0, help="bring a fixation that begins so near to --time into view"
    )
    parser.add_argument("--num_frames", type=int, help="default: as the model was trained")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--plot", help="draw the frames with the scanpath to this PNG")
    arguments = parser.parse_args()
    if arguments.plot and not arguments.scanpath:
        parser.error("--plot draws a scanpath: give --scanpath")

    # Inputs first: a mistake in them should not cost the loading of a large model.
    scanpath = Scanpath.from_csv(arguments.scanpath) if arguments.scanpath else None
    processor = load_processor(arguments.model)
    prompt, answers = offer(arguments.question, arguments.options, processor.prompt_style)
    start_s = arguments.start
    if start_s is None:
        start_s = 0.0 if arguments.time is None else window_start_s(arguments.time)
    clip = processor.read_clip(arguments.video, start_s, arguments.time, num_frames=arguments.num_frames)
    model = load_model(arguments.model, arguments.device, arguments.dtype)
    print(f"adapter: {describe_trained_parameters(model)}")
    print(f"{clip.source}: {clip.start_s:g} to {clip.end_s:g} s, {len(clip.frames)} frames")

    asked = ask(model, processor, clip, scanpath, prompt, answers, arguments.snap_s)
    if scanpath is not None:
        print(f"{len(asked.scanpath)} fixations in the clip; share of each temporal step that each covers:")
        for begin, end, shares in asked.counted():
            counted = ", ".join(f"fixation {number} {100 * share:.0f} %" for number, share in shares.items())
            print(f"  {begin:8.2f} to {end:8.2f} s  {counted or '-'}")
    for name, answer in asked.answers.items():
        details = ", ".join(f"{option} {100 * p:.1f} %" for option, p in answer.probabilities.items())
        print(f"{name + ':':14}{answer}{'   of ' + details if details else ''}")
    if arguments.plot:
        from gazeqwen.plots.scanpath import draw_scanpath
        from gazeqwen.plots.style import save_png

        title = "  |  ".join([arguments.question, *(f"{name}: {answer}" for name, answer in asked.answers.items())])
        save_png(draw_scanpath(clip, asked.scanpath, asked.weights, title), arguments.plot)
        print(f"drawn to {arguments.plot}")


if __name__ == "__main__":
    with one_line_errors():
        main()
