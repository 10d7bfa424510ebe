"""The release on disk -> dataset: splits, the time base, what is left out, and what is written."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from support import FIXATION_TABLE, REAL, STREAMGAZE, frame_index, index_frames, write_fixations, write_video

from gazeqwen.questions.dataset import load_questions
from gazeqwen.questions.release import build
from gazeqwen.questions.release_clock import Clock, release_clock
from gazeqwen.questions.release_questions import parse_time, read_question
from gazeqwen.questions.sources import source_of
from gazeqwen.questions.splits import participant_split, published_split, read_splits
from gazeqwen.questions.tasks import SPLITS
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.video_gazeqwen import read_clip

OI_E, GTA = "present_object_identification_easy", "proactive_gaze_triggered_alert"
HOLO, EGTEA, EXO = "z008-june-15-22-switch.mp4", "OP03-R01-PastaSalad.mp4", "bee93bfc-ac78-11ee-819f-80615f12b59e.mp4"


def question(**changes) -> dict:
    item = {
        "question": "Which object is the user currently gazing at?",
        "time_stamp": "00:08",
        "answer": "C",
        "options": ["A. box", "B. spices", "C. knife", "D. jar"],
        "object": "knife",
        **changes,
    }
    return {name: value for name, value in item.items() if value is not None}


def entry(video: str = "v.mp4", **changes) -> dict:
    return {"video_path": video, "response_time": "[00:00 - 00:08]", "questions": [question(**changes)]}


def alert(video: str = "v.mp4", points=(("00:03", 0), ("00:07", 1)), **changes) -> dict:
    item = {
        "question": "Monitor my gaze and alert me when I gaze on the plate.",
        "time_stamp": "00:01",
        "test_info": [{"realtime": time, "type": kind, "input_video_clip": [0, 5]} for time, kind in points],
        "target_object": "plate",
        **changes,
    }
    return {"video": f"raw/{video}", "questions": [item]}


def release(folder: Path, qa: dict[str, list], videos=("v.mp4",), tables=("v",)) -> Path:
    """A release of 10 s videos whose frames carry their number, with one fixation from 2 to 6 s."""
    for task, entries in qa.items():
        (folder / "qa").mkdir(parents=True, exist_ok=True)
        (folder / "qa" / f"{task}.json").write_text(json.dumps(entries))
    originals = folder / "videos" / "original_video"
    originals.mkdir(parents=True, exist_ok=True)
    for name in videos:
        write_video(originals / name, index_frames(100))
    for stem in tables:
        (folder / "metadata" / "any" / stem).mkdir(parents=True, exist_ok=True)
        write_fixations(folder / "metadata" / "any" / stem / f"{stem}_fixation_filtered.csv", [(2.0, 6.0, 0.3, 0.6)])
    return folder


def rows_of(folder: Path, config: str = "default") -> list[dict]:
    return [row for part in load_dataset(str(folder), config).values() for row in part]


# ---------------------------------------------------------------- reading questions
@pytest.mark.parametrize(
    ("text", "seconds"), [("04:36", 276), ("75:00", 4500), ("01:02:03", 3723), ("00:01.5", 1.5), (" 07 ", 7)]
)
def test_times(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "4:75", "-1:00", "now", "1:2:3:4", "nan:00", "inf", None, "1e400"])
def test_bad_times(text):
    with pytest.raises(ValueError, match="expected MM:SS or HH:MM:SS"):
        parse_time(text)


def test_reads_questions_as_the_generators_wrote_them():
    found = read_question(entry("folder/v.mp4", options=["box", "A. b", "C", "d"], answer="B."), question(), OI_E)
    assert found.video_name == "v.mp4" and found.options == ("box", "spices", "knife", "jar")
    unlettered = read_question(entry(), question(options=["box", "A. b", "C", "d"], answer="B."), OI_E)
    assert unlettered.options == ("box", "A. b", "C", "d") and unlettered.answer == 1
    sequences = ["A. {a}>{b}>{c}", "B. {b}>{a}>{c}", "C. {c}>{a}>{b}", "D. {c}>{b}>{a}"]
    assert read_question(entry(), question(options=sequences), OI_E).options[0] == "{a}>{b}>{c}"
    disordered = read_question(entry(), question(options=["B. box", "A. knife", "C. jar"], answer="B"), OI_E)
    assert disordered.options[disordered.answer] == "box" and disordered.options == ("knife", "box", "jar")
    found = read_question(alert(), alert()["questions"][0], GTA)
    assert found.test_points == ((3.0, False), (7.0, True)) and found.answer is None


# ---------------------------------------------------------------- splits
def test_the_published_rule():
    names = [f"{number:03}.mp4" for number in range(285)]
    split = published_split(reversed(names))
    assert [len(split[name]) for name in SPLITS] == [199, 42, 44]
    assert sorted(name for part in split.values() for name in part) == names
    # CPython's Mersenne Twister is specified: this is the shuffle of seed 42.
    assert split["test"][:4] == ["003.mp4", "011.mp4", "012.mp4", "013.mp4"]


# Places in the sorted list of the release's 285 names of those in the published split's parts; the others are "train".
PUBLISHED = {
    "validation": """
        17 18 20 25 41 43 49 53 58 59 68 74 75 90 92 93 94 96 116 141 147 155 158 160 162 165 169
        171 179 180 197 212 213 218 220 226 236 238 245 253 260 279
    """,
    "test": """
        3 11 12 13 15 16 23 24 31 44 47 52 57 67 71 79 81 88 91 97 101 110 111 112 114 117 119 125
        137 140 142 154 172 174 186 206 214 216 229 258 261 264 276 278
    """,
}


def test_the_published_split_is_reproduced_exactly():
    """Which names they are does not matter, but for their order; those of the release are compared where they are."""
    names = [f"{number:03}.mp4" for number in range(285)]
    split = published_split(names)
    for part, places in PUBLISHED.items():
        assert split[part] == [names[int(place)] for place in places.split()]
    for file in REAL.glob("gazelens_split.json"):
        published = json.loads(file.read_text())
        split = published_split([name for part in published.values() for name in part])
        assert {"val" if name == "validation" else name: part for name, part in split.items()} == published


def test_sources_and_participants_by_name():
    assert source_of(EGTEA) == ("egtea", "OP03") and source_of("P02-R06-GreekSalad.mp4") == ("egtea", "P02")
    assert source_of(HOLO) == ("holoassist", "z008") and source_of("R005-7July-GoPro.mp4") == ("holoassist", "R005")
    assert source_of(EXO) == ("egoexolearn", None) and source_of("my.mp4", "toyworld") == ("toyworld", None)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 12)), min_size=30, max_size=90))
@settings(max_examples=40)
def test_nobody_is_in_two_parts_of_the_participant_split(videos):
    groups = {f"{number}.mp4": (source, str(person)) for number, (source, person) in enumerate(videos)}
    split = participant_split(groups)
    assert sorted(name for part in split.values() for name in part) == sorted(groups)
    people = [{groups[name] for name in part} for part in split.values()]
    assert not (people[0] & people[1] or people[0] & people[2] or people[1] & people[2])
    assert split == participant_split(dict(reversed(list(groups.items()))))


def test_the_participant_split_is_close_to_its_shares():
    groups = {f"{number}.mp4": ("egtea", str(number % 40)) for number in range(285)}
    sizes = [len(part) / 285 for part in participant_split(groups).values()]
    assert sizes == pytest.approx([0.70, 0.15, 0.15], abs=0.05)


def test_a_participant_belongs_where_the_middle_of_their_videos_lies():
    """Of two people with five videos each, the second's begin at 50 % and have their middle at 75 %."""
    groups = {f"{number}.mp4": ("egtea", str(number % 2)) for number in range(10)}
    sizes = {name: len(part) for name, part in participant_split(groups).items()}
    assert sizes == {"train": 5, "validation": 5, "test": 0}


