"""
Write a toy world in StreamGaze's release layout:
`python -m gazeqwen.toyworld.generate OUT --seed 0 [--world kitchen]`.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gazeqwen.questions.prompts import OPTION_LETTERS
from gazeqwen.questions.question import TOY_SOURCE
from gazeqwen.questions.tasks import clip_window
from gazeqwen.toyworld import kitchen, world
from gazeqwen.toyworld.questions import TASK_NAMES, ToyQuestion, View, clip_of, clock, even_points, gaze_questions
from gazeqwen.toyworld.viewer import Recording, make_viewer, simulate_viewer, write_fixations
from gazeqwen.toyworld.world import frame_times_s, write_video
from gazeqwen.utils.files import sync_tree, write_json

SPLITS = ("train", "val", "test")
VIEWERS = 12  # of each split: nobody is in two
WORLDS = {"shapes": (world.make_scene, simulate_viewer), "kitchen": (kitchen.make_scene, kitchen.record_viewer)}


def make_video(seed: int, split: str, index: int, kind: str = "shapes") -> tuple[Recording, list[ToyQuestion]]:
    """
    Return the recording and all questions of one video of a world (`kind`, in WORLDS); each (seed, split, index) has
    its own scene.
    """
    make_scene, record = WORLDS[kind]
    habits = np.random.default_rng([seed, SPLITS.index(split), 2**30, index % VIEWERS])
    viewer = make_viewer(habits)
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    while True:
        recording = record(make_scene(rng), viewer, rng)
        questions = gaze_questions(recording, rng)
        if questions:
            return recording, questions


def _deck(rng: np.random.Generator, count: int, places: int) -> list[int]:
    """Return `count` answer places in random order, each as often as the others (to within one)."""
    return [int(i) for i in rng.permutation(np.arange(count) % places)]


def choose(
    seed: int,
    split: str,
    videos: dict[str, tuple[Recording, list[ToyQuestion]]],
    per_task: int,
    most: int | None = None,
) -> dict[str, list[tuple[str, ToyQuestion]]]:
    """
    Return, per task, (video's name, question) pairs with the options in their final order: the right letter is each as
    often as the others. At most `per_task` questions of a video, and `most` answers (test points count one each) in
    all. Alerts of a world that is strictly fair are due as often as not at all times.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), 2**31])
    strictly_fair = any(recording.scene.strictly_fair for recording, _ in videos.values())
    chosen = {}
    for task in TASK_NAMES:
        pairs = []
        for name, (_, questions) in videos.items():
            of_task = [q for q in questions if q.task == task]
            pairs += [(name, of_task[i]) for i in sorted(rng.permutation(len(of_task))[:per_task])]
        if strictly_fair and any(q.points for _, q in pairs):
            pairs = even_points(rng, pairs)
        if most is not None:
            order, count, kept = rng.permutation(len(pairs)), 0, []
            for i in order:
                if count < most:
                    kept.append(int(i))
                    count += max(1, len(pairs[i][1].points))
            pairs = [pairs[i] for i in sorted(kept)]
        places = iter(_deck(rng, len(pairs), 4))
        for _, q in pairs:
            if q.options:
                others = [option for option in q.options if option != q.answer]
                others.insert(next(places), q.answer)
                q.options = others
        chosen[task] = pairs
    return chosen


def streamgaze_entry(name: str, q: ToyQuestion) -> dict:
    """Return the question as an entry of StreamGaze's JSON."""
    start_s, _ = clip_window(q.task, float(q.time_s))
    asked = {"question": q.question, "time_stamp": clock(q.time_s), "task_type": q.task}
    if q.points:
        asked["test_info"] = [{"realtime": clock(s), "type": int(due)} for s, due in q.points]
    else:
        asked["answer"] = OPTION_LETTERS[q.options.index(q.answer)]
        asked["options"] = [f"{letter}. {option}" for letter, option in zip(OPTION_LETTERS, q.options, strict=False)]
        asked["required_ability"] = "object_grounding"
    return {
        "video_path": name,
        "response_time": f"[{clock(start_s)} - {clock(q.time_s)}]",
        "video_categories": TOY_SOURCE.upper(),
        "questions": [asked | q.extra],
    }


def _write_videos(out: Path, recording: Recording, views: dict[str, View | None]) -> None:
    """Write what is shown of a recording, videos by name."""
    for name, view in views.items():
        _write_video(out, name, recording, view)


def _write_video(out: Path, name: str, recording: Recording, view: View | None = None) -> None:
    """
    Write video and scanpath. With a `view`, the video holds that clip's frames alone, at their times, with a ring that
    follows the gaze.
    """
    scene = recording.scene
    if view is None:
        write_video(out / "videos/original_video" / name, [scene.draw(s) for s in frame_times_s(scene)])
    else:
        pictures = ringed_frames(view)
        times_s = [0.0, *view.frame_times_s, view.time_s]
        write_video(out / "videos/original_video" / name, [pictures[0], *pictures, pictures[-1]], times_s)
    stem = name.removesuffix(".mp4")
    folder = out / "metadata" / TOY_SOURCE / stem
    folder.mkdir(exist_ok=True)
    write_fixations(folder / f"{stem}_fixation_filtered.csv", recording.fixations)


