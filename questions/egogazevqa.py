"""
Make a dataset that `load_dataset` opens from EgoGazeVQA's release (arXiv 2509.07447): questions about the part of a
video between two of its frames, on the clock of the video file.

The release is the form in which its repository first published it: `qa_pairs/<type>_<source>.json`, and
`narrations/<source>.json` with the gaze at the frame of each narrated action. The videos are those of Ego4D,
Ego-Exo4D and EGTEA Gaze+, below `videos/`, by the release's ids or, of Ego-Exo4D, the takes' names.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from gazeqwen.questions.dataset_folder import Report, check_new, write_dataset
from gazeqwen.questions.prompts import OPTION_LETTERS
from gazeqwen.questions.raw_gaze import find_raw, fixations_in_video, read_raw
from gazeqwen.questions.release_questions import is_text, read_json
from gazeqwen.questions.sources import source_of
from gazeqwen.questions.splits import participant_split
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.video_gazeqwen import VideoInfo, frame_times_s, video_info

RELEASED = {"spatial": 585, "temporal": 587, "causal": 585}  # questions by type; they are the tasks
GAZE_READERS = {"ego4d": "ego4d", "egoexo": "egoexo4d", "egtea": "egtea"}  # by the source's name in the release
KEY_FRAME_FIXATION_S = 0.3  # how long gaze at a narrated frame is taken to last: the release gives a frame alone
_VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".avi")


@dataclass(frozen=True)
class KeyFrameQuestion:
    """A question as released, about a video from the first to the last of some frames, counted from 0."""

    video_id: str
    source: str
    task: str
    question: str
    options: tuple[str, ...]
    answer: int
    first_frame: int
    last_frame: int

    def __str__(self) -> str:
        return f"{self.task}, {self.video_id}, frames {self.first_frame} to {self.last_frame}"


@dataclass
class KeyFrameGaze:
    """
    What the release says of a video's gaze: x and y, from 0 to 1, origin top-left, by frame number. `take_name`: what
    Ego-Exo4D calls the video.
    """

    take_name: str | None = None
    places: dict[int, tuple[float, float]] = field(default_factory=dict)


# ------------------------------------------------------------------ reading
def read_questions(folder: Path, report: Report) -> list[KeyFrameQuestion]:
    """
    Read the questions of `qa_pairs/`. Those that cannot be used or come again are left out, and listed in the report,
    which also gets the counts. Raises FileNotFoundError without a file, ValueError naming one of another name or form.
    """
    files = sorted(folder.glob("*.json"))
    expected = {f"{task}_{source}": (task, source) for task in RELEASED for source in GAZE_READERS}
    if not files:
        raise FileNotFoundError(f"{folder}: no question files (*.json), expected {', '.join(expected)}")
    if unknown := sorted({file.stem for file in files} - set(expected)):
        raise ValueError(f"{folder}: unknown files {unknown}, expected {', '.join(expected)}")
    report.notes += [f"qa_pairs/{name}.json: not there" for name in expected if not (folder / f"{name}.json").exists()]
    report.tasks = {task: {"released": count, "found": 0} for task, count in RELEASED.items()}
    questions: dict[KeyFrameQuestion, None] = {}
    for file in files:
        task, source = expected[file.stem]
        for video_id, items in _by_video(file).items():
            for number, item in enumerate(items if isinstance(items, list) else [items]):
                report.tasks[task]["found"] += 1
                where = f"qa_pairs/{file.name}, {video_id}, question {number}"
                try:
                    question = read_question(video_id, item, task, source)
                except ValueError as error:
                    report.exclude(where, str(error))
                    continue
                if question in questions:
                    report.exclude(where, "the same question as an earlier one")
                questions[question] = None
    return list(questions)


def read_question(video_id: str, item, task: str, source: str) -> KeyFrameQuestion:
    """Read one question of a video. Raises ValueError naming field, value and what was expected."""
    if not re.fullmatch(r"\w[\w.-]*", video_id):
        raise ValueError(f"video is {video_id!r}, expected its id")
    if not isinstance(item, dict):
        raise ValueError(f"got {item!r}, expected an object")
    if not is_text(item.get("question")):
        raise ValueError(f"question is {item.get('question')!r}, expected text")
    options = _options(item.get("answer_options"))
    letters = OPTION_LETTERS[: len(options)]
    answer = item.get("correct_answer")
    if not isinstance(answer, str) or len(answer.strip()) != 1 or answer.strip() not in letters:
        raise ValueError(f"correct_answer is {answer!r}, expected one of {letters}")
    frames = _frames(item.get("frames"))
    return KeyFrameQuestion(
        video_id, source, task, item["question"].strip(), options, letters.index(answer.strip()), frames[0], frames[-1]
    )


def _options(options) -> tuple[str, ...]:
    """Return the options without their letters. Raises ValueError unless they are different, lettered in order."""
    expected = f"2 to {len(OPTION_LETTERS)} different texts, 'A: ...', 'B: ...' and so on"
    if not isinstance(options, list) or not 2 <= len(options) <= len(OPTION_LETTERS) or not all(map(is_text, options)):
        raise ValueError(f"answer_options are {options!r}, expected {expected}")
    lettered = [
        re.fullmatch(rf"\s*{letter}:\s*(\S.*)", text, re.DOTALL)
        for letter, text in zip(OPTION_LETTERS, options, strict=False)
    ]
    texts = [match.group(1).strip() for match in lettered if match]
    if len(set(texts)) != len(options):
        raise ValueError(f"answer_options are {options!r}, expected {expected}")
    return tuple(texts)


def _frames(names) -> list[int]:
    """Return the numbers of frames that are named `42.jpg`. Raises ValueError unless these are several, in order."""
    listed = names if isinstance(names, list) else []
    matches = [re.fullmatch(r"(\d{1,9})\.jpg", str(name), re.ASCII) for name in listed]
    numbers = [int(match.group(1)) for match in matches if match]
    if len(numbers) < max(2, len(listed)) or numbers != sorted(set(numbers)):
        raise ValueError(f"frames are {names!r}, expected two or more such as '42.jpg', in order")
    return numbers


def read_gaze(file: Path, source: str, report: Report) -> dict[str, KeyFrameGaze]:
    """
    Read the gaze of `narrations/<source>.json` by video. What is not in the frame, not tracked or, where the release
    says so, no fixation is left out; how much that is stands in the report. Raises ValueError naming file and value.
    """
    gaze: dict[str, KeyFrameGaze] = {}
    reasons: Counter[str | None] = Counter()
    for video_id, entry in _by_video(file).items():
        narrations = entry.get("narrations") if isinstance(entry, dict) else None
        if not isinstance(narrations, list):
            raise ValueError(f"{file}, {video_id}: narrations are {narrations!r}, expected a list")
        gaze[video_id] = video_gaze = KeyFrameGaze(entry.get("take_name"))
        for number, item in enumerate(narrations):
            try:
                frame, (x, y), reason = _narrated_gaze(item)
            except ValueError as error:
                raise ValueError(f"{file}, {video_id}, narration {number}: {error}") from None
            if reason is None and frame not in video_gaze.places:
                # Ego4D's own files have y going up, and these are its numbers: docs/guides/data.md.
                video_gaze.places[frame] = (x, 1 - y if source == "ego4d" else y)
            reasons[reason] += 1
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items(), key=str) if reason)
    if left_out:
        report.notes.append(f"narrations/{file.name}: gaze left out: {left_out}")
    return gaze


def _narrated_gaze(item) -> tuple[int, tuple[float, float], str | None]:
    """Return a narration's frame and gaze, and why that is no use; None: it is. Raises ValueError."""
    if not isinstance(item, dict):
        raise ValueError(f"got {item!r}, expected an object")
    frame, info = item.get("timestamp_frame"), item.get("gaze_info")
    if not isinstance(frame, int):
        raise ValueError(f"timestamp_frame is {frame!r}, expected a frame's number")
    if info is None:
        return frame, (0.0, 0.0), "without a place"
    if not isinstance(info, dict):
        raise ValueError(f"gaze_info is {info!r}, expected an object")
    x, y = (info.get(name) for name in ("gaze_x", "gaze_y"))
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in (x, y)):
        raise ValueError(f"gaze_x and gaze_y are {x!r} and {y!r}, expected numbers")
    if frame < 0 or info.get("confidence") == 0 or info.get("gaze_type") == "untracked":
        return frame, (x, y), "untracked"
    if info.get("gaze_type") == "saccade":
        return frame, (x, y), "in a saccade"
    return frame, (x, y), None if 0 <= x <= 1 and 0 <= y <= 1 else "out of the frame"


