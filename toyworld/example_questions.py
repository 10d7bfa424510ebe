"""Short recordings of the toy world with questions about them, as people's own, to train on in a minute."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from gazeqwen.toyworld.generate import make_video
from gazeqwen.toyworld.viewer import NOTHING, Recording, write_fixations
from gazeqwen.toyworld.world import frame_times_s, write_video

SEED = 5
VIDEOS = {"train": 32, "validation": 6, "test": 24}
LONGEST_S = 24.0  # longer recordings are passed over
CLIP_S, ASKED_BEFORE_END_S = 2.0, 0.1
QUESTION = "Which object is the user currently gazing at?"  # in words that the toy backbone knows
_COLUMNS = ("video", "scanpath", "start_s", "time_s", "question", "options", "answer", "split")


def write_questions(folder: str | Path) -> Path:
    """
    Write short toy videos, a fixation table for each, and `questions.csv` with up to four questions about each, all of
    what is looked at just then: four things that are in view throughout the clip are on offer. Return its path.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for split, count in VIDEOS.items():
        for index in range(count):
            recording, _ = make_video(SEED, "val" if split == "validation" else split, index)
            if recording.scene.duration_s > LONGEST_S:
                continue
            name = f"{split}-{index:02d}"
            scene = recording.scene
            write_video(folder / f"{name}.mp4", [scene.draw(time_s) for time_s in frame_times_s(scene)])
            write_fixations(folder / f"{name}.csv", recording.fixations)
            for question in _questions(recording, np.random.default_rng([SEED, index])):
                rows.append({"video": f"{name}.mp4", "scanpath": f"{name}.csv", "split": split, **question})
    table = folder / "questions.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return table


def _questions(recording: Recording, rng: np.random.Generator) -> list[dict]:
    """Return up to four questions, each asked shortly before a fixation of a second or more ends."""
    scene, questions = recording.scene, []
    for index in rng.permutation(len(recording.fixations)):
        fixation = recording.fixations[index]
        time_s = round(fixation.end_s - ASKED_BEFORE_END_S, 3)
        start_s = round(max(0.0, time_s - CLIP_S), 3)
        others = [thing for thing in scene.visible(start_s, time_s) if thing != fixation.object_index]
        is_long = fixation.end_s - fixation.start_s >= 1
        if fixation.object_index == NOTHING or not is_long or len(others) < 3 or len(questions) == 4:
            continue
        offered = rng.permutation([fixation.object_index, *rng.permutation(others)[:3]])
        questions.append(
            {
                "start_s": start_s,
                "time_s": time_s,
                "question": QUESTION,
                "options": " | ".join(scene.objects[thing].noun for thing in offered),
                "answer": scene.objects[fixation.object_index].noun,
            }
        )
    return questions
