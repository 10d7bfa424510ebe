"""
People's own questions -> a dataset that `load_dataset`, `train.py` and `eval.py` open.

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

from tqdm.auto import tqdm

from gazeqwen.questions.dataset_folder import Report, check_new, write_dataset
from gazeqwen.questions.prompts import OPTION_LETTERS
from gazeqwen.questions.splits import participant_split
from gazeqwen.questions.tasks import SPLITS, task_info, window_start_s
from gazeqwen.scanpath_gazeqwen import Scanpath, read_rows
from gazeqwen.video_gazeqwen import QUESTION_ROUNDING_S, video_info

NEEDED = ("video", "time_s", "question", "answer")
OPTIONAL = ("scanpath", "start_s", "options", "task", "participant", "split")


def read_questions(table: str | Path, progress: bool = True) -> tuple[dict[str, list[dict]], dict[str, Path]]:
    """
    The dataset's rows by video name, and where each video is; videos and scanpaths are opened once. Raises ValueError
    or FileNotFoundError naming file, line and value.
    """
    columns, lines = read_rows(table)
    if missing := [name for name in NEEDED if name not in columns]:
        raise ValueError(f"{table}: no columns {missing} among {columns}, expected {', '.join(NEEDED)}")
    if unknown := [name for name in columns if name not in NEEDED + OPTIONAL]:
        raise ValueError(f"{table}: unknown columns {unknown}, expected some of {', '.join(NEEDED + OPTIONAL)}")
    if not lines:
        raise ValueError(f"{table}: no questions")
    here, ends, gaze = Path(table).parent, {}, {}
    videos: dict[str, Path] = {}
    rows: dict[str, list[dict]] = defaultdict(list)
    for line, cells in tqdm(lines, desc="questions", unit="question", disable=not progress):
        cells = {name: value.strip() for name, value in cells.items()}
        where = f"{table}, line {line}"
        path = here / cells["video"]
        name = path.name
        if videos.setdefault(name, path) != path:
            raise ValueError(f"{where}: video is {path}, another one of that name is {videos[name]}")
        scanpath = cells.get("scanpath") or None
        if name not in ends:
            with _naming(where):
                ends[name] = video_info(path).end_s
                gaze[name] = (scanpath, Scanpath.from_csv(here / scanpath) if scanpath else None)
        if gaze[name][0] != scanpath:
            raise ValueError(f"{where}: scanpath is {scanpath!r}, on another line of {name} it is {gaze[name][0]!r}")
        rows[name].append(_row(where, name, cells, ends[name], gaze[name][1]))
    return dict(rows), videos


def _row(where: str, video: str, cells: dict[str, str], video_end_s: float, scanpath: Scanpath | None) -> dict:
    def number(name: str) -> float:
        try:
            value = float(cells[name])
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
def _naming(where: str):
    try:
        yield
    except (ValueError, OSError) as error:
        raise type(error)(f"{where}: {error}") from error


def splits_of(table: str | Path, rows: dict[str, list[dict]]) -> dict[str, list[str]]:
    """Names of videos by split: those given, taken out of the rows, or drawn. ValueError if questions disagree."""
    given: dict[str, str] = {}
    people: dict[str, str] = {}
    for name, mine in rows.items():
        for column, found in (("split", given), ("participant", people)):
            values = {row.pop("split") if column == "split" else row[column] for row in mine}
            if len(values) > 1:
                raise ValueError(f"{table}: {name} has {column}s {sorted(map(str, values))}, expected one")
            found[name] = values.pop()
    if not any(given.values()):
        return participant_split({name: ("own", people[name] or name) for name in rows})
    if unsaid := [name for name, split in given.items() if split is None]:
        raise ValueError(f"{table}: {unsaid[0]} has no split where others have one, expected all or none")
    return {split: [name for name in given if given[name] == split] for split in SPLITS}


def build(table: str | Path, out: str | Path, overwrite: bool = False, progress: bool = True) -> Report:
    """Write the dataset folder `out` from a table of questions. Raises what `read_questions` and `splits_of` raise."""
    out = Path(out)
    check_new(out, overwrite)
    rows, videos = read_questions(table, progress)
    splits = splits_of(table, rows)
    counts = Counter(row["task"] for mine in rows.values() for row in mine)
    report = Report(
        tasks={
            task: {"released": 0, "found": count, "kept": count, "kept_by_source": {"own": count}, "test_points": 0}
            for task, count in sorted(counts.items())
        },
        without_gaze=[name for name, mine in rows.items() if mine[0]["scanpath"] is None],
    )
    for name, mine in rows.items():
        scanpath = mine[0]["scanpath"]
        report.videos[name] = {
            "source": "own",
            "participant": mine[0]["participant"],
            "clock": "that of the file",
            "gaze": None if scanpath is None else "fixation table",
            "fixations": None if scanpath is None else len(scanpath),
        }
    write_dataset(out, rows, videos, {"default": splits}, report)
    return report