def ringed_frames(view: View, ring: bool = True) -> list[np.ndarray]:
    """Return the frames that a model is shown of a clip, with a ring around what gaze is on, or without."""
    marks = view.marked if ring else [[]] * len(view.marked)
    return [view.scene.draw(s, things) for s, things in zip(view.frame_times_s, marks, strict=True)]


def ringed_clips(stem: str, recording: Recording, questions: list[ToyQuestion]) -> list[tuple[str, ToyQuestion, View]]:
    """
    Return (video's name, question, what is to be seen) of each clip asked about. Each has a video of its own, since
    the ring follows the gaze as that clip has it (`Scanpath.snap`); so every test point is a question of its own.
    """
    clips = []
    for q in questions:
        for time_s, points in [(s, [(s, due)]) for s, due in q.points] or [(q.time_s, [])]:
            view = clip_of(recording, q.task, time_s)
            clips.append((f"{stem}-{len(clips):03d}.mp4", replace(q, points=points), view))
    return clips


def generate(
    out_dir: str | Path,
    train: int,
    val: int,
    test: int,
    seed: int = 0,
    per_task: int = 3,
    most: tuple[int, int, int] | None = None,
    rings: bool = False,
    progress: bool = True,
    kind: str = "shapes",
) -> Path:
    """
    Write a toy world and return its folder, with a process on each core. The same arguments give the same files.

    - `videos/original_video/<stem>.mp4`: h264, 4 frames a second, 112x112 (kitchen: 224x224), 10 s to 3 minutes
    - `metadata/toyworld/<stem>/<stem>_fixation_filtered.csv`: the scanpath
    - `qa/<task>.json`: the questions of all splits
    - `splits.json`: `{"train": [file names], "val": [...], "test": [...]}`

    Args:
        out_dir: a folder to create; it may exist, but must not hold another toy world.
        train, val, test: number of videos of each split.
        per_task: the most questions that one video gives to one task.
        most: the most answers (test points count one each) of one task in each split; None: no limit.
        rings: instead, the same questions about videos in which a ring follows the gaze: what the backbone makes of
            these is the most that gaze can give it.
        kind: the world, in WORLDS.
    """
    counts = dict(zip(SPLITS, (train, val, test), strict=True))
    if min(counts.values()) < 0 or sum(counts.values()) == 0 or per_task < 1:
        raise ValueError(f"need at least one video, no negative counts and per_task >= 1: {counts}, {per_task=}")
    out = Path(out_dir)
    if (out / "splits.json").exists():
        raise FileExistsError(f"{out} already holds a toy world (splits.json): choose another folder or remove it")
    for folder in ("videos/original_video", f"metadata/{TOY_SOURCE}", "qa"):
        (out / folder).mkdir(parents=True, exist_ok=True)

    names: dict[str, list[str]] = {split: [] for split in SPLITS}
    qa: dict[str, list[dict]] = {task: [] for task in TASK_NAMES}
    # Forked, so that a script needs no guard around its main part; the processes use nothing of torch.
    processes = min(os.cpu_count() or 1, sum(counts.values()))
    with (
        ProcessPoolExecutor(processes, get_context("fork")) as pool,
        tqdm(total=sum(counts.values()), desc="toy world", unit="video", disable=not progress) as bar,
    ):
        recorded = {
            f"toy-{split}-{index:04d}.mp4": pool.submit(make_video, seed, split, index, kind)
            for split, count in counts.items()
            for index in range(count)
        }
        written = []
        for split in SPLITS:
            made = {name: video.result() for name, video in recorded.items() if name.startswith(f"toy-{split}-")}
            chosen = choose(seed, split, made, per_task, most and most[SPLITS.index(split)])
            for name, (recording, _) in made.items():
                asked = [q for pairs in chosen.values() for video, q in pairs if video == name]
                clips, views = [(name, q) for q in asked], {name: None}
                if rings:
                    ringed = ringed_clips(name.removesuffix(".mp4"), recording, asked)
                    clips = [(video, q) for video, q, _ in ringed]
                    views = {video: view for video, _, view in ringed}
                written.append(pool.submit(_write_videos, out, recording, views))
                names[split] += views
                for video, q in clips:
                    qa[q.task].append(streamgaze_entry(video, q))
        for video in as_completed(written):
            video.result()
            bar.update()
    for task, entries in qa.items():
        (out / "qa" / f"{task}.json").write_text(json.dumps(entries, indent=2) + "\n")
    sync_tree(out)
    write_json(out / "splits.json", names)  # last: its presence means "complete"
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", help="folder to write")
    parser.add_argument("--train", type=int, default=160, help="videos in the training split")
    parser.add_argument("--val", type=int, default=30)
    parser.add_argument("--test", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--per_task", type=int, default=3, help="most questions of one task per video")
    parser.add_argument("--most", type=int, nargs=3, metavar=("TRAIN", "VAL", "TEST"), help="most answers of a task")
    parser.add_argument(
        "--rings", action="store_true", help="each clip its own video, with a ring around what gaze is on"
    )
    parser.add_argument("--world", choices=list(WORLDS), default="shapes")
    args = parser.parse_args()
    counts = (args.train, args.val, args.test)
    out = generate(args.out, *counts, args.seed, args.per_task, args.most, args.rings, kind=args.world)
    for task in TASK_NAMES:
        print(f"{task}: {len(json.loads((out / 'qa' / f'{task}.json').read_text()))} questions")


if __name__ == "__main__":
    main()