# ---------------------------------------------------------------- the time base
def test_times_before_the_first_frame_and_after_the_last_go_on_at_the_mean_rate():
    clock = Clock("overlay frames", (np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 8.0])))  # 2 s of the file per s
    np.testing.assert_allclose(clock.to_file_s(np.array([0.5, 1.0, 2.5, 4.0])), [3.0, 4.0, 6.5, 10.0])


def test_an_overlay_that_ends_earlier_tells_the_time_as_far_as_it_goes(tmp_path):
    frames = index_frames(100)
    original = write_video(tmp_path / HOLO, frames, fps=20)
    clock = release_clock("holoassist", original, overlay_of(tmp_path / "viz.mp4", frames[:90], fps=10))
    np.testing.assert_allclose(clock.to_file_s(np.array([6.0, 8.9, 9.5])), [3.0, 4.45, 4.75])


def overlay_of(path: Path, frames: np.ndarray, fps: int) -> Path:
    """The same frames at another rate, with a green disc and a red ring on them."""
    drawn = frames.copy()
    drawn[:, 20:26, 30:36] = (0, 255, 0)
    drawn[:, 10:12, 10:50] = (255, 0, 0)
    return write_video(path, drawn, fps=fps)


def test_times_mean_the_overlays_frames_where_there_is_an_overlay(tmp_path):
    """The release's R005: the same frames at 29.83 and at 24.46 frames a second."""
    frames = index_frames(100)
    original = write_video(tmp_path / HOLO, frames, fps=20)
    overlay = overlay_of(tmp_path / "viz.mp4", frames, fps=10)
    clock = release_clock("holoassist", original, overlay)
    assert clock.kind == "overlay frames"
    # Six seconds of the overlay are its frame 60, which the original shows at 3 s.
    np.testing.assert_allclose(clock.to_file_s(np.array([0.0, 6.0, 9.9, 10.9])), [0.0, 3.0, 4.95, 5.45])
    at = float(clock.to_file_s(6.0))
    assert frame_index(read_clip(original, 0, at + 0.01, num_frames=2000, max_frames=2000).frames[-1]) == 60


