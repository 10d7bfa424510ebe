"""People's own questions, from a CSV to a dataset that trains."""

import json
import shutil
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, load_dataset
from huggingface_hub import DatasetCard
from support import index_frames, run_here, write_fixations, write_video

from gazeqwen.questions.dataset import load_questions
from gazeqwen.questions.own import build, splits_of

HEADER = "video,scanpath,time_s,question,options,answer,participant"
NOW = "What is the wearer looking at?"


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Ten videos of 10 s by five people, each with its fixations, in a folder of their own."""
    folder = tmp_path_factory.mktemp("recordings")
    (folder / "media").mkdir()
    for number in range(10):
        write_video(folder / "media" / f"v{number}.mp4", index_frames(20), fps=2)
        write_fixations(folder / "media" / f"v{number}.csv", [(0.5, 2.5, 0.25, 0.75), (3.0, 6.0, 0.1 * number, 0.2)])
    return folder


def line(number: int, time_s="8", options="lemon | cheese", answer="cheese", gaze=True) -> str:
    scanpath = f"media/v{number}.csv" if gaze else ""
    return f"media/v{number}.mp4,{scanpath},{time_s},{NOW},{options},{answer},person {number // 2}"


def table_of(folder, *lines: str, header: str = HEADER):
    path = folder / "questions.csv"
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def test_questions_come_back_as_they_were_asked(recordings, tmp_path):
    table = table_of(recordings, *(line(number) for number in range(10)), line(3, "5.5", "", "They cut the cheese."))
    report = build(table, tmp_path / "data", progress=False)
    questions = [q for split in ("train", "validation", "test") for q in load_questions(tmp_path / "data", split)]
    assert len(questions) == 11 and {q.task for q in questions} == {"own"}
    asked = {(q.video_name, q.end_s): q for q in questions}
    chosen, open_ended = asked["v3.mp4", 8.0], asked["v3.mp4", 5.5]
    assert (chosen.options, chosen.answer, chosen.start_s, chosen.answer_text) == (("lemon", "cheese"), 1, 0.0, None)
    assert (open_ended.options, open_ended.answer_text) == ((), "They cut the cheese.")
    assert chosen.scanpath.table.tolist() == [[0.25, 0.75, 1.5, 2.0], [pytest.approx(0.3), 0.2, 4.5, 3.0]]
    assert "11 questions of 10 videos kept" in report.text() and "release" not in report.text()
    card = DatasetCard.load(tmp_path / "data" / "README.md")
    assert "from a table of questions" in card.text and "moved onto the clock" not in card.text and "10" in card.text


def test_a_clip_begins_60_s_before_its_question_unless_a_start_is_given(tmp_path):
    write_video(tmp_path / "long.mp4", index_frames(80), fps=1)
    header = "video,time_s,start_s,question,answer"
    lines = [
        f"long.mp4,{time_s},{start_s},{NOW},cheese"
        for time_s, start_s in (("75", ""), ("59", ""), ("75.5", "2"), ("80.6", "70"))
    ]
    build(table_of(tmp_path, *lines, header=header), tmp_path / "data", progress=False)
    rows = load_dataset(str(tmp_path / "data"), split="train")
    clips = dict(zip(rows["end_s"], rows["start_s"], strict=True))
    assert clips == {75.0: 15.0, 59.0: 0.0, 75.5: 2.0, 80.0: 70.0}  # rounded past the video's end: asked there


def test_nobody_is_in_two_splits(recordings, tmp_path):
    build(table_of(recordings, *(line(number) for number in range(10))), tmp_path / "data", progress=False)
    people = {split: set(rows["participant"]) for split, rows in load_dataset(str(tmp_path / "data")).items()}
    assert sum(map(len, people.values())) == len(set.union(*people.values())) == 5
    assert len(people["train"]) > len(people["test"]) >= 1


def test_videos_whose_wearer_is_not_named_are_of_different_people():
    names = [f"v{number}.mp4" for number in range(10)]
    splits = splits_of("questions.csv", {name: [{"split": None, "participant": None}] for name in names})
    assert [len(splits[split]) for split in ("train", "validation", "test")] == [7, 1, 2]


def test_given_splits_are_kept(recordings, tmp_path):
    splits = ["train"] * 7 + ["validation", "validation", "test"]
    lines = (f"{line(number)},{split}" for number, split in enumerate(splits))
    report = build(table_of(recordings, *lines, header=f"{HEADER},split"), tmp_path / "data", progress=False)
    assert {split: of["videos"] for split, of in report.splits["default"].items()} == {
        "train": 7,
        "validation": 2,
        "test": 1,
    }


def test_videos_without_gaze_are_named(recordings, tmp_path):
    report = build(table_of(recordings, line(0), line(1, gaze=False)), tmp_path / "data", progress=False)
    assert report.without_gaze == ["v1.mp4"] and "videos without gaze (1): v1.mp4" in report.text()
    assert json.loads((tmp_path / "data" / "report.json").read_text())["without_gaze"] == ["v1.mp4"]
    with pytest.raises(FileExistsError, match="exists"):
        build(table_of(recordings, line(0)), tmp_path / "data", progress=False)
    build(table_of(recordings, line(0)), tmp_path / "data", overwrite=True, progress=False)
    assert len(load_dataset(str(tmp_path / "data"), split="train")) == 1


@pytest.mark.parametrize("name", ["notes.txt", "videos/mine.mp4", "raw/a.csv"])
def test_overwrite_deletes_nothing_that_no_build_wrote(recordings, tmp_path, name):
    data, table = tmp_path / "data", table_of(recordings, line(0))
    build(table, data, progress=False)
    (data / name).parent.mkdir(exist_ok=True)
    (data / name).write_text("mine")
    with pytest.raises(FileExistsError, match=rf"would delete 1 files .* such as {name.split('/')[name[0] == 'v']}"):
        build(table, data, overwrite=True, progress=False)
    assert (data / name).read_text() == "mine"


@pytest.mark.parametrize("report", ['{"passed": 3}', "[]", "", "{}"])
def test_overwrite_deletes_no_folder_of_another_kind(recordings, tmp_path, report):
    project = tmp_path / "project"
    project.mkdir()
    (project / "report.json").write_text(report)
    (project / "README.md").write_text("---\nlicense: mit\n---\nmine")
    with pytest.raises(FileExistsError, match="no dataset built earlier"):
        build(table_of(recordings, line(0)), project, overwrite=True, progress=False)
    assert (project / "README.md").exists()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([line(0), line(0, "11.5")], "line 3: time_s is 11.5, expected up to the video's end, 10.000"),
        ([line(0, "soon")], "line 2: time_s is 'soon', expected seconds"),
        ([line(0, "0")], "line 2: time_s is 0, expected up to"),
        ([line(0, options="lemon")], "line 2: options are \\['lemon'\\], expected 2 to 8 different ones"),
        ([line(0, options="cheese | cheese")], "expected 2 to 8 different ones"),
        ([line(0, answer="ham")], "line 2: answer is 'ham', expected one of \\['lemon', 'cheese'\\]"),
        ([line(0, answer="")], "line 2: answer is empty"),
        ([line(99)], "line 2: .*v99.mp4: no such file"),
        ([line(0).replace("v0.csv", "v99.csv")], "line 2: .*v99.csv: no such file"),
        ([line(0).replace("v0.csv", "v0.mp4")], "line 2: .*v0.mp4: not a CSV text file"),
        (
            [line(0), line(0).replace("v0.csv", "v1.csv")],
            "line 3: scanpath is 'media/v1.csv', on another line of v0.mp4",
        ),
        ([line(0), line(0).replace("media/v0.mp4", "media/../media/v0.mp4")], "another one of that name"),
        (
            [line(0), line(0).replace("person 0", "Ann")],
            "v0.mp4 has participants \\['Ann', 'person 0'\\]",
        ),
        ([line(0, "1_0")], "line 2: time_s is '1_0', expected seconds"),
        ([line(0, "٨")], "line 2: time_s is '٨', expected seconds"),
        ([], "no questions"),
    ],
)
def test_mistakes_name_file_line_and_value(recordings, tmp_path, lines, message):
    with pytest.raises((ValueError, FileNotFoundError), match=f"questions.csv.*{message}"):
        build(table_of(recordings, *lines), tmp_path / "data", progress=False)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("header", "more", "message"),
    [
        (HEADER.replace("answer", "anwser"), "", "no columns \\['answer'\\]"),
        (f"{HEADER},taks", ",own", "unknown columns \\['taks'\\]"),
        (f"{HEADER},split", ",dev", "line 2: split is 'dev', expected one of train, validation, test"),
        (f"{HEADER},task", ",proactive_gaze_triggered_alert", "whose questions are test points"),
        (f"{HEADER},start_s", ",8", "line 2: start_s is 8, expected less than the question's 8"),
    ],
)
def test_mistakes_of_columns(recordings, tmp_path, header, more, message):
    with pytest.raises(ValueError, match=f"questions.csv.*{message}"):
        build(table_of(recordings, line(0) + more, header=header), tmp_path / "data", progress=False)


def test_a_split_for_some_is_refused(recordings, tmp_path):
    table = table_of(recordings, f"{line(0)},train", f"{line(1)},", header=f"{HEADER},split")
    with pytest.raises(ValueError, match="v1.mp4 has no split where others have one"):
        build(table, tmp_path / "data", progress=False)


# ---------------------------------------------------------------- gaze of another clock, files of other kinds
def test_gaze_in_milliseconds_is_refused(recordings, tmp_path):
    fixations = [(500, 2500, 0.25, 0.75), (3000, 6000, 0.1, 0.2), (6500, 9000, 0.4, 0.2)]
    write_fixations(recordings / "media" / "ms.csv", fixations)
    table = table_of(recordings, line(0).replace("v0.csv", "ms.csv"))
    message = "ms.csv: 3 of 3 fixations reach beyond the end of v0.mp4 at 10.000 s, .*2500.* expected seconds"
    with pytest.raises(ValueError, match=f"line 2: .*{message}"):
        build(table, tmp_path / "data", progress=False)


def test_gaze_that_was_recorded_for_longer_is_told(recordings, tmp_path):
    fixations = [(0.5, 2.5, 0.25, 0.75), (3.0, 6.0, 0.1, 0.2), (11.0, 12.0, 0.4, 0.2)]
    write_fixations(recordings / "media" / "long.csv", fixations)
    report = build(table_of(recordings, line(0).replace("v0.csv", "long.csv")), tmp_path / "data", progress=False)
    assert "1 of 3 fixations reach beyond the end of v0.mp4 at 10.000 s" in report.text()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.ts"], "a.ts: load_dataset knows no .ts, expected one of .*ffmpeg -i a.ts -c copy a.mp4"),
        (["a.MTS", "b.mp4"], "a.MTS: load_dataset knows no .mts"),
        (["a.mp4", "b.mkv"], "a.mp4, b.mkv: load_dataset needs two videos of one kind.*ffmpeg -i b.mkv -c copy b.mp4"),
        (["a.mp4", "b.mkv", "c.mkv"], None),
        (["a.mkv"], None),
    ],
)
def test_a_folder_that_is_written_can_be_loaded(tmp_path, names, message):
    for name in names:
        write_video(tmp_path / name.lower(), index_frames(30)).rename(tmp_path / name)
    rows = (f"{name},1,{NOW},cheese,train" for name in names)
    table = table_of(tmp_path, *rows, header="video,time_s,question,answer,split")
    if message is None:
        build(table, tmp_path / "data", progress=False)
        assert {q.video_name for q in load_questions(tmp_path / "data", "train", without_gaze="keep")} == set(names)
        return
    with pytest.raises(ValueError, match=message):
        build(table, tmp_path / "data", progress=False)
    assert not (tmp_path / "data").exists()


# ---------------------------------------------------------------- the command, and what it leaves alone
def test_the_command_builds_without_torch_and_matplotlib(recordings, tmp_path):
    """In a process of its own, in which nothing else has imported them."""
    table = table_of(recordings, line(0), line(1))
    code = (
        "import sys; from gazeqwen.questions.__main__ import main; main();"
        "print('imported:', {'torch', 'matplotlib', 'transformers', 'accelerate'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, str(table), str(tmp_path / "data")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 questions of 2 videos kept" in done.stdout and f'load_dataset("{tmp_path / "data"}")' in done.stdout
    assert "imported: set()" in done.stdout
    assert "train: 2 questions of 2 videos" in done.stdout


@pytest.mark.parametrize(
    "flags", [("--splits", "s.json"), ("--gaze", "raw"), ("--algorithm", "streamgaze"), ("--strict",)]
)
def test_flags_of_a_release_are_refused_for_a_table(recordings, tmp_path, flags):
    table = table_of(recordings, line(0))
    said = run_here("gazeqwen.questions", table, tmp_path / "data", *flags, expect=2)
    assert f"{flags[0]} is for a release, {table} is a table of own questions" in said
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("source", "message"), [("none.csv", "none.csv: no such file"), ("none", "none/qa: no question files")]
)
def test_the_command_names_a_source_that_is_not_there(tmp_path, source, message):
    said = run_here("gazeqwen.questions", tmp_path / source, tmp_path / "data", expect=1)
    assert said.count("\n") == 1 and message in said
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("switch", [enable_progress_bars, disable_progress_bars])
def test_progress_bars_of_others_stay_as_they_are(recordings, tmp_path, capsys, switch):
    before = are_progress_bars_disabled()
    try:
        switch()
        disabled = are_progress_bars_disabled()
        build(table_of(recordings, line(0), line(1)), tmp_path / "data", progress=False)
        assert are_progress_bars_disabled() == disabled
        assert capsys.readouterr().err == ""
    finally:
        disable_progress_bars() if before else enable_progress_bars()


def test_edited_tables_are_read_anew(toy_data, tmp_path):
    """Also those of a copy elsewhere: `datasets` would serve the rows that it has of the first."""
    before = load_questions(toy_data, "test")
    shutil.copytree(toy_data, tmp_path / "copy")
    table = tmp_path / "copy" / "default-test.parquet"
    for number in range(2):  # of another size, and of the same
        rows = pq.read_table(table).to_pylist()[:3]
        for row in rows:
            row["question"] = f"{number} {row['question'][2:]}"
        pq.write_table(pa.Table.from_pylist(rows, schema=pq.read_schema(table)), table)
        again = load_questions(tmp_path / "copy", "test")
        assert {question.question.split()[0] for question in again} == {str(number)}
    assert [question.key for question in load_questions(toy_data, "test")] == [question.key for question in before]
