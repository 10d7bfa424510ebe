"""Load questions from a dataset folder or from a dataset on the Hub."""

import hashlib
import math
from collections.abc import Iterator
from functools import lru_cache, partial
from os import PathLike
from pathlib import Path

from gazeqwen.questions.prompts import OPTION_LETTERS
from gazeqwen.questions.question import Question
from gazeqwen.questions.tasks import TASKS, full_name, task_info
from gazeqwen.scanpath_gazeqwen import Scanpath


def load_questions(
    data: str | PathLike,
    split: str,
    tasks: list[str] | None = None,
    config: str = "default",
    without_gaze: str = "error",
) -> list[Question]:
    """
    Return the questions of one split of a dataset that `gazeqwen build` wrote.

    Args:
        data: the dataset's folder, or its id on the Hub.
        split: `train`, `validation` or `test`.
        tasks: keep questions of these tasks only, by name or abbreviation; default: of all.
        config: `default`, the published split, or `participants`, where no participant is in two splits.
        without_gaze: what to do with videos whose gaze is not known: `error`, `keep` (the model is then the base
            model), or `drop`, which says how many.

    Raises ValueError or FileNotFoundError naming data, split, task and video.
    """
    if without_gaze not in ("error", "keep", "drop"):
        raise ValueError(f"without_gaze: got {without_gaze!r}, expected 'error', 'keep' or 'drop'")
    tasks = None if tasks is None else [full_name(task) for task in tasks]
    rows = _load_rows(data, split, config)
    questions: list[Question] = []
    scanpaths: dict[str, Scanpath | None] = {}
    dropped: set[str] = set()
    for row in rows:
        name = row["video_name"]
        if not isinstance(name, str) or Path(name).name != name:  # it may not lead out of the dataset's folder
            raise ValueError(f"{data}, split {split!r}: video_name is {name!r}, expected a file's name")
        if tasks is not None and row["task"] not in tasks:
            continue
        if row["scanpath"] is None and without_gaze != "keep":
            dropped.add(name)
            continue
        questions.extend(_questions_of_row(row, _video_path(data, row), scanpaths))
    if dropped and without_gaze == "error":
        raise ValueError(
            f"{data}, split {split!r}: no gaze for {len(dropped)} videos, such as {min(dropped)}; "
            "set without_gaze to 'drop' or 'keep'"
        )
    if dropped:
        print(f"{data}, split {split!r}: left out {len(dropped)} videos without gaze: {', '.join(sorted(dropped))}")
    missing_tasks = sorted(set(tasks or ()) - {question.task for question in questions})
    if missing_tasks or not questions:
        known_tasks = sorted(set(rows["task"]))
        raise ValueError(
            f"{data}: no question in split {split!r} of the tasks {missing_tasks or 'asked for'}, found {known_tasks}"
        )
    return questions


def _video_path(data: str | PathLike, row: dict) -> Path:
    """Return the file of a row's video. Raises FileNotFoundError, or ValueError for a file outside the dataset."""
    if Path(data).is_dir():  # not where the row says: the cache of `datasets` knows a moved folder by its old place
        video = Path(data) / "videos" / row["video_name"]
        if not video.is_file():
            raise FileNotFoundError(f"{video}: no such file, though the dataset has questions about it")
        return video
    from datasets.config import HF_DATASETS_CACHE  # holds what came in archives
    from huggingface_hub.constants import HF_HUB_CACHE

    video = Path(row["video"]["path"] or "")
    caches = (Path(HF_HUB_CACHE), Path(HF_DATASETS_CACHE))
    # By its own name, or by where it leads if it is a link.
    places = [place for cache in caches for place in (cache.absolute(), cache.resolve())]
    downloaded = any(video.is_relative_to(place) for place in places)
    if not downloaded or ".." in video.parts:  # a table may name any file of this machine
        raise ValueError(f"{data}: the video of a question is {str(video)!r}, expected a file of the dataset")
    return video


