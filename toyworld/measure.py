"""Accuracy of a toy backbone with a drawn ring, and without: `python -m gazeqwen.toyworld.measure BACKBONE_DIR`."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from gazeqwen.backbones_gazeqwen import positions_of
from gazeqwen.questions.prompts import OPTION_LETTERS, format_alert, format_question
from gazeqwen.toyworld.backbone import gazeqwen_processor
from gazeqwen.toyworld.generate import choose, make_video, ringed_clips, ringed_frames
from gazeqwen.toyworld.highlights import WORDINGS
from gazeqwen.toyworld.questions import FRAMES
from gazeqwen.video_gazeqwen import Clip, sample_times


@torch.no_grad()
def answer_letters(model, processor, items: list[tuple], batch_size: int = 16) -> list[str]:
    """The letters that model and processor answer to each (frames of a clip, its length in s, question, options)."""
    letters, prompts = [], gazeqwen_processor(model.config, processor)
    for begin in range(0, len(items), batch_size):
        part = items[begin : begin + batch_size]
        texts = []
        for _, _, question, options in part:
            asked = format_alert(question)[0] if options == ["Yes", "No"] else format_question(question, options)
            content = [{"type": "video"}, {"type": "text", "text": asked}]
            message = [{"role": "user", "content": content}]
            texts.append(processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False))
        clips = [Clip(frames, sample_times(0.0, time_s, FRAMES), 0.0, time_s) for frames, time_s, _, _ in part]
        inputs = prompts(text=texts, videos=clips)
        positions = positions_of(model.config, inputs)
        logits = model(**inputs, position_ids=positions, logits_to_keep=1).logits[:, -1]
        for row, (_, _, _, options) in enumerate(part):
            ids = [processor.tokenizer.encode(OPTION_LETTERS[i])[0] for i in range(len(options))]
            letters.append(OPTION_LETTERS[int(logits[row, ids].argmax())])
    return letters


def measure(model, processor, seed: int, videos: int = 150, most: int = 120) -> dict[str, dict]:
    """Return the accuracy per task on held-out recordings, with the plain full model and its prompts.

    Three conditions: a ring drawn on what the viewer looks at and a verb of pretraining ("pointing at"), the same ring
    and the exact gaze wording ("gazing at"), and the gaze wording without any ring (the floor).
    """
    other = WORDINGS[0]
    made = {f"{i}": make_video(10_000 + seed, "test", i) for i in range(videos)}
    chosen = choose(10_000 + seed, "test", made, 3, most)
    results: dict[str, dict] = {}
    for task, pairs in chosen.items():
        items = defaultdict(list)
        for name, q in pairs:
            recording = made[name][0]
            for _, asked_q, view in ringed_clips(name, recording, [q]):
                answer, options = asked_q.answer, asked_q.options
                question, told = asked_q.question, other.reword(asked_q.question)
                if asked_q.points:
                    options, answer = ["Yes", "No"], "Yes" if asked_q.points[0][1] else "No"
                frames = {marked: np.stack(ringed_frames(view, marked)) for marked in (True, False)}
                letter, length_s = OPTION_LETTERS[options.index(answer)], view.time_s - view.start_s
                for condition, marked, asked in (
                    ("ring, verb of pretraining", True, told),
                    ("ring, gaze wording", True, question),
                    ("no ring, gaze wording", False, question),
                ):
                    items[condition].append(((frames[marked], length_s, asked, options), letter))
        results[task] = {"answers": len(items["ring, gaze wording"])}
        for condition, asked in items.items():
            answers = answer_letters(model, processor, [item for item, _ in asked])
            right = [answer == letter for answer, (_, letter) in zip(answers, asked, strict=True)]
            results[task][condition] = round(float(np.mean(right)), 4)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backbone", help="folder of the backbone and its processor")
    parser.add_argument("--seed", type=int, default=0, help="draws the held-out videos")
    parser.add_argument("--videos", type=int, default=150, help="held-out videos to measure on")
    args = parser.parse_args()
    model = AutoModelForImageTextToText.from_pretrained(args.backbone).eval()
    processor = AutoProcessor.from_pretrained(args.backbone)
    print(json.dumps(measure(model, processor, args.seed, args.videos), indent=2))


if __name__ == "__main__":
    main()
