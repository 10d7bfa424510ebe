"""
Toy videos and questions, to try things with. As a command: a short recording with raw gaze, as an eye tracker writes it.

gazeqwen example    # writes example/recording.mp4 and example/gaze.csv
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gazeqwen.questions.question import TOY_SOURCE
from gazeqwen.questions.release_questions import parse_time
from gazeqwen.questions.tasks import clip_window, task_info
from gazeqwen.toyworld.generate import generate, make_video
from gazeqwen.toyworld.kitchen.tracker import raw_gaze
from gazeqwen.toyworld.questions import GSM, HARD, NFI, SNAP_S, SR
from gazeqwen.toyworld.world import frame_times_s, write_video
from gazeqwen.utils.command_line import one_line_errors
from gazeqwen.utils.files import write_text

SEED, VIDEOS = 17, 4  # picked: gaze changes what the trained adapter answers, but for the last question
RECORDING, CLOCK_S = 1, 12.5  # the video of a short recording, and its gaze clock when the video begins

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


def write_recording(folder: str | Path) -> tuple[Path, Path]:
    """
    Write the second of these videos as `recording.mp4`, and its viewer's raw gaze as `gaze.csv`: milliseconds on a
    clock that reads 12,500 when the video begins, pixels of the frame, and a confidence, 0 in blinks. Return the
    paths. Raises FileExistsError for other files of these names.
    """
    folder = Path(folder)
    recording, _ = make_video(SEED, "test", RECORDING)
    side = recording.scene.frame_px
    gaze = raw_gaze(recording, np.random.default_rng(SEED))
    lines = ["time,x,y,confidence"]
    for time_s, (x, y) in zip(gaze.times_s, gaze.recorded_xy, strict=True):
        seen = bool(np.isfinite(x))
        place = f"{x * side:.1f},{y * side:.1f}" if seen else ","
        lines.append(f"{1000 * (time_s + CLOCK_S):.0f},{place},{seen:.2f}")
    video, table = folder / "recording.mp4", folder / "gaze.csv"
    text = "\n".join(lines) + "\n"
    if table.exists() and table.read_text() != text:
        raise FileExistsError(f"{table}: exists, with other content; name another folder")
    if video.exists() and not table.exists():
        raise FileExistsError(f"{video}: exists; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(table, text)
    write_video(video, [recording.scene.draw(s) for s in frame_times_s(recording.scene)])
    return video, table


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="gazeqwen example", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", default="example", help="where to write (default: example)")
    video, table = write_recording(parser.parse_args().folder)
    print(f"{video}: a video of the toy world, in which kitchen things are coloured shapes")
    print(f"{table}: its wearer's raw gaze, ms and pixels; the clock reads {CLOCK_S} s when the video begins")


if __name__ == "__main__":
    with one_line_errors():
        main()
