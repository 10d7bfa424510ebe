"""EgoGazeVQA's release, in a made-up one of its form, as a dataset: clock, gaze, what is left out, what is named."""

import json
from pathlib import Path

import numpy as np
import pytest
from support import index_frames, run_here, write_video

from gazeqwen.questions.dataset import load_questions
from gazeqwen.questions.dataset_folder import Report
from gazeqwen.questions.egogazevqa import build, read_gaze, read_question

COOKING, TAKE, PIANO = "OP03-R02-Toast", "11111111-aaaa-4bbb-8ccc-222222222222", "33333333-dddd-4eee-8fff-444444444444"
TAKE_NAME = "town_bike_01_2"


def question(**changes) -> dict:
    item = {
        "clip_name": "20_70.mp4",
        "clip_path": "20_70.mp4",
        "frames": ["20.jpg", "31.jpg", "70.jpg"],
        "question": "What did I look at after the bread?",
        "answer_options": ["A: The knife.", "B: The jar: blue.", "C: The oven.", "D: The cup.", "E: The door."],
        "correct_answer": "B",
    }
    return item | changes


def narration(frame: int, x, y, text: str = "Take bread", **more) -> dict:
    return {"timestamp_frame": frame, "narration_text": text, "gaze_info": {"gaze_x": x, "gaze_y": y, **more}}


def release(folder: Path, questions: dict | None = None) -> Path:
    """A release of three videos of 100 frames at 10 a second; `questions`: by file, in place of one in each."""
    questions = questions or {
        "temporal_egtea": {COOKING: [question()]},
        "spatial_egoexo": {TAKE: [question(correct_answer="E")]},
        "causal_ego4d": {PIANO: [question(frames=["5.jpg", "99.jpg"])]},
    }
    narrations = {
        "egtea": {
            COOKING: {
                "narrations": [
                    narration(20, 0.25, 0.75, gaze_type="fixation"),
                    narration(22, 0.5, 0.5, gaze_type="unknown"),
                    narration(31, 0.1, 0.2, gaze_type="saccade"),
                    narration(40, 0.0, 0.0, gaze_type="untracked"),
                    narration(70, 0.125, 1.0, gaze_type="fixation"),
                    narration(400, 0.5, 0.5, gaze_type="fixation"),
                ]
            }
        },
        "egoexo": {TAKE: {"take_name": TAKE_NAME, "scenario": "Bike", "narrations": [narration(30, 0.5, 0.625)]}},
        "ego4d": {
            PIANO: {
                "narrations": [
                    {"timestamp_frame": -1, "gaze_info": None},
                    narration(8, -1, -1, confidence=0.0),
                    narration(0, 0.25, 0.25, confidence=1.0),
                    narration(50, 0.75, -0.02, confidence=1.0),
                ]
            }
        },
    }
    for room, files in (("qa_pairs", questions), ("narrations", narrations)):
        (folder / room).mkdir(parents=True)
        for name, content in files.items():
            (folder / room / f"{name}.json").write_text(json.dumps(content))
    (folder / "videos" / "takes").mkdir(parents=True)
    for stem in (COOKING, f"takes/{TAKE_NAME}", PIANO):
        write_video(folder / "videos" / f"{stem}.mp4", index_frames(100), fps=10)
    return folder


def test_questions_and_gaze_lie_on_the_clock_of_the_video(tmp_path):
    report = build(release(tmp_path / "release"), tmp_path / "data", progress=False)
    questions = {item.task: item for item in load_questions(tmp_path / "data", "test")}
    assert set(questions) == {"spatial", "temporal", "causal"}
    asked = questions["temporal"]
    assert (asked.start_s, asked.end_s, asked.video_name) == (2.0, 7.0, f"{COOKING}.mp4")
    assert asked.options == ("The knife.", "The jar: blue.", "The oven.", "The cup.", "The door.")
    assert asked.options[asked.answer] == "The jar: blue." and questions["spatial"].answer == 4
    # Frames 20, 22 and 70; the first two lie nearer to each other than a fixation is long, and share the time between.
    expected = [[0.25, 0.75, 1.975, 0.25], [0.5, 0.5, 2.225, 0.25], [0.125, 1.0, 7.0, 0.3]]
    assert np.allclose(asked.scanpath.table, expected) and asked.scanpath.ids.tolist() == [20, 22, 70]
    assert np.allclose(questions["spatial"].scanpath.table, [[0.5, 0.625, 3.0, 0.3]])
    assert questions["spatial"].video_name == f"{TAKE}.mp4"  # found by the take's name
    # Ego4D's y goes up in its own files; the first frame's fixation begins with the video.
    assert np.allclose(questions["causal"].scanpath.table, [[0.25, 0.75, 0.075, 0.15]])
    assert "narrations/egtea.json: gaze left out: 1 in a saccade, 1 untracked" in report.notes
    assert "narrations/ego4d.json: gaze left out: 1 out of the frame, 1 untracked, 1 without a place" in report.notes
    assert not report.excluded and not report.missing_videos


