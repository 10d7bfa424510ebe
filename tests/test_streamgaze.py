"""The benchmark: prompts, windows, and a built dataset -> questions."""

import json
import subprocess

import numpy as np
import pytest
from forked import LIBRARIES_PYTHON

from gazeqwen.questions.dataset import load_questions
from gazeqwen.questions.prompts import PROMPT_STYLES, format_alert, format_question
from gazeqwen.questions.question import Question
from gazeqwen.questions.tasks import TASKS, clip_window, full_name
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.video_gazeqwen import read_frames

OI_E, NFI = "present_object_identification_easy", "past_non_fixated_object_identification"


def test_tasks_go_by_their_abbreviations_too():
    assert full_name("OI-E") == full_name("oi-e") == full_name("present_object_identification_easy")
    assert full_name("my_task") == "my_task"


def test_the_ten_tasks():
    assert sum(task.questions for task in TASKS.values()) == 8521 and len(TASKS) == 10
    assert len({task.abbreviation for task in TASKS.values()}) == 10
    # The answer of OTP is the fixation that begins at the query: it may not be brought into view.
    snapped = {task.abbreviation for task in TASKS.values() if task.asks_about_fixation_at_query}
    assert snapped == {"OI-E", "OI-H", "OAR", "SR", "GSM", "GTA"}


def test_windows_follow_the_protocol():
    assert clip_window(NFI, 276) == (0, 276)
    assert clip_window(OI_E, 276) == (216, 276) and clip_window(OI_E, 20) == (0, 20)
    assert clip_window("present_future_action_prediction", 100) == (40, 100)
    assert clip_window("proactive_gaze_triggered_alert", 100) == (0, 100)


def test_prompts():
    options = ["box", "spices", "knife", "jar"]
    reference = format_question("What is it?", options)
    assert reference == "Question: What is it?\nOptions:\nA. box\nB. spices\nC. knife\nD. jar\nThe best option is:"
    streamgaze = format_question("What is it?", options, "streamgaze")
    assert streamgaze.startswith("\nQuestion: What is it?\nOptions:\nA. box\n")
    assert "only the letter" not in reference and "the letter (A, B, C, or D)" in streamgaze
    assert streamgaze.endswith("\n\nThe best option is:")
    assert "letter" not in format_question("Is it?", ["yes", "no"], "streamgaze")
    prompt, answers = format_alert("Alert me when I gaze on the plate.", "reference")
    assert prompt.endswith("should the alert be triggered?\nOptions:\nA. Yes\nB. No\nThe best option is:")
    assert answers == ["A", "B"]
    prompt, answers = format_alert("Alert me when I gaze on the plate.", "streamgaze")
    assert "gaze on the plate" in prompt and "Options" not in prompt and answers == ["Yes", "No"]
    with pytest.raises(ValueError, match="got 1 options"):
        format_question("What?", ["only one"])
    with pytest.raises(ValueError, match="prompt style 'rude'"):
        format_question("What?", options, "rude")


@pytest.mark.parametrize("style", PROMPT_STYLES)
def test_a_question_knows_its_prompt_and_the_answers_it_offers(style):
    parts = ("v.mp4", "v.mp4", None)
    three = Question(*parts, OI_E, "Which?", ("a", "b", "c"), 1, 0.0, 9.0)
    assert three.prompt(style) == (format_question("Which?", ("a", "b", "c"), style), ["A", "B", "C"])
    alert = Question(*parts, "proactive_gaze_triggered_alert", "Alert me.", ("Yes", "No"), 0, 0.0, 9.0)
    assert alert.prompt(style) == format_alert("Alert me.", style)
    assert three.permutable and not alert.permutable  # Yes stays before No


def test_keys_tell_questions_apart():
    base = {"video": "x/v.mp4", "video_name": "v.mp4", "scanpath": None, "task": OI_E, "question": "Which?"}
    base |= {"options": ("a", "b"), "answer": 0, "start_s": 0.0, "end_s": 9.0}
    changes = [{"video_name": "w.mp4"}, {"task": NFI}, {"end_s": 19.0}, {"question": "What?"}, {"options": ("b", "a")}]
    keys = {Question(**{**base, **change}).key for change in [{}, *changes]}
    assert len(keys) == 6
    assert Question(**{**base, "video": "elsewhere/v.mp4"}).key in keys