def test_an_overlay_of_variable_rate(tmp_path):
    frames, steps = index_frames(100), np.random.default_rng(0).uniform(0.05, 0.2, 100)
    times = np.round(np.cumsum(steps) - steps[0], 3)
    original = write_video(tmp_path / EXO, frames, times)
    clock = release_clock("egoexolearn", original, overlay_of(tmp_path / "viz.mp4", frames, fps=10))
    np.testing.assert_allclose(clock.to_file_s(np.arange(100) / 10), times, atol=2e-3)


@pytest.mark.parametrize(("name", "source", "fps"), [(EGTEA, "egtea", 24.0), (HOLO, "holoassist", 24.46)])
def test_without_an_overlay_the_sources_rate_counts(tmp_path, name, source, fps):
    clock = release_clock(source, write_video(tmp_path / name, index_frames(100), fps=30), None)
    assert clock.kind == f"frame number at {fps:g} fps"
    assert clock.to_file_s(60 / fps) == pytest.approx(2.0, abs=1e-3)


def test_a_source_without_a_rate_means_seconds_of_the_file(tmp_path):
    clock = release_clock("egoexolearn", write_video(tmp_path / EXO, index_frames(50)), None)
    assert clock.kind == "seconds of the file" and clock.to_file_s(3.3) == 3.3


@pytest.mark.parametrize("wrong", ["reversed", "another video", "ten frames late"])
def test_equal_counts_do_not_make_an_overlay(tmp_path, wrong):
    frames = index_frames(100)
    original = write_video(tmp_path / EGTEA, frames)
    other = {
        "reversed": frames[::-1],
        "another video": np.random.default_rng(0).integers(0, 255, frames.shape, dtype=np.uint8),
        "ten frames late": np.roll(frames, 10, axis=0),
    }[wrong]
    with pytest.raises(ValueError, match=f"{EGTEA} and its gaze overlay show different frames at the same numbers"):
        release_clock("egtea", original, overlay_of(tmp_path / "viz.mp4", other, fps=10))


