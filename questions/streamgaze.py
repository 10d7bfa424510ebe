"""
The StreamGaze benchmark (arXiv 2512.01707): its tasks, clip windows and prompts, and a built dataset -> questions.

    python -m gazeqwen.questions.streamgaze build RELEASE_DIR OUT_DIR

turns the release on disk into a dataset that `load_dataset(OUT_DIR)` opens (see streamgaze_release.py).
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

from gazeqwen.scanpath_gazeqwen import Scanpath

OPTION_LETTERS = "ABCDEFGH"

# `reference`: as the published GazeQwen code asks; `streamgaze`: as the benchmark does (streamgaze.md, 2.2 and 4.1).
PROMPT_STYLES = ("reference", "streamgaze")

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Task:
    """
    `window_s`: how far before the question a clip begins; None: at the video's start (StreamGaze's protocol).
    `asks_about_fixation_at_query`: questions are stamped with the rounded start of the fixation that they ask about,
    so that next to nothing of it lies before the query (`Scanpath.snap`). Test points of gaze-triggered alerts are
    floored to whole seconds: the positive one at the object's first fixation is cut up to 1 s before that fixation
    begins. Object transition prediction is stamped so too, but with the start of the fixation that is the answer: that
    one must stay unseen.
    """

    abbreviation: str
    group: str
    window_s: float | None
    questions: int
    asks_about_fixation_at_query: bool = False


WINDOW_S = 60.0  # of the present tasks

# By file stem: the release's `task_type` field does not tell OI-E from OI-H. `questions`: how many the release holds.
TASKS = {
    "past_gaze_sequence_matching": Task("GSM", "past", None, 186, True),
    "past_non_fixated_object_identification": Task("NFI", "past", None, 650),
    "past_object_transition_prediction": Task("OTP", "past", None, 494),
    "past_scene_recall": Task("SR", "past", None, 211, True),
    "present_future_action_prediction": Task("FAP", "present", WINDOW_S, 921),
    "present_object_attribute_recognition": Task("OAR", "present", WINDOW_S, 1419, True),
    "present_object_identification_easy": Task("OI-E", "present", WINDOW_S, 1487, True),
    "present_object_identification_hard": Task("OI-H", "present", WINDOW_S, 1005, True),
    "proactive_gaze_triggered_alert": Task("GTA", "proactive", None, 283, True),
    "proactive_object_appearance_alert": Task("OAA", "proactive", None, 1865),
}
VIDEOS_IN_RELEASE = 285


def task_info(name: str) -> Task:
    """One of StreamGaze's tasks, or one of people's own data."""
    return TASKS.get(name) or Task(name, "own", None, 0)


@dataclass(frozen=True, eq=False)
class Question:
    """
    One question about `[start_s, end_s]` of a video, in seconds of the file; `end_s` is the query time. `options`
    carry no letters; `answer` is the index of the right one. `scanpath` is the whole video's, `None` if no gaze is
    known. Of a proactive task each test point is a question of its own, with the options Yes and No. An open-ended
    question has no options and an `answer_text` (`answer` is then -1). `order`: which original option stands at each
    place, where they were permuted.
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

    @property
    def permutable(self) -> bool:
        """Whether its options may stand in another order: Yes and No may not."""
        return task_info(self.task).group != "proactive"

    def permuted(self, by: int) -> "Question":
        """The question with its options in another order: each `by` places further on, the last ones first."""
        count = len(self.options)
        order = tuple((place - by) % count for place in range(count))
        options = tuple(self.options[place] for place in order)
        return replace(self, options=options, answer=order.index(self.answer), order=order)

    @property
    def snapped(self) -> bool:
        """Whether the question asks about the fixation that begins at its query time."""
        return task_info(self.task).asks_about_fixation_at_query

    def seen(self, scanpath: Scanpath | None, step_spans_s, snap_s: float) -> Scanpath | None:
        """
        A scanpath as the question sees it, whatever the gaze is given by: where it asks about the fixation that begins
        at its query time, snapped within `snap_s` (0: not). `step_spans_s` (T, 2): the temporal steps of its clip.
        """
        if scanpath is None or not self.snapped or not snap_s:
            return scanpath
        return scanpath.snap(float(step_spans_s[-1, 1]), float(step_spans_s[-1, 0]), snap_s)

    @property
    def key(self) -> str:
        """Tells this question from every other of the benchmark, in whatever order its options are."""
        options = self.options
        if self.order is not None:
            options = [self.options[self.order.index(place)] for place in range(len(options))]
        return json.dumps([self.video_name, self.task, self.end_s, self.question, options], ensure_ascii=False)

    def prompt(self, style: str = "reference") -> tuple[str, list[str]]:
        """The user turn, and the answers it offers, one token each."""
        if self.answer_text is not None:
            return self.question, []
        if task_info(self.task).group == "proactive":
            return format_alert(self.question, style)
        return format_question(self.question, self.options, style), list(OPTION_LETTERS[: len(self.options)])


