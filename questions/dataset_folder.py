"""Write the folder of a dataset that `load_dataset` opens: videos, tables, a report of what is in it, a card."""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path

from datasets import (
    Dataset,
    Features,
    List,
    Value,
    Video,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from huggingface_hub import DatasetCard, DatasetCardData

from gazeqwen.questions.centrality import CENTRALITY_HEADER, UNITS, centrality, centrality_cells
from gazeqwen.questions.question import TOY_SOURCE
from gazeqwen.questions.sources import VIDEO_SOURCES
from gazeqwen.questions.tasks import TASKS, VIDEOS_IN_RELEASE
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.utils.files import atomic_folder, check_replaceable, write_json, write_text
from gazeqwen.utils.hub import publish
from gazeqwen.utils.locks import lock
from gazeqwen.utils.tables import Table

CARD_TEMPLATE = Path(__file__).parent.parent / "model_card" / "dataset_template.md"

# Columns of the dataset. Nothing that tells the answer is among them but `answer` and the test points' `alert`.
COLUMNS = Features(
    {
        "video": Video(decode=False),
        "video_name": Value("string"),
        "source": Value("string"),
        "participant": Value("string"),
        "task": Value("string"),
        "question": Value("string"),
        "options": List(Value("string")),
        "answer": Value("int32"),
        "answer_text": Value("string"),
        "question_time_s": Value("float64"),
        "start_s": Value("float64"),
        "end_s": Value("float64"),
        "test_points": List({"time_s": Value("float64"), "alert": Value("bool")}),
        "scanpath": List(List(Value("float64"))),
        "fixation_ids": List(Value("int64")),
    }
)


@dataclass
class Report:
    """What was found and what was left out, and why; stored as report.json beside the data."""

    tasks: dict = field(default_factory=dict)
    splits: dict = field(default_factory=dict)
    videos: dict = field(default_factory=dict)
    excluded: list = field(default_factory=list)
    missing_videos: list = field(default_factory=list)
    without_gaze: list = field(default_factory=list)
    notes: list = field(default_factory=list)

    def exclude(self, where: str, reason: str) -> None:
        """List a thing that is left out, and why."""
        self.excluded.append({"where": where, "reason": reason})

    def text(self) -> str:
        """Return the report as printed: a table of tasks, totals, clocks, what is missing and what was left out."""
        kept = sum(task["kept"] for task in self.tasks.values())
        question_count = sum(task["found"] for task in self.tasks.values())
        streamgaze = set(self.tasks) <= set(TASKS)
        sources = sorted({source for task in self.tasks.values() for source in task["kept_by_source"]})
        rows = [
            ["task", "released", "found", "kept", *sources, "test points"] if streamgaze else ["task", "questions"]
        ]
        for name, task in self.tasks.items():
            if not streamgaze:
                rows.append([name, str(task["kept"])])
                continue
            by_source = [str(task["kept_by_source"].get(source, 0)) for source in sources]
            points = str(task["test_points"]) if TASKS[name].group == "proactive" else "-"
            rows.append([name, *(str(task[key]) for key in ("released", "found", "kept")), *by_source, points])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        ]
        lines.append(f"{kept} questions of {len(self.videos)} videos kept; {question_count} questions found")
        if streamgaze:
            released = sum(task.questions for task in TASKS.values())
            lines[-1] += f"; the release holds {released:,} questions of {VIDEOS_IN_RELEASE} videos"
        for kind, count in sorted(Counter(video["clock"] for video in self.videos.values()).items()):
            lines.append(f"time base of {count} videos: {kind}")
        for title, names in (("missing videos", self.missing_videos), ("videos without gaze", self.without_gaze)):
            if names:
                lines.append(f"{title} ({len(names)}): {', '.join(names)}")
        if self.excluded:
            lines.append(f"left out ({len(self.excluded)}):")
            lines += [f"  {item['where']}: {item['reason']}" for item in self.excluded]
        return "\n".join(lines + self.notes)


