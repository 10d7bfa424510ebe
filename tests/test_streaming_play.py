"""A stream fed from its sources: questions as of their own time, and the command's log."""

import re
from itertools import chain

import numpy as np
import pytest
from support import ROOT, run_here, write_fixations, write_video
from test_stream import FPS, OPTIONS, QUESTION, adapter, logits, recording

from gazeqwen.gaze_sources.samples import GazeSamples
from gazeqwen.streaming.alerts import Watcher
from gazeqwen.streaming.gaze import GazeIterator
from gazeqwen.streaming.play import TimedQuestion, play
from gazeqwen.streaming.stream import GazeStream
from gazeqwen.toyworld.examples import toy_examples


@pytest.fixture(scope="module")
def streamed(bases):
    return adapter(bases)


def looks(until_s: float) -> list[tuple[float, float, float]]:
    """Raw gaze at 50 Hz: another place every 0.7 s."""
    places = np.random.default_rng(1).random((20, 2))
    return [(i / 50, *places[int(i / 50 / 0.7)].tolist()) for i in range(int(until_s * 50))]


def asked_of_a_cut_recording(streamed, time_s: float, gaze_until_s: float) -> np.ndarray:
    """The answer where nothing later was ever pushed."""
    frames, times = recording()
    rows = np.array([row for row in looks(10) if row[0] <= gaze_until_s])
    samples = GazeSamples.from_recording(rows[:, 0], rows[:, 1:], np.ones(len(rows), bool), "gaze")
    with GazeStream(*streamed, fps=FPS) as stream:
        stream.push_gaze(samples)
        stream.push(frames[times <= time_s], times[times <= time_s])
        return logits(stream.ask(QUESTION, OPTIONS, time_s=time_s))


def test_a_question_is_asked_as_of_its_own_time(streamed):
    """Whatever comes later in the same recording; in the order of time, however they are listed."""
    frames, times = recording()
    moments = [6.03, 2.51, 4.0, float(times[-1]) + 0.5]
    questions = [TimedQuestion(time_s, QUESTION, tuple(OPTIONS)) for time_s in moments]
    with GazeStream(*streamed, fps=FPS) as stream:
        video = zip(times.tolist(), frames, strict=True)
        played = list(play(stream, video, GazeIterator(looks(10)), Watcher(stream), questions))
        assert stream.report.late_gaze == stream.report.steps_without_gaze == 0
    answers = list(chain.from_iterable(moment.answers for moment in played))
    assert [question.time_s for question, _ in answers] == [answer.time_s for _, answer in answers] == sorted(moments)
    for question, answer in answers:
        expected = asked_of_a_cut_recording(streamed, question.time_s, question.time_s)
        np.testing.assert_allclose(logits(answer), expected, atol=1e-4)
        earlier = asked_of_a_cut_recording(streamed, question.time_s, question.time_s - 0.5)
        assert abs(earlier - expected).max() > 1e-3  # the control: half a second of gaze less is told apart
    assert [moment.time_s for moment in played[:-1]] == times.tolist() and played[-1].answers
    assert sum(moment.steps for moment in played) == stream.report.steps


def test_the_document_s_example_runs(streamed, tmp_path, monkeypatch, capsys):
    frames, times = recording()
    write_video(tmp_path / "my.mp4", frames, times)
    rows = [f"{time_s},{x},{y}\n" for time_s, x, y in looks(times[-1])]
    (tmp_path / "gaze.csv").write_text("".join(["time,x,y\n", *rows]))
    monkeypatch.chdir(tmp_path)
    _, code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "streaming.md").read_text(), flags=re.DOTALL)
    with GazeStream(*streamed, fps=FPS) as stream:
        exec(code.replace("12.0", "5.0").replace(", own_pace=True", ""), {"stream": stream})
        assert stream.report.steps_without_gaze == 0 and stream.report.questions > stream.report.steps
    assert "TimedQuestion(time_s=5.0" in capsys.readouterr().out


def test_a_question_after_the_end_is_an_error(streamed):
    frames, times = recording(count=5)
    with GazeStream(*streamed, fps=FPS, has_gaze=False) as stream, pytest.raises(ValueError, match="ended at .* 30 s"):
        list(play(stream, zip(times.tolist(), frames, strict=True), questions=[TimedQuestion(30.0, "What?")]))
    with GazeStream(*streamed, fps=FPS, has_gaze=False) as stream, pytest.raises(ValueError, match="before its first"):
        list(play(stream, [], questions=[TimedQuestion(0.0, "What?")]))