def test_questions_scanpaths_and_test_points_share_the_files_clock(tmp_path):
    """A HoloAssist video of 12.23 frames a second: each second of the release is two of the file."""
    times = np.arange(100) / 12.23
    qa = {OI_E: [entry(HOLO, time_stamp="00:03")], GTA: [alert(HOLO, [("00:02", 0), ("00:04", 1), ("00:30", 0)])]}
    folder = release(tmp_path / "r", qa, (), (Path(HOLO).stem,))
    write_video(folder / "videos/original_video" / HOLO, index_frames(100), times)
    report = build(folder, tmp_path / "d", progress=False)
    asked, proactive = sorted(rows_of(tmp_path / "d"), key=lambda row: row["task"])
    assert (asked["question_time_s"], asked["start_s"]) == (pytest.approx(6.0, abs=2e-3), 0.0)
    (fixation,) = asked["scanpath"]
    end_s = report.videos[HOLO]["end_s"]
    assert 8.1 < end_s < 8.4
    assert fixation == pytest.approx([0.3, 0.6, (4.0 + end_s) / 2, end_s - 4.0], abs=2e-3)  # cut at the video's end
    assert [(point["time_s"], point["alert"]) for point in proactive["test_points"]] == [
        (pytest.approx(4.0, abs=2e-3), False),
        (pytest.approx(8.0, abs=2e-3), True),
    ]
    reasons = " ".join(item["reason"] for item in report.excluded)
    assert "test point at 60" in reasons and "fixations reach beyond the video's end" in reasons


# ---------------------------------------------------------------- what is left out, and what is written
def test_what_is_missing_or_unusable_is_counted_and_listed(tmp_path):
    entries = [
        entry(),
        entry(time_stamp="00:07"),
        entry(),  # the same again
        entry(answer="E"),
        entry("gone.mp4"),
        entry("broken.mp4"),
        entry("blind.mp4"),
        entry("../../etc/passwd"),
        entry(time_stamp="03:00"),
        {"video_path": "v.mp4"},
    ]
    folder = release(tmp_path / "r", {OI_E: entries}, ("v.mp4", "blind.mp4"))
    (folder / "videos/original_video/broken.mp4").write_text("no video")
    (folder / "metadata" / "egtea.csv").write_text("video_name,episode_start_time\nv,1\n")
    report = build(folder, tmp_path / "d", progress=False)
    assert (report.missing_videos, report.without_gaze) == (["gone.mp4"], ["blind.mp4"])
    reasons = {item["where"]: item["reason"] for item in report.excluded}
    assert reasons[f"qa/{OI_E}.json, entry 2"] == "the same question as an earlier one"
    assert "answer is 'E', expected one of" in reasons[f"qa/{OI_E}.json, entry 3"]
    assert "video_path is '../../etc/passwd'" in reasons[f"qa/{OI_E}.json, entry 7"]
    assert "questions are None" in reasons[f"qa/{OI_E}.json, entry 9"]
    assert "not a readable video" in reasons["broken.mp4"]
    assert "lies beyond the video" in reasons[f"{OI_E}, v.mp4 at 180 s"]
    assert len(reasons) == 6
    assert report.tasks[OI_E] == {
        "released": 1487,
        "found": 10,
        "kept": 3,
        "kept_by_source": {"other": 3},
        "test_points": 0,
    }
    assert any("egtea.csv: no gaze coordinates in it" in note for note in report.notes)
    assert "8,521" in report.text() and "missing videos (1): gone.mp4" in report.text()
    stored = json.loads((tmp_path / "d" / "report.json").read_text())
    assert stored["excluded"] == report.excluded and stored["videos"]["v.mp4"]["end_s"] == 10.0

    rows = rows_of(tmp_path / "d")
    assert [row["scanpath"] for row in rows if row["video_name"] == "blind.mp4"] == [None]
    parts = [part for part in SPLITS if (tmp_path / "d" / f"default-{part}.parquet").exists()]
    loaded = dict.fromkeys(("keep", "drop"), 0)
    for part in parts:
        for kind in loaded:
            try:
                loaded[kind] += len(load_questions(tmp_path / "d", part, without_gaze=kind))
            except ValueError as error:
                assert "no question in split" in str(error)
    assert loaded == {"keep": 3, "drop": 2}


