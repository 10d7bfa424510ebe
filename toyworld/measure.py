"""
Accuracy of a toy backbone with what gaze is on marked, and without:
`python -m gazeqwen.toyworld.measure BACKBONE_DIR [--world kitchen]`.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Collection

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from gazeqwen.backbones_gazeqwen import positions_of
from gazeqwen.questions.prompts import OPTION_LETTERS, format_alert, format_question
from gazeqwen.toyworld.backbone import gazeqwen_processor
from gazeqwen.toyworld.generate import WORLDS, choose, make_video, ringed_clips, ringed_frames
from gazeqwen.toyworld.highlights import WORDINGS
from gazeqwen.toyworld.kitchen.marks import KINDS, Mark, marked_frame, words
from gazeqwen.toyworld.questions import FRAMES, TASK_NAMES, View
from gazeqwen.video_gazeqwen import Clip, sample_times

MARKS = {"shapes": ("ring",), "kitchen": tuple(KINDS)}  # of a world's backbone's pretraining


@torch.no_grad()
def answer_letters(model, processor, items: list[tuple], batch_size: int = 16) -> list[str]:
    """
    Return the letters that model and processor answer to each (frames of a clip, its length in s, what is said of it
    before the question, question, options).
    """
    letters, prompts = [], gazeqwen_processor(model.config, processor)
    for begin in range(0, len(items), batch_size):
        part = items[begin : begin + batch_size]
        texts = []
        for _, _, note, question, options in part:
            asked = format_alert(question)[0] if options == ["Yes", "No"] else format_question(question, options)
            content = [{"type": "video"}, {"type": "text", "text": note + asked}]
            message = [{"role": "user", "content": content}]
            texts.append(processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False))
        clips = [Clip(frames, sample_times(0.0, time_s, FRAMES), 0.0, time_s) for frames, time_s, *_ in part]
        inputs = prompts(text=texts, videos=clips)
        positions = positions_of(model.config, inputs)
        logits = model(**inputs, position_ids=positions, logits_to_keep=1).logits[:, -1]
        for row, (*_, options) in enumerate(part):
            ids = [processor.tokenizer.encode(OPTION_LETTERS[i])[0] for i in range(len(options))]
            letters.append(OPTION_LETTERS[int(logits[row, ids].argmax())])
    return letters


def marked(view: View, world: str, kind: str | None) -> tuple[np.ndarray, str]:
    """Return the frames of a clip with a mark of `kind` on what gaze is on, None for none, and what is said of it."""
    if world == "shapes" or kind is None:
        return np.stack(ringed_frames(view, kind is not None)), ""
    mark = Mark(kind, fitted=True)
    return np.stack([marked_frame(view, mark, k) for k in range(len(view.frame_times_s))]), words(view, mark)


def measure(
    model,
    processor,
    seed: int,
    videos: int = 150,
    most: int = 120,
    world: str = "shapes",
    tasks: Collection[str] = TASK_NAMES,
    verbs: bool = True,
) -> dict[str, dict]:
    """Return the accuracy per task on held-out recordings, with the plain full model and its prompts.

    For each mark of the pretraining two conditions: it is on what the viewer looks at and the question has a verb of
    pretraining ("pointing at", left out without `verbs`), and the same with the exact gaze wording ("gazing at"); and
    one more, the gaze wording without any mark (the floor).
    """
    other = WORDINGS[0]
    made = {f"{i}": make_video(10_000 + seed, "test", i, world) for i in range(videos)}
    chosen = choose(10_000 + seed, "test", made, 3, most)
    results: dict[str, dict] = {}
    for task in tasks:
        items = defaultdict(list)
        for name, q in chosen[task]:
            recording = made[name][0]
            for _, asked_q, view in ringed_clips(name, recording, [q]):
                answer, options = asked_q.answer, asked_q.options
                question, told = asked_q.question, other.reword(asked_q.question)
                if asked_q.points:
                    options, answer = ["Yes", "No"], "Yes" if asked_q.points[0][1] else "No"
                letter, length_s = OPTION_LETTERS[options.index(answer)], view.time_s - view.start_s
                for kind in (*MARKS[world], None):
                    frames, note = marked(view, world, kind)
                    asked = {f"{kind}, verb of pretraining": told} if verbs else {}
                    asked[f"{kind}, gaze wording"] = question
                    if kind is None:
                        asked = {"no mark, gaze wording": question}
                    for condition, text in asked.items():
                        items[condition].append(((frames, length_s, note, text, options), letter))
        results[task] = {"answers": len(items["no mark, gaze wording"])}
        for condition, asked_items in items.items():
            answers = answer_letters(model, processor, [item for item, _ in asked_items])
            right = [answer == letter for answer, (_, letter) in zip(answers, asked_items, strict=True)]
            results[task][condition] = round(float(np.mean(right)), 4)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("backbone", help="folder of the backbone and its processor")
    parser.add_argument("--seed", type=int, default=0, help="draws the held-out videos")
    parser.add_argument("--videos", type=int, default=150, help="held-out videos to measure on")
    parser.add_argument("--world", choices=list(WORLDS), default="shapes")
    args = parser.parse_args()
    model = AutoModelForImageTextToText.from_pretrained(args.backbone).eval()
    processor = AutoProcessor.from_pretrained(args.backbone)
    print(json.dumps(measure(model, processor, args.seed, args.videos, world=args.world), indent=2))


if __name__ == "__main__":
    main()
