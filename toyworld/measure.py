"""Accuracy of a toy backbone with a drawn ring, and without: `python -m gazeqwen.toyworld.measure BACKBONE_DIR`."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from gazeqwen.streamgaze import OPTION_LETTERS, format_question
from gazeqwen.toyworld.generate import make_entries, make_video
from gazeqwen.toyworld.questions import FRAMES, TASKS, sample_times_s
from gazeqwen.toyworld.world import Highlight, draw_frame, frame_times_s, write_video
from gazeqwen.video_gazeqwen import read_frames


@torch.no_grad()
def answer(model, processor, items: list[tuple[np.ndarray, float, str, list[str]]], batch_size: int = 16) -> list[str]:
    """Letters that the full model and processor answer to (frames of [0, t], t, question, options), one each."""
    letters = []
    for begin in range(0, len(items), batch_size):
        part = items[begin : begin + batch_size]
        texts = []
        for _, _, question, options in part:
            content = [{"type": "video"}, {"type": "text", "text": format_question(question, options)}]
            message = [{"role": "user", "content": content}]
            texts.append(processor.apply_chat_template(message, add_generation_prompt=True, tokenize=False))
        details = [
            {"fps": FRAMES / time_s, "total_num_frames": FRAMES, "frames_indices": list(range(FRAMES))}
            for _, time_s, _, _ in part
        ]
        inputs = processor(
            text=texts,
            videos=[frames for frames, _, _, _ in part],
            video_metadata=details,
            do_sample_frames=False,
            padding=True,
            return_tensors="pt",
        )
        logits = model(**inputs, logits_to_keep=1).logits[:, -1]
        for row, (_, _, _, options) in enumerate(part):
            ids = [processor.tokenizer.encode(OPTION_LETTERS[i])[0] for i in range(len(options))]
            letters.append(OPTION_LETTERS[int(logits[row, ids].argmax())])
    return letters


def measure(model, processor, seed: int, videos: int = 150) -> dict[str, dict]:
    """Accuracy per task on real mp4 files of held-out videos, with the plain full model and processor.

    Three conditions: a ring drawn on what the viewer looks at and a verb of pretraining ("pointing at"), the same ring
    and the exact gaze wording ("gazing at"), and the gaze wording without any ring (the floor).
    """
    ring = Highlight()
    made = {f"{i}": make_video(10_000 + seed, "test", i) for i in range(videos)}
    entries = make_entries(10_000 + seed, "test", {name: questions for name, (_, _, questions) in made.items()})
    items = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for name, (scene, fixations, _) in made.items():
            for condition in ("plain", "ring"):
                frames = []
                for time_s in frame_times_s(scene):
                    on = [f.object_index for f in fixations if f.start_s <= time_s < f.end_s]
                    frames.append(draw_frame(scene, time_s, [(i, ring) for i in on] if condition == "ring" else []))
                write_video(Path(folder) / f"{name}-{condition}.mp4", frames)
        for task, pairs in entries.items():
            for entry, q in pairs:
                asked = entry["questions"][0]
                options = [option[3:] for option in asked["options"]]
                time_s = float(q["time_s"])
                shown = {
                    condition: read_frames(
                        Path(folder) / f"{entry['video_path']}-{condition}.mp4", sample_times_s(time_s)
                    )[0]
                    for condition in ("plain", "ring")
                }
                other = asked["question"].replace("gazing at", "pointing at").replace("gaze at", "point at")
                for condition, frames, question in (
                    ("ring, verb of pretraining", shown["ring"], other),
                    ("ring, gaze wording", shown["ring"], asked["question"]),
                    ("no ring, gaze wording", shown["plain"], asked["question"]),
                ):
                    items[task, condition].append(((frames, time_s, question, options), asked["answer"]))
    results: dict[str, dict] = {task: {} for task in TASKS}
    for (task, condition), pairs in items.items():
        given = answer(model, processor, [item for item, _ in pairs])
        results[task]["questions"] = len(pairs)
        results[task][condition] = round(
            float(np.mean([a == right for a, (_, right) in zip(given, pairs, strict=True)])), 4
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backbone", help="folder of the backbone and its processor")
    parser.add_argument("--seed", type=int, default=0, help="draws the held-out videos")
    parser.add_argument("--videos", type=int, default=150, help="held-out videos to measure on")
    args = parser.parse_args()
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(args.backbone).eval()
    processor = AutoProcessor.from_pretrained(args.backbone)
    print(json.dumps(measure(model, processor, args.seed, args.videos), indent=2))


if __name__ == "__main__":
    main()
