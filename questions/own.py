"""
Make a dataset that `load_dataset`, `train.py` and `eval.py` open from people's own questions.

    gazeqwen build questions.csv data/mine

One line of the CSV is one question. Its columns, of which those in brackets may be left out: `video`, [`scanpath`],
paths beside the file (no scanpath: the gaze is not known); `time_s`, when the question is asked, in seconds of the
video file; [`start_s`], where its clip begins (default: 60 s before); `question`; [`options`] between bars, and
`answer`, one of them, or, without options, the text to be learned; [`task`], a name that scores are listed under;
[`participant`], who wore the camera; [`split`]: train, validation or test. Without splits 70, 15 and 15 percent of the
videos are drawn, so that nobody is in two.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from gazeqwen.questions.dataset_folder import Report, check_new, write_dataset
from gazeqwen.questions.prompts import OPTION_LETTERS
from gazeqwen.questions.splits import participant_split
from gazeqwen.questions.tasks import SPLITS, task_info, window_start_s
from gazeqwen.scanpath_gazeqwen import Scanpath, number_of, read_rows
from gazeqwen.video_gazeqwen import QUESTION_ROUNDING_S, video_info

REQUIRED = ("video", "time_s", "question", "answer")
OPTIONAL = ("scanpath", "start_s", "options", "task", "participant", "split")


def read_questions(
    table: str | Path, progress: bool = True, notes: list[str] | None = None
) -> tuple[dict[str, list[dict]], dict[str, Path]]:
    """
    Return (rows by video name, file by video name) of a table of questions. Videos and scanpaths are opened once.
    `notes` gets a line for each scanpath that reaches beyond its video.

    Raises ValueError or FileNotFoundError naming file, line and value.
    """
    columns, lines = read_rows(table)
    if missing := [name for name in REQUIRED if name not in columns]:
        raise ValueError(f"{table}: no columns {missing} among {columns}, expected {', '.join(REQUIRED)}")
    if unknown := [name for name in columns if name not in REQUIRED + OPTIONAL]:
        raise ValueError(f"{table}: unknown columns {unknown}, expected some of {', '.join(REQUIRED + OPTIONAL)}")
    if not lines:
        raise ValueError(f"{table}: no questions")
    folder = Path(table).parent
    ends_s: dict[str, float] = {}
    scanpaths: dict[str, tuple[str | None, Scanpath | None]] = {}  # by video name: the cell's text, and what it names
    videos: dict[str, Path] = {}
    rows: dict[str, list[dict]] = defaultdict(list)
    for line, cells in tqdm(lines, desc="questions", unit="question", disable=not progress):
        cells = {name: value.strip() for name, value in cells.items()}
        where = f"{table}, line {line}"
        path = folder / cells["video"]
        name = path.name
        if videos.setdefault(name, path) != path:
            raise ValueError(f"{where}: video is {path}, another one of that name is {videos[name]}")
        file = cells.get("scanpath") or None
        if name not in ends_s:
            with _errors_name(where):
                ends_s[name] = video_info(path).end_s
                scanpaths[name] = (file, Scanpath.from_csv(folder / file) if file else None)
                beyond = _beyond(scanpaths[name][1], folder / file, name, ends_s[name]) if file else None
                if beyond and notes is not None:
                    notes.append(beyond)
        first_file, scanpath = scanpaths[name]
        if file != first_file:
            raise ValueError(f"{where}: scanpath is {file!r}, on another line of {name} it is {first_file!r}")
        rows[name].append(_row(where, name, cells, ends_s[name], scanpath))
    return dict(rows), videos


def _beyond(scanpath: Scanpath, file: Path, video: str, video_end_s: float) -> str | None:
    """
    Return in a line how many fixations reach beyond the video's end; None: none does. Raises ValueError where most do:
    their clock is not the video's, or counts no seconds.
    """
    beyond = np.flatnonzero(scanpath.end_s > video_end_s + QUESTION_ROUNDING_S)
    if not len(beyond):
        return None
    text = (
        f"{file}: {len(beyond)} of {len(scanpath)} fixations reach beyond the end of {video} at {video_end_s:.3f} s, "
        f"the first from {scanpath.begin_s[beyond[0]]:g} to {scanpath.end_s[beyond[0]]:g} s"
    )
    if 2 * len(beyond) > len(scanpath):
        raise ValueError(f"{text}, expected seconds of the video file")
    return text


def _row(where: str, video: str, cells: dict[str, str], video_end_s: float, scanpath: Scanpath | None) -> dict:
    """Return a line as a row of the dataset, with its `split`. Raises ValueError naming line and value."""

    def number(name: str) -> float:
        try:
            value = number_of(cells[name])
        except ValueError:
            value = math.nan
        if not 0 <= value < math.inf:
            raise ValueError(f"{where}: {name} is {cells[name]!r}, expected seconds of the video file")
        return value

    time_s = number("time_s")
    start_s = number("start_s") if cells.get("start_s") else window_start_s(time_s)
    if not 0 < time_s <= video_end_s + QUESTION_ROUNDING_S:
        raise ValueError(f"{where}: time_s is {time_s:g}, expected up to the video's end, {video_end_s:.3f}")
    time_s = min(time_s, video_end_s)
    if not start_s < time_s:
        raise ValueError(f"{where}: start_s is {start_s:g}, expected less than the question's {time_s:g}")
    for name in ("question", "answer"):
        if not cells[name]:
            raise ValueError(f"{where}: {name} is empty")
    options = [option.strip() for option in cells["options"].split("|")] if cells.get("options") else []
    if options and (not 2 <= len(options) <= len(OPTION_LETTERS) or "" in options or len(set(options)) < len(options)):
        raise ValueError(
            f"{where}: options are {options}, expected 2 to {len(OPTION_LETTERS)} different ones between |"
        )
    if options and cells["answer"] not in options:
        raise ValueError(f"{where}: answer is {cells['answer']!r}, expected one of {options}")
    task = cells.get("task") or "own"
    if task_info(task).group == "proactive":
        raise ValueError(f"{where}: task is {task!r}, whose questions are test points: choose another name")
    if (split := cells.get("split")) and split not in SPLITS:
        raise ValueError(f"{where}: split is {split!r}, expected one of {', '.join(SPLITS)}")
    return {
        "video_name": video,
        "source": "own",
        "participant": cells.get("participant") or None,
        "task": task,
        "question": cells["question"],
        "options": options,
        "answer": options.index(cells["answer"]) if options else None,
        "answer_text": None if options else cells["answer"],
        "question_time_s": time_s,
        "start_s": start_s,
        "end_s": time_s,
        "test_points": [],
        "scanpath": None if scanpath is None else scanpath.table.tolist(),
        "fixation_ids": None if scanpath is None else scanpath.ids.tolist(),
        "split": split or None,
    }


@contextmanager
def _errors_name(where: str):
    """Raise the errors of a block again with the place that they are about in front."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise type(error)(f"{where}: {error}") from error


