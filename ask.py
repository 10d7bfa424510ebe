"""
Ask a trained GazeQwen about a video and a fixation table.

    python ask.py --model runs/demo/best --video V.mp4 --scanpath F.csv \\
        --question "Which object is the user currently gazing at?" --options box spices knife jar --time 276

Prints the answer with its probability, with gaze and without, and which fixations counted for which temporal step;
`--plot out.png` draws the frames with the scanpath on them. Without `--options` the model answers freely.
"""

import argparse

import torch
from transformers import AutoModel, AutoProcessor

from gazeqwen.evaluation import answer_probabilities, trained_counts
from gazeqwen.figures import draw_scanpath
from gazeqwen.resampler_gazeqwen import fixation_weights
from gazeqwen.runs import clear_errors
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.streamgaze import OPTION_LETTERS, chat_message, format_question


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a trained adapter")
    parser.add_argument("--video", required=True)
    parser.add_argument("--scanpath", help="StreamGaze-style fixation table (CSV); without it: the base model")
    parser.add_argument("--question", required=True)
    parser.add_argument("--options", nargs="+", help="the answers to choose from")
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
    processor = AutoProcessor.from_pretrained(arguments.model, trust_remote_code=True)
    prompt = arguments.question
    if arguments.options:
        prompt = format_question(arguments.question, arguments.options, processor.prompt_style)
    start_s = arguments.start
    if start_s is None:
        start_s = 0.0 if arguments.time is None else max(0.0, arguments.time - 60)
    clip = processor.read_clip(arguments.video, start_s, arguments.time, num_frames=arguments.num_frames)
    model = AutoModel.from_pretrained(arguments.model, trust_remote_code=True, dtype=arguments.dtype)
    model = model.to(arguments.device).eval()

    text = processor.apply_chat_template(chat_message(prompt), add_generation_prompt=True)
    processed = processor.process_clip(clip)
    snap_s = [arguments.snap_s]
    with_gaze = processor.collate([text], [processed], [scanpath], snap_s=snap_s).to(arguments.device)
    print(f"adapter: {trained_counts(model)}")
    print(f"{clip.source}: {clip.start_s:g} to {clip.end_s:g} s, {len(clip.frames)} frames")

    if scanpath is not None:
        spans = processed["step_spans_s"]
        if arguments.snap_s:
            scanpath = scanpath.snap(clip.end_s, float(spans[-1, 0]), arguments.snap_s)
        scanpath = scanpath.clip(clip.start_s, clip.end_s)
        weights = fixation_weights("share", torch.tensor(scanpath.table), spans.double()).numpy()
        print(f"{len(scanpath)} fixations in the clip; share of each temporal step that each covers:")
        for (begin, end), row in zip(spans.tolist(), weights, strict=True):
            counted = [f"fixation {scanpath.ids[i]} {100 * row[i]:.0f} %" for i in range(len(row)) if row[i] > 0]
            print(f"  {begin:8.2f} to {end:8.2f} s  {', '.join(counted) or '-'}")

    answers = {}
    with torch.no_grad():
        for name in ("with gaze", "without gaze") if scanpath is not None else ("without gaze",):
            inputs = with_gaze if name == "with gaze" else processor.collate([text], [processed]).to(arguments.device)
            if arguments.options:
                letters = list(OPTION_LETTERS[: len(arguments.options)])
                probabilities = answer_probabilities(model, processor, inputs, letters)
                best = max(range(len(probabilities)), key=probabilities.__getitem__)
                chosen = f"{OPTION_LETTERS[best]}. {arguments.options[best]}"
                answers[name] = f"{chosen} ({100 * probabilities[best]:.1f} %)"
                listed = zip(OPTION_LETTERS, arguments.options, probabilities, strict=False)
                details = ", ".join(f"{letter}. {option} {100 * p:.1f} %" for letter, option, p in listed)
                print(f"{name + ':':14}{answers[name]}   of {details}")
            else:
                output = model.generate(**inputs, max_new_tokens=128, do_sample=False)
                new = output[:, inputs["input_ids"].shape[1] :]
                answers[name] = processor.batch_decode(new, skip_special_tokens=True)[0].strip()
                print(f"{name + ':':14}{answers[name]}")

    if arguments.plot:
        title = f"{arguments.question}  " + "  |  ".join(f"{name}: {answer}" for name, answer in answers.items())
        draw_scanpath(arguments.plot, clip, scanpath, weights, title)
        print(f"drawn to {arguments.plot}")


if __name__ == "__main__":
    with clear_errors():
        main()
