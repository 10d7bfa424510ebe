"""Make a dataset that `load_dataset` opens from StreamGaze's release: with one clock, seconds of each video file."""

import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from gazeqwen.questions.dataset_folder import Report, check_new, write_dataset
from gazeqwen.questions.raw_gaze import find_raw, fixations_in_video, read_raw
from gazeqwen.questions.release_clock import Clock, release_clock
from gazeqwen.questions.release_questions import ReleasedQuestion, read_questions
from gazeqwen.questions.sources import source_of
from gazeqwen.questions.splits import participant_split, published_split, read_splits
from gazeqwen.questions.tasks import TASKS, clip_window
from gazeqwen.scanpath_gazeqwen import Scanpath, read_rows
from gazeqwen.video_gazeqwen import QUESTION_ROUNDING_S, VideoInfo, video_info

_VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".avi")


def _find_videos(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Find originals and gaze overlays below `videos/` by name. Raises ValueError for two originals of one name."""
    originals: dict[str, Path] = {}
    overlays: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.suffix.lower() not in _VIDEO_SUFFIXES:
            continue
        is_overlay = any("viz" in part for part in path.relative_to(folder).parts[:-1])
        videos = overlays if is_overlay else originals
        if path.name in videos:
            raise ValueError(f"{path}: a second video of this name beside {videos[path.name]}")
        videos[path.name] = path
    return originals, overlays


def _find_tables(folder: Path) -> tuple[dict[str, Callable[[], Scanpath]], list[str]]:
    """
    Find fixation tables below `metadata/`: per video's stem what reads its own file, or else its rows of a merged
    table; of two it raises ValueError. Notes say which merged tables hold no coordinates.
    """
    tables: dict[str, list[tuple[str, Callable[[], Scanpath]]]] = {}  # by stem: where, and what reads it
    for suffix in ("_fixation_dataset.csv", "_fixation_filtered.csv"):  # the later step of the pipeline replaces
        paths: dict[str, list[tuple[str, Callable[[], Scanpath]]]] = defaultdict(list)
        for path in sorted(folder.rglob(f"*{suffix}")):
            paths[path.name.removesuffix(suffix)].append((str(path), partial(Scanpath.from_csv, path)))
        tables |= paths
    merged: dict[str, list[tuple[str, Callable[[], Scanpath]]]] = defaultdict(list)
    notes = []
    for path in sorted(folder.glob("*.csv")):
        if path.name.endswith(("_fixation_dataset.csv", "_fixation_filtered.csv")):
            continue
        columns, rows = read_rows(path)
        names = [name for name in ("video_name", "video_source", "video_id", "source_file") if name in columns]
        if not names or not {"center_x", "center_y"} <= set(columns):
            notes.append(f"{path}: no gaze coordinates in it (columns {columns}), expected center_x, center_y")
            continue
        lines_by_name = defaultdict(list)
        for line, row in rows:
            lines_by_name[row[names[0]]].append((line, row))
        for name, lines in lines_by_name.items():
            reader = partial(Scanpath.from_rows, columns, lines, str(path))
            merged[_stem(name)].append((f"{path}, {names[0]} {name!r}", reader))
    return {stem: partial(_only_table, stem, places) for stem, places in (merged | tables).items()}, notes


def _stem(name: str) -> str:
    """Return a video's name without folder and ending; what follows a point need not be an ending."""
    path = Path(name.strip())
    return path.stem if path.suffix.lower() in _VIDEO_SUFFIXES else path.name


def _only_table(stem: str, places: list[tuple[str, Callable[[], Scanpath]]]) -> Scanpath:
    """Return the scanpath of a video's only fixation table. Raises ValueError naming the places of several."""
    if len(places) > 1:
        raise ValueError(f"{len(places)} fixation tables of {stem}: {'; '.join(where for where, _ in places)}")
    return places[0][1]()


# ------------------------------------------------------------------ building
@dataclass(frozen=True)
class Footage:
    """A video of the release that can be used: file, extent, clock, scanpath in seconds of the file."""

    path: Path
    info: VideoInfo
    clock: Clock
    scanpath: Scanpath | None

    def begin_s(self, time_s: float) -> float:
        """Return where a clip begins, in seconds of the file, that begins at `time_s` of the release."""
        return max(0.0, float(self.clock.to_file_s(time_s))) if time_s else 0.0


def _in_file_time(scanpath: Scanpath, clock: Clock, end_s: float, where: str, report: Report) -> Scanpath:
    """Return the scanpath in seconds of the file; what lies beyond its end is cut or left out, and counted."""
    begin, end = clock.to_file_s(scanpath.begin_s), clock.to_file_s(scanpath.end_s)
    beyond = np.flatnonzero(end > end_s + 0.1)  # a table may round its last frame
    if len(beyond):
        first = beyond[0]
        report.exclude(
            where,
            f"{len(beyond)} fixations reach beyond the video's end at {end_s:.3f} s and are cut there or left out, "
            f"the first from {begin[first]:.3f} to {end[first]:.3f} s",
        )
    begin, end = np.maximum(begin, 0.0), np.minimum(end, end_s)
    kept = end - begin > 1e-6
    return Scanpath(np.column_stack([scanpath.table[:, :2], (begin + end) / 2, end - begin])[kept], scanpath.ids[kept])


def build(
    release: str | Path,
    out: str | Path,
    splits: str | Path | None = None,
    gaze: str | Path | None = None,
    algorithm: str = "dispersion",
    overwrite: bool = False,
    progress: bool = True,
) -> Report:
    """
    Write the dataset folder `out` from a release: `qa/<task>.json`, `videos/**/*.mp4` (folders named `*viz*` hold the
    gaze overlays), fixation tables below `metadata/`. All times become seconds of the video files.

    Args:
        splits: a JSON file of video names per split; default: `splits.json` of the release, else the published rule.
        gaze: raw recordings, one folder per source (`gaze/egtea/<stem>.txt`, ...), for videos without a table.
        algorithm: how fixations are found in raw gaze: `dispersion`, or `streamgaze`, as StreamGaze did.

    Raises ValueError or FileNotFoundError naming file and value for what leaves nothing to build. Single questions,
    videos and fixations that cannot be used are left out, counted and listed in the report.
    """
    if algorithm not in ("dispersion", "streamgaze"):
        raise ValueError(f"algorithm: got {algorithm!r}, expected 'dispersion' or 'streamgaze'")
    release, out, report = Path(release), Path(out), Report()
    if gaze is not None and not Path(gaze).is_dir():
        raise FileNotFoundError(f"{gaze}: no such folder of raw gaze")
    check_new(out, overwrite)
    files = sorted((release / "qa").glob("*.json"))
    if not files:
        raise FileNotFoundError(f"{release / 'qa'}: no question files (*.json)")
    unknown = sorted({file.stem for file in files} - set(TASKS))
    if unknown:
        raise ValueError(f"{release / 'qa'}: unknown tasks {unknown}, expected {sorted(TASKS)}")
    report.notes += [f"qa/{task}.json: not there" for task in TASKS if task not in {file.stem for file in files}]
    questions = read_questions(files, report)
    all_questions = [question for kept in questions.values() for question in kept]

    names = sorted({question.video_name for question in all_questions})
    origin = {q.video_name: source_of(q.video_name, q.category) for q in all_questions}
    if splits is None and (release / "splits.json").exists():
        splits = release / "splits.json"
    by_split = published_split(names) if splits is None else read_splits(Path(splits))
    schemes = {
        "default": by_split,
        "participants": participant_split({name: (origin[name][0], origin[name][1] or name) for name in names}),
    }
    footage = read_footage(release, names, origin, report, gaze, algorithm, progress)

    rows: dict[str, list[dict]] = defaultdict(list)
    for task, kept in questions.items():
        counts: Counter[str] = Counter()
        points = 0
        for question in kept:
            if question.video_name not in footage:
                continue
            row = _row(question, footage[question.video_name], origin[question.video_name], report)
            if row is not None:
                rows[question.video_name].append(row)
                counts[row["source"]] += 1
                points += len(row["test_points"])
        report.tasks[task] |= {"kept": sum(counts.values()), "kept_by_source": dict(counts), "test_points": points}
    if not rows:
        raise ValueError(f"{release}: nothing can be used\n{report.text()}")
    split_names = {name for names in by_split.values() for name in names}
    for name in sorted(set(rows) - split_names):
        report.exclude(name, f"in no split of {splits}")
    write_dataset(out, rows, {name: footage[name].path for name in rows}, schemes, report)
    return report


def read_footage(
    release: Path,
    names: list[str],
    origin: dict[str, tuple[str, str | None]],
    report: Report,
    gaze: str | Path | None = None,
    algorithm: str = "dispersion",
    progress: bool = False,
) -> dict[str, Footage]:
    """
    Return the usable videos by name; the report gets each, and what is missing or cannot be used. `origin`: what
    `source_of` says of each; the others as in `build`.
    """
    originals, overlays = _find_videos(release / "videos")
    tables, notes = _find_tables(release / "metadata")
    report.notes += notes
    footage = {}
    for name in tqdm(names, desc="videos", unit="video", disable=not progress):
        source, participant = origin[name]
        path, stem = originals.get(name), Path(name).stem
        if path is None:
            report.missing_videos.append(name)
            continue
        try:
            info = video_info(path)
            clock = release_clock(source, path, overlays.get(name))
            video, scanpath, gaze_origin = Footage(path, info, clock, None), None, None
            if stem in tables:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    table = tables[stem]()
                report.notes += [str(warning.message) for warning in caught]
                scanpath = _in_file_time(table, clock, info.end_s, f"fixations of {name}", report)
                gaze_origin = "fixation table"
            elif gaze is not None and (raw := find_raw(Path(gaze), source, stem)) is not None:
                scanpath, gaze_origin = _detect(raw, source, video, algorithm, report), f"raw gaze, {algorithm}"
        except (ValueError, OSError) as error:
            report.exclude(name, str(error))
            continue
        if scanpath is None:
            report.without_gaze.append(name)
        report.videos[name] = {
            "source": source,
            "participant": participant,
            "size": [info.width, info.height],
            "begin_s": info.start_s,
            "end_s": info.end_s,
            "clock": clock.kind,
            "gaze": gaze_origin,
            "fixations": None if scanpath is None else len(scanpath),
        }
        footage[name] = replace(video, scanpath=scanpath)
    return footage


def _detect(raw: Path, source: str, footage: Footage, algorithm: str, report: Report) -> Scanpath:
    """Detect the fixations of a raw recording, in seconds of the video file."""
    from gazeqwen.gaze_sources.fixations import streamgaze_fixations

    samples = read_raw(raw, source, footage.path, report)
    if algorithm == "streamgaze":  # on the clock of the release, see streamgaze_fixations
        scanpath, dropped = streamgaze_fixations(samples, source)
        report.notes += [f"{raw}: no fixation from {item}" for item in dropped]
        return _in_file_time(scanpath, footage.clock, footage.info.end_s, str(raw), report)
    return fixations_in_video(raw, samples, footage.info, report)


def _row(question: ReleasedQuestion, footage: Footage, origin: tuple, report: Report) -> dict | None:
    """Return a row of the dataset, or None (listed) if the question lies beyond its video."""
    where, end_s = f"{question.task}, {question.video_name} at {question.time_s:g} s", footage.info.end_s
    asked_s = float(footage.clock.to_file_s(question.time_s))
    points = []
    for time_s, alert in question.test_points:
        point_s = float(footage.clock.to_file_s(time_s))
        if not 0 < point_s <= end_s + QUESTION_ROUNDING_S:
            report.exclude(where, f"test point at {point_s:.3f} s lies outside the video, which ends at {end_s:.3f} s")
            continue
        points.append({"time_s": min(point_s, end_s), "alert": alert})
    if asked_s > end_s + QUESTION_ROUNDING_S or (question.test_points and not points):
        report.exclude(where, f"lies beyond the video, which ends at {end_s:.3f} s")
        return None
    begin_s, _ = clip_window(question.task, question.time_s)
    scanpath = footage.scanpath
    return {
        "video_name": question.video_name,
        "source": origin[0],
        "participant": origin[1],
        "task": question.task,
        "question": question.question,
        "options": list(question.options),
        "answer": question.answer,
        "answer_text": None,
        "question_time_s": asked_s,
        "start_s": footage.begin_s(begin_s),
        "end_s": points[-1]["time_s"] if points else min(asked_s, end_s),
        "test_points": points,
        "scanpath": None if scanpath is None else scanpath.table.tolist(),
        "fixation_ids": None if scanpath is None else scanpath.ids.tolist(),
    }
