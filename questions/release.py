"""StreamGaze's release on disk -> a dataset that `load_dataset` opens, with one clock: seconds of each video file."""

import json
import math
import random
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from gazeqwen.questions.dataset_folder import Report, check_new, write_dataset
from gazeqwen.questions.prompts import OPTION_LETTERS
from gazeqwen.questions.tasks import SPLITS, TASKS, clip_window
from gazeqwen.scanpath_gazeqwen import Scanpath, checked_file, read_rows
from gazeqwen.video_gazeqwen import QUESTION_ROUNDING_S, VideoInfo, frame_times_s, read_frames, video_info

# How the names of a source's videos look, which part of them is the participant, and how many frames a second the
# benchmark assumed when it turned frame numbers into seconds (None: its seconds are those of the gaze recording).
_SOURCES = {
    "egtea": (re.compile(r"(O?P\d{2})-R\d{2}-.+"), 24.0),
    "holoassist": (re.compile(r"([Rz]\d{3})-.+"), 24.46),
    "egoexolearn": (re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"), None),
}


def parse_time(text: str, name: str = "time") -> float:
    """Seconds of `MM:SS` (minutes may exceed 59), `HH:MM:SS` or plain seconds. Raises ValueError that says `name`."""
    written = re.fullmatch(r"\s*((\d+:)?\d+:)?\d+(\.\d+)?\s*", str(text), re.ASCII)
    numbers = [float(part) for part in str(text).split(":")] if written else []
    seconds = 0.0
    for number in numbers:
        seconds = 60 * seconds + number
    if not numbers or max(numbers[1:], default=0) >= 60 or not math.isfinite(seconds):
        raise ValueError(f"{name} is {text!r}, expected MM:SS or HH:MM:SS")
    return seconds


# ------------------------------------------------------------------ splits
def published_split(names) -> dict[str, list[str]]:
    """The split of the published GazeQwen: sorted video names, shuffled with seed 42, 70 / 15 / 15 percent."""
    names = sorted(set(names))
    random.Random(42).shuffle(names)
    train, validation = int(0.70 * len(names)), int(0.15 * len(names))
    parts = (names[:train], names[train : train + validation], names[train + validation :])
    return {split: sorted(part) for split, part in zip(SPLITS, parts, strict=True)}


def participant_split(groups: dict[str, tuple[str, str]], seed: int = 42) -> dict[str, list[str]]:
    """
    A split in which nobody is in two parts. `groups`: {video name: (source, participant)}. Per source, participants in
    random order fill 70, 15 and 15 percent of the videos.
    """
    by_source: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in sorted(groups):
        source, participant = groups[name]
        by_source[source][participant].append(name)
    split: dict[str, list[str]] = {name: [] for name in SPLITS}
    for source in sorted(by_source):
        people = sorted(by_source[source])
        random.Random(f"{seed} {source}").shuffle(people)
        total, done = sum(map(len, by_source[source].values())), 0
        for person in people:
            middle = (done + len(by_source[source][person]) / 2) / total
            part = "train" if middle < 0.70 else "validation" if middle < 0.85 else "test"
            split[part] += by_source[source][person]
            done += len(by_source[source][person])
    return split


# ------------------------------------------------------------------ questions
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


def _is_text(value) -> bool:
    """Whether a value is a text that is not blank and can be stored: JSON can hold halves of characters, UTF-8 not."""
    return isinstance(value, str) and bool(value.strip()) and not re.search("[\ud800-\udfff]", value)


def _text(item: dict, name: str) -> str:
    value = item.get(name)
    if not _is_text(value):
        raise ValueError(f"{name} is {value!r}, expected text")
    return value.strip()


def _video_name(entry: dict) -> str:
    name = entry.get("video_path") or entry.get("video")
    if not isinstance(name, str) or not name.strip():
        raise ValueError(f"video_path is {name!r}, expected a file name")
    parts = name.strip().replace("\\", "/").split("/")
    if ".." in parts or not parts[-1] or parts[-1].startswith(".") or not parts[-1].isprintable():
        raise ValueError(f"video_path is {name!r}, expected the name of a file in the videos' folder")
    return parts[-1]


def _options(item: dict) -> tuple[str, ...]:
    options = item.get("options")
    if not isinstance(options, list) or not all(map(_is_text, options)):
        raise ValueError(f"options are {options!r}, expected a list of texts")
    lettered = [
        re.fullmatch(rf"\s*{letter}[.)]\s*(.*)", option)
        for letter, option in zip(OPTION_LETTERS, options, strict=False)
    ]
    if len(options) <= len(OPTION_LETTERS) and all(lettered):
        options = [match.group(1) for match in lettered]
    options = tuple(option.strip() for option in options)
    if not 2 <= len(options) <= len(OPTION_LETTERS) or not all(options) or len(set(options)) != len(options):
        raise ValueError(f"options are {item['options']}, expected 2 to {len(OPTION_LETTERS)} different ones")
    return options


def _test_points(item: dict) -> tuple[tuple[float, bool], ...]:
    points = item.get("test_info")
    if not isinstance(points, list) or not points or not all(isinstance(point, dict) for point in points):
        raise ValueError(f"test_info is {points!r}, expected a list of test points")
    found = []
    for point in points:
        if point.get("type") not in (0, 1) or isinstance(point.get("type"), bool):
            raise ValueError(f"a test point's type is {point.get('type')!r}, expected 0 or 1")
        time_s = parse_time(point.get("realtime"), "a test point's realtime")
        if time_s <= 0:
            raise ValueError(f"a test point's realtime is {point['realtime']!r}, expected after the video's start")
        found.append((time_s, point["type"] == 1))
    if len({time_s for time_s, _ in found}) != len(found):
        raise ValueError(f"test_info repeats a realtime: {[point['realtime'] for point in points]}")
    return tuple(sorted(found))


def read_question(entry: dict, item: dict, task: str) -> ReleasedQuestion:
    """One question of a QA file's entry. Raises ValueError naming field, value and what was expected."""
    if not isinstance(entry, dict) or not isinstance(item, dict):
        raise ValueError(f"got {item!r} in {entry!r}, expected objects")
    name, question = _video_name(entry), _text(item, "question")
    time_s = parse_time(item.get("time_stamp"), "time_stamp")
    category = _text(entry, "video_categories").lower() if entry.get("video_categories") else "other"
    if TASKS[task].group == "proactive":
        return ReleasedQuestion(name, task, question, (), None, time_s, _test_points(item), category)
    options = _options(item)
    letters, answer = OPTION_LETTERS[: len(options)], str(item.get("answer")).strip().rstrip(".)")
    if len(answer) != 1 or answer not in letters:
        raise ValueError(f"answer is {item.get('answer')!r}, expected one of the options' letters {letters}")
    if time_s <= 0:
        raise ValueError(f"time_stamp is {item['time_stamp']!r}, expected a time after the video's start")
    return ReleasedQuestion(name, task, question, options, letters.index(answer), time_s, (), category)


# ------------------------------------------------------------------ the release's clock
@dataclass(frozen=True)
class Clock:
    """Seconds of the release -> seconds of the video file. `kind` says how that is known."""

    kind: str
    knots_s: tuple[np.ndarray, np.ndarray] | None = None  # (release's, file's) times of the same frames

    def to_file_s(self, times_s):
        if self.knots_s is None:
            return times_s
        release, file = self.knots_s
        inside = np.interp(times_s, release, file)
        # Beyond the last frame time goes on at the mean rate: whether a question lies there is checked in file time.
        rate = (file[-1] - file[0]) / (release[-1] - release[0])
        return (
            inside
            + np.maximum(np.asarray(times_s) - release[-1], 0) * rate
            + np.minimum(np.asarray(times_s) - release[0], 0) * rate
        )


def release_clock(source: str, video: Path, overlay: Path | None) -> Clock:
    """
    The clock of a video's questions and fixation table. StreamGaze cut its clips from the gaze-overlay encodes, which
    hold the same frames as the originals but may declare another rate: so a time means the overlay's frame on screen
    then, and the original's frame of the same number. Without the overlay, times are frame number / the source's
    assumed rate; where the source has none, seconds of the file.

    Raises ValueError if the two files do not show the same frames at the same numbers.
    """
    times_s = frame_times_s(video)
    if overlay is not None:
        overlay_s = frame_times_s(overlay)
        count = min(len(times_s), len(overlay_s))
        if count < 2:
            raise ValueError(f"{overlay}: {len(overlay_s)} frames beside {len(times_s)}, expected as many")
        _check_same_frames(video, times_s, overlay, overlay_s, count)
        return Clock("overlay frames", (overlay_s[:count], times_s[:count]))
    fps = _SOURCES[source][1] if source in _SOURCES else None
    if fps is not None and len(times_s) > 1:
        return Clock(f"frame number at {fps:g} fps", (np.arange(len(times_s)) / fps, times_s))
    return Clock("seconds of the file")


def _thumbnails(path: Path, times_s: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """(n, cells) brightness of frames by number, each averaged over a grid of 16x16 cells and standardised."""
    frames, shown_s = read_frames(path, times_s[indices])
    if not np.allclose(shown_s, times_s[indices], atol=1e-6):
        raise ValueError(f"{path}: frames cannot be found by their times")
    grey = frames.astype(np.float32).mean(-1)
    rows, columns = (np.arange(size) * 16 // size for size in grey.shape[1:])
    cells = np.zeros((len(grey), 16, 16), np.float32)
    for image, sums in zip(grey, cells, strict=True):
        np.add.at(sums, (rows[:, None], columns[None, :]), image)
    flat = cells.reshape(len(grey), -1)
    flat = flat - flat.mean(1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def _check_same_frames(video: Path, times_s: np.ndarray, overlay: Path, overlay_s: np.ndarray, count: int) -> None:
    """Compare pixels at shared frame numbers: equal counts prove nothing. What the overlay drew is small."""
    numbers = np.unique(np.linspace(0, count - 1, 7).round().astype(int)[1:-1]) if count > 6 else np.arange(count)
    ours, theirs = _thumbnails(video, times_s, numbers), _thumbnails(overlay, overlay_s, numbers)
    likeness = ours @ theirs.T  # correlation of every of our frames with every of theirs
    same = np.diag(likeness)
    if np.median(same) < 0.9 or np.mean(likeness.argmax(1) == np.arange(len(numbers))) < 0.5:
        raise ValueError(
            f"{video.name} and its gaze overlay show different frames at the same numbers "
            f"(correlations {np.round(same, 2).tolist()}; {len(times_s)} and {len(overlay_s)} frames)"
        )


# ------------------------------------------------------------------ files of the release
def source_of(video_name: str, category: str = "other") -> tuple[str, str | None]:
    """(source, participant) by the video's name; `category` where no source has such names."""
    for source, (pattern, _) in _SOURCES.items():
        if match := pattern.fullmatch(Path(video_name).stem):
            return source, match.group(1) if match.groups() else None
    return category, None


def _find_videos(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Originals and gaze overlays below `videos/` by name; two originals of one name are an error."""
    originals: dict[str, Path] = {}
    overlays: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.suffix.lower() not in (".mp4", ".mkv", ".mov", ".avi"):
            continue
        found = overlays if any("viz" in part for part in path.relative_to(folder).parts[:-1]) else originals
        if path.name in found:
            raise ValueError(f"{path}: a second video of this name beside {found[path.name]}")
        found[path.name] = path
    return originals, overlays


def _find_tables(folder: Path) -> tuple[dict[str, Callable[[], Scanpath]], list[str]]:
    """
    Fixation tables below `metadata/`: per video's stem what reads its own file, or else its rows of a merged table.
    Notes say which merged tables hold no coordinates.
    """
    own: dict[str, Path] = {}
    for suffix in ("_fixation_filtered.csv", "_fixation_dataset.csv"):
        for path in sorted(folder.rglob(f"*{suffix}")):
            own.setdefault(path.name.removesuffix(suffix), path)
    merged: dict[str, Callable[[], Scanpath]] = {}
    notes = []
    for path in sorted(folder.glob("*.csv")):
        if path in own.values():
            continue
        columns, rows = read_rows(path)
        names = [name for name in ("video_name", "video_source", "video_id", "source_file") if name in columns]
        if not names or not {"center_x", "center_y"} <= set(columns):
            notes.append(f"{path}: no gaze coordinates in it (columns {columns}), expected center_x, center_y")
            continue
        of_video = defaultdict(list)
        for line, row in rows:
            of_video[Path(row[names[0]]).stem].append((line, row))
        for stem, lines in of_video.items():
            merged[stem] = partial(Scanpath.from_rows, columns, lines, str(path))
    return merged | {stem: partial(Scanpath.from_csv, path) for stem, path in own.items()}, notes


def _read_json(path: Path):
    text = checked_file(path).read_bytes()
    try:
        return json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from error


def _read_splits(path: Path) -> dict[str, list[str]]:
    """{split: video names} of a file that lists them under train, validation (or val), test."""
    splits = _read_json(path)
    if not isinstance(splits, dict):
        raise ValueError(f"{path}: expected an object of lists of video names")
    if {"val", "validation"} <= set(splits):
        raise ValueError(f"{path}: splits {sorted(splits)}, expected val or validation, not both")
    splits = {"validation" if name == "val" else name: names for name, names in splits.items()}
    if not set(splits) <= set(SPLITS) or not all(
        isinstance(names, list) and all(isinstance(name, str) for name in names) for names in splits.values()
    ):
        raise ValueError(f"{path}: splits {sorted(splits)}, expected lists of video names under {SPLITS}")
    repeated = [name for name, count in Counter(n for names in splits.values() for n in names).items() if count > 1]
    if repeated:
        raise ValueError(f"{path}: {len(repeated)} videos are listed twice, such as {repeated[0]!r}")
    return {name: splits.get(name, []) for name in SPLITS}


# ------------------------------------------------------------------ building
@dataclass(frozen=True)
class _Footage:
    """A video of the release that can be used: file, extent, clock, scanpath in seconds of the file."""

    path: Path
    info: VideoInfo
    clock: Clock
    scanpath: Scanpath | None


def _read_questions(files: list[Path], report: Report) -> dict[str, list[ReleasedQuestion]]:
    questions: dict[str, list[ReleasedQuestion]] = {}
    for file in files:
        entries, kept = _read_json(file), []
        if not isinstance(entries, list):
            raise ValueError(f"{file}: got {type(entries).__name__}, expected a list of entries")
        seen, found = set(), 0
        for number, entry in enumerate(entries):
            where = f"qa/{file.name}, entry {number}"
            items = entry.get("questions") if isinstance(entry, dict) else None
            if not isinstance(items, list) or not items:
                found += 1
                report.exclude(where, f"questions are {items!r}, expected a list")
                continue
            for item in items:
                found += 1
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
        report.tasks[file.stem] = {"released": TASKS[file.stem].questions, "found": found}
    return questions


def _in_file_time(scanpath: Scanpath, clock: Clock, end_s: float, where: str, report: Report) -> Scanpath:
    """The scanpath in seconds of the file; what lies beyond its end is cut or left out, and counted."""
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
    questions = _read_questions(files, report)
    everything = [question for kept in questions.values() for question in kept]

    names = sorted({question.video_name for question in everything})
    origin = {q.video_name: source_of(q.video_name, q.category) for q in everything}
    if splits is None and (release / "splits.json").exists():
        splits = release / "splits.json"
    by_video = published_split(names) if splits is None else _read_splits(Path(splits))
    schemes = {
        "default": by_video,
        "participants": participant_split({name: (origin[name][0], origin[name][1] or name) for name in names}),
    }
    footage = _read_footage(release, names, origin, gaze, algorithm, report, progress)

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
    in_no_split = sorted(set(rows) - {name for names in by_video.values() for name in names})
    for name in in_no_split:
        report.exclude(name, f"in no split of {splits}")
    write_dataset(out, rows, {name: footage[name].path for name in rows}, schemes, report)
    return report


def _read_footage(
    release: Path, names: list[str], origin: dict, gaze, algorithm: str, report: Report, progress: bool
) -> dict[str, _Footage]:
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
            found, scanpath, gaze_from = _Footage(path, info, clock, None), None, None
            if stem in tables:
                with warnings.catch_warnings(record=True) as said:
                    warnings.simplefilter("always")
                    table = tables[stem]()
                report.notes += [str(warning.message) for warning in said]
                scanpath = _in_file_time(table, clock, info.end_s, f"fixations of {name}", report)
                gaze_from = "fixation table"
            elif gaze is not None and (raw := _find_raw(Path(gaze), source, stem)) is not None:
                scanpath, gaze_from = _detect(raw, source, found, algorithm, report), f"raw gaze, {algorithm}"
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
            "gaze": gaze_from,
            "fixations": None if scanpath is None else len(scanpath),
        }
        footage[name] = replace(found, scanpath=scanpath)
    return footage


def _find_raw(folder: Path, source: str, stem: str) -> Path | None:
    from gazeqwen.gaze_sources import SOURCES

    return SOURCES[source].find(folder / source, stem) if source in SOURCES else None


def _detect(raw: Path, source: str, footage: _Footage, algorithm: str, report: Report) -> Scanpath:
    """Fixations of a raw recording in seconds of the video file."""
    from gazeqwen.gaze_sources import SOURCES
    from gazeqwen.gaze_sources.fixations import detect_fixations, streamgaze_fixations

    samples = SOURCES[source].read(raw, footage.path)
    report.notes += [f"{raw}: {note}" for note in samples.notes]
    if algorithm == "streamgaze":  # on the clock of the release, see streamgaze_fixations
        scanpath, dropped = streamgaze_fixations(samples, source)
        report.notes += [f"{raw}: no fixation from {item}" for item in dropped]
        return _in_file_time(scanpath, footage.clock, footage.info.end_s, str(raw), report)
    gaze_end_s, video_end_s = samples.times_s[-1], footage.info.end_s
    if abs(gaze_end_s - video_end_s) > 0.02 * video_end_s:
        report.notes.append(
            f"{raw}: gaze ends at {gaze_end_s:.2f} s, the video at {video_end_s:.2f} s: are the clocks the same?"
        )
    inside = samples.within(footage.info.start_s, footage.info.end_s)
    if not inside.all():
        report.notes.append(f"{raw}: {int((~inside).sum())} of {len(samples)} samples lie outside the video")
    return detect_fixations(samples.keep(inside))


def _row(question: ReleasedQuestion, footage: _Footage, origin: tuple, report: Report) -> dict | None:
    """A row of the dataset, or None (listed) if the question lies beyond its video."""
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
    begin_s = max(0.0, float(footage.clock.to_file_s(begin_s))) if begin_s else 0.0
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
        "start_s": begin_s,
        "end_s": points[-1]["time_s"] if points else min(asked_s, end_s),
        "test_points": points,
        "scanpath": None if scanpath is None else scanpath.table.tolist(),
        "fixation_ids": None if scanpath is None else scanpath.ids.tolist(),
    }
