"""Write a toy world in StreamGaze's release layout: `python -m gazeqwen.toyworld.generate OUT --seed 0`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gazeqwen.toyworld.questions import CLIP_S, NEVER, TASKS, gaze_questions
from gazeqwen.toyworld.viewer import Fixation, simulate_viewer, write_fixations
from gazeqwen.toyworld.world import Scene, draw_frame, frame_times_s, make_scene, write_video

SOURCE = "toyworld"
SPLITS = ("train", "val", "test")
LETTERS = "ABCD"


def clock(time_s: int) -> str:
    """Whole seconds as StreamGaze's MM:SS."""
    return f"{time_s // 60:02d}:{time_s % 60:02d}"


def make_video(seed: int, split: str, index: int) -> tuple[Scene, list[Fixation], list[dict]]:
    """Scene, scanpath and all questions of one video; each (seed, split, index) is its own world."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    while True:
        scene = make_scene(rng)
        fixations = simulate_viewer(scene, rng)
        questions = gaze_questions(scene, fixations, rng)
        if questions:
            return scene, fixations, questions


def _deck(rng: np.random.Generator, count: int) -> list[int]:
    """`count` answer places in random order, each of the four as often as the others (to within one)."""
    return [int(i) for i in rng.permutation(np.arange(count) % len(LETTERS))]


def make_entries(
    seed: int, split: str, videos: dict[str, list[dict]], per_task: int = 3
) -> dict[str, list[tuple[dict, dict]]]:
    """Per task: (StreamGaze entry, the question it came from) pairs, letters balanced within split and task.

    `videos` maps a video's file name to its questions; a video gives at most `per_task` questions to a task.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), 2**31])
    entries = {}
    for task in TASKS:
        chosen = []
        for name, questions in videos.items():
            of_task = [q for q in questions if q["task"] == task]
            keep = sorted(rng.permutation(len(of_task))[:per_task])
            chosen += [(name, of_task[i]) for i in keep]
        entries[task] = []
        for (name, q), place in zip(chosen, _deck(rng, len(chosen)), strict=True):
            words = [word for word in q["options"] if word != q["answer"]]
            words.insert(place, q["answer"])
            start_s = 0 if task == NEVER else max(0, q["time_s"] - CLIP_S)
            question = {
                "question": q["question"],
                "time_stamp": clock(q["time_s"]),
                "answer": LETTERS[place],
                "options": [f"{letter}. {word}" for letter, word in zip(LETTERS, words, strict=True)],
                "task_type": task,
                "required_ability": "object_grounding",
                **q["extra"],
            }
            entry = {
                "video_path": name,
                "response_time": f"[{clock(start_s)} - {clock(q['time_s'])}]",
                "video_categories": SOURCE.upper(),
                "questions": [question],
            }
            entries[task].append((entry, q))
    return entries


def generate(
    out_dir: str | Path, train: int, val: int, test: int, seed: int = 0, per_task: int = 3, progress: bool = True
) -> Path:
    """Write a toy world and return its folder. The same arguments give the same files.

    - `videos/original_video/<stem>.mp4`: h264, 112x112, 8 frames a second, 8 to 14 s
    - `metadata/toyworld/<stem>/<stem>_fixation_filtered.csv`: the scanpath
    - `qa/<task>.json`: the questions of all splits
    - `splits.json`: `{"train": [file names], "val": [...], "test": [...]}`

    Args:
        out_dir: a folder to create; it may exist, but must not hold another toy world.
        train, val, test: number of videos of each split.
        per_task: the most questions that one video gives to one task.
    """
    counts = dict(zip(SPLITS, (train, val, test), strict=True))
    if min(counts.values()) < 0 or sum(counts.values()) == 0 or per_task < 1:
        raise ValueError(f"need at least one video, no negative counts and per_task >= 1: {counts}, {per_task=}")
    out = Path(out_dir)
    if (out / "splits.json").exists():
        raise FileExistsError(f"{out} already holds a toy world (splits.json): choose another folder or remove it")
    for folder in ("videos/original_video", f"metadata/{SOURCE}", "qa"):
        (out / folder).mkdir(parents=True, exist_ok=True)

    names: dict[str, list[str]] = {split: [] for split in SPLITS}
    qa: dict[str, list[dict]] = {task: [] for task in TASKS}
    with tqdm(total=sum(counts.values()), desc="toy world", unit="video", disable=not progress) as bar:
        for split, count in counts.items():
            videos = {}
            for index in range(count):
                scene, fixations, questions = make_video(seed, split, index)
                stem = f"toy-{split}-{index:04d}"
                frames = [draw_frame(scene, time_s) for time_s in frame_times_s(scene)]
                write_video(out / f"videos/original_video/{stem}.mp4", frames)
                folder = out / "metadata" / SOURCE / stem
                folder.mkdir(exist_ok=True)
                write_fixations(folder / f"{stem}_fixation_filtered.csv", fixations)
                videos[f"{stem}.mp4"] = questions
                bar.update()
            names[split] = list(videos)
            for task, pairs in make_entries(seed, split, videos, per_task).items():
                qa[task] += [entry for entry, _ in pairs]
    for task, entries in qa.items():
        (out / "qa" / f"{task}.json").write_text(json.dumps(entries, indent=2) + "\n")
    (out / "splits.json").write_text(json.dumps(names, indent=2) + "\n")  # last: its presence means "complete"
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", help="folder to write")
    parser.add_argument("--train", type=int, default=160, help="videos in the training split")
    parser.add_argument("--val", type=int, default=30)
    parser.add_argument("--test", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--per-task", type=int, default=3, help="most questions of one task per video")
    args = parser.parse_args()
    out = generate(args.out, args.train, args.val, args.test, args.seed, args.per_task)
    for task in TASKS:
        print(f"{task}: {len(json.loads((out / 'qa' / f'{task}.json').read_text()))} questions")


if __name__ == "__main__":
    main()
