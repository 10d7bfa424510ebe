"""Read StreamGaze's questions as released."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

from gazeqwen.questions.dataset_folder import Report
from gazeqwen.questions.prompts import OPTION_LETTERS
from gazeqwen.questions.tasks import TASKS
from gazeqwen.scanpath_gazeqwen import checked_file


def parse_time(text: str, name: str = "time") -> float:
    """Return seconds of `MM:SS` (minutes may exceed 59), `HH:MM:SS` or seconds. Raises ValueError naming `name`."""
    match = re.fullmatch(r"\s*((\d+:)?\d+:)?\d+(\.\d+)?\s*", str(text), re.ASCII)
    numbers = [float(part) for part in str(text).split(":")] if match else []
    seconds = 0.0
    for number in numbers:
        seconds = 60 * seconds + number
    if not numbers or max(numbers[1:], default=0) >= 60 or not math.isfinite(seconds):
        raise ValueError(f"{name} is {text!r}, expected MM:SS or HH:MM:SS")
    return seconds


@dataclass(frozen=True)
class ReleasedQuestion:
    """A question as released: times are seconds of the release's clock. `answer` is None for proactive tasks."""

    video_name: str
    task: str
    question: str
    options: tuple[str, ...]
    answer: int | None
    time_s: float
    test_points: tuple[tuple[float, bool], ...]
    category: str


def is_text(value) -> bool:
    """Return whether a value is a text, not blank, that UTF-8 can store: JSON can hold halves of characters."""
    return isinstance(value, str) and bool(value.strip()) and not re.search("[\ud800-\udfff]", value)


def _text(item: dict, name: str) -> str:
    """Return a text field. Raises ValueError naming it."""
    value = item.get(name)
    if not is_text(value):
        raise ValueError(f"{name} is {value!r}, expected text")
    return value.strip()


def _video_name(entry: dict) -> str:
    """Return the name of an entry's video file, without folders. Raises ValueError."""
    name = entry.get("video_path") or entry.get("video")
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"video_path is {name!r}, expected a file name")
    parts = name.strip().replace("\\", "/").split("/")
    if ".." in parts or not parts[-1] or parts[-1].startswith(".") or not parts[-1].isprintable():
        raise ValueError(f"video_path is {name!r}, expected the name of a file in the videos' folder")
    return parts[-1]


def _options(item: dict) -> tuple[str, ...]:
    """Return the options without their letters. Raises ValueError unless they are some different texts."""
    options = item.get("options")
    if not isinstance(options, list) or not all(map(is_text, options)):
        raise ValueError(f"options are {options!r}, expected a list of texts")
    lettered = [re.fullmatch(rf"\s*([{OPTION_LETTERS}])[.)]\s*(.*)", option) for option in options]
    if 0 < len(options) <= len(OPTION_LETTERS) and all(lettered):
        by_letter = {match.group(1): match.group(2) for match in lettered}
        if sorted(by_letter) != list(OPTION_LETTERS[: len(options)]):
            raise ValueError(
                f"options are {options!r}, expected the letters {OPTION_LETTERS[: len(options)]}, once each"
            )
        options = [by_letter[letter] for letter in sorted(by_letter)]  # the answer is a letter, wherever it stands
    options = tuple(option.strip() for option in options)
    if not 2 <= len(options) <= len(OPTION_LETTERS) or not all(options) or len(set(options)) != len(options):
        raise ValueError(f"options are {item['options']}, expected 2 to {len(OPTION_LETTERS)} different ones")
    return options


def _test_points(item: dict) -> tuple[tuple[float, bool], ...]:
    """Return (seconds, whether the alert is due) of each test point, in order of time. Raises ValueError."""
    points = item.get("test_info")
    if not isinstance(points, list) or not points or not all(isinstance(point, dict) for point in points):
        raise ValueError(f"test_info is {points!r}, expected a list of test points")
    times_and_alerts = []
    for point in points:
        if point.get("type") not in (0, 1) or isinstance(point.get("type"), bool):
            raise ValueError(f"a test point's type is {point.get('type')!r}, expected 0 or 1")
        time_s = parse_time(point.get("realtime"), "a test point's realtime")
        if time_s <= 0:
            raise ValueError(f"a test point's realtime is {point['realtime']!r}, expected after the video's start")
        times_and_alerts.append((time_s, point["type"] == 1))
    if len({time_s for time_s, _ in times_and_alerts}) != len(times_and_alerts):
        raise ValueError(f"test_info repeats a realtime: {[point['realtime'] for point in points]}")
    return tuple(sorted(times_and_alerts))


def read_question(entry: dict, item: dict, task: str) -> ReleasedQuestion:
    """Read one question of a QA file's entry. Raises ValueError naming field, value and what was expected."""
    if not isinstance(entry, dict) or not isinstance(item, dict):
        raise ValueError(f"got {item!r} in {entry!r}, expected objects")
    name, question = _video_name(entry), _text(item, "question")
    time_s = parse_time(item.get("time_stamp"), "time_stamp")
    category = _text(entry, "video_categories").lower() if entry.get("video_categories") else "other"
    if TASKS[task].group == "proactive":
        return ReleasedQuestion(name, task, question, (), None, time_s, _test_points(item), category)
    options = _options(item)
    letters = OPTION_LETTERS[: len(options)]
    answer = str(item.get("answer")).strip().rstrip(".)")
    if len(answer) != 1 or answer not in letters:
        raise ValueError(f"answer is {item.get('answer')!r}, expected one of the options' letters {letters}")
    if time_s <= 0:
        raise ValueError(f"time_stamp is {item['time_stamp']!r}, expected a time after the video's start")
    return ReleasedQuestion(name, task, question, options, letters.index(answer), time_s, (), category)


def read_json(path: Path):
    """Read a JSON file. Raises FileNotFoundError, or ValueError naming the file."""
    text = checked_file(path).read_bytes()
    try:
        return json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from error


def read_questions(files: list[Path], report: Report) -> dict[str, list[ReleasedQuestion]]:
    """
    Read the questions of QA files by task. Those that cannot be used or come again are left out, and listed in the
    report, which also gets the counts. Raises ValueError naming a file that holds no list.
    """
    questions: dict[str, list[ReleasedQuestion]] = {}
    for file in files:
        entries, kept = read_json(file), []
        if not isinstance(entries, list):
            raise ValueError(f"{file}: got {type(entries).__name__}, expected a list of entries")
        seen: set[ReleasedQuestion] = set()
        count = 0
        for number, entry in enumerate(entries):
            where = f"qa/{file.name}, entry {number}"
            items = entry.get("questions") if isinstance(entry, dict) else None
            if not isinstance(items, list) or not items:
                count += 1
                report.exclude(where, f"questions are {items!r}, expected a list")
                continue
            for item in items:
                count += 1
                try:
                    question = read_question(entry, item, file.stem)
                except ValueError as error:
                    report.exclude(where, str(error))
                    continue
                if question in seen:
                    report.exclude(where, "the same question as an earlier one")
                    continue
                seen.add(question)
                kept.append(question)
        questions[file.stem] = kept
        report.tasks[file.stem] = {"released": TASKS[file.stem].questions, "found": count}
    return questions