def _checked_style(style: str) -> str:
    if style not in PROMPT_STYLES:
        raise ValueError(f"prompt style {style!r}, expected one of {PROMPT_STYLES}")
    return style


def format_question(question: str, options, style: str = "reference") -> str:
    """The user turn of a multiple-choice question. `options` carry no letters: `["box", "knife"]`."""
    if not 2 <= len(options) <= len(OPTION_LETTERS):
        raise ValueError(f"got {len(options)} options {list(options)}, expected 2 to {len(OPTION_LETTERS)}")
    lines = [f"{letter}. {option}" for letter, option in zip(OPTION_LETTERS, options, strict=False)]
    if _checked_style(style) == "reference":
        return "\n".join([f"Question: {question}", "Options:", *lines, "The best option is:"])
    if len(options) == 4:
        lines.append("Answer with nothing but the letter (A, B, C, or D) of the best option.")
    return "\n".join(["", f"Question: {question}", "Options:", *lines, "", "The best option is:"])


def format_alert(question: str, style: str = "reference") -> tuple[str, list[str]]:
    """The user turn of a proactive question at a test point, and the answers it offers: yes first."""
    if _checked_style(style) == "reference":
        asked = f"{question} Based on the video so far, should the alert be triggered?"
        return format_question(asked, ("Yes", "No")), ["A", "B"]
    lines = [
        "You watch a video stream as it comes in.",
        question,
        "If what is asked for has been seen by now, answer Yes; otherwise, answer No.",
        "Answer with Yes or No alone.",
    ]
    return "\n".join(lines), ["Yes", "No"]


def chat_message(prompt: str, with_video: bool = True) -> list[dict]:
    """The conversation that asks `prompt` about one video, or, as a control, without it."""
    video = [{"type": "video"}] if with_video else []
    return [{"role": "user", "content": [*video, {"type": "text", "text": prompt}]}]


def clip_window(task: str, question_time_s: float) -> tuple[float, float]:
    """The part of the video that a question of `task` is asked about, seconds."""
    window_s = TASKS[task].window_s
    return (0.0 if window_s is None else window_start_s(question_time_s, window_s)), question_time_s


def window_start_s(question_time_s: float, window_s: float = WINDOW_S) -> float:
    """Where a clip begins that ends with its question and looks back `window_s`, seconds of the video."""
    return max(0.0, question_time_s - window_s)


# ------------------------------------------------------------------ a built dataset -> questions
def load_questions(
    data: str | PathLike,
    split: str,
    tasks: list[str] | None = None,
    config: str = "default",
    without_gaze: str = "error",
) -> list[Question]:
    """
    The questions of a split of a dataset that `gazeqwen build` wrote: a folder, or an id on the
    Hub. `config`: `default`, the published split, or `participants`, where no participant is in two splits.
    `without_gaze`: what to do with videos whose gaze is not known: `error`, `keep` (the model is then the base model),
    or `drop`, which says how many.

    Raises ValueError or FileNotFoundError naming data, split, task and video.
    """
    if without_gaze not in ("error", "keep", "drop"):
        raise ValueError(f"without_gaze: got {without_gaze!r}, expected 'error', 'keep' or 'drop'")
    rows = _load_rows(data, split, config)
    questions, dropped, scanpaths = [], set(), {}
    for row in rows:
        name = row["video_name"]
        if not isinstance(name, str) or Path(name).name != name:  # it may not lead out of the dataset's folder
            raise ValueError(f"{data}, split {split!r}: video_name is {name!r}, expected a file's name")
        if tasks is not None and row["task"] not in tasks:
            continue
        if row["scanpath"] is None and without_gaze != "keep":
            dropped.add(row["video_name"])
            continue
        video = _video_of(data, row)
        questions.extend(_questions_of(row, video, scanpaths))
    if dropped and without_gaze == "error":
        raise ValueError(
            f"{data}, split {split!r}: no gaze for {len(dropped)} videos, such as {min(dropped)}; "
            "set without_gaze to 'drop' or 'keep'"
        )
    if dropped:
        print(f"{data}, split {split!r}: left out {len(dropped)} videos without gaze: {', '.join(sorted(dropped))}")
    absent = sorted(set(tasks or ()) - {question.task for question in questions})
    if absent or not questions:
        there = sorted(set(rows["task"]))
        raise ValueError(f"{data}: no question in split {split!r} of the tasks {absent or 'asked for'}, found {there}")
    return questions