# ---------------------------------------------------------------- a built dataset, read back
def test_the_toy_world_comes_back_equal_in_a_fresh_process(toy_world, toy_data, tmp_path):
    """What `load_dataset` gives, in a process of its own, is what the release holds."""
    script = """
import json, sys
from datasets import load_dataset
rows = {name: [row for row in part] for name, part in load_dataset(sys.argv[1], cache_dir=sys.argv[2]).items()}
print(json.dumps(rows))
"""
    result = subprocess.run(
        [LIBRARIES_PYTHON, "-c", script, toy_data, tmp_path / "cache"], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout.splitlines()[-1])
    splits = json.loads((toy_world / "splits.json").read_text())
    assert set(rows) == {"train", "validation", "test"}
    released = []
    for file in sorted((toy_world / "qa").glob("*.json")):
        for entry in json.loads(file.read_text()):
            item = entry["questions"][0]
            minutes, seconds = map(int, item["time_stamp"].split(":"))
            options, answer, points = [], None, None
            if "test_info" in item:
                points = [(point["realtime"], bool(point["type"])) for point in item["test_info"]]
            else:
                options, answer = [option[3:] for option in item["options"]], "ABCD".index(item["answer"])
            asked = (entry["video_path"], file.stem, item["question"], options, 60 * minutes + seconds, answer)
            released.append((*asked, points))
    flat = [row for part in rows.values() for row in part]
    names = ("video_name", "task", "question", "options", "question_time_s", "answer")

    def points_of(row) -> list | None:
        points = [(point["time_s"], point["alert"]) for point in row["test_points"] or ()]
        return [(f"{int(s) // 60:02d}:{int(s) % 60:02d}", alert) for s, alert in points] or None

    found = [(*(row[name] for name in names), points_of(row)) for row in flat]
    assert sorted(found, key=str) == sorted(released, key=str)
    assert any(points for *_, points in found)
    for name, part in rows.items():
        assert {row["video_name"] for row in part} <= set(splits["val" if name == "validation" else name])
    for row in flat:
        asked_s = max((point["time_s"] for point in row["test_points"] or ()), default=row["question_time_s"])
        assert (row["start_s"], row["end_s"]) == clip_window(row["task"], asked_s)
        stem = row["video_name"].removesuffix(".mp4")
        table = Scanpath.from_csv(toy_world / f"metadata/toyworld/{stem}/{stem}_fixation_filtered.csv")
        np.testing.assert_allclose(row["scanpath"], table.table, atol=1e-12)
        assert row["fixation_ids"] == table.ids.tolist()
    original = toy_world / "videos/original_video" / flat[0]["video_name"]
    times = np.linspace(0.1, 7, 9)
    for ours, theirs in zip(read_frames(flat[0]["video"]["path"], times), read_frames(original, times), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_rows_become_questions(toy_data):
    questions = load_questions(toy_data, "train")
    assert {question.task for question in questions} >= {OI_E, NFI}
    assert len({question.key for question in questions}) == len(questions)
    for question in questions:
        assert question.video.is_file() and question.video.name == question.video_name
        assert len(question.scanpath) and question.options[question.answer] and question.source == "toyworld"
    only = load_questions(toy_data, "train", [NFI])
    assert {question.task for question in only} == {NFI} and len(only) < len(questions)
    names = [{q.video_name for q in load_questions(toy_data, split)} for split in ("train", "validation", "test")]
    assert not (names[0] & names[1] or names[0] & names[2] or names[1] & names[2])
    keys = [
        {q.key for split in ("train", "validation", "test") for q in load_questions(toy_data, split, config=config)}
        for config in ("default", "participants")
    ]
    assert keys[0] == keys[1]


def test_what_cannot_be_loaded_is_named(toy_data, toy_world, tmp_path):
    absent = "present_object_attribute_recognition"  # of the test split
    for data, split, arguments, message in [
        (toy_data, "dev", {}, "split 'dev'"),
        (toy_data, "test", {"tasks": ["present_everything"]}, r"tasks \['present_everything'\], found \['past_gaze"),
        (toy_data, "test", {"tasks": [absent]}, f"no question in split 'test' of .*{absent}"),
        (toy_data, "test", {"config": "random"}, "config 'random'"),
        (toy_data, "test", {"without_gaze": "guess"}, "without_gaze: got 'guess'"),
        (toy_world, "test", {}, "a release; build a dataset: gazeqwen build"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_questions(data, split, **arguments)
    for data in (tmp_path, tmp_path / "nowhere", "nowhere"):
        with pytest.raises(FileNotFoundError, match="nowhere|no dataset here"):
            load_questions(data, "test")