def check_new(out: Path, overwrite: bool) -> None:
    """
    Raise FileExistsError if something is there already, but for a dataset built earlier that may be overwritten; and
    if that folder holds anything that no build wrote, naming it.
    """
    if not out.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{out} exists: choose another folder, or overwrite a dataset built earlier")
    try:
        report = Report(**json.loads((out / "report.json").read_text(encoding="utf-8")))
        configs = DatasetCard.load(out / "README.md").data["configs"]
        built = all(config["data_files"] for config in configs)
    except Exception:  # of json, yaml, huggingface_hub: what is wrong with files of others has many names
        built = False
    if not built:
        raise FileExistsError(f"{out} exists, and is no dataset built earlier: choose another folder")
    check_replaceable(out, ["README.md", "report.json", "videos", "*.parquet"])
    check_replaceable(out / "videos", report.videos)


def write_dataset(
    out: Path, rows: dict[str, list[dict]], videos: dict[str, Path], schemes: dict[str, dict], report: Report
) -> None:
    """
    Write a dataset folder, which appears whole or not at all.

    Args:
        rows: by video name, each with all of `COLUMNS` but `video`.
        videos: by video name, where each file lies.
        schemes: for each config the names of the videos of each split, `default` first.
        report: what is stored beside the data; gets of each split the counts, and how central its gaze is.

    Raises ValueError for videos of kinds that `load_dataset` would not open.
    """
    columns = Features(
        {"file_name": Value("string"), **{name: kind for name, kind in COLUMNS.items() if name != "video"}}
    )
    _check_loadable(rows)
    configs = []
    # `datasets` caches a folder by its name and configs alone: without this, another folder of this name, or this one
    # built again, would come back with the rows of the first.
    digest = hashlib.sha256(json.dumps([str(out.resolve()), schemes, rows]).encode()).hexdigest()[:16]
    with lock(out), atomic_folder(out) as folder, _no_progress_bars():
        (folder / "videos").mkdir()
        for name in rows:
            _link_or_copy(videos[name], folder / "videos" / name)
        for scheme, splits in schemes.items():
            files = []
            for split, names in splits.items():
                split_rows = [{"file_name": f"videos/{name}", **row} for name in names for row in rows.get(name, [])]
                if split_rows:
                    tables = {row["video_name"]: row["scanpath"] for row in split_rows}
                    scanpaths = [Scanpath.from_array(table) for table in tables.values() if table is not None]
                    counts = {"questions": len(split_rows), "videos": len(tables)}
                    about = {**counts, "gaze_centrality": centrality(scanpaths)}  # each video once
                    report.splits.setdefault(scheme, {})[split] = about
                    # One table beside one video would be taken for a dataset of tables, but for this name.
                    file = "metadata.parquet" if len(rows) == 1 else f"{scheme}-{split}.parquet"
                    Dataset.from_list(split_rows, features=columns).to_parquet(str(folder / file))
                    files.append({"split": split, "path": ["videos/*", file]})
            if files:
                configs.append(
                    {
                        "config_name": scheme,
                        "default": scheme == "default",
                        "description": f"build {digest}",
                        "data_files": files,
                        "metadata_filenames": [file["path"][1] for file in files],
                        "drop_labels": True,
                        "decode_num_threads": 0,  # or streaming from the Hub decodes, which needs torchcodec
                        "features": COLUMNS._to_yaml_list(),
                    }
                )
        write_json(folder / "report.json", asdict(report))
        write_text(folder / "README.md", str(render_dataset_card(folder, configs)))


# Endings of videos that `datasets` 5 knows: alone, and beside each other.
_ENDINGS = (".mp4", ".mkv", ".mov", ".avi", ".mpeg", ".mpg", ".m4v", ".webm", ".wmv", ".flv", ".3gp", ".mxf", ".asf")
_ENDINGS_MIXED = (".mp4", ".mkv", ".mov", ".avi", ".mpeg")


def _check_loadable(names: Iterable[str]) -> None:
    """Raise ValueError for names of videos from which `load_dataset` would not see that a folder holds videos."""
    endings = {name: Path(name).suffix.lower() for name in names}
    counts = Counter(endings.values())
    known = _ENDINGS if len(counts) == 1 else _ENDINGS_MIXED
    for name, ending in endings.items():
        if ending not in known:
            raise ValueError(
                f"{name}: load_dataset knows no {ending}, expected one of {', '.join(known)}: {_remuxed(name)}"
            )
    if len(counts) > 1 and max(counts.values()) == 1:  # as many tables as videos of each kind: taken for tables
        raise ValueError(
            f"{', '.join(endings)}: load_dataset needs two videos of one kind in a folder of several: "
            f"{_remuxed(next(name for name, ending in endings.items() if ending != '.mp4'))}"
        )