def _video_of(data: str | PathLike, row: dict) -> Path:
    if Path(data).is_dir():  # not where the row says: the cache of `datasets` knows a moved folder by its old place
        video = Path(data) / "videos" / row["video_name"]
        if not video.is_file():
            raise FileNotFoundError(f"{video}: no such file, though the dataset has questions about it")
        return video
    from datasets.config import HF_DATASETS_CACHE  # holds what came in archives
    from huggingface_hub.constants import HF_HUB_CACHE

    video, caches = Path(row["video"]["path"] or ""), (Path(HF_HUB_CACHE), Path(HF_DATASETS_CACHE))
    downloaded = any(video.is_relative_to(cache.absolute()) for cache in caches)
    if not downloaded or ".." in video.parts:  # a table may name any file of this machine
        raise ValueError(f"{data}: the video of a question is {str(video)!r}, expected a file of the dataset")
    return video


def _load_rows(data, split: str, config: str):
    """
    The rows of a dataset with the columns of `dataset_folder.COLUMNS`. Of these, people's own data may lack
    `options`, `answer`, `answer_text`, `test_points` and `fixation_ids` where no question has them.
    """
    from datasets import load_dataset

    folder = Path(data)
    if folder.exists():
        if not folder.is_dir():
            raise ValueError(f"{folder}: expected a folder")
        if (folder / "qa").is_dir():
            raise ValueError(f"{folder}: a release; build a dataset: gazeqwen build {folder} OUT")
        if not (folder / "README.md").is_file():
            raise FileNotFoundError(f"{folder}: no dataset here, expected what `gazeqwen build` writes")
        if not any((folder / "videos").glob("*")):
            raise FileNotFoundError(f"{folder / 'videos'}: no videos there")
    elif str(data).startswith((".", "/", "~")) or str(data).count("/") != 1:
        raise FileNotFoundError(f"{data}: no such folder, and no id of a dataset on the Hub (user/name)")
    try:
        rows = load_dataset(str(data), config, split=split)
    except Exception as error:  # of `datasets`, pyarrow, fsspec, yaml: what is wrong with a file has many names
        first, *_, last = 2 * str(error.__cause__ or error).splitlines() or [type(error).__name__] * 2
        why = first if first == last else f"{first} ... {last}"
        raise ValueError(f"{data}, config {config!r}, split {split!r}: cannot be loaded ({why})") from error
    needed = {"video", "video_name", "scanpath", "task", "question", "start_s", "end_s"}
    if not needed <= set(rows.column_names):
        raise ValueError(f"{data}: no columns {sorted(needed - set(rows.column_names))} among {rows.column_names}")
    return rows


def _check_row(row: dict, video: Path) -> None:
    """Raise for values that are no question; a build writes none, other hands may."""

    def check(right, name: str, expected: str) -> None:
        if not right:
            raise ValueError(f"a question about {video}: {name} is {row.get(name)!r}, expected {expected}")

    start_s, end_s = row["start_s"], row["end_s"]
    for name in ("task", "question"):
        check(isinstance(row[name], str), name, "text")
    check(start_s is not None and 0 <= start_s < math.inf, "start_s", "seconds")
    check(end_s is not None and start_s < end_s < math.inf, "end_s", f"more seconds than start_s, {start_s}")
    if row["task"] in TASKS and TASKS[row["task"]].group == "proactive":
        points = row.get("test_points") or [None]
        right = all(p and p["alert"] is not None and start_s < (p["time_s"] or 0) < math.inf for p in points)
        check(right, "test_points", "times after start_s, and whether the alert is due")
    elif options := row.get("options"):
        right = 2 <= len(options) <= len(OPTION_LETTERS) and all(isinstance(option, str) for option in options)
        check(right, "options", f"2 to {len(OPTION_LETTERS)} texts")


def _questions_of(row: dict, video: Path, scanpaths: dict[str, Scanpath]) -> Iterator[Question]:
    _check_row(row, video)
    name, table = row["video_name"], row["scanpath"]
    if table is not None and name not in scanpaths:
        scanpaths[name] = Scanpath.from_array(table, f"scanpath of {name}", row.get("fixation_ids"))
    shared = (video, name, scanpaths.get(name), row["task"], row["question"])
    if task_info(row["task"]).group != "proactive":
        options, answer, text = tuple(row.get("options") or ()), row.get("answer"), row.get("answer_text")
        if text is None and (answer is None or not 0 <= answer < len(options)):
            raise ValueError(f"{name}, {row['question']!r}: answer is {answer!r} of the options {options}")
        if text is not None and (options or not text.strip()):
            raise ValueError(
                f"{name}, {row['question']!r}: expected options, or an answer_text, got {options} and {text!r}"
            )
        yield Question(*shared, options, -1 if answer is None else answer, row["start_s"], row["end_s"], text)
        return
    for point in row["test_points"]:
        yield Question(*shared, ("Yes", "No"), 0 if point["alert"] else 1, row["start_s"], point["time_s"])


if __name__ == "__main__":
    from gazeqwen.questions.release import main
    from gazeqwen.utils.files import clear_errors

    with clear_errors():
        main()