def _load_rows(data, split: str, config: str):
    """
    Return the rows of a dataset with the columns of `dataset_folder.COLUMNS`. Of these, people's own data may lack
    `options`, `answer`, `answer_text`, `test_points` and `fixation_ids` where no question has them.

    Raises ValueError or FileNotFoundError naming data, and what is missing or wrong.
    """
    folder, load_builder = Path(data), _builder
    if folder.exists():
        if not folder.is_dir():
            raise ValueError(f"{folder}: expected a folder")
        if (folder / "qa").is_dir() or (folder / "qa_pairs").is_dir():
            raise ValueError(f"{folder}: a release; build a dataset: gazeqwen build {folder} OUT")
        if not (folder / "README.md").is_file():
            raise FileNotFoundError(f"{folder}: no dataset here, expected what `gazeqwen build` writes")
        if not any((folder / "videos").glob("*")):
            raise FileNotFoundError(f"{folder / 'videos'}: no videos there")
        load_builder = partial(_builder_of_folder, cache_dir=str(_cache_folder(folder)))
    elif str(data).startswith((".", "/", "~")) or str(data).count("/") != 1:
        raise FileNotFoundError(f"{data}: no such folder, and no id of a dataset on the Hub (user/name)")
    try:
        builder = load_builder(str(data), config)
        builder.download_and_prepare()
        rows = builder.as_dataset(split)
    except Exception as error:  # of `datasets`, pyarrow, fsspec, yaml: what is wrong with a file has many names
        lines = str(error.__cause__ or error).splitlines() or [type(error).__name__]
        reason = lines[0] if lines[0] == lines[-1] else f"{lines[0]} ... {lines[-1]}"
        raise ValueError(f"{data}, config {config!r}, split {split!r}: cannot be loaded ({reason})") from error
    required = {"video", "video_name", "scanpath", "task", "question", "start_s", "end_s"}
    if not required <= set(rows.column_names):
        raise ValueError(f"{data}: no columns {sorted(required - set(rows.column_names))} among {rows.column_names}")
    return rows


def _builder(data: str, config: str, cache_dir: str | None = None):
    from datasets import load_dataset_builder

    return load_dataset_builder(data, config, cache_dir=cache_dir)


# One for all splits of a folder: looking through it takes longer than reading its tables. Its content is in the name
# of `cache_dir`.
_builder_of_folder = lru_cache(maxsize=8)(_builder)


def _cache_folder(folder: Path) -> Path:
    """
    Return where `datasets` keeps what it made of a folder's tables. It would serve the rows of before for tables that
    were edited, or for a copy with other rows: so the name follows from the content of all files but the videos.
    """
    from datasets.config import HF_DATASETS_CACHE

    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and name.parts[0] != "videos":
            digest.update(f"{name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return Path(HF_DATASETS_CACHE) / "gazeqwen" / digest.hexdigest()[:32]


def _check_row(row: dict, video: Path) -> None:
    """Raise ValueError for values that are no question; a build writes none, people's own tables may."""

    def check(valid: bool, name: str, expected: str) -> None:
        if not valid:
            raise ValueError(f"a question about {video}: {name} is {row.get(name)!r}, expected {expected}")

    start_s, end_s = row["start_s"], row["end_s"]
    for name in ("task", "question"):
        check(isinstance(row[name], str), name, "text")
    check(start_s is not None and 0 <= start_s < math.inf, "start_s", "seconds")
    check(end_s is not None and start_s < end_s < math.inf, "end_s", f"more seconds than start_s, {start_s}")
    if row["task"] in TASKS and TASKS[row["task"]].group == "proactive":
        points = row.get("test_points") or [None]
        valid = all(p and p["alert"] is not None and start_s < (p["time_s"] or 0) < math.inf for p in points)
        check(valid, "test_points", "times after start_s, and whether the alert is due")
    elif options := row.get("options"):
        valid = 2 <= len(options) <= len(OPTION_LETTERS) and all(isinstance(option, str) for option in options)
        check(valid, "options", f"2 to {len(OPTION_LETTERS)} texts")


def _questions_of_row(row: dict, video: Path, scanpaths: dict[str, Scanpath | None]) -> Iterator[Question]:
    """
    Yield the question of a row, or one for each test point. `scanpaths` holds those built before, by video name, and
    gets this row's. Raises ValueError naming video and question.
    """
    _check_row(row, video)
    name, table = row["video_name"], row["scanpath"]
    if table is not None and name not in scanpaths:
        scanpaths[name] = Scanpath.from_array(table, f"scanpath of {name}", row.get("fixation_ids"))
    shared = (video, name, scanpaths.get(name), row["task"], row["question"])
    source = row.get("source")
    if task_info(row["task"]).group != "proactive":
        options = tuple(row.get("options") or ())
        answer, text = row.get("answer"), row.get("answer_text")
        if text is None and (answer is None or not 0 <= answer < len(options)):
            raise ValueError(f"{name}, {row['question']!r}: answer is {answer!r} of the options {options}")
        if text is not None and (options or not text.strip()):
            raise ValueError(
                f"{name}, {row['question']!r}: expected options, or an answer_text, got {options} and {text!r}"
            )
        index = -1 if answer is None else answer
        yield Question(*shared, options, index, row["start_s"], row["end_s"], text, source=source)
        return
    for point in row["test_points"]:
        index = 0 if point["alert"] else 1
        yield Question(*shared, ("Yes", "No"), index, row["start_s"], point["time_s"], source=source)