def splits_of(table: str | Path, rows: dict[str, list[dict]]) -> dict[str, list[str]]:
    """
    Return the names of videos by split: as the rows say, or drawn where none does. Takes `split` out of the rows.
    Raises ValueError naming table and video if its questions disagree, or if only some videos have a split.
    """
    split_by_video: dict[str, str | None] = {}
    participants: dict[str, str | None] = {}
    for name, video_rows in rows.items():
        split_by_video[name] = _only_value(table, name, "split", [row.pop("split") for row in video_rows])
        participants[name] = _only_value(table, name, "participant", [row["participant"] for row in video_rows])
    if not any(split_by_video.values()):
        return participant_split({name: ("own", participants[name] or name) for name in rows})
    without_split = [name for name, split in split_by_video.items() if split is None]
    if without_split:
        raise ValueError(f"{table}: {without_split[0]} has no split where others have one, expected all or none")
    return {split: [name for name in rows if split_by_video[name] == split] for split in SPLITS}


def _only_value(table: str | Path, video: str, column: str, values: list[str | None]) -> str | None:
    """Return the value that all questions of a video have in a column. Raises ValueError if they differ."""
    if len(set(values)) > 1:
        raise ValueError(f"{table}: {video} has {column}s {sorted(map(str, set(values)))}, expected one")
    return values[0]


def build(table: str | Path, out: str | Path, overwrite: bool = False, progress: bool = True) -> Report:
    """Write the dataset folder `out` from a table of questions. Raises what `read_questions` and `splits_of` raise."""
    out = Path(out)
    check_new(out, overwrite)
    notes: list[str] = []
    rows, videos = read_questions(table, progress, notes)
    splits = splits_of(table, rows)
    counts = Counter(row["task"] for video_rows in rows.values() for row in video_rows)
    report = Report(
        tasks={
            task: {"released": 0, "found": count, "kept": count, "kept_by_source": {"own": count}, "test_points": 0}
            for task, count in sorted(counts.items())
        },
        without_gaze=[name for name, video_rows in rows.items() if video_rows[0]["scanpath"] is None],
        notes=notes,
    )
    for name, video_rows in rows.items():
        scanpath = video_rows[0]["scanpath"]
        report.videos[name] = {
            "source": "own",
            "participant": video_rows[0]["participant"],
            "clock": "that of the file",
            "gaze": None if scanpath is None else "fixation table",
            "fixations": None if scanpath is None else len(scanpath),
        }
    write_dataset(out, rows, videos, {"default": splits}, report)
    return report
