"""Watch for what an instruction names: one Yes or No question at each temporal step, or every few seconds."""

from collections.abc import Callable
from dataclasses import dataclass, field

from gazeqwen.questions.prompts import format_alert
from gazeqwen.streaming.stream import GazeStream, StreamAnswer

YES, NO = "Yes", "No"


@dataclass
class Alert:
    """
    An instruction that is watched, and how it stands. `raised`: whether the alert is on; `changed_s`: since when,
    seconds of the video, None: never was; `answer`: the last one, None: not asked yet; `steps`: the temporal steps
    that the stream had then.

    `every_s`: how often it is asked, None: at each temporal step. `raise_at`, `lower_at`: the probability of Yes from
    which on the alert is raised, and below which it is lowered again; between them it stays as it is. `on_change` is
    called with the alert whenever it is raised or lowered. `snap_s`: as in `GazeStream.ask`.
    """

    instruction: str
    every_s: float | None = None
    on_change: Callable[["Alert"], None] | None = None
    raise_at: float = 0.6
    lower_at: float = 0.4
    snap_s: float = 0.0
    raised: bool = field(default=False, init=False)
    changed_s: float | None = field(default=None, init=False)
    answer: StreamAnswer | None = field(default=None, init=False)
    steps: int = field(default=0, init=False)

    def __post_init__(self):
        if not self.instruction.strip():
            raise ValueError(
                "the instruction is empty, expected a sentence such as 'Alert me when I look at a knife.'"
            )
        if self.every_s is not None and not self.every_s > 0:
            raise ValueError(f"every_s: got {self.every_s}, expected a positive number of seconds, or None")
        if not 0 < self.lower_at <= self.raise_at < 1:
            raise ValueError(
                f"got raise_at={self.raise_at} and lower_at={self.lower_at}, expected 0 < lower_at <= raise_at < 1"
            )

    @property
    def probability(self) -> float | None:
        """Return the probability of Yes in the last answer; None: not asked yet."""
        return None if self.answer is None else self.answer.probabilities[YES]

    def take(self, answer: StreamAnswer) -> bool:
        """Take an answer, and return whether it raises or lowers the alert."""
        self.answer = answer
        raised = self.probability >= (self.lower_at if self.raised else self.raise_at)
        if raised == self.raised:
            return False
        self.raised, self.changed_s = raised, answer.time_s
        return True


class Watcher:
    """
    Watch a stream for several instructions. `update`, called after each push, asks those that are due; all of them run
    on the stream's one cache and leave no trace there. An instruction is first asked when the first temporal step is
    whole.
    """

    def __init__(self, stream: GazeStream):
        self.stream = stream
        self.alerts: list[Alert] = []

    def watch(self, instruction: str, every_s: float | None = None, on_change=None, **settings) -> Alert:
        """Watch for an instruction from now on, and return its alert, of which `settings` are more fields."""
        alert = Alert(instruction, every_s, on_change, **settings)
        self.alerts.append(alert)
        return alert

    def update(self) -> list[Alert]:
        """Ask what is due as of the last frame, and return the alerts that were asked."""
        due = [alert for alert in self.alerts if self._is_due(alert)]
        for alert in due:
            prompt, (yes, no) = format_alert(alert.instruction, self.stream.processor.prompt_style)
            answer = self.stream.ask_prompt(prompt, {yes: YES, no: NO}, snap_s=alert.snap_s)
            alert.steps = self.stream.report.steps
            if alert.take(answer) and alert.on_change is not None:
                alert.on_change(alert)
        return due

    def _is_due(self, alert: Alert) -> bool:
        """Return whether an alert is to be asked as of the last frame."""
        steps, now_s = self.stream.report.steps, self.stream.now_s
        if alert.answer is None or alert.every_s is None:
            return steps > alert.steps
        return now_s // alert.every_s > alert.answer.time_s // alert.every_s


__all__ = ["NO", "YES", "Alert", "Watcher"]
