"""What makes the kitchen's questions hard to the eye: toyworld/kitchen/difficulty.py, and the table made of it."""

import json
from collections import Counter
from pathlib import Path

import pytest

from gazeqwen.questions.question import Question
from gazeqwen.toyworld.evidence_report import DIFFICULTY, FEW_THINGS, Evidence, difficulty_table
from gazeqwen.toyworld.generate import make_video
from gazeqwen.toyworld.kitchen.difficulty import SMALL_PX, describe
from gazeqwen.toyworld.questions import EASY, GTA, HARD, NFI, OAR
from gazeqwen.toyworld.studies import KITCHEN

NAMED = {EASY: "object", HARD: "object", OAR: "object_name", GTA: "target_object"}


@pytest.fixture(scope="module")
def committed() -> dict:
    return json.loads((KITCHEN.results / "questions.json").read_text())


def asked_about(number: int) -> list[tuple[Question, int | None]]:
    """Return all questions about a test video, each with the width of the thing that it was made about."""
    name, pairs = f"toy-test-{number:04d}.mp4", []
    recording, questions = make_video(KITCHEN.world["seed"], "test", number, "kitchen")
    for q in questions:
        sizes = {thing.noun: thing.size_px for thing in recording.scene.objects}
        size = sizes[q.extra[NAMED[q.task]]] if q.task in NAMED else None
        for time_s in [s for s, _ in q.points] or [q.time_s]:
            options = tuple(q.options or ("Yes", "No"))
            fields = {
                "video": Path(name),
                "video_name": name,
                "start_s": 0.0,
                "end_s": float(time_s),
                "options": options,
            }
            pairs.append((Question(task=q.task, question=q.question, answer=0, scanpath=None, **fields), size))
    return pairs


@pytest.fixture(scope="module")
def asked() -> list[tuple[Question, int | None]]:
    return [pair for number in range(8) for pair in asked_about(number)]


def in_any_order(key: str) -> str:
    """Return a question's key with its options sorted: the study draws their order anew."""
    *parts, options = json.loads(key)
    return json.dumps([*parts, sorted(options)])


def test_the_thing_asked_about_is_found_in_the_world(asked):
    """By what is looked at in the end, or named: the one that the question was made about."""
    found = describe([question for question, _ in asked], KITCHEN.world["seed"], "test")
    sizes = {question.key: size for question, size in asked}
    assert {key: of["size_px"] for key, of in found.items()} == sizes
    assert {question.task for question, size in asked if size is not None} == set(NAMED)
    never = [question for question, _ in asked if question.task == NFI]
    assert never and all(found[question.key]["looked_at"] >= 3 for question in never)


def test_the_committed_file_describes_the_study_s_questions(asked, committed):
    assert committed["settings"]["world"] == json.loads(json.dumps(KITCHEN.world))
    kept = {in_any_order(key): of for key, of in committed["questions"].items()}
    questions = [q for q, _ in asked if in_any_order(q.key) in kept]
    assert len(questions) > 10
    for key, of in describe(questions, KITCHEN.world["seed"], "test").items():
        assert of == kept[in_any_order(key)], key
    sizes = Counter(of["size_px"] is not None and of["size_px"] <= SMALL_PX for of in committed["questions"].values())
    assert sizes[True] > 50


def test_each_question_stands_in_one_column(committed):
    """Small and large things are all questions about one thing, few and many all about past gaze."""
    for key, of in committed["questions"].items():
        task = json.loads(key)[1]
        columns = [column for column, belongs in DIFFICULTY.items() if belongs(task, of)]
        assert len(columns) <= 1 and bool(columns) == (
            task in NAMED or task in ("past_gaze_sequence_matching", NFI, "past_object_transition_prediction")
        )
    table = difficulty_table(Evidence.read(KITCHEN.results))
    assert len(table.header) == len(DIFFICULTY) + 1 and str(FEW_THINGS) in table.header[3]


def test_what_the_document_says_of_hard_questions():
    """Small things cost everybody; where many things were looked at, the drawn ring is ahead of GazeQwen."""
    rows = {
        row[0]: [float(cell.split()[0]) for cell in row[1:]]
        for row in difficulty_table(Evidence.read(KITCHEN.results)).rows
    }
    for row in ("GazeQwen", "frozen, the ring", "LoRA, the ring"):
        small, large, few, many = rows[row]
        assert large - small > 10 and few > many, row
    ours, ring = rows["GazeQwen"], rows["frozen, the ring"]
    assert ours[0] > ring[0] + 5 and ours[1] > ring[1] + 5 and ring[3] > ours[3] + 5