def test_questions_are_read_from_text():
    assert TimedQuestion.parse("t=12: What is it? | a box | knife") == TimedQuestion(
        12.0, "What is it?", ("a box", "knife")
    )
    assert TimedQuestion.parse(" t=0.5:Is it t=3: ready?") == TimedQuestion(0.5, "Is it t=3: ready?")
    for text in ("What is it?", "t=-1: What?", "t=2:", "t=2: What? | one", "t=x: What?"):
        with pytest.raises(ValueError, match="expected such as 't=12: "):
            TimedQuestion.parse(text)


# ------------------------------------------------------------------ the command
@pytest.fixture(scope="module")
def example(tmp_path_factory):
    return toy_examples(tmp_path_factory.mktemp("examples"))[0]


def stream(*arguments, expect: int = 0) -> str:
    return run_here("gazeqwen.streaming", *arguments, expect=expect)


def test_the_command_prints_alerts_and_answers_with_times_and_latencies(example):
    question = f"t={example.time_s + 0.5}: {example.question} | {' | '.join(example.options)}"
    alert = "Monitor my gaze and alert me when I gaze on the <jar>."
    printed = stream("--video", example.video, "--gaze", example.table, "--watch", alert, "--ask", question)
    assert "note: not trained on streams: asked with a window of 4 temporal steps and 1 frames per second" in printed
    answers = re.findall(r"^ +([\d.]+) s  (.*)\?  [A-D]\. (.*) \([\d.]+ %\)  \[\d+ ms\]$", printed, flags=re.MULTILINE)
    assert answers == [("12.50", example.question.rstrip("?"), example.answer)]
    alerts = re.findall(r"^ +([\d.]+) s  (ALERT|over): (.*)  Yes [\d.]+ %  \[\d+ ms\]$", printed, flags=re.MULTILINE)
    assert alerts and alerts[0][1:] == ("ALERT", alert)
    assert re.search(r"^44.00 s of video in [\d.]+ s: \d+ steps \(median \d+ ms\), \d+ questions$", printed, re.M)


def test_the_command_takes_raw_gaze_and_none(example, tmp_path):
    gaze, video = tmp_path / "gaze.csv", write_video(tmp_path / "v.mp4", *recording(count=60, side=112))
    rows = [f"{1000 * t:.0f},{100 * x},{100 * y}\n" for t, x, y in looks(10)]
    gaze.write_text("".join(["time,x,y\n", *rows, "10000,5"]))  # the last line is half written
    reading = ("--time_unit", "ms", "--coordinates", "pixels", "--origin", "top-left")
    question = f"t=9: {example.question} | box | jar"
    with_gaze = stream("--video", video, "--gaze", gaze, *reading, "--ask", question)
    assert "clock of the gaze: the video begins at 0 s of the table's (offset_s)\n" in with_gaze
    without = stream("--video", video, "--ask", question)
    answer = r"9.00 s .*box.*jar|9.00 s .* \(([\d.]+) %\)"
    assert re.search(answer, with_gaze)[1] != re.search(answer, without)[1]
    assert re.search(r"\d+ steps did not wait for their gaze any longer", with_gaze)  # it ends before the video does


def test_mistakes_end_in_one_line(example, tmp_path):
    gaze = tmp_path / "gaze.csv"
    gaze.write_text("time,x,y\n0,0.5,0.5\n")
    table = write_fixations(tmp_path / "table.csv", [(0, 1, 7, 0.5)])
    for arguments, message in (
        (("--gaze", gaze), "raw gaze needs --time_unit, --coordinates, --origin"),
        (("--gaze", table), "x is 7.0, expected 0 to 1"),
        (("--gaze", gaze, "--lsl", "x"), "got --gaze and --lsl"),
        (("--ask", "t=99: What?"), "ends at 44.250 s, before the question at 99 s"),
        (("--ask", "What?"), "expected such as 't=12: "),
        (("--watch", " "), "the instruction is empty"),
        (("--video", tmp_path / "v.mp4"), "v.mp4: no such file"),
    ):
        error = stream("--video", example.video, *arguments, expect=1)
        assert message in error and "Traceback" not in error