def test_gaze_that_is_not_known_is_an_error_unless_told_otherwise(tmp_path, capsys):
    folder = release(tmp_path / "r", {OI_E: [entry(), entry("blind.mp4")]}, ("v.mp4", "blind.mp4"))
    (folder / "splits.json").write_text('{"train": ["v.mp4", "blind.mp4"], "val": [], "test": []}')
    build(folder, tmp_path / "d", progress=False)
    with pytest.raises(ValueError, match="no gaze for 1 videos, such as blind.mp4; set without_gaze"):
        load_questions(tmp_path / "d", "train")
    assert [q.video_name for q in load_questions(tmp_path / "d", "train", without_gaze="drop")] == ["v.mp4"]
    assert "left out 1 videos without gaze: blind.mp4" in capsys.readouterr().out
    kept = load_questions(tmp_path / "d", "train", without_gaze="keep")
    assert [q.scanpath is None for q in kept] == [False, True]


def test_proactive_test_points_are_questions_of_their_own(tmp_path):
    folder = release(tmp_path / "r", {GTA: [alert()]})
    build(folder, tmp_path / "d", progress=False)
    (part,) = load_dataset(str(tmp_path / "d"))
    first, second = load_questions(tmp_path / "d", part)
    assert (first.start_s, first.end_s, first.options[first.answer]) == (0.0, 3.0, "No")
    assert (second.start_s, second.end_s, second.options[second.answer]) == (0.0, 7.0, "Yes")
    assert first.key != second.key


def test_nothing_that_tells_the_answer_reaches_the_prompt(tmp_path):
    """Every field of a question but its text, options and times is a secret: not in the dataset, not in a prompt."""
    names = ("object", "object_name", "answer_object", "answer_action", "target_object", "attribute_type")
    secret = dict.fromkeys(names, "SECRET")
    secret |= {"correct_sequence": [["SECRET"]], "actual_action_time": "SECRET", "background_objects": ["SECRET"]}
    secret |= {"answer_timestamp": "SECRET", "fixation_intervals": [{"start": "SECRET"}], "first_appearance": "SECRET"}
    mcq, proactive = entry(**secret), alert(**secret)
    for item in (mcq, proactive):
        item["response_time"] = item["video_categories"] = "SECRET"
    folder = release(tmp_path / "r", {OI_E: [mcq], GTA: [proactive]})
    build(folder, tmp_path / "d", progress=False)
    rows = rows_of(tmp_path / "d")
    assert len(rows) == 2
    for row in rows:
        row.pop("source")  # the release's category, where the name tells no source: never in a prompt
        assert "SECRET" not in json.dumps(row, default=str)
    (part,) = load_dataset(str(tmp_path / "d"))
    for asked in load_questions(tmp_path / "d", part):
        for style in ("reference", "streamgaze"):
            prompt, answers = asked.prompt(style)
            assert "SECRET" not in prompt.upper() and str(answers)
            # The right option is not told from the others: a permuted answer gives the same prompt.
            assert prompt == type(asked)(**{**vars(asked), "answer": 1 - min(asked.answer, 1)}).prompt(style)[0]


def test_tables_come_from_the_files_the_pipeline_writes(tmp_path):
    """A table per video (step 1 or 1.5) or rows of a merged one, if it holds coordinates."""
    names = ("one.mp4", "two.mp4", "three.mp4")
    folder = release(tmp_path / "r", {OI_E: [entry(name) for name in names]}, names, ("one",))
    (folder / "metadata/any/two").mkdir()
    write_fixations(folder / "metadata/any/two/two_fixation_dataset.csv", [(1.0, 2.0, 0.1, 0.2)])
    (folder / "metadata" / "egtea.csv").write_text(
        "video_name,episode_start_time,episode_end_time,center_x,center_y,fixation_ids\n"
        'three,3.0,4.5,0.7,0.8,"[1, 2]"\nfour,1,2,.5,.5,[3]\n'
    )
    build(folder, tmp_path / "d", progress=False)
    found = {row["video_name"]: row["scanpath"] for row in rows_of(tmp_path / "d")}
    assert found["one.mp4"] == [[0.3, 0.6, 4.0, 4.0]]
    assert found["two.mp4"] == [[0.1, 0.2, 1.5, 1.0]]
    assert found["three.mp4"] == [[0.7, 0.8, 3.75, 1.5]]


