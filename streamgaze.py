"""The StreamGaze benchmark (arXiv 2512.01707): tasks, clip windows, prompts, and the release on disk -> questions."""

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

OPTION_LETTERS = "ABCDEFGH"


@dataclass(frozen=True)
class Task:
    """`window_s`: how far before the question a clip begins; None: at the video's start (StreamGaze's protocol)."""

    abbreviation: str
    group: str
    window_s: float | None


# By file stem: the release's `task_type` field does not tell OI-E from OI-H.
TASKS = {
    "past_gaze_sequence_matching": Task("GSM", "past", None),
    "past_non_fixated_object_identification": Task("NFI", "past", None),
    "past_object_transition_prediction": Task("OTP", "past", None),
    "past_scene_recall": Task("SR", "past", None),
    "present_future_action_prediction": Task("FAP", "present", 60.0),
    "present_object_attribute_recognition": Task("OAR", "present", 60.0),
    "present_object_identification_easy": Task("OI-E", "present", 60.0),
    "present_object_identification_hard": Task("OI-H", "present", 60.0),
    "proactive_gaze_triggered_alert": Task("GTA", "proactive", None),
    "proactive_object_appearance_alert": Task("OAA", "proactive", None),
}


@dataclass(frozen=True)
class Question:
    """
    One multiple-choice question about `[start_s, end_s]` of a video. `end_s` is the query time; `options` carry no
    letters; `answer` is the index of the right one; `scanpath` is the video's fixation table.
    """

    video: Path
    scanpath: Path | None
    task: str
    question: str
    options: tuple[str, ...]
    answer: int
    start_s: float
    end_s: float

    @property
    def key(self) -> str:
        """Tells this question from every other of the benchmark."""
        return json.dumps([self.video.name, self.task, self.end_s, self.question, self.options], ensure_ascii=False)

    @property
    def prompt(self) -> str:
        return format_question(self.question, self.options)


def format_question(question: str, options) -> str:
    """The user turn of a multiple-choice question. `options` carry no letters: `["box", "knife"]`."""
    if not 2 <= len(options) <= len(OPTION_LETTERS):
        raise ValueError(f"got {len(options)} options {list(options)}, expected 2 to {len(OPTION_LETTERS)}")
    lines = [f"{letter}. {option}" for letter, option in zip(OPTION_LETTERS, options, strict=False)]
    return "\n".join([f"Question: {question}", "Options:", *lines, "The best option is:"])


def chat_message(prompt: str) -> list[dict]:
    """The conversation that asks `prompt` about one video."""
    return [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": prompt}]}]


def parse_time(text: str) -> float:
    """Seconds of `MM:SS` (minutes may exceed 59), `HH:MM:SS` or plain seconds. Raises ValueError."""
    parts = str(text).strip().split(":")
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        numbers = []
    in_range = all(0 <= number < (60 if place else math.inf) for place, number in enumerate(numbers))
    if not 1 <= len(numbers) <= 3 or not in_range:
        raise ValueError(f"time {text!r}, expected MM:SS or HH:MM:SS")
    seconds = 0.0
    for number in numbers:
        seconds = 60 * seconds + number
    return seconds


def clip_window(task: str, question_time_s: float) -> tuple[float, float]:
    """The part of the video that a question of `task` is asked about, seconds."""
    window_s = TASKS[task].window_s
    return (0.0 if window_s is None else max(0.0, question_time_s - window_s)), question_time_s


def _read_question(entry: dict, item: dict, task: str) -> tuple[str, str, tuple[str, ...], int, float]:
    """(video name, question, options, answer, time) of one entry's question; ValueError or KeyError if malformed."""
    name = entry.get("video_path") or entry.get("video")
    if not name:
        raise ValueError("no video_path")
    options = tuple(re.sub(r"^\s*[A-H]\.\s*", "", option).strip() for option in item["options"])
    if len(set(options)) != len(options):
        raise ValueError(f"options {item['options']}, expected different ones")
    letters = OPTION_LETTERS[: len(options)]
    answer = str(item["answer"]).strip()
    if len(answer) != 1 or answer not in letters:
        raise ValueError(f"answer {answer!r} is not among the options' letters {letters}")
    time_s = parse_time(item["time_stamp"])
    if time_s <= 0:
        raise ValueError(f"time_stamp {item['time_stamp']!r}, expected a time after the video's start")
    return Path(name.replace("\\", "/")).name, item["question"], options, letters.index(answer), time_s


def load_release(folder: str | PathLike, split: str | None = None, tasks: list[str] | None = None) -> list[Question]:
    """
    The questions of a folder in StreamGaze's release layout: `qa/<task>.json`, `videos/original_video/*.mp4`, and each
    video's `<stem>_fixation_filtered.csv` anywhere below `metadata/`. `split` names a list in `splits.json`.

    Raises ValueError or FileNotFoundError naming file, entry and value; lists all videos and fixation tables missing.
    """
    folder = Path(folder)
    files = sorted((folder / "qa").glob("*.json"))
    if not files:
        raise FileNotFoundError(f"{folder / 'qa'}: no question files (*.json)")
    unknown = sorted({file.stem for file in files} - set(TASKS)) + sorted(set(tasks or ()) - set(TASKS))
    if unknown:
        raise ValueError(f"{folder / 'qa'}: unknown tasks {unknown}, expected {sorted(TASKS)}")
    absent = sorted(set(tasks or ()) - {file.stem for file in files})
    if absent:
        raise FileNotFoundError(f"{folder / 'qa'}: no file for the tasks {absent}")
    files = [file for file in files if tasks is None or file.stem in tasks]
    proactive = [file.stem for file in files if TASKS[file.stem].group == "proactive"]
    if proactive:
        raise ValueError(f"{folder}: proactive tasks cannot be read yet: {proactive}; name the others in `tasks`")

    names = None
    if split is not None:
        splits = _read_json(folder / "splits.json")
        if split not in splits:
            raise ValueError(f"{folder / 'splits.json'}: no split {split!r}, found {sorted(splits)}")
        names = set(splits[split])
    videos = {path.name: path for path in (folder / "videos" / "original_video").glob("*")}
    tables = {path.name: path for path in (folder / "metadata").rglob("*_fixation_filtered.csv")}
    questions, missing = [], set()
    for file in files:
        for index, entry in enumerate(_read_json(file)):
            for item in entry.get("questions", []):
                try:
                    name, question, options, answer, time_s = _read_question(entry, item, file.stem)
                except (KeyError, ValueError) as error:
                    raise ValueError(f"{file}, entry {index}: {error!r}") from error
                if names is not None and name not in names:
                    continue
                table = f"{Path(name).stem}_fixation_filtered.csv"
                missing |= ({name} - set(videos)) | ({table} - set(tables))
                if name in videos and table in tables:
                    window = clip_window(file.stem, time_s)
                    questions.append(
                        Question(videos[name], tables[table], file.stem, question, options, answer, *window)
                    )
    if missing:
        shown = ", ".join(sorted(missing)[:10])
        raise FileNotFoundError(f"{folder}: {len(missing)} videos or fixation tables are missing: {shown}")
    if not questions:
        raise ValueError(f"{folder}: no question in split {split!r}, tasks {tasks}")
    repeated = [key for key, count in Counter(question.key for question in questions).items() if count > 1]
    if repeated:
        raise ValueError(f"{folder}: {len(repeated)} questions occur more than once, such as {repeated[0]}")
    return questions


def _read_json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
