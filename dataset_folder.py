"""The folder of a dataset that `load_dataset` opens: one clock, videos, tables, a report of what is in it, a card."""

import hashlib
import json
import os
import shutil
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from datasets import Dataset, Features, List, Value, Video, disable_progress_bars

from .runs import new_folder, write_json, write_text
from .streamgaze import TASKS, VIDEOS_IN_RELEASE

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
        self.excluded.append({"where": where, "reason": reason})

    def text(self) -> str:
        kept = sum(task["kept"] for task in self.tasks.values())
        found = sum(task["found"] for task in self.tasks.values())
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
            "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        ]
        lines.append(f"{kept} questions of {len(self.videos)} videos kept; {found} questions found")
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
    """Raise FileExistsError if something is there already, but for a dataset built earlier that may be overwritten."""
    if out.exists() and not (overwrite and (out / "report.json").exists()):
        raise FileExistsError(f"{out} exists: choose another folder, or overwrite a dataset built earlier")


def write_dataset(
    out: Path, rows: dict[str, list[dict]], videos: dict[str, Path], schemes: dict[str, dict], report: Report
) -> None:
    """
    Write a dataset folder: `rows` by video name, with all of `COLUMNS` but `video`; `videos`: where each lies;
    `schemes`: for each config the names of the videos of each split, `default` first. The folder appears whole.
    """
    from .model_card import render_dataset_card

    columns = Features(
        {"file_name": Value("string"), **{name: kind for name, kind in COLUMNS.items() if name != "video"}}
    )
    configs = []
    # `datasets` caches a folder by its name and configs alone: without this, another folder of this name, or this one
    # built again, would come back with the rows of the first.
    digest = hashlib.sha256(json.dumps([str(out.resolve()), schemes, rows]).encode()).hexdigest()[:16]
    disable_progress_bars()
    with new_folder(out) as folder:
        (folder / "videos").mkdir()
        for name in rows:
            _link_or_copy(videos[name], folder / "videos" / name)
        for scheme, splits in schemes.items():
            files = []
            for split, names in splits.items():
                mine = [{"file_name": f"videos/{name}", **row} for name in names for row in rows.get(name, [])]
                if mine:
                    counts = {"questions": len(mine), "videos": len({row["video_name"] for row in mine})}
                    report.splits.setdefault(scheme, {})[split] = counts
                    # One table beside one video would be taken for a dataset of tables, but for this name.
                    file = "metadata.parquet" if len(rows) == 1 else f"{scheme}-{split}.parquet"
                    Dataset.from_list(mine, features=columns).to_parquet(str(folder / file))
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


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system
        shutil.copyfile(source, target)