MERGED = "video_name,start_time,end_time,center_x,center_y\n"
TWO_TABLES = {  # {id: (files below metadata/, what the reason says)}
    "in two folders": (
        {
            name: MERGED.removeprefix("video_name,") + "1,2,.1,.2\n"
            for name in ("a/v_fixation_filtered.csv", "b/v_fixation_filtered.csv")
        },
        ("2 fixation tables of v", "a/v_fixation_filtered.csv", "b/v_fixation_filtered.csv"),
    ),
    "in two merged tables": (
        {"egtea.csv": MERGED + "v,1,2,.1,.2\n", "holoassist.csv": MERGED + "v,1,2,.8,.2\n"},
        ("2 fixation tables of v", "egtea.csv", "holoassist.csv"),
    ),
    "two names in one": (
        {"egtea.csv": MERGED + "a/v.mp4,1,2,.1,.2\nb/v.mp4,3,4,.8,.2\n"},
        ("2 fixation tables of v", "a/v.mp4", "b/v.mp4"),
    ),
}


@pytest.mark.parametrize("case", TWO_TABLES)
def test_of_two_tables_of_a_video_none_is_taken(tmp_path, case):
    files, parts = TWO_TABLES[case]
    names = ("v.mp4", "w.mp4")
    folder = release(tmp_path / "r", {OI_E: [entry(name) for name in names]}, names, ("w",))
    for name, text in files.items():
        (folder / "metadata" / name).parent.mkdir(exist_ok=True)
        (folder / "metadata" / name).write_text(text)
    (item,) = build(folder, tmp_path / "d", progress=False).excluded
    assert item["where"] == "v.mp4" and all(part in item["reason"] for part in parts)


def test_names_with_points_are_different_videos(tmp_path):
    """What follows the last point of `P01.2` is no ending."""
    names = ("P01.2.mp4", "P01.mp4")
    folder = release(tmp_path / "r", {OI_E: [entry(name) for name in names]}, names, ())
    (folder / "metadata").mkdir()
    (folder / "metadata" / "egtea.csv").write_text(MERGED + "P01,1,2,.1,.2\nP01.2,3,4,.8,.2\n")
    build(folder, tmp_path / "d", progress=False)
    found = {row["video_name"]: row["scanpath"] for row in rows_of(tmp_path / "d")}
    assert found == {"P01.mp4": [[0.1, 0.2, 1.5, 1.0]], "P01.2.mp4": [[0.8, 0.2, 3.5, 1.0]]}


def test_fixations_are_found_in_raw_gaze_where_there_is_no_table(tmp_path):
    folder = release(tmp_path / "r", {OI_E: [entry(EXO)]}, (), ())
    write_video(
        folder / "videos/original_video" / EXO, index_frames(100, 240, 320)
    )  # `streamgaze` looks 96 pixels around
    gaze = np.tile([0.25, 0.5, 1.0], (300, 1))
    gaze[150:, 0] = 0.8  # a saccade at 5 s
    (tmp_path / "gaze" / "egoexolearn").mkdir(parents=True)
    np.save(tmp_path / "gaze" / "egoexolearn" / f"{Path(EXO).stem}.npy", gaze)
    for algorithm in ("dispersion", "streamgaze"):
        out = tmp_path / algorithm
        report = build(folder, out, gaze=tmp_path / "gaze", algorithm=algorithm, progress=False)
        (row,) = rows_of(out)
        scanpath = Scanpath.from_array(row["scanpath"])
        assert scanpath.table[:, 0] == pytest.approx([0.25, 0.8])
        assert scanpath.begin_s == pytest.approx([0.0, 5.0], abs=0.05)
        assert report.videos[EXO]["gaze"] == f"raw gaze, {algorithm}" and not report.without_gaze