def _remuxed(name: str) -> str:
    """Return the command that puts a video into an MP4 file without encoding it anew."""
    return f"ffmpeg -i {name} -c copy {Path(name).stem}.mp4"


@contextmanager
def _no_progress_bars():
    """Write tables without the bars of `datasets`, which are left as they were: they belong to the whole process."""
    disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            enable_progress_bars()


def _link_or_copy(source: Path, target: Path) -> None:
    """Make `target` a hard link to a file, or a copy of it on another file system."""
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


# ------------------------------------------------------------------ its card, and the Hub
def render_dataset_card(
    folder: str | PathLike, configs: list[dict] | None = None, repository: str | None = None
) -> DatasetCard:
    """
    Return the card of a dataset that `gazeqwen build` wrote, drawn from its report and its tables.

    Args:
        configs: what `load_dataset` reads of the card; default: those of the card that lies in the folder.
        repository: where it is, or will be, on the Hub.

    Raises FileNotFoundError where report or card are not there, ValueError where the card has no configs.
    """
    folder = Path(folder)
    for name in ("report.json",) if configs else ("report.json", "README.md"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name}: not there, expected what `gazeqwen build` writes")
    if configs is None:
        configs = DatasetCard.load(folder / "README.md").data.get("configs")
    if not isinstance(configs, list) or not configs:
        raise ValueError(f"{folder / 'README.md'}: configs are {configs!r}, expected those that the build wrote")
    report = Report(**json.loads((folder / "report.json").read_text(encoding="utf-8")))
    sources = sorted({video["source"] for video in report.videos.values()})
    own, toy = sources == ["own"], sources == [TOY_SOURCE]
    egogazevqa = bool(sources) and all(source.startswith("egogazevqa-") for source in sources)
    streamgaze = bool(sources) and set(sources) <= set(VIDEO_SOURCES)
    name, license_data = "Egocentric video questions with scanpaths", {"license": "unknown"}
    if toy:
        name, license_data = "GazeQwen's toy world", {"license": "apache-2.0"}
    elif streamgaze:
        name = "StreamGaze with scanpaths"
        link = "https://huggingface.co/datasets/danaleee/StreamGaze"
        license_data = {"license": "other", "license_name": "streamgaze-and-its-videos", "license_link": link}
    elif egogazevqa:
        name = "EgoGazeVQA with scanpaths"
    data = DatasetCardData(
        pretty_name=name,
        language="en",
        task_categories=["visual-question-answering", "video-text-to-text"],
        tags=["gaze", "eye-tracking", "egocentric-video", *(["synthetic", "toy-world"] if toy else [])],
        size_categories=_size_category(sum(task["kept"] for task in report.tasks.values())),
        source_datasets="original" if toy else "extended" if streamgaze or egogazevqa else None,
        **license_data,
        configs=configs,
    )
    counts = [
        [
            *(f"`{scheme}`", split, f"{about['questions']:,}", f"{about['videos']:,}"),
            *centrality_cells(about.get("gaze_centrality")),  # not in datasets that earlier versions built
        ]
        for scheme, splits in report.splits.items()
        for split, about in splits.items()
    ]
    return DatasetCard.from_template(
        data,
        template_path=str(CARD_TEMPLATE),
        title=name,
        toy=toy,
        streamgaze=streamgaze,
        egogazevqa=egogazevqa,
        own=own,
        sources=[VIDEO_SOURCES[source].title if source in VIDEO_SOURCES else source for source in sources],
        source=repository or "path/to/this/folder",
        counts=Table(["config", "split", "questions", "videos", *CENTRALITY_HEADER], counts).markdown(),
        units=UNITS,
        report=report.text(),
        gaze=sorted({video["gaze"] for video in report.videos.values() if video["gaze"]}),
    )


def _size_category(count: int) -> str:
    """Return the Hub's name for a number of questions."""
    names = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M")
    return next((name for power, name in enumerate(names, 3) if count < 10**power), "1M<n<10M")


def push_dataset(folder: str | PathLike, repository: str) -> str:
    """Upload a dataset folder, with a card that names the repository. Returns its address on the Hub."""
    write_text(Path(folder) / "README.md", str(render_dataset_card(folder, repository=repository)))
    return publish(folder, repository, "dataset")