def test_frames_are_numbers_not_times(tmp_path):
    """Of a video whose frames are not evenly spread: each frame has its own time."""
    folder = release(tmp_path / "release", {"temporal_egtea": {COOKING: [question()]}})
    times_s = np.concatenate([np.arange(50) / 10, 5 + np.arange(50) / 4])
    write_video(folder / "videos" / f"{COOKING}.mp4", index_frames(100), times_s)
    build(folder, tmp_path / "data", progress=False)
    (asked,) = load_questions(tmp_path / "data", "test")
    assert (asked.start_s, asked.end_s) == (2.0, 10.0)
    assert asked.scanpath.table[-1, 2] == pytest.approx(10.0)


def test_raw_gaze_takes_the_place_of_gaze_at_single_frames(tmp_path):
    folder = release(tmp_path / "release")
    eye_gaze = tmp_path / "raw" / "egoexo4d" / TAKE_NAME / "eye_gaze"
    eye_gaze.mkdir(parents=True)
    rows = [f"{frame},{352 if frame < 50 else 1056},704" for frame in range(100)]
    (eye_gaze / "general_eye_gaze_2d.csv").write_text("\n".join(["frame_num,x,y", *rows]) + "\n")
    report = build(folder, tmp_path / "data", tmp_path / "raw", progress=False)
    gaze = {name: video["gaze"] for name, video in report.videos.items()}
    assert gaze[f"{TAKE}.mp4"] == "raw gaze, dispersion" != gaze[f"{COOKING}.mp4"]
    (asked,) = load_questions(tmp_path / "data", "test", ["spatial"])
    assert np.allclose(asked.scanpath.table[:, :2], [[0.25, 0.5], [0.75, 0.5]])
    assert asked.scanpath.end_s[0] == pytest.approx(5.0, abs=0.11)


def test_the_splits_and_the_card(tmp_path):
    report = build(release(tmp_path / "release"), tmp_path / "data", progress=False)
    assert {name: about["questions"] for name, about in report.splits["default"].items()} == {"test": 3}
    assert sum(about["questions"] for about in report.splits["participants"].values()) == 3
    assert report.videos[f"{COOKING}.mp4"]["participant"] == "OP03"
    assert report.tasks["spatial"] == {
        "released": 585,
        "found": 1,
        "kept": 1,
        "kept_by_source": {"egogazevqa-egoexo": 1},
        "test_points": 0,
    }
    card = (tmp_path / "data" / "README.md").read_text()
    assert "EgoGazeVQA with scanpaths" in card and "StreamGaze" not in card


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": " "}, "question is ' ', expected text"),
        ({"frames": ["20.jpg"]}, "frames are .*20.jpg.*, expected two or more"),
        ({"frames": ["20.jpg", "10.jpg"]}, "in order"),
        ({"frames": ["20.jpg", "31.png"]}, "such as '42.jpg'"),
        ({"frames": "20.jpg"}, "frames are '20.jpg'"),
        ({"answer_options": ["A: jar", "C: cup"]}, "'A: ...', 'B: ...' and so on"),
        ({"answer_options": ["A: jar", "B: jar"]}, "2 to 8 different texts"),
        ({"answer_options": "A: jar"}, "answer_options are 'A: jar'"),
        ({"correct_answer": "F"}, "correct_answer is 'F', expected one of ABCDE"),
        ({"correct_answer": "AB"}, "correct_answer is 'AB'"),
        ({"correct_answer": None}, "correct_answer is None"),
    ],
)
def test_a_question_that_is_none_is_named(changes, message):
    read_question("v", question(), "spatial", "egtea")
    with pytest.raises(ValueError, match=message):
        read_question("v", question(**changes), "spatial", "egtea")


