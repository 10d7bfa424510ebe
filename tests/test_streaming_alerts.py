"""Instructions that are watched: when they are asked, what of, and when an alert is raised and lowered."""

import numpy as np
import pytest
from test_stream import FPS, TABLE, adapter, assert_same_state, recording

from gazeqwen.questions.prompts import format_alert
from gazeqwen.streaming.alerts import Alert, Watcher
from gazeqwen.streaming.stream import GazeStream, StreamAnswer

INSTRUCTION = "Alert me when I look at the knife."


@pytest.fixture(scope="module")
def streamed(bases):
    return adapter(bases)


def answered(yes: float, time_s: float) -> StreamAnswer:
    return StreamAnswer("Yes" if yes > 0.5 else "No", {"Yes": yes, "No": 1 - yes}, time_s, {}, time_s, 0.0)


def played(streamed, *watched: dict):
    """Watch while a recording is pushed frame by frame; return the stream, the alerts, and what was asked."""
    model, processor = streamed
    frames, times = recording()
    stream = GazeStream(model, processor, fps=FPS)
    stream.push_fixation(TABLE, until_s=100)
    watcher, asked = Watcher(stream), []
    alerts = [watcher.watch(INSTRUCTION, **settings) for settings in watched]
    for frame, time_s in zip(frames, times, strict=True):
        stream.push(frame, time_s)
        asked += [(alerts.index(alert), stream.report.steps, alert.answer) for alert in watcher.update()]
    return stream, alerts, asked


def test_an_alert_is_raised_and_lowered_with_hysteresis():
    alert = Alert(INSTRUCTION, raise_at=0.6, lower_at=0.4)
    yes = [0.5, 0.6, 0.45, 0.39, 0.59, 0.7, 0.4]
    assert [alert.take(answered(p, index)) for index, p in enumerate(yes)] == [0, 1, 0, 1, 0, 1, 0]
    assert alert.raised and alert.changed_s == 5 and alert.probability == pytest.approx(0.4)


def test_each_step_is_asked_once_and_what_is_asked_is_the_alert(streamed):
    stream, _, asked = played(streamed, {})
    assert [steps for _, steps, _ in asked] == list(range(1, stream.report.steps + 1)) and len(asked) > 5
    prompt, (yes, no) = format_alert(INSTRUCTION, streamed[1].prompt_style)
    frames, times = recording()
    with GazeStream(*streamed, fps=FPS) as other:
        other.push_fixation(TABLE, until_s=100)
        expected = []
        for frame, time_s in zip(frames, times, strict=True):
            other.push(frame, time_s)
            if other.report.steps > len(expected):
                expected.append(other.ask_prompt(prompt, {yes: "Yes", no: "No"}))
        assert [answer.logits for _, _, answer in asked] == [answer.logits for answer in expected]
        assert_same_state(stream, other)
    assert len({answer.probabilities["Yes"] for _, _, answer in asked}) == len(asked)  # the answers differ


def test_every_few_seconds(streamed):
    _, _, asked = played(streamed, {"every_s": 3.0}, {"every_s": 0.25})
    times = [[answer.time_s for which, _, answer in asked if which == number] for number in (0, 1)]
    assert np.diff(np.array(times[0]) // 3).tolist() == [1.0] * (len(times[0]) - 1) and len(times[0]) >= 3
    assert (
        len(times[1]) > 3 * len(times[0]) and times[0][0] == times[1][0] >= 1.0
    )  # not before the first step is whole


def test_on_change_is_called_at_each_change_and_only_then(streamed):
    _, _, asked = played(streamed, {})
    yes = [answer.probabilities["Yes"] for _, _, answer in asked]
    middle, changes = float(np.median(yes)), []
    settings = {"raise_at": middle, "lower_at": middle}
    on_change = lambda alert: changes.append((alert.changed_s, alert.raised))  # noqa: E731
    played(streamed, {"on_change": on_change, **settings})
    expected, raised = [], False
    for (_, _, answer), p in zip(asked, yes, strict=True):
        if (p >= middle) != raised:
            raised = not raised
            expected.append((answer.time_s, raised))
    assert changes == expected and len(changes) >= 1


def test_what_cannot_be_watched_is_refused():
    for settings, message in (
        ({"instruction": " "}, "the instruction is empty"),
        ({"every_s": 0.0}, "every_s: got 0.0"),
        ({"raise_at": 0.3}, "got raise_at=0.3 and lower_at=0.4"),
    ):
        with pytest.raises(ValueError, match=message):
            Alert(**{"instruction": INSTRUCTION, **settings})