def test_a_dataset_is_replaced_only_when_asked(tmp_path):
    folder = release(tmp_path / "r", {OI_E: [entry()]})
    build(folder, tmp_path / "d", progress=False)
    with pytest.raises(FileExistsError, match="choose another folder"):
        build(folder, tmp_path / "d", progress=False)
    build(folder, tmp_path / "d", overwrite=True, progress=False)
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError):
        build(folder, tmp_path / "mine", overwrite=True, progress=False)
    build_fails = release(tmp_path / "bad", {OI_E: [entry(answer="Z")]})
    with pytest.raises(ValueError, match=r"nothing can be used[\s\S]*answer is 'Z'"):
        build(build_fails, tmp_path / "e", progress=False)
    assert not (tmp_path / "e").exists()


def test_splits_are_the_releases_or_the_users(tmp_path):
    names = ["a.mp4", "b.mp4", "c.mp4"]
    folder = release(tmp_path / "r", {OI_E: [entry(name) for name in names]}, names, ("a", "b", "c"))
    (tmp_path / "s.json").write_text(json.dumps({"train": ["a.mp4"], "test": ["b.mp4"]}))
    report = build(folder, tmp_path / "d", splits=tmp_path / "s.json", progress=False)
    loaded = load_dataset(str(tmp_path / "d"))
    assert {name: part["video_name"] for name, part in loaded.items()} == {"train": ["a.mp4"], "test": ["b.mp4"]}
    assert [item["where"] for item in report.excluded] == ["c.mp4"]


@pytest.mark.parametrize(
    ("splits", "named"),
    [
        ({"train": ["a.mp4"], "test": ["b.mp4", "a.mp4"]}, "1 videos are listed twice, such as 'a.mp4'"),
        ({"train": [], "val": [], "validation": []}, "expected val or validation, not both"),
        ({"train": "a.mp4"}, "expected lists of video names"),
    ],
)
def test_splits_that_cannot_be_meant_are_refused(tmp_path, splits, named):
    (tmp_path / "s.json").write_text(json.dumps(splits))
    with pytest.raises(ValueError, match=f"s.json: .*{named}"):
        read_splits(tmp_path / "s.json")


def test_a_question_and_a_table_as_released(tmp_path, toy_processor):
    """Columns, digits and words are the release's; a video of the right length and rate stands in for the real one."""
    folder = release(tmp_path / "r", {OI_E: json.loads((STREAMGAZE / f"{OI_E}.json").read_text())}, (), ())
    video = f"{FIXATION_TABLE.name.removesuffix('_fixation_filtered.csv')}.mp4"
    frames = np.repeat(index_frames(75, 32, 32), 4 * 24, axis=0)
    write_video(folder / "videos/original_video" / video, frames, fps=24, options={"preset": "ultrafast"})
    (folder / "metadata").mkdir()
    shutil.copy(FIXATION_TABLE, folder / "metadata")
    (folder / "splits.json").write_text(json.dumps({"test": [video]}))
    build(folder, tmp_path / "d", progress=False)
    (row,) = rows_of(tmp_path / "d")
    assert (row["participant"], row["options"][row["answer"]]) == ("OP99", "spoon")
    (asked,) = load_questions(tmp_path / "d", "test")
    assert (asked.start_s, asked.end_s) == pytest.approx((216.0, 276.0), abs=1e-3)
    inputs = {}
    clip = toy_processor.process_clip(toy_processor.read_clip(asked.video, asked.start_s, asked.end_s, num_frames=30))
    text = toy_processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": asked.prompt()[0]}]}],
        add_generation_prompt=True,
    )
    for snap_s in (0.0, 1.0):
        inputs[snap_s] = toy_processor.collate([text], [clip], [asked.scanpath], snap_s=[snap_s])["scanpaths"][0]
    x, y = 0.0, 0.0
    for snap_s, duration_s in ((0.0, 276 - 275.9583), (1.0, 4.0)):
        x, y, midpoint_s, seen_s = inputs[snap_s][-1].tolist()
        assert seen_s == pytest.approx(duration_s, abs=2e-3)
        assert midpoint_s == pytest.approx(276 - duration_s / 2, abs=2e-3)
        assert [x, y] == pytest.approx(asked.scanpath.table[11, :2].tolist(), abs=1e-4)