def test_a_videos_id_leads_nowhere_else():
    with pytest.raises(ValueError, match="video is '../v', expected its id"):
        read_question("../v", question(), "spatial", "egtea")


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"timestamp_frame": "20", "gaze_info": None}, "narration 0: timestamp_frame is '20'"),
        (narration(20, None, 0.5), "gaze_x and gaze_y are None and 0.5, expected numbers"),
        ({"timestamp_frame": 20, "gaze_info": [0.5, 0.5]}, r"gaze_info is \[0.5, 0.5\], expected an object"),
        ("take", "got 'take', expected an object"),
    ],
)
def test_gaze_that_is_none_is_named(item, message, tmp_path):
    (tmp_path / "egtea.json").write_text(json.dumps({COOKING: {"narrations": [item]}}))
    with pytest.raises(ValueError, match=rf"egtea.json, {COOKING}.*{message}"):
        read_gaze(tmp_path / "egtea.json", "egtea", Report())


def test_what_cannot_be_used_is_listed(tmp_path):
    """A question twice, one beyond a video that is cut, one of a video that is not there, one that is none."""
    others = [question(), question(frames=["20.jpg", "100.jpg"]), question(correct_answer="F")]
    files = {"temporal_egtea": {COOKING: [question(), *others], "P01-R01-Soup": [question()]}}
    folder = release(tmp_path / "release", files)
    narrated = {COOKING: {"narrations": [narration(frame, 0.5, 0.5) for frame in (20, 99, 100, 150)]}}
    (folder / "narrations" / "egtea.json").write_text(json.dumps(narrated))
    report = build(folder, tmp_path / "data", progress=False)
    assert len(load_questions(tmp_path / "data", "test")) == 1
    assert f"{COOKING}.mp4: gaze left out: 2 beyond its 100 frames" in report.notes
    assert report.missing_videos == ["P01-R01-Soup"] and report.tasks["temporal"]["found"] == 5
    reasons = {item["where"]: item["reason"] for item in report.excluded}
    assert reasons == {
        f"qa_pairs/temporal_egtea.json, {COOKING}, question 1": "the same question as an earlier one",
        f"qa_pairs/temporal_egtea.json, {COOKING}, question 3": "correct_answer is 'F', expected one of ABCDE",
        f"temporal, {COOKING}, frames 20 to 100": "the video has 100 frames: is it the whole one?",
    }
    assert "qa_pairs/causal_egoexo.json: not there" in report.notes


def test_what_leaves_nothing_is_an_error(tmp_path):
    folder = release(tmp_path / "release")
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder of raw gaze"):
        build(folder, tmp_path / "data", tmp_path / "nowhere")
    (folder / "qa_pairs" / "spatial_epic.json").write_text("{}")
    with pytest.raises(ValueError, match=r"unknown files \['spatial_epic'\], expected spatial_ego4d"):
        build(folder, tmp_path / "data")
    (folder / "qa_pairs" / "spatial_epic.json").rename(folder / "qa_pairs" / "spatial_egtea.json")
    (folder / "qa_pairs" / "spatial_egtea.json").write_text("[]")
    with pytest.raises(ValueError, match=r"spatial_egtea.json: got list, expected an object of videos"):
        build(folder, tmp_path / "data")
    (folder / "qa_pairs" / "spatial_egtea.json").unlink()
    (folder / "videos" / f"{PIANO}.mp4").rename(folder / "videos" / "takes" / f"{COOKING}.mp4")
    with pytest.raises(ValueError, match="a second video of this name beside"):
        build(folder, tmp_path / "data", progress=False)
    with pytest.raises(FileNotFoundError, match="no question files"):
        build(tmp_path / "empty", tmp_path / "data")


def test_the_command_knows_the_release(tmp_path):
    folder, out = release(tmp_path / "release"), tmp_path / "data"
    command = ("gazeqwen.questions.__main__", folder, out)
    assert "--algorithm is for StreamGaze's" in run_here(*command, "--algorithm", "streamgaze", expect=2)
    assert "3 questions of 3 videos kept" in run_here(*command)
    with pytest.raises(ValueError, match="a release; build a dataset"):
        load_questions(folder, "test")
