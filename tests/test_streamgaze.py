"""StreamGaze's release layout: what is read, and how what is wrong is named."""

import json
from pathlib import Path

import pytest
from support import ROOT

from gazeqwen.streamgaze import TASKS, clip_window, format_question, load_release, parse_time

REAL = ROOT.parent / "shared" / "real"
OI_E, NFI = "present_object_identification_easy", "past_non_fixated_object_identification"


def question(**changes) -> dict:
    item = {
        "question": "Which object is the user currently gazing at?",
        "time_stamp": "04:36",
        "answer": "C",
        "options": ["A. box", "B. spices", "C. knife", "D. jar"],
        **changes,
    }
    return {name: value for name, value in item.items() if value is not None}


def release(folder: Path, entries, task: str = OI_E) -> Path:
    (folder / "qa").mkdir(exist_ok=True)
    (folder / "qa" / f"{task}.json").write_text(json.dumps(entries))
    for kind in ("videos/original_video", "metadata/egtea/v"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    (folder / "videos/original_video/v.mp4").touch()
    (folder / "metadata/egtea/v/v_fixation_filtered.csv").touch()
    return folder


def entry(**changes) -> dict:
    return {"video_path": "v.mp4", "response_time": "[03:36 - 04:36]", "questions": [question(**changes)]}


def test_reads_a_question(tmp_path):
    (found,) = load_release(release(tmp_path, [entry()]))
    assert (found.task, found.options, found.answer) == (OI_E, ("box", "spices", "knife", "jar"), 2)
    assert (found.start_s, found.end_s) == (216.0, 276.0)
    assert found.video.name == "v.mp4" and found.scanpath.name == "v_fixation_filtered.csv"
    assert found.prompt.endswith("A. box\nB. spices\nC. knife\nD. jar\nThe best option is:")


def test_windows_follow_the_protocol():
    assert clip_window(NFI, 276) == (0, 276)
    assert clip_window(OI_E, 276) == (216, 276) and clip_window(OI_E, 20) == (0, 20)
    assert len(TASKS) == 10


@pytest.mark.parametrize(("text", "seconds"), [("04:36", 276), ("75:00", 4500), ("01:02:03", 3723), ("00:01.5", 1.5)])
def test_times(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "4:75", "-1:00", "now", "1:2:3:4", "nan:00"])
def test_bad_times(text):
    with pytest.raises(ValueError, match="expected MM:SS or HH:MM:SS"):
        parse_time(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": "E"}, "answer 'E' is not among the options' letters ABCD"),
        ({"answer": "knife"}, "answer 'knife' is not among"),
        ({"time_stamp": "soon"}, "time 'soon'"),
        ({"time_stamp": "00:00"}, "after the video's start"),
        ({"options": ["A. box", "B. box", "C. a", "D. b"]}, "expected different ones"),
        ({"options": None}, "options"),
    ],
)
def test_bad_questions_are_named_with_file_and_entry(tmp_path, changes, message):
    with pytest.raises(ValueError, match=rf"{OI_E}.json, entry 1: .*{message}"):
        load_release(release(tmp_path, [entry(), entry(**changes)]))


def test_missing_files_are_listed(tmp_path):
    folder = release(tmp_path, [entry(), {**entry(), "video_path": "gone.mp4"}])
    with pytest.raises(FileNotFoundError, match=r"2 videos or fixation tables are missing: gone.mp4, gone_fix"):
        load_release(folder)


def test_other_mistakes_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no question files"):
        load_release(tmp_path)
    with pytest.raises(ValueError, match="more than once"):
        load_release(release(tmp_path, [entry(), entry()]))
    release(tmp_path, [entry()])
    with pytest.raises(FileNotFoundError, match="splits.json: no such file"):
        load_release(tmp_path, "train")
    (tmp_path / "splits.json").write_text('{"train": ["v.mp4"], "test": []}')
    assert len(load_release(tmp_path, "train")) == 1
    with pytest.raises(ValueError, match="no split 'dev', found"):
        load_release(tmp_path, "dev")
    with pytest.raises(ValueError, match="no question in split 'test'"):
        load_release(tmp_path, "test")
    with pytest.raises(ValueError, match="unknown tasks"):
        load_release(tmp_path, tasks=["present_everything"])
    (tmp_path / "qa" / f"{NFI}.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        load_release(tmp_path)


def test_the_prompt_needs_options():
    with pytest.raises(ValueError, match="got 1 options"):
        format_question("What?", ["only one"])


def test_the_toy_world_is_a_release(toy_world):
    splits = {name: load_release(toy_world, name) for name in ("train", "val", "test")}
    assert {question.task for question in load_release(toy_world)} == {
        OI_E,
        NFI,
        "present_object_identification_hard",
        "present_object_attribute_recognition",
    }
    names = [{question.video.name for question in questions} for questions in splits.values()]
    assert names[0] and not (names[0] & names[1] or names[0] & names[2] or names[1] & names[2])


@pytest.mark.skipif(not REAL.exists(), reason="the real question is not part of the project")
def test_the_real_question(tmp_path):
    entries = json.loads((REAL / "sample_qa.json").read_text())
    folder = release(tmp_path, entries)
    (folder / "videos/original_video/OP03-R01-PastaSalad.mp4").touch()
    (folder / "metadata/egtea/v/OP03-R01-PastaSalad_fixation_filtered.csv").touch()
    (found,) = load_release(folder)
    assert (found.options[found.answer], found.start_s, found.end_s) == ("knife", 216, 276)
