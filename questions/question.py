"""One question about a part of a video, with the wearer's scanpath."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from gazeqwen.questions.prompts import OPTION_LETTERS, format_alert, format_question
from gazeqwen.questions.tasks import task_info
from gazeqwen.scanpath_gazeqwen import Scanpath

TOY_SOURCE = "toyworld"  # where a dataset says that the toy world's videos come from


@dataclass(frozen=True, eq=False)
class Question:
    """
    One question about `[start_s, end_s]` of a video, in seconds of the file; `end_s` is the query time. `options`
    carry no letters; `answer` is the index of the right one. `scanpath` is the whole video's, `None` if no gaze is
    known. Of a proactive task each test point is a question of its own, with the options Yes and No. An open-ended
    question has no options and an `answer_text` (`answer` is then -1). `order`: which original option stands at each
    place, where they were permuted. `source`: where the dataset says that the video comes from, such as `egtea`, `own`
    or `toyworld`; None where it does not say.
    """

    video: Path
    video_name: str
    scanpath: Scanpath | None
    task: str
    question: str
    options: tuple[str, ...]
    answer: int
    start_s: float
    end_s: float
    answer_text: str | None = None
    order: tuple[int, ...] | None = None
    source: str | None = None

    @property
    def permutable(self) -> bool:
        """Return whether its options may stand in another order: Yes and No may not."""
        return task_info(self.task).group != "proactive"

    def permuted(self, by: int) -> "Question":
        """Return the question with its options in another order: each `by` places further on, the last ones first."""
        count = len(self.options)
        order = tuple((place - by) % count for place in range(count))
        options = tuple(self.options[place] for place in order)
        return replace(self, options=options, answer=order.index(self.answer), order=order)

    @property
    def snapped(self) -> bool:
        """Return whether the question asks about the fixation that begins at its query time."""
        return task_info(self.task).asks_about_fixation_at_query

    def seen(self, scanpath: Scanpath | None, step_spans_s, snap_s: float) -> Scanpath | None:
        """
        Return a scanpath as the question sees it, whatever the gaze is given by: where it asks about the fixation that
        begins at its query time, snapped within `snap_s` (0: not). `step_spans_s` (T, 2): the seconds at which the
        temporal steps of its clip begin and end.
        """
        if scanpath is None or not self.snapped or not snap_s:
            return scanpath
        return scanpath.snap(float(step_spans_s[-1, 1]), float(step_spans_s[-1, 0]), snap_s)

    @property
    def key(self) -> str:
        """Return what tells this question from every other of the benchmark, in whatever order its options are."""
        options = self.options
        if self.order is not None:
            options = tuple(self.options[self.order.index(place)] for place in range(len(options)))
        return json.dumps([self.video_name, self.task, self.end_s, self.question, options], ensure_ascii=False)

    def prompt(self, style: str = "reference") -> tuple[str, list[str]]:
        """Return the user turn, and the answers that it offers, one token each; none for an open-ended question."""
        if self.answer_text is not None:
            return self.question, []
        if task_info(self.task).group == "proactive":
            return format_alert(self.question, style)
        return format_question(self.question, self.options, style), list(OPTION_LETTERS[: len(self.options)])


def sources_of(questions: Iterable) -> list[str]:
    """Return where the videos of questions, or of predictions, come from: each `source` once, sorted."""
    return sorted({question.source for question in questions} - {None})
