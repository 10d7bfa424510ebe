"""
What makes the kitchen's questions hard to the eye: `python -m gazeqwen.toyworld.kitchen.difficulty`.

Writes `results/kitchen/questions.json`: of each question of the study's test split, how large the thing is that it
asks about, if it is one, and how many things were looked at in its clip. The study's dataset has been made
(`make kitchen`); what its videos show is drawn again from the world's seed. No model is run.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from tqdm import tqdm

from gazeqwen.questions.dataset import load_questions
from gazeqwen.questions.question import Question
from gazeqwen.toyworld.generate import make_video
from gazeqwen.toyworld.questions import EASY, GTA, HARD, OAR, clip_of
from gazeqwen.toyworld.studies import KITCHEN
from gazeqwen.toyworld.viewer import Recording
from gazeqwen.utils.command_line import one_line_errors
from gazeqwen.utils.files import write_json
from gazeqwen.utils.provenance import provenance

SMALL_PX = 22  # things are 16 to 22 or 24 to 48 pixels wide; a visual token is 28


def size_px(recording: Recording, question: Question) -> int | None:
    """Return how wide the thing is that the question asks about; None where it asks about several."""
    things = recording.scene.objects
    if question.task in (EASY, HARD, OAR):  # what is looked at at the end
        return things[clip_of(recording, question.task, int(question.end_s)).main[-1]].size_px
    if question.task == GTA:
        noun = re.search("<(.+)>", question.question)[1]
        return next(thing.size_px for thing in things if thing.noun == noun)
    return None


def describe(questions: list[Question], seed: int, split: str) -> dict[str, dict]:
    """
    Return {question's key: `size_px`, of the thing that it asks about, or None; `looked_at`, how many different things
    the clip's fixations are on} of questions about a split of the kitchen of that seed.
    """
    names = sorted({question.video_name for question in questions})
    numbers = (int(re.fullmatch(rf"toy-{split}-(\d+)\.mp4", name)[1]) for name in names)
    made = {
        name: make_video(seed, split, number, "kitchen")[0]
        for name, number in zip(names, tqdm(list(numbers), unit="video"), strict=True)
    }
    return {
        question.key: {
            "size_px": size_px(made[question.video_name], question),
            "looked_at": len(clip_of(made[question.video_name], question.task, int(question.end_s)).ever),
        }
        for question in questions
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=KITCHEN.work / "data", help="the study's dataset")
    parser.add_argument("--output", type=Path, default=KITCHEN.results / "questions.json")
    args = parser.parse_args()
    described = describe(load_questions(args.data, "test"), KITCHEN.world["seed"], "test")
    settings = {"world": KITCHEN.world, "split": "test"}
    write_json(args.output, {"settings": settings, "questions": described, "provenance": provenance()})
    print(f"{len(described)} questions written to {args.output}")


if __name__ == "__main__":
    with one_line_errors():
        main()
