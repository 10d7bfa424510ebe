"""A few questions about toy videos, to try things with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from gazeqwen.questions.question import TOY_SOURCE
from gazeqwen.questions.release_questions import parse_time
from gazeqwen.questions.tasks import clip_window, task_info
from gazeqwen.toyworld.generate import generate
from gazeqwen.toyworld.questions import GSM, HARD, NFI, SNAP_S, SR

SEED, VIDEOS = 17, 4  # picked: gaze changes what the trained adapter answers, but for the last question

# What each question is about; the last one the video answers without gaze.
TITLES = {
    HARD: "What is looked at now?",
    GSM: "In which order were they looked at?",
    NFI: "What was never looked at?",
    SR: "What is not in view?",
}


@dataclass(frozen=True)
class Example:
    """
    A question about `[start_s, time_s]` of a video file with its fixation table; `answer` is one of the options.
    `snap_s`: how near to the question a fixation has to begin to be brought into view (`Scanpath.snap`).
    """

    title: str
    video: Path
    table: Path
    question: str
    options: tuple[str, ...]
    answer: str
    start_s: float
    time_s: float
    snap_s: float

    def is_asked(self, question: str, options: str, time_s: float) -> bool:
        """Return whether a question is this one, at its time. `options`: one to a line."""
        lines = tuple(line.strip() for line in options.splitlines() if line.strip())
        return (question.strip(), lines, round(time_s, 1)) == (self.question, self.options, round(self.time_s, 1))


def toy_examples(folder: str | Path) -> list[Example]:
    """
    Return one question of each kind in `TITLES`, about videos, written to `folder`, that the trained adapter never
    saw.
    """
    world = generate(folder, train=0, val=0, test=VIDEOS, seed=SEED, per_task=1, progress=False)
    examples = []
    for task, title in TITLES.items():
        entry, *_ = json.loads((world / "qa" / f"{task}.json").read_text())
        (asked,) = entry["questions"]
        video = world / "videos" / "original_video" / entry["video_path"]
        table = world / "metadata" / TOY_SOURCE / video.stem / f"{video.stem}_fixation_filtered.csv"
        options = {option[0]: option[3:] for option in asked["options"]}
        start_s, time_s = clip_window(task, parse_time(asked["time_stamp"], "time_stamp"))
        snap_s = SNAP_S if task_info(task).asks_about_fixation_at_query else 0.0
        texts = (asked["question"], tuple(options.values()), options[asked["answer"]])
        examples.append(Example(title, video, table, *texts, start_s, time_s, snap_s))
    return examples