def _by_video(file: Path) -> dict:
    """Return what a JSON file holds by video. Raises ValueError naming the file."""
    content = read_json(file)
    if not isinstance(content, dict):
        raise ValueError(f"{file}: got {type(content).__name__}, expected an object of videos")
    return content


# ------------------------------------------------------------------ building
@dataclass(frozen=True)
class _Footage:
    """A video that can be used: its name in the dataset, its file, when each frame is shown (s), and the scanpath."""

    name: str
    path: Path
    times_s: np.ndarray
    scanpath: Scanpath | None


def build(
    release: str | Path,
    out: str | Path,
    gaze: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Report:
    """
    Write the dataset folder `out` from a release: `default` has all questions in its split `test`, as the benchmark
    asks them; `participants` divides them by who wore the camera.

    `gaze`: raw recordings, in folders `ego4d`, `egoexo4d` and `egtea`, whose fixations are taken in place of the
    release's gaze, which is known at some frames alone.

    Raises ValueError or FileNotFoundError naming file and value for what leaves nothing to build. Single questions and
    videos that cannot be used are left out, counted and listed in the report.
    """
    release, out, report = Path(release), Path(out), Report()
    if gaze is not None and not Path(gaze).is_dir():
        raise FileNotFoundError(f"{gaze}: no such folder of raw gaze")
    check_new(out, overwrite)
    questions = read_questions(release / "qa_pairs", report)
    source_by_video = {question.video_id: question.source for question in questions}
    footage = _read_footage(release, source_by_video, gaze, report, progress)
    rows: dict[str, list[dict]] = defaultdict(list)
    counts: dict[str, Counter] = {task: Counter() for task in RELEASED}
    for question in questions:
        if question.video_id not in footage:
            continue
        row = _row(question, footage[question.video_id], report)
        if row is not None:
            rows[row["video_name"]].append(row)
            counts[question.task][row["source"]] += 1
    for task, by_source in counts.items():
        report.tasks[task] |= {"kept": sum(by_source.values()), "kept_by_source": dict(by_source), "test_points": 0}
    if not rows:
        raise ValueError(f"{release}: nothing can be used\n{report.text()}")
    people = {name: (first["source"], first["participant"] or name) for name, (first, *_) in rows.items()}
    schemes = {"default": {"test": sorted(rows)}, "participants": participant_split(people)}
    write_dataset(out, rows, {video.name: video.path for video in footage.values()}, schemes, report)
    return report


def _read_footage(
    release: Path, sources: dict[str, str], gaze: str | Path | None, report: Report, progress: bool
) -> dict[str, _Footage]:
    """
    Return the usable videos by id, of `sources` by id; the report gets each, and what is missing or cannot be used.
    """
    files = _find_videos(release / "videos")
    narrated: dict[str, dict[str, KeyFrameGaze]] = {}
    for source in sorted(set(sources.values())):
        file = release / "narrations" / f"{source}.json"
        narrated[source] = read_gaze(file, source, report) if file.exists() else {}
        report.notes += [] if file.exists() else [f"narrations/{source}.json: not there"]
    footage = {}
    for video_id, source in tqdm(sorted(sources.items()), desc="videos", unit="video", disable=not progress):
        video_gaze = narrated[source].get(video_id, KeyFrameGaze())
        stems = [video_id, *filter(None, [video_gaze.take_name])]
        path = next((files[stem] for stem in stems if stem in files), None)
        if path is None:
            report.missing_videos.append(" or ".join(stems))
            continue
        try:
            info, times_s = video_info(path), frame_times_s(path)
            raw = None if gaze is None else find_raw(Path(gaze), GAZE_READERS[source], stems[-1])
            if raw is not None:
                samples = read_raw(raw, GAZE_READERS[source], path, report)
                scanpath, origin = fixations_in_video(raw, samples, info, report), "raw gaze, dispersion"
            elif video_id in narrated[source]:
                scanpath, origin = key_frame_scanpath(video_gaze, times_s, info), "the release's, at narrated frames"
                if beyond := sum(frame >= len(times_s) for frame in video_gaze.places):
                    report.notes.append(f"{path.name}: gaze left out: {beyond} beyond its {len(times_s)} frames")
            else:
                scanpath, origin = None, None
        except (ValueError, OSError) as error:
            report.exclude(video_id, str(error))
            continue
        name = f"{video_id}{path.suffix}"
        if scanpath is None:
            report.without_gaze.append(name)
        report.videos[name] = {
            "source": f"egogazevqa-{source}",
            "participant": _participant(video_id, source),
            "size": [info.width, info.height],
            "begin_s": info.start_s,
            "end_s": info.end_s,
            "clock": "frame numbers",
            "gaze": origin,
            "fixations": None if scanpath is None else len(scanpath),
        }
        footage[video_id] = _Footage(name, path, times_s, scanpath)
    return footage


def _find_videos(folder: Path) -> dict[str, Path]:
    """Find the videos below a folder by name, without ending. Raises ValueError for two of one name."""
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix.lower() in _VIDEO_SUFFIXES:
            if path.stem in files:
                raise ValueError(f"{path}: a second video of this name beside {files[path.stem]}")
            files[path.stem] = path
    return files


def _participant(video_id: str, source: str) -> str | None:
    """Return who wore the camera, where the video's name tells."""
    return source_of(video_id)[1] if source == "egtea" else None


def key_frame_scanpath(gaze: KeyFrameGaze, times_s: np.ndarray, info: VideoInfo) -> Scanpath:
    """
    Return the gaze at some frames as fixations around the times at which they are shown; `times_s` (n,): when each
    frame of the video is. Each lasts `KEY_FRAME_FIXATION_S`, or to half-way to its neighbour, and lies in the video.
    """
    frames = np.array(sorted(frame for frame in gaze.places if frame < len(times_s)), dtype=int)
    if not len(frames):
        return Scanpath.from_array([])
    shown_s, half_s = times_s[frames], KEY_FRAME_FIXATION_S / 2
    between_s = (shown_s[1:] + shown_s[:-1]) / 2
    begin_s = np.maximum(shown_s - half_s, [max(0.0, info.start_s), *between_s])
    end_s = np.minimum(shown_s + half_s, [*between_s, info.end_s])
    places = np.array([gaze.places[frame] for frame in frames.tolist()])
    return Scanpath.from_array(np.column_stack([places, (begin_s + end_s) / 2, end_s - begin_s]), ids=frames)


def _row(question: KeyFrameQuestion, footage: _Footage, report: Report) -> dict | None:
    """Return a row of the dataset, or None (listed) if the video has no such frames."""
    if question.last_frame >= len(footage.times_s):
        report.exclude(str(question), f"the video has {len(footage.times_s)} frames: is it the whole one?")
        return None
    start_s, end_s = (float(footage.times_s[frame]) for frame in (question.first_frame, question.last_frame))
    scanpath = footage.scanpath
    return {
        "video_name": footage.name,
        "source": f"egogazevqa-{question.source}",
        "participant": _participant(question.video_id, question.source),
        "task": question.task,
        "question": question.question,
        "options": list(question.options),
        "answer": question.answer,
        "answer_text": None,
        "question_time_s": end_s,
        "start_s": max(0.0, start_s),
        "end_s": end_s,
        "test_points": [],
        "scanpath": None if scanpath is None else scanpath.table.tolist(),
        "fixation_ids": None if scanpath is None else scanpath.ids.tolist(),
    }
