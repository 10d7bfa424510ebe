"""
Malformed inputs: each ends in a ValueError, FileNotFoundError or FileExistsError that names the file (or argument),
where and what; or is left out of a build, counted, with entry and reason; or is warned about with file and rows.
Never an error of a library, never silence. Every harness first passes the input that is not malformed.
"""

import copy
import json
import math
import os
import random
import re
import shutil
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from datasets import Dataset
from huggingface_hub.constants import HF_HUB_CACHE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from support import ROOT, index_frames, run_in_process, write_fixations, write_video

from gazeqwen.questions.dataset import _questions_of_row, _video_path, load_questions
from gazeqwen.questions.release import build
from gazeqwen.scanpath_gazeqwen import Scanpath, as_scanpath
from gazeqwen.training.recipe import Recipe
from gazeqwen.utils.settings import read_recipe
from gazeqwen.video_gazeqwen import Clip, frame_times_s, read_clip, read_frames, sample_times, video_info

OI_E, GTA = "present_object_identification_easy", "proactive_gaze_triggered_alert"
KINDS = (ValueError, FileNotFoundError, FileExistsError)


@contextmanager
def refused(*parts):
    """The block ends in one of the three kinds of error, not in a subclass from a library, that says all `parts`."""
    with pytest.raises(Exception) as caught:
        yield
    error = caught.value
    assert type(error) in KINDS, f"{type(error).__mro__}: {error}"
    for part in parts:
        assert str(part) in str(error), f"{part!r} not in {str(error)!r}"


def table_of(cases: dict):
    """Parametrisation over {id: case}."""
    return pytest.mark.parametrize("case", cases.values(), ids=list(cases))


# ================================================================ fixation tables
HEADER = "start_time,end_time,center_x,center_y,fixation_id"
GOOD = ["1,3,.25,.75,0", "4,5,.5,.5,1", "6,7,.1,.9,2"]
CSV = "\n".join([HEADER, *GOOD]) + "\n"
TABLE = "gaze table.csv"


def csv_with(row: str, header: str = HEADER) -> str:
    """A good table but for its second row, which is line 3."""
    return "\n".join([header, GOOD[0], row, GOOD[2]]) + "\n"


def cell(column: str, text: str) -> str:
    cells = dict(zip(HEADER.split(","), GOOD[1].split(","), strict=True))
    return csv_with(",".join({**cells, column: text}.values()))


def without(column: str) -> str:
    place = HEADER.split(",").index(column)
    return "\n".join(",".join(c for i, c in enumerate(row.split(",")) if i != place) for row in [HEADER, *GOOD])


CELLS = {
    "empty": "",
    "blank": "  ",
    "text": "left",
    "NaN": "nan",
    "inf": "inf",
    "-inf": "-inf",
    "overflow": "1e400",
    "quoted decimal comma": '"4,5"',
    "two points": "4.5.1",
    "a clock": "00:04",
    "hexadecimal": "0x4",
    "underscore": "1_0",
    "other digits": "٤",
}
# {id: (content, what the error says)}
TABLES: dict[str, tuple[str | bytes, tuple]] = {
    f"{column} {kind}": (cell(column, text), ("line 3",))
    for column in HEADER.split(",")
    for kind, text in CELLS.items()
}
TABLES |= {
    f"{column} is {text}": (cell(column, text), ("line 3", column[-1], "0 to 1"))
    for column in ("center_x", "center_y")
    for text in ("-0.000001", "1.000001", "-3", "640", "1e300")
}
TABLES |= {
    f"fixation_id is {text}": (cell("fixation_id", text), ("line 3", "fixation_id", "integer"))
    for text in ("1.5", "1e30", "-1e19", "9223372036854775808", "NaN", "Infinity")
}
TABLES |= {
    f"no column {column}": (without(column), ("no column for", said))
    for column, said in zip(HEADER.split(","), ("start", "end or duration", "x", "y"), strict=False)
}
TABLES |= {
    f"header holds {column} twice": (
        CSV.replace(HEADER, f"{HEADER},{column}").replace("\n", ",4\n"),
        (column, "twice"),
    )
    for column in HEADER.split(",")
}
TABLES |= {
    "negative start": (csv_with("-4,5,.5,.5,1"), ("line 3", "begins at or after 0")),
    "start just before 0": (csv_with("-0.001,5,.5,.5,1"), ("line 3", "begins at or after 0")),
    "negative times": (csv_with("-5,-4,.5,.5,1"), ("line 3",)),
    "end before start": (csv_with("5,4,.5,.5,1"), ("line 3", "5.0 to 4.0")),
    "end is start": (csv_with("4,4,.5,.5,1"), ("line 3", "4.0 to 4.0")),
    "sum of times overflows": (csv_with("1e308,1.7e308,.5,.5,1"), ("line 3", "finite")),
    "duration 0": ("start_time,duration,center_x,center_y\n1,1,.5,.5\n3,0,.5,.5\n", ("line 3", "3.0 to 3.0")),
    "negative duration": ("start_time,duration,center_x,center_y\n1,1,.5,.5\n3,-1,.5,.5\n", ("line 3", "3.0 to 2.0")),
    "duration text": ("start_time,duration,center_x,center_y\n1,1,.5,.5\n3,long,.5,.5\n", ("line 3", "'long'")),
    "duration text beside an end": (
        "start_time,end_time,duration,center_x,center_y\n1,2,1,.5,.5\n3,4,long,.5,.5\n",
        ("line 3", "'long'"),
    ),
    "zero byte": ("", ("empty",)),
    "only line ends": ("\n\n\n", ("empty",)),
    "first line empty": ("\n" + CSV, ("empty",)),
    "no header": ("\n".join(GOOD), ("no column for",)),
    "semicolons": (CSV.replace(",", ";"), ("no column for", "commas")),
    "tabs": (CSV.replace(",", "\t"), ("no column for", "commas")),
    "bars": (CSV.replace(",", "|"), ("no column for", "commas")),
    "spaces": (CSV.replace(",", " "), ("no column for", "commas")),
    "semicolons with decimal commas": (CSV.replace(",", ";").replace(".", "0,"), ("line 2", "commas")),
    "decimal commas": (csv_with("4,0,5,0,0,5,0,5,1"), ("line 3", "9 cells, expected 5")),
    "one extra cell": (csv_with(GOOD[1] + ",9"), ("line 3", "6 cells, expected 5")),
    "an extra empty cell": (csv_with(GOOD[1] + ","), ("line 3", "6 cells, expected 5")),
    "extra cell, nameless first column": (
        "," + HEADER + "\n0," + GOOD[0] + "\n1," + GOOD[1] + ",9\n",
        ("line 3", "7 cells, expected 6"),
    ),
    "last cell lacking": (csv_with("4,5,.5,.5"), ("line 3", "4 cells, expected 5")),
    "one cell": (csv_with("4"), ("line 3", "1 cells, expected 5")),
    "unused cell lacking": (csv_with("4,5,.5,.5", HEADER.replace("fixation_id", "label")), ("line 3", "4 cells")),
    "cut in the last row": (CSV[:-8], ("line 4",)),
    "headers in other case": (CSV.replace(HEADER, HEADER.upper()), ("no column for",)),
    "headers with spaces": (CSV.replace(",", ", "), ("no column for",)),
    "headers of another tool": (CSV.replace("center_", "norm_pos_"), ("no column for", "norm_pos_x")),
    "BOM and a bad row": ("\ufeff" + csv_with("5,4,.5,.5,1"), ("line 3",)),
    "BOM and nothing": ("\ufeff", ("empty",)),
    "Windows line ends and a bad row": (csv_with("5,4,.5,.5,1").replace("\n", "\r\n"), ("line 3",)),
    "old Mac line ends and a bad row": (csv_with("5,4,.5,.5,1").replace("\n", "\r"), ("line 3",)),
    "UTF-16": (CSV.encode("utf-16"), ("UTF-8",)),
    "UTF-16 without its mark": (CSV.encode("utf-16-le"), ("line 5",)),
    "Latin-1": (CSV.replace("fixation_id", "höhe").encode("latin-1"), ("UTF-8",)),
    "binary": (bytes(range(256)), ("UTF-8",)),
    "zeros": (bytes(100), ("no column for",)),
    "zeros after the header": (HEADER.encode() + b"\n" + bytes(100), ("line 2",)),
    "quote not closed": (csv_with('4,5,".5,.5,1'), ("not a CSV",)),
    "quote not closed in the header": ('"' + CSV, ("not a CSV",)),
    "quote not closed in an unused column": (
        csv_with('4,5,.5,.5,"1', HEADER.replace("fixation_id", "label")),
        ("not a CSV",),
    ),
    "text after a quote": (csv_with('"4"5,6,.5,.5,1'), ("not a CSV",)),
    "a cell of 200,000 characters": (csv_with(f"4,5,.5,.5,{'1' * 200_000}"), ("not a CSV",)),
    "JSON": (json.dumps([{"start_time": 1}]), ("no column for",)),
    "HTML": ("<!doctype html>\n<title>404</title>\n", ("no column for",)),
    "Git LFS pointer": ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", ("no column for",)),
}
LEGAL_TABLES = {  # {id: (content, fixations)}
    "plain": (CSV, 3),
    "header only": (HEADER + "\n", 0),
    "header without line end": (HEADER, 0),
    "no line end at the end": (CSV.rstrip(), 3),
    "BOM": ("\ufeff" + CSV, 3),
    "Windows line ends": (CSV.replace("\n", "\r\n"), 3),
    "old Mac line ends": (CSV.replace("\n", "\r"), 3),
    "empty lines": (CSV.replace("\n", "\n\n"), 3),
    "quoted": ("\n".join(",".join(f'"{c}"' for c in row.split(",")) for row in CSV.split()), 3),
    "a comma and a line end in a quoted label": (csv_with('4,5,.5,.5,"a,\nb"', HEADER[:-2] + "s"), 3),
    "nameless column": ("\n".join("," + row for row in CSV.split()), 3),
    "no ids": (without("fixation_id"), 3),
    "ids as 1.0": (CSV.replace(",1\n", ",1.0\n"), 3),
    "the frame's corners": (csv_with("4,5,0,1,1"), 3),
    "spaces around numbers": (csv_with("4, 5, .5,.5 ,1"), 3),
    "exponents": (csv_with("4e0,5,5E-1,.5,1"), 3),
}
# {id: (content, fixations, what the warning says)}
WARNED_TABLES = {
    "out of order": ("\n".join([HEADER, GOOD[1], GOOD[0]]), 2, ("2 of 2", "out of order")),
    "reversed": ("\n".join([HEADER, *GOOD[::-1]]), 3, ("2 of 3", "out of order")),
    "twice the same row": (CSV + GOOD[2], 3, ("line 5", "repeat")),
    "every row twice": ("\n".join([HEADER, *(row for row in GOOD for _ in "ab")]), 3, ("line 3, line 5, line 7",)),
    "duration says otherwise": (
        "start_time,end_time,duration,center_x,center_y\n1,2,1,.5,.5\n3,4,2,.5,.5\n",
        2,
        ("line 3", "duration"),
    ),
    "negative duration beside an end": (
        "start_time,end_time,duration,center_x,center_y\n1,2,1,.5,.5\n3,4,-1,.5,.5\n",
        2,
        ("line 3", "duration"),
    ),
}


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@table_of(TABLES)
def test_tables_that_are_refused(tmp_path, case):
    content, parts = case
    path = write(tmp_path / TABLE, content)
    with refused(path, *parts):
        Scanpath.from_csv(path)


@table_of(LEGAL_TABLES)
@pytest.mark.filterwarnings("error")
def test_tables_that_are_legal(tmp_path, case):
    content, count = case
    scanpath = Scanpath.from_csv(write(tmp_path / TABLE, content))
    assert len(scanpath) == count
    assert count < 3 or scanpath.table[:, 2].tolist() == [2, 4.5, 6.5]


@table_of(WARNED_TABLES)
def test_tables_that_are_warned_about(tmp_path, case):
    content, count, parts = case
    path = write(tmp_path / TABLE, content)
    with pytest.warns(UserWarning) as said:
        assert len(Scanpath.from_csv(path)) == count
    text = " ".join(str(warning.message) for warning in said)
    assert all(part in text for part in (str(path), *parts)), text


ODD_NAMES = ["with spaces.csv", "Ünï-コード.csv", "-o.csv", "two\nlines.csv", "100%.csv", "a;b'c\".csv", "[x]*.csv"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_of_tables_are_legal(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write(Path(name), CSV)
    assert len(as_scanpath(name)) == len(as_scanpath(tmp_path / name)) == 3


NO_TABLES = ["folder", "nowhere.csv", "nowhere/f.csv", "", "a\0b.csv"]


@pytest.mark.parametrize("name", NO_TABLES)
def test_paths_that_are_no_table(tmp_path, name):
    (tmp_path / "folder").mkdir()
    with refused(name):
        as_scanpath(str(tmp_path / name))


# ================================================================ arrays
ROW = [0.5, 0.5, 1.0, 1.0]
ARRAYS = {  # {id: (array, ids, what the error says)}
    "three columns": ([ROW[:3]], None, ("(1, 3)",)),
    "five columns": ([[*ROW, 1.0]], None, ("(1, 5)",)),
    "one row, not nested": (ROW, None, ("(4,)",)),
    "a batch": ([[ROW]], None, ("(1, 1, 4)",)),
    "transposed": (np.ones((4, 3)), None, ("(4, 3)",)),
    "no columns": (np.zeros((3, 0)), None, ("(3, 0)",)),
    "empty of another width": (np.zeros((0, 3)), None, ("(0, 3)",)),
    "one empty row": ([[]], None, ("(1, 0)",)),
    "a number": (5, None, ("()",)),
    "ragged": ([ROW, ROW[:3]], None, ("expected (N, 4) numbers",)),
    "ragged with an empty row": ([ROW, []], None, ("expected (N, 4) numbers",)),
    "None for a row": ([ROW, None], None, ("expected (N, 4) numbers",)),
    "None in a row": ([ROW, [0.5, None, 2.0, 1.0]], None, ("row 1", "y is nan")),
    "text in a row": ([ROW, [0.5, "left", 2.0, 1.0]], None, ("expected (N, 4) numbers",)),
    "a dict": ({"x": 1}, None, ("expected (N, 4) numbers",)),
    "rows as dicts": ([{"x": 1}], None, ("expected (N, 4) numbers",)),
    "a set": ({1.0}, None, ("expected (N, 4) numbers",)),
    "bytes": (b"fixations.csv", None, ("expected (N, 4) numbers",)),
    "an object": (object(), None, ("expected (N, 4) numbers",)),
    "complex numbers": ([[1j, 0.5, 1.0, 1.0]], None, ("expected (N, 4) numbers",)),
    "dates": (np.full((1, 4), np.datetime64("2026-01-01")), None, ("row 0: x is 20454",)),
    "a tensor with a gradient": (torch.ones(1, 4, requires_grad=True), None, ("expected (N, 4) numbers",)),
    "a bfloat16 tensor": (torch.ones(1, 4, dtype=torch.bfloat16), None, ("expected (N, 4) numbers",)),
    "ids as text": ([ROW], ["first"], ("ids", "'first'")),
    "ids with None": ([ROW], [None], ("ids", "None")),
    "ids with a fraction": ([ROW], [1.5], ("ids", "1.5")),
    "ids with NaN": ([ROW], [math.nan], ("ids", "nan")),
    "an id too large": ([ROW], [2**70], ("ids", str(2**70))),
    "more ids": ([ROW], [1, 2], ("2 ids for 1 fixations",)),
    "fewer ids": ([ROW, [0.5, 0.5, 3.0, 1.0]], [1], ("1 ids for 2 fixations",)),
    "no ids": ([ROW], [], ("0 ids for 1 fixations",)),
    "ids of another shape": ([ROW], [[1]], ("ids",)),
}
ARRAYS |= {
    f"{name} is {value}": ([ROW, [*ROW[:column], value, *ROW[column + 1 :]]], None, ("row 1", f"{said} is {value}"))
    for column, (name, said) in enumerate([("x", "x"), ("y", "y"), ("time", "time"), ("duration", "duration")])
    for value in (math.nan, math.inf, -math.inf)
}
ARRAYS |= {
    f"{name} is {value}": ([ROW, [*ROW[:column], value, *ROW[column + 1 :]]], None, ("row 1", f"{said} is {value}"))
    for column, name, said, values in [
        (0, "x", "x", (-0.1, 1.0001, 320.0)),
        (1, "y", "y", (-0.1, 1.0001, 240.0)),
        (2, "midpoint", "midpoint", (-1.0, 0.4)),
        (3, "duration", "duration", (0.0, -1.0)),
    ]
    for value in values
}
LEGAL_ARRAYS = {
    "plain": ([ROW], [7], 1),
    "empty list": ([], None, 0),
    "empty list, no ids": ([], [], 0),
    "(0, 4)": (np.zeros((0, 4)), None, 0),
    "float32": (np.float32([ROW]), None, 1),
    "whole numbers": ([[0, 1, 2, 1]], None, 1),
    "a tensor": (torch.tensor([ROW]), torch.tensor([3]), 1),
    "tuples": (((0.5, 0.5, 1.0, 1.0),), (1,), 1),
    "ids as 1.0": ([ROW], [1.0], 1),
}


@table_of(ARRAYS)
def test_arrays_that_are_refused(case):
    table, ids, parts = case
    with refused("gaze of v.mp4", *parts):
        Scanpath.from_array(table, "gaze of v.mp4", ids)


@table_of(LEGAL_ARRAYS)
@pytest.mark.filterwarnings("error")
def test_arrays_that_are_legal(case):
    table, ids, count = case
    assert len(Scanpath.from_array(table, "gaze of v.mp4", ids)) == count


# ================================================================ videos
@pytest.fixture(scope="module")
def films(tmp_path_factory) -> dict[str, Path]:
    """Whole videos of 20 s whose bytes are spread evenly over time, by container."""
    noise = np.random.default_rng(0).integers(0, 255, (100, 32, 32, 3), dtype=np.uint8)
    folder = tmp_path_factory.mktemp("films")
    return {
        "mp4": write_video(folder / "v.mp4", noise, fps=5),
        "fragmented mp4": write_video(
            folder / "f.mp4", noise, fps=5, container_options={"movflags": "frag_keyframe+empty_moov"}
        ),
        "mkv": write_video(folder / "v.mkv", noise, fps=5),
        "avi": write_video(folder / "v.avi", noise, fps=5, codec="mpeg4", options={}),
    }


@pytest.mark.parametrize("kind", ["mp4", "fragmented mp4", "mkv", "avi"])
def test_whole_films_are_read(films, kind):
    assert len(read_clip(films[kind], 0.0, 20.0).frames) == 20
    assert video_info(films[kind]).end_s == pytest.approx(20.0, abs=0.5)


CUTS = [(kind, percent) for kind in ("mp4", "fragmented mp4", "mkv", "avi") for percent in range(10, 100, 10)]


@pytest.mark.parametrize(("kind", "percent"), CUTS)
def test_cut_videos_are_named(films, tmp_path, kind, percent):
    path = tmp_path / f"cut film{films[kind].suffix}"
    data = films[kind].read_bytes()
    path.write_bytes(data[: len(data) * percent // 100])
    with refused(path):
        read_clip(path, 0.0, 20.0)
    for read in (video_info, frame_times_s, read_clip):
        try:  # the part that is there can be read, or not: but nothing else comes out
            read(path)
        except KINDS as error:
            assert type(error) in KINDS and str(path) in str(error)


def sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def latin_title(path: Path) -> None:
    """A video whose title is not UTF-8: the picture can be read."""
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "TITLE"
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for array in index_frames(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode(None))
    path.write_bytes(path.read_bytes().replace(b"TITLE", b"T\xcfTL\xe9"))


VIDEOS = {  # {id: (how it is made, what the error says)}
    "missing": (lambda path: None, ("no such",)),
    "a folder": (lambda path: path.mkdir(), ("folder",)),
    "zero byte": (lambda path: path.touch(), ("not a readable video",)),
    "text": (lambda path: path.write_text("no video"), ("not a readable video",)),
    "HTML": (lambda path: path.write_text("<!doctype html><title>404</title>" * 50), ("not a readable video",)),
    "zeros": (lambda path: path.write_bytes(bytes(10_000)), ("not a readable video",)),
    "noise": (lambda path: path.write_bytes(random.Random(0).randbytes(10_000)), ("not a readable video",)),
    "Git LFS pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        (),
    ),
    "sound alone": (sound, ("no video stream",)),
    **{
        f"a picture ({kind})": (
            lambda path, kind=kind: Image.new("RGB", (64, 48)).save(path, format=kind),
            ("picture",),
        )
        for kind in ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
    },
}
VIDEO = "my film.mp4"


@table_of(VIDEOS)
def test_files_that_are_no_video(tmp_path, case):
    make, parts = case
    make(tmp_path / VIDEO)
    for read in (read_clip, video_info, frame_times_s, lambda path: read_frames(path, [0.0])):
        with refused(tmp_path / VIDEO, *parts):
            read(tmp_path / VIDEO)


def test_a_title_that_is_not_utf8_does_not_hinder(tmp_path):
    latin_title(tmp_path / VIDEO)
    assert len(read_clip(tmp_path / VIDEO).frames) == 2


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """Ten seconds of ten frames a second."""
    return write_video(tmp_path_factory.mktemp("film") / VIDEO, index_frames(100))


WINDOWS = {  # {id: (start_s, end_s, what the error says)}
    "after the end": (11.0, 12.0, "12.0"),
    "begins at the end": (10.0, None, "10.0"),
    "begins before 0": (-1.0, 5.0, "-1.0"),
    "ends beyond": (0.0, 11.5, "11.5"),
    "ends far beyond": (0.0, 1e300, "1e+300"),
    "empty": (3.0, 3.0, "3.0"),
    "reversed": (5.0, 3.0, "5.0"),
    "start NaN": (math.nan, 5.0, "nan"),
    "end NaN": (0.0, math.nan, "nan"),
    "start inf": (math.inf, None, "inf"),
    "end inf": (0.0, math.inf, "inf"),
    "end -inf": (0.0, -math.inf, "-inf"),
    "start None": (None, 5.0, "None"),
    "start text": ("0", 5.0, "'0'"),
    "end text": (0.0, "00:05", "'00:05'"),
    "end a list": (0.0, [5], "[5]"),
}
SAMPLING = {  # {id: (arguments, what the error says)}
    "num_frames 0": ({"num_frames": 0}, "num_frames"),
    "num_frames -2": ({"num_frames": -2}, "num_frames"),
    "num_frames NaN": ({"num_frames": math.nan}, "num_frames"),
    "num_frames inf": ({"num_frames": math.inf}, "num_frames"),
    "num_frames 2.5": ({"num_frames": 2.5}, "num_frames"),
    "num_frames text": ({"num_frames": "8"}, "num_frames"),
    "num_frames True": ({"num_frames": True}, "num_frames"),
    "num_frames a list": ({"num_frames": [8]}, "num_frames"),
    "fps 0": ({"fps": 0}, "fps"),
    "fps -1": ({"fps": -1.0}, "fps"),
    "fps NaN": ({"fps": math.nan}, "fps"),
    "fps inf": ({"fps": math.inf}, "fps"),
    "fps text": ({"fps": "1"}, "fps"),
    "max_frames 0": ({"max_frames": 0}, "max_frames"),
    "max_frames 1": ({"max_frames": 1}, "max_frames"),
    "max_frames -4": ({"max_frames": -4}, "max_frames"),
    "max_frames NaN": ({"max_frames": math.nan}, "max_frames"),
    "max_frames inf": ({"max_frames": math.inf}, "max_frames"),
    "max_frames text": ({"max_frames": "64"}, "max_frames"),
    "max_frames 7.5": ({"max_frames": 7.5}, "max_frames"),
    "both": ({"num_frames": 4, "fps": 1.0}, "num_frames=4 and fps=1.0"),
}
FRAME_TIMES = {
    "NaN": [0.0, math.nan],
    "first NaN": [math.nan, 1.0],
    "inf": [0.0, math.inf],
    "-inf": [-math.inf, 0.0],
    "decreasing": [5.0, 1.0],
    "nested": [[1.0], [2.0]],
    "none": [],
    "a number": 1.0,
    "text": ["now"],
    "None": None,
    "ragged": [[1.0], [2.0, 3.0]],
}


@table_of(WINDOWS)
def test_windows_that_are_refused(film, case):
    start_s, end_s, part = case
    with refused(film, part):
        read_clip(film, start_s, end_s)
    if end_s is not None and not (start_s == 11.0 or start_s == -1.0 or end_s in (11.5, 1e300)):
        with refused(part):
            sample_times(start_s, end_s)


@table_of(SAMPLING)
def test_samplings_that_are_refused(film, case):
    arguments, part = case
    with refused(part):
        sample_times(0.0, 10.0, **arguments)
    with refused(part):
        read_clip(film, **arguments)


@table_of(FRAME_TIMES)
def test_frame_times_that_are_refused(film, case):
    with refused(film, "times"):
        read_frames(film, case)


@pytest.mark.filterwarnings("error")
def test_legal_windows_and_samplings(film):
    assert read_clip(film, 0, 11).end_s == pytest.approx(10, abs=0.11)  # a question's time is rounded
    assert len(read_clip(film, np.float64(1), np.int64(3), np.int64(4)).frames) == 4
    assert len(read_clip(film, num_frames=10**9).frames) == 64
    assert len(read_clip(film, fps=1e308).frames) == 64
    assert len(read_frames(film, [-1.0, 0.0, 0.0, 5])[0]) == 4


PIXELS = np.zeros((2, 4, 4, 3), np.uint8)
CLIPS = {  # {id: (arguments of Clip, what the error says)}
    "no frames": ((PIXELS[:0], [], 0.0, 1.0), "frames"),
    "frames None": ((None, [0.0, 1.0], 0.0, 1.0), "frames"),
    "floats": ((PIXELS / 255.0, [0.0, 1.0], 0.0, 1.0), "float64"),
    "one frame": ((PIXELS[0], [0.0], 0.0, 1.0), "(4, 4, 3)"),
    "channels first": ((PIXELS.transpose(0, 3, 1, 2), [0.0, 1.0], 0.0, 1.0), "(2, 3, 4, 4)"),
    "ragged frames": (([PIXELS[0], PIXELS[0, :2]], [0.0, 1.0], 0.0, 1.0), "frames"),
    "more times": ((PIXELS, [0.0, 0.5, 1.0], 0.0, 1.0), "timestamps"),
    "times None": ((PIXELS, None, 0.0, 1.0), "timestamps"),
    "times text": ((PIXELS, ["a", "b"], 0.0, 1.0), "timestamps"),
    "time NaN": ((PIXELS, [0.0, math.nan], 0.0, 1.0), "nan"),
    "times decrease": ((PIXELS, [1.0, 0.0], 0.0, 1.0), "not decreasing"),
    "a frame after the end": ((PIXELS, [0.0, 1.5], 0.0, 1.0), "1.5"),
    "no length": ((PIXELS, [0.0, 0.0], 1.0, 1.0), "positive length"),
    "reversed": ((PIXELS, [0.0, 0.0], 2.0, 1.0), "positive length"),
    "start NaN": ((PIXELS, [0.0, 1.0], math.nan, 1.0), "nan"),
    "start None": ((PIXELS, [0.0, 1.0], None, 1.0), "None"),
    "start -inf": ((PIXELS, [0.0, 1.0], -math.inf, 1.0), "-inf"),
    "end inf": ((PIXELS, [0.0, 1.0], 0.0, math.inf), "inf"),
    "end text": ((PIXELS, [0.0, 1.0], 0.0, "1"), "'1'"),
}


@table_of(CLIPS)
def test_clips_that_are_refused(case):
    arguments, part = case
    assert Clip(PIXELS, [0.0, 1.0], 0.0, 1.0, "my clip").source == "my clip"
    with refused("my clip", part):
        Clip(*arguments, "my clip")


# ================================================================ questions of a release
def question(**changes) -> dict:
    item = {"question": "Which object?", "time_stamp": "00:08", "answer": "B"}
    return item | {"options": ["A. box", "B. knife", "C. jar"]} | changes


def alert(**changes) -> dict:
    points = [{"realtime": "00:03", "type": 0}, {"realtime": "00:07", "type": 1}]
    return {"question": "Alert me.", "time_stamp": "00:01", "test_info": points} | changes


def entry(item, **changes) -> dict:
    return {"video_path": VIDEO, "questions": [item], "video_categories": "toys"} | changes


def lacking(item: dict, name: str) -> dict:
    return {key: value for key, value in item.items() if key != name}


WRONG_TYPES = {
    "an int": 7_000,
    "a list": ["x"],
    "None": None,
    "an empty text": "",
    "an object": {"x": 1},
    "a bool": True,
}
NAMES = {
    "../x.mp4": "../x.mp4",
    "a/../../b.mp4": "a/../../b.mp4",
    "..\\x.mp4": "..\\x.mp4",
    "..": "..",
    ".": ".",
    "/": "/",
    "a folder": "videos/",
    "a NUL": "v\0.mp4",
    "a NUL at the end": "v.mp4\0",
    "hidden": ".hidden.mp4",
    "hidden in a folder": "videos/.hidden.mp4",
    "a line end": "a\nb.mp4",
    "a half character": "\ud800.mp4",
    "right-to-left mark": "a\u202e4pm.mp4",
    "blank": "   ",
}
TIMES = [
    "4:75",
    "-1:00",
    "now",
    "1:2:3:4",
    "nan",
    "inf",
    "1e400",
    "1e308:00",
    "00:00",
    "8s",
    "[00:03 - 00:08]",
    "1_0:00",
]
TIMES += [":", "00:", ":08", "00:-5", "0x10", "٠٠:٠٨", "00:08:", "1.5:00", "00,08", "  ", -5, math.nan, ["00:08"]]
OPTIONS = {
    "empty": [],
    "one": ["A. box"],
    "nine": [f"{chr(65 + i)}. {i}" for i in range(9)],
    "twice the same": ["A. box", "B. knife", "C. box"],
    "same but for spaces": ["A. box", "B.  box ", "C. jar"],
    "numbers": [1, 2, 3],
    "one number": ["A. box", "B. knife", 3],
    "None in it": ["A. box", None, "C. jar"],
    "an empty one": ["A. box", "B. ", "C. jar"],
    "a text": "A. box B. knife",
    "an object": {"A": "box", "B": "knife"},
    "lists": [["A. box"], ["B. knife"]],
    "a number": 3,
    "half a character": ["A. box", "B. \ud800", "C. jar"],
    "a letter twice": ["A. box", "B. knife", "B. jar"],
    "a letter lacks": ["A. box", "B. knife", "D. jar"],
}
ANSWERS = ["D", "Z", "b", "AB", "B. knife", "knife", " ", 1, 1.0, ["B"], "1", "(B)", {"B": 1}]
POINTS = {
    "type True": [{"realtime": "00:03", "type": True}],
    "type False": [{"realtime": "00:03", "type": False}],
    "type 2": [{"realtime": "00:03", "type": 2}],
    "type -1": [{"realtime": "00:03", "type": -1}],
    "type 0.5": [{"realtime": "00:03", "type": 0.5}],
    "type '1'": [{"realtime": "00:03", "type": "1"}],
    "type None": [{"realtime": "00:03", "type": None}],
    "type a list": [{"realtime": "00:03", "type": [1]}],
    "type NaN": [{"realtime": "00:03", "type": math.nan}],
    "no type": [{"realtime": "00:03"}],
    "no realtime": [{"type": 1}],
    "realtime None": [{"realtime": None, "type": 1}],
    "realtime text": [{"realtime": "soon", "type": 1}],
    "realtime an object": [{"realtime": {}, "type": 1}],
    "realtime 0": [{"realtime": "00:00", "type": 1}],
    "realtime negative": [{"realtime": "-00:03", "type": 1}],
    "realtime twice": [{"realtime": "00:03", "type": 0}, {"realtime": "00:03", "type": 1}],
    "realtime twice in other words": [{"realtime": "00:03", "type": 0}, {"realtime": "3", "type": 0}],
    "second point bad": [{"realtime": "00:03", "type": 0}, {"realtime": "00:07", "type": "yes"}],
    "no points": [],
    "None": None,
    "an object": {"realtime": "00:03", "type": 1},
    "a text": "00:03",
    "numbers": [3, 7],
    "None in it": [None],
    "lists": [["00:03", 1]],
    "a bool": True,
}
# {id: (task, entry, what the reason says)}
ENTRIES: dict[str, tuple[str, object, tuple]] = {
    f"entry {kind}": (OI_E, value, ("questions are None",))
    for kind, value in WRONG_TYPES.items()
    if kind != "an object"
}
ENTRIES |= {
    f"questions {kind}": (OI_E, entry(None, questions=value), ("questions are", repr(value)))
    for kind, value in WRONG_TYPES.items()
    if kind != "a list"
}
ENTRIES |= {
    "no questions": (OI_E, lacking(entry(None), "questions"), ("questions are None",)),
    "questions an empty list": (OI_E, entry(None, questions=[]), ("questions are []",)),
}
ENTRIES |= {
    f"question {kind}": (OI_E, entry(value), (repr(value),))
    for kind, value in WRONG_TYPES.items()
    if kind[3:] != "object"
}
ENTRIES |= {
    f"no {name}": (OI_E, entry(lacking(question(), name)), (name, "None"))
    for name in ("question", "time_stamp", "answer", "options")
}
ENTRIES |= {
    f"alert without {name}": (GTA, entry(lacking(alert(), name)), (name, "None"))
    for name in ("question", "time_stamp", "test_info")
}
ENTRIES |= {"no video_path": (OI_E, lacking(entry(question()), "video_path"), ("video_path is None",))}
ENTRIES |= {
    f"{name} {kind}": (OI_E, entry(question(**{name: value})), (name,))
    for name in ("question", "time_stamp", "answer", "options")
    for kind, value in WRONG_TYPES.items()
    if not (name == "time_stamp" and kind == "an int")  # seconds: beyond the video
}
ENTRIES |= {
    f"question text {kind}": (OI_E, entry(question(question=text)), ("question is",))
    for kind, text in {"blank": " \n", "half a character": "\udc00?"}.items()
}
ENTRIES |= {
    f"video_path {kind}": (OI_E, entry(question(), video_path=value), ("video_path is",))
    for kind, value in WRONG_TYPES.items()
}
ENTRIES |= {
    f"video_path {kind}": (OI_E, entry(question(), video_path=value), ("video_path is", repr(value)))
    for kind, value in NAMES.items()
}
ENTRIES |= {
    f"video {kind}": (GTA, lacking(entry(alert(), video=value), "video_path"), ("video_path is", repr(value)))
    for kind, value in NAMES.items()
}
ENTRIES |= {
    f"video_categories {kind}": (OI_E, entry(question(), video_categories=value), ("video_categories is", repr(value)))
    for kind, value in {**WRONG_TYPES, "half a character": "\ud800"}.items()
    if kind not in ("None", "an empty text")
}
ENTRIES |= {
    f"time_stamp {value!r}": (OI_E, entry(question(time_stamp=value)), ("time_stamp is", repr(value)))
    for value in TIMES
}
ENTRIES |= {
    f"alert time_stamp {value!r}": (GTA, entry(alert(time_stamp=value)), ("time_stamp is", repr(value)))
    for value in TIMES
    if value != "00:00"  # an alert may be asked for at the start
}
ENTRIES |= {
    f"options {kind}": (OI_E, entry(question(options=value)), ("options are", repr(value)))
    for kind, value in OPTIONS.items()
}
ENTRIES |= {
    f"answer {value!r}": (OI_E, entry(question(answer=value)), ("answer is", repr(value))) for value in ANSWERS
}
ENTRIES |= {f"test_info {kind}": (GTA, entry(alert(test_info=value)), ("test",)) for kind, value in POINTS.items()}

LEGAL_ENTRIES = {
    "plain": (OI_E, entry(question())),
    "other words": (OI_E, entry(question(question="Other?"))),
    "a path": (OI_E, entry(question(question="Path?"), video_path=f"/data/videos/{VIDEO}")),
    "a Windows path": (OI_E, entry(question(question="Windows?"), video_path=f"C:\\videos\\{VIDEO}")),
    "key video": (OI_E, lacking(entry(question(question="Key?"), video=VIDEO), "video_path")),
    "no category": (OI_E, lacking(entry(question(question="Category?")), "video_categories")),
    "seconds": (OI_E, entry(question(time_stamp=7))),
    "seconds with a fraction": (OI_E, entry(question(time_stamp=7.5))),
    "hours": (OI_E, entry(question(time_stamp="00:00:06"))),
    "unlettered options": (OI_E, entry(question(question="Unlettered?", options=["box", "knife", "jar"]))),
    "answer with a point": (OI_E, entry(question(question="Point?", answer="B."))),
    "non-ASCII": (OI_E, entry(question(question="何?", options=["A. 箱", "B. 🔪"]))),
    "unknown keys": (OI_E, entry(question(question="Keys?", extra={"deep": [1]}), extra=1)),
    "an alert": (GTA, entry(alert())),
    "an alert at the start": (GTA, entry(alert(question="Start?", time_stamp="00:00"))),
}
# {id: (task, entry, what the report's text says)}: what is only seen beside the video
BEYOND = {
    "no such video": (OI_E, entry(question(), video_path="gone.mp4"), "missing videos (2): gone.mp4, passwd"),
    "a path of the system": (OI_E, entry(question(), video_path="/etc/passwd"), "gone.mp4, passwd"),
    "time beyond": (OI_E, entry(question(time_stamp="03:00")), f"{OI_E}, {VIDEO} at 180 s: lies beyond the video"),
    "time just beyond": (OI_E, entry(question(time_stamp="00:12")), f"{OI_E}, {VIDEO} at 12 s: lies beyond the video"),
    "time in hours": (OI_E, entry(question(time_stamp=7000)), f"{OI_E}, {VIDEO} at 7000 s: lies beyond the video"),
    "alert beyond": (
        GTA,
        entry(alert(time_stamp="00:20", test_info=[{"realtime": "00:30", "type": 1}])),
        f"{GTA}, {VIDEO} at 20 s: lies beyond the video",
    ),
    "one point beyond": (
        GTA,
        entry(
            alert(time_stamp="00:02", test_info=[{"realtime": "00:03", "type": 1}, {"realtime": "00:40", "type": 1}])
        ),
        f"{GTA}, {VIDEO} at 2 s: test point at 40.000 s lies outside the video",
    ),
    "the same again": (OI_E, entry(question()), "the same question as an earlier one"),
}


def write_release(folder: Path, film: Path, qa: dict[str, object], **files: str | bytes) -> Path:
    (folder / "qa").mkdir(parents=True)
    for task, entries in qa.items():
        write(folder / "qa" / f"{task}.json", entries if isinstance(entries, (str, bytes)) else json.dumps(entries))
    (folder / "videos").mkdir()
    os.link(film, folder / "videos" / film.name)
    (folder / "metadata").mkdir()
    write_fixations(folder / "metadata" / f"{film.stem}_fixation_filtered.csv", [(2.0, 6.0, 0.3, 0.6)])
    for name, content in files.items():
        write(folder / name.replace("_json", ".json"), content)
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory, film):
    """One build of all entries, legal and not: (report, {id: the file and number of its entry}, folder)."""
    folder = tmp_path_factory.mktemp("all")
    qa, places = {OI_E: [], GTA: []}, {}
    for name, (task, value, *_) in {**LEGAL_ENTRIES, **BEYOND, **ENTRIES}.items():
        places[name] = f"qa/{task}.json, entry {len(qa[task])}"
        qa[task].append(value)
    release = write_release(folder / "release", film, qa, splits_json=json.dumps({"test": [VIDEO]}))
    report = build(release, folder / "data", progress=False)
    return report, places, folder / "data"


@pytest.mark.parametrize("name", ENTRIES)
def test_entries_that_are_left_out(built, name):
    report, places, _ = built
    reasons = [item["reason"] for item in report.excluded if item["where"] == places[name]]
    assert len(reasons) == 1, reasons
    for part in ENTRIES[name][2]:
        assert part in reasons[0], reasons


@pytest.mark.parametrize("name", BEYOND)
def test_entries_that_do_not_fit_their_video(built, name):
    assert BEYOND[name][2] in built[0].text()


def test_legal_entries_are_kept_and_all_others_counted(built):
    report, _, data = built
    expected = {task: sum(case[0] == task for case in LEGAL_ENTRIES.values()) for task in (OI_E, GTA)}
    expected[GTA] += 1  # the one with a point beyond the video
    assert {task: counts["kept"] for task, counts in report.tasks.items()} == expected
    for task in (OI_E, GTA):
        every = sum(case[0] == task for cases in (LEGAL_ENTRIES, BEYOND, ENTRIES) for case in cases.values())
        assert report.tasks[task]["found"] == every
    found = {question.question for question in load_questions(data, "test")}
    assert found >= {case[1]["questions"][0]["question"] for case in LEGAL_ENTRIES.values()}
    assert json.loads((data / "report.json").read_text())["excluded"] == report.excluded


FILES = {  # {id: (content of a QA file, what the error says)}
    "empty": ("", "not JSON"),
    "cut": (json.dumps([entry(question())])[:-5], "not JSON"),
    "text": ("no questions", "not JSON"),
    "two lists": ("[] []", "not JSON"),
    "JSON lines": ('{"a": 1}\n{"a": 2}\n', "not JSON"),
    "single quotes": ("[{'a': 1}]", "not JSON"),
    "trailing comma": ("[1,]", "not JSON"),
    "Latin-1": ('[{"question": "höhe"}]'.encode("latin-1"), "not JSON"),
    "UTF-16": (json.dumps([entry(question())]).encode("utf-16"), "not JSON"),
    "binary": (bytes(range(256)), "not JSON"),
    "deep": ("[" * 100_000, "not JSON"),
    "deep and closed": ("[" * 100_000 + "]" * 100_000, "not JSON"),
    "a number of 5,000 digits": ("[" + "1" * 5000 + "]", "not JSON"),
    "an object": (json.dumps({"questions": [entry(question())]}), "expected a list"),
    "a number": ("5", "expected a list"),
    "a text in JSON": ('"questions"', "expected a list"),
    "null": ("null", "expected a list"),
    "true": ("true", "expected a list"),
}
SPLITS_FILES = {  # {id: (content of splits.json, what the error says)}
    "empty": ("", "not JSON"),
    "cut": ('{"train": ["my', "not JSON"),
    "Latin-1": ('{"train": ["höhe.mp4"]}'.encode("latin-1"), "not JSON"),
    "deep": ("[" * 100_000, "not JSON"),
    "a list": (json.dumps([VIDEO]), "expected an object"),
    "null": ("null", "expected an object"),
    "a text": ('"train"', "expected an object"),
    "a number": ("1", "expected an object"),
    "unknown split": (json.dumps({"train": [VIDEO], "dev": []}), "dev"),
    "upper case": (json.dumps({"Train": [VIDEO]}), "Train"),
    "a text for names": (json.dumps({"train": VIDEO}), "lists of video names"),
    "null for names": (json.dumps({"train": None}), "lists of video names"),
    "numbers for names": (json.dumps({"train": [1]}), "lists of video names"),
    "an object for names": (json.dumps({"train": {VIDEO: 1}}), "lists of video names"),
    "lists in names": (json.dumps({"train": [[VIDEO]]}), "lists of video names"),
    "a name twice in a split": (json.dumps({"train": [VIDEO, VIDEO]}), repr(VIDEO)),
    "a name in two splits": (json.dumps({"train": [VIDEO], "test": [VIDEO]}), repr(VIDEO)),
    "val and validation": (json.dumps({"val": ["a.mp4"], "validation": [VIDEO]}), "val"),
}


@table_of(FILES)
def test_question_files_that_are_refused(tmp_path, film, case):
    content, part = case
    release = write_release(tmp_path / "r", film, {OI_E: content, GTA: [entry(alert())]})
    with refused(release / "qa" / f"{OI_E}.json", part):
        build(release, tmp_path / "d", progress=False)
    assert not (tmp_path / "d").exists()


@table_of(SPLITS_FILES)
def test_splits_that_are_refused(tmp_path, film, case):
    content, part = case
    release = write_release(tmp_path / "r", film, {OI_E: [entry(question())]}, splits_json=content)
    with refused(release / "splits.json", part):
        build(release, tmp_path / "d", progress=False)


def test_a_folder_is_neither_questions_nor_splits(tmp_path, film):
    release = write_release(tmp_path / "r", film, {OI_E: [entry(question())]})
    with refused(tmp_path, "folder"):
        build(release, tmp_path / "d", splits=tmp_path, progress=False)
    with refused(tmp_path / "nowhere.json"):
        build(release, tmp_path / "d", splits=tmp_path / "nowhere.json", progress=False)
    (release / "qa" / f"{GTA}.json").mkdir()
    with refused(f"{GTA}.json", "folder"):
        build(release, tmp_path / "d", progress=False)


def test_splits_that_name_no_video_leave_all_out_and_say_so(tmp_path, film):
    release = write_release(tmp_path / "r", film, {OI_E: [entry(question())]}, splits_json='{"train": ["other.mp4"]}')
    report = build(release, tmp_path / "d", progress=False)
    assert report.excluded == [{"where": VIDEO, "reason": f"in no split of {release / 'splits.json'}"}]


BUILDS = {  # {id: (what is done to the release, arguments, what the error says)}
    "no such folder": (lambda r: shutil.rmtree(r), {}, "no question files"),
    "no qa": (lambda r: shutil.rmtree(r / "qa"), {}, "no question files"),
    "qa empty": (lambda r: (r / "qa" / f"{OI_E}.json").unlink(), {}, "no question files"),
    "unknown task": (lambda r: write(r / "qa" / "present_all.json", "[]"), {}, "present_all"),
    "no videos": (lambda r: shutil.rmtree(r / "videos"), {}, "missing videos (1)"),
    "no questions": (lambda r: write(r / "qa" / f"{OI_E}.json", "[]"), {}, "nothing can be used"),
    "the video twice": (lambda r: shutil.copytree(r / "videos", r / "videos" / "again"), {}, "second video"),
    "algorithm": (lambda r: None, {"algorithm": "guess"}, "'guess'"),
    "release is a file": (lambda r: (shutil.rmtree(r), r.touch()), {}, "no question files"),
    "gaze is nowhere": (lambda r: None, {"gaze": "/no/gaze"}, "/no/gaze"),
    "merged table not UTF-8": (lambda r: write(r / "metadata" / "egtea.csv", b"video_name\n\xff\n"), {}, "egtea.csv"),
    "merged table cut": (
        lambda r: write(r / "metadata" / "egtea.csv", f"video_name,{HEADER}\nmy film,{GOOD[0]}\nmy f"),
        {},
        "egtea.csv, line 3",
    ),
}


@table_of(BUILDS)
def test_releases_that_are_refused(tmp_path, film, case):
    change, arguments, part = case
    release = write_release(tmp_path / "r", film, {OI_E: [entry(question())]})
    assert build(release, tmp_path / "before", progress=False).videos
    change(release)
    with refused(part):
        build(release, tmp_path / "d", progress=False, **arguments)
    assert not (tmp_path / "d").exists()


def test_tables_and_videos_of_a_release_that_are_left_out(tmp_path, film):
    """One build with every malformed table and video: one good video is kept, each other is named with the reason."""
    names, broken = [f"t{number}.mp4" for number in range(len(TABLES))], {}
    release = write_release(tmp_path / "r", film, {OI_E: []})
    for name, (content, _) in zip(names, TABLES.values(), strict=True):
        os.link(film, release / "videos" / name)
        write(release / "metadata" / f"{Path(name).stem}_fixation_filtered.csv", content)
    for number, (make, parts) in enumerate(VIDEOS.values()):
        make(release / "videos" / f"v{number}.mp4")
        broken[f"v{number}.mp4"] = parts
    entries = [entry(question(), video_path=name) for name in (VIDEO, *names, *broken)]
    write(release / "qa" / f"{OI_E}.json", json.dumps(entries))
    report = build(release, tmp_path / "d", progress=False)
    assert report.tasks[OI_E]["kept"] == 1 and list(report.videos) == [VIDEO]
    reasons = {item["where"]: item["reason"] for item in report.excluded}
    for name, (_, parts) in zip(names, TABLES.values(), strict=True):
        for part in (f"{Path(name).stem}_fixation_filtered.csv", *parts):
            assert part in reasons[name]
    absent = {name for name in broken if not (release / "videos" / name).is_file()}
    assert set(report.missing_videos) == absent and len(absent) == 2
    for name in set(broken) - absent:
        assert f"videos/{name}: " in reasons[name] and all(part in reasons[name] for part in broken[name])


def test_fixations_beyond_the_video_are_cut_and_counted(tmp_path, film):
    release = write_release(tmp_path / "r", film, {OI_E: [entry(question())]})
    rows = [(2.0, 6.0, 0.3, 0.6), (9.0, 11.0, 0.3, 0.6), (20.0, 21.0, 0.3, 0.6), (1e9, 2e9, 0.3, 0.6)]
    write_fixations(release / "metadata" / f"{film.stem}_fixation_filtered.csv", rows)
    report = build(release, tmp_path / "d", progress=False)
    (item,) = report.excluded
    assert item["where"] == f"fixations of {VIDEO}" and "3 fixations reach beyond the video's end" in item["reason"]
    assert report.videos[VIDEO]["fixations"] == 2


def test_a_merged_table_is_checked_for_the_videos_asked_about(tmp_path, film):
    release = write_release(tmp_path / "r", film, {OI_E: [entry(question()), entry(question(), video_path="w.mp4")]})
    os.link(film, release / "videos" / "w.mp4")
    rows = [f"w,{GOOD[1]}", f"w,{GOOD[0]}", "unasked,5,4,.5,.5,1", f"unasked,{GOOD[0]}"]
    write(release / "metadata" / "egtea.csv", "\n".join([f"video_name,{HEADER}", *rows]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = build(release, tmp_path / "d", progress=False)
    assert report.excluded == [] and report.videos["w.mp4"]["fixations"] == 2
    assert any("egtea.csv: 2 of 2 fixations are out of order" in note for note in report.notes)
    write(release / "metadata" / "egtea.csv", f"video_name,{HEADER}\nw,5,4,.5,.5,1\n")
    (item,) = build(release, tmp_path / "e", progress=False).excluded
    assert item["where"] == "w.mp4" and "egtea.csv, line 2: the fixation runs from 5.0 to 4.0" in item["reason"]


def test_an_overlay_of_one_frame_leaves_its_video_out(tmp_path, film):
    """There is no rate to go on at."""
    release = write_release(tmp_path / "r", film, {OI_E: [entry(question()), entry(question(), video_path="w.mp4")]})
    os.link(film, release / "videos" / "w.mp4")
    (release / "videos" / "viz").mkdir()
    write_video(release / "videos" / "viz" / VIDEO, index_frames(100)[:1])
    (item,) = build(release, tmp_path / "d", progress=False).excluded
    assert item["where"] == VIDEO and "viz" in item["reason"] and "a picture, expected a video" in item["reason"]


ODD_VIDEOS = [
    "with spaces.mp4",
    "Ünï-コード.mp4",
    "-o.mp4",
    "a%20b.mp4",
    "[x].mp4",
    "a#b.mp4",
    "a'b\".mp4",
    "__x.mp4",
    "*.mp4",
]


def test_odd_names_of_videos_and_folders_are_legal(tmp_path, film):
    release = write_release(
        tmp_path / "rélease [1] *", film, {OI_E: [entry(question(), video_path=name) for name in ODD_VIDEOS]}
    )
    for name in ODD_VIDEOS:
        os.link(film, release / "videos" / name)
    write(release / "splits.json", json.dumps({"test": ODD_VIDEOS}))
    out = tmp_path / "with spaces, ünï #1"
    report = build(release, out, progress=False)
    assert not report.excluded and report.without_gaze == sorted(ODD_VIDEOS)
    found = load_questions(out, "test", without_gaze="keep")
    assert sorted(q.video_name for q in found) == sorted(ODD_VIDEOS)
    assert all(video_info(q.video).width == 64 for q in found)


# ================================================================ built datasets
def edit(path: Path, change) -> None:
    path.write_bytes(change(path.read_bytes()))


def other_columns(data: Path) -> None:
    from datasets import Dataset

    Dataset.from_list([{"file_name": f"videos/{VIDEO}", "x": 1}]).to_parquet(str(data / "default-test.parquet"))


DATASETS = {  # {id: (what is done to the folder, what the error says)}
    "no README": (lambda d: (d / "README.md").unlink(), "no dataset here"),
    "README empty": (lambda d: write(d / "README.md", ""), ""),
    "README without its head": (lambda d: write(d / "README.md", "# a dataset"), ""),
    "README not YAML": (lambda d: write(d / "README.md", "---\nconfigs: [a: {\n---\n"), "default"),
    "README not UTF-8": (lambda d: write(d / "README.md", b"---\nconfigs: \xff\n---\n"), "default"),
    "README with other configs": (lambda d: write(d / "README.md", "---\nconfigs: 5\n---\n"), "default"),
    "parquet removed": (lambda d: (d / "default-test.parquet").unlink(), "default-test.parquet"),
    "parquet empty": (lambda d: write(d / "default-test.parquet", ""), "default"),
    "parquet cut": (lambda d: edit(d / "default-test.parquet", lambda b: b[: len(b) // 2]), "default"),
    "parquet text": (lambda d: write(d / "default-test.parquet", "no table"), "default"),
    "parquet noise": (
        lambda d: edit(d / "default-test.parquet", lambda b: random.Random(0).randbytes(len(b))),
        "default",
    ),
    "parquet of other columns": (other_columns, "video_name is None"),
    "video removed": (lambda d: (d / "videos" / VIDEO).unlink(), "videos"),
    "videos removed": (lambda d: shutil.rmtree(d / "videos"), "videos"),
    "a file": (lambda d: (shutil.rmtree(d), d.touch()), "expected a folder"),
    "empty folder": (lambda d: (shutil.rmtree(d), d.mkdir()), "no dataset here"),
    "gone": (lambda d: shutil.rmtree(d), "no such folder"),
}


def dataset(folder: Path, film: Path, names=(VIDEO, "other.mp4", "third.mp4")) -> Path:
    entries = [entry(question(), video_path=name) for name in names]
    release = write_release(folder / "r", film, {OI_E: entries}, splits_json=json.dumps({"test": names}))
    for name in names[1:]:
        os.link(film, release / "videos" / name)
    build(release, folder / "my data", progress=False)
    return folder / "my data"


@table_of(DATASETS)
def test_datasets_that_are_refused(tmp_path, film, case):
    change, part = case
    data = dataset(tmp_path, film)
    change(data)
    with refused(data, part):
        load_questions(data, "test", without_gaze="keep")


def test_a_dataset_of_one_video_without_it(tmp_path, film):
    data = dataset(tmp_path, film, [VIDEO])
    (data / "videos" / VIDEO).unlink()
    with refused(data / "videos", "no videos there"):
        load_questions(data, "test")


def test_a_video_that_goes_after_its_dataset_was_loaded_is_named(tmp_path, film):
    """`datasets` has the rows in its cache: loading again finds nothing wrong."""
    data = dataset(tmp_path, film)
    assert len(load_questions(data, "test", without_gaze="keep")) == 3
    (data / "videos" / VIDEO).unlink()
    with refused(data, VIDEO):
        load_questions(data, "test", without_gaze="keep")


ROWS = {  # {id: (task, what of a row is changed, what the error says)}
    "task None": (OI_E, {"task": None}, "task"),
    "answer beyond": (OI_E, {"answer": 3}, "answer"),
    "answer negative": (OI_E, {"answer": -1}, "answer"),
    "answer None": (OI_E, {"answer": None}, "answer"),
    "options None": (OI_E, {"options": None}, "options"),
    "one option": (OI_E, {"options": ["box"]}, "options"),
    "None in options": (OI_E, {"options": ["box", None, "jar"]}, "options"),
    "question None": (OI_E, {"question": None}, "question"),
    "start None": (OI_E, {"start_s": None}, "start_s"),
    "start NaN": (OI_E, {"start_s": math.nan}, "start_s"),
    "start negative": (OI_E, {"start_s": -1.0}, "start_s"),
    "end None": (OI_E, {"end_s": None}, "end_s"),
    "end NaN": (OI_E, {"end_s": math.nan}, "end_s"),
    "end inf": (OI_E, {"end_s": math.inf}, "end_s"),
    "end before start": (OI_E, {"start_s": 9.0}, "end_s"),
    "end at start": (OI_E, {"start_s": 8.0}, "end_s"),
    "points None": (GTA, {"test_points": None}, "test_points"),
    "no points": (GTA, {"test_points": []}, "test_points"),
    "point None": (GTA, {"test_points": [None]}, "test_points"),
    "point's time NaN": (GTA, {"test_points": [{"time_s": math.nan, "alert": True}]}, "test_points"),
    "point's time 0": (GTA, {"test_points": [{"time_s": 0.0, "alert": True}]}, "test_points"),
    "point's alert None": (GTA, {"test_points": [{"time_s": 3.0, "alert": None}]}, "test_points"),
    "gaze of three columns": (OI_E, {"scanpath": [[0.5, 0.5, 1.0]]}, "(1, 3)"),
    "gaze ragged": (OI_E, {"scanpath": [ROW, ROW[:3]]}, "expected (N, 4) numbers"),
    "gaze with None": (OI_E, {"scanpath": [[0.5, None, 1.0, 1.0]]}, "y is nan"),
    "gaze with a None row": (OI_E, {"scanpath": [None]}, "expected (N, 4)"),
    "gaze NaN": (OI_E, {"scanpath": [[0.5, math.nan, 1.0, 1.0]]}, "row 0: y is nan"),
    "gaze out of frame": (OI_E, {"scanpath": [[0.5, 1.5, 1.0, 1.0]]}, "row 0: y is 1.5"),
    "gaze before 0": (OI_E, {"scanpath": [[0.5, 0.5, 0.1, 1.0]]}, "row 0: midpoint is 0.1"),
    "gaze without length": (OI_E, {"scanpath": [[0.5, 0.5, 0.1, 0.0]]}, "row 0: duration is 0.0"),
    "more ids than fixations": (OI_E, {"fixation_ids": [1, 2]}, "2 ids for 1 fixations"),
    "ids with None": (OI_E, {"fixation_ids": [None]}, "ids"),
}


def dataset_row(task: str) -> dict:
    row = {"video_name": VIDEO, "task": task, "question": "Which?", "start_s": 0.0, "end_s": 8.0, "test_points": []}
    row |= {"scanpath": [ROW], "fixation_ids": [4], "options": ["box", "knife", "jar"], "answer": 1}
    if task == GTA:
        row |= {"options": [], "answer": None, "test_points": [{"time_s": 3.0, "alert": True}]}
    return row


@table_of(ROWS)
def test_rows_of_a_dataset_that_are_refused(case):
    task, changes, part = case
    assert len(list(_questions_of_row(dataset_row(task), Path(VIDEO), {}))) == 1
    with refused(VIDEO, part):
        list(_questions_of_row(dataset_row(task) | changes, Path(VIDEO), {}))


def test_a_question_knows_the_fixations_by_the_ids_of_its_row():
    (question,) = _questions_of_row(dataset_row(OI_E), Path(VIDEO), {})
    assert question.scanpath.ids.tolist() == [4]


def test_a_table_names_no_file_outside_its_dataset(tmp_path, film):
    """Neither by a name that leads out of the folder nor, on the Hub, by a path out of the caches of downloads."""
    row = {"video_name": VIDEO, "video": {"path": None}}
    for path in ("/etc/passwd", str(film), f"{HF_HUB_CACHE}/../passwd", None):
        with pytest.raises(ValueError, match="the video of a question is .*, expected a file of the dataset"):
            _video_path("user/name", row | {"video": {"path": path}})
    cached = Path(HF_HUB_CACHE).absolute() / "datasets--user--name" / VIDEO
    assert _video_path("user/name", row | {"video": {"path": str(cached)}}) == cached
    data = dataset(tmp_path, film)
    shutil.copy(film, data / VIDEO)  # so that the name leads to a file
    (table,) = data.rglob("*test*.parquet")
    rows = [row | {"video_name": f"../{VIDEO}"} for row in Dataset.from_parquet(str(table))]
    Dataset.from_list(rows).to_parquet(str(table))
    with pytest.raises(ValueError, match=rf"video_name is '../{VIDEO}', expected a file's name"):
        load_questions(data, "test", without_gaze="keep")


# ================================================================ the processor
def chat(film, **changes) -> list:
    return [
        {"role": "user", "content": [{"type": "video", "video": str(film)} | changes, {"type": "text", "text": "?"}]}
    ]


def content(*items) -> list:
    return [{"role": "user", "content": list(items)}]


CHATS = {  # {id: (film -> conversation, what the error says)}
    "None": (lambda film: None, "conversation"),
    "empty": (lambda film: [], "conversation"),
    "a text": (lambda film: "What is it?", "conversation"),
    "a message, not a list": (lambda film: chat(film)[0], "conversation"),
    "texts": (lambda film: ["What is it?"], "message"),
    "None in it": (lambda film: [None], "message"),
    "an empty chat in a batch": (lambda film: [chat(film), []], "conversation"),
    "no content": (lambda film: [{"role": "user"}], "content"),
    "content None": (lambda film: [{"role": "user", "content": None}], "content"),
    "content a number": (lambda film: [{"role": "user", "content": 5}], "content"),
    "no role": (lambda film: [{"content": "What?"}], "role"),
    "item a text": (lambda film: content("What?"), "item"),
    "item None": (lambda film: content(None), "item"),
    "item without type": (lambda film: content({"video": str(film)}), "type"),
    "item of unknown type": (lambda film: content({"type": "audio", "audio": "a.wav"}), "'audio'"),
    "text None": (lambda film: content({"type": "text", "text": None}), "text"),
    "no text": (lambda film: content({"type": "text"}), "text"),
    "no video": (lambda film: content({"type": "video"}), "video"),
    "video None": (lambda film: chat(None, video=None), "video"),
    "video a number": (lambda film: chat(film, video=5), "5"),
    "video a dict": (lambda film: chat(film, video={"path": str(film)}), "path"),
    "video missing": (lambda film: chat(film, video="nowhere.mp4"), "nowhere.mp4"),
    "video an address": (lambda film: chat(film, video="https://example.org/v.mp4"), "v.mp4"),
    "start text": (lambda film: chat(film, start_s="0"), "'0'"),
    "start None": (lambda film: chat(film, start_s=None), "None"),
    "start negative": (lambda film: chat(film, start_s=-1), "-1"),
    "end text": (lambda film: chat(film, end_s="00:05"), "'00:05'"),
    "end beyond": (lambda film: chat(film, end_s=20), "20"),
    "end NaN": (lambda film: chat(film, end_s=math.nan), "nan"),
    "gaze missing": (lambda film: chat(film, scanpath="nowhere.csv"), "nowhere.csv"),
    "gaze a number": (lambda film: chat(film, scanpath=5), "scanpath"),
    "gaze a dict": (lambda film: chat(film, scanpath={"x": 1}), "scanpath"),
    "gaze ragged": (lambda film: chat(film, scanpath=[ROW, ROW[:2]]), "scanpath"),
    "gaze of three columns": (lambda film: chat(film, scanpath=[ROW[:3]]), "(1, 3)"),
    "gaze is the video": (lambda film: chat(film, scanpath=str(film)), VIDEO),
    "snap text": (lambda film: chat(film, scanpath=[ROW], snap_s="1"), "snap_s"),
    "snap NaN": (lambda film: chat(film, scanpath=[ROW], snap_s=math.nan), "snap_s"),
    "snap negative": (lambda film: chat(film, scanpath=[ROW], snap_s=-1.0), "snap_s"),
    "snap None": (lambda film: chat(film, scanpath=[ROW], snap_s=None), "snap_s"),
    "a misspelt key": (lambda film: chat(film, end=5), "'end'"),
    "image missing": (lambda film: content({"type": "image", "image": "/nowhere.png"}), "nowhere.png"),
    "image a number": (lambda film: content({"type": "image", "image": 5}), "5"),
    "image is the video": (lambda film: content({"type": "image", "image": str(film)}), VIDEO),
    "no image": (lambda film: content({"type": "image"}), "image"),
}


@table_of(CHATS)
def test_chats_that_are_refused(film, toy_processor, case):
    make, part = case
    with refused(part):
        toy_processor.apply_chat_template(make(film), tokenize=True, return_dict=True, num_frames=2)


@pytest.mark.filterwarnings("error:.*fixation")
def test_legal_chats(film, toy_processor):
    for conversation in (
        chat(film),
        chat(film, scanpath=[ROW], start_s=0, end_s=5, snap_s=1.0),
        chat(film, scanpath=[]),
        chat(film, scanpath=None, end_s=None),
        [{"role": "system", "content": "Be brief."}, *chat(film)],
        [chat(film, scanpath=[ROW]), chat(film)],
        content({"type": "video", "path": str(film)}),
        chat(film, video=read_clip(film, num_frames=2)),
    ):
        inputs = toy_processor.apply_chat_template(conversation, tokenize=True, return_dict=True, num_frames=2)
        assert len(inputs["input_ids"]) == len(inputs["video_grid_thw"]) in (1, 2)


CALLS = {  # {id: (film, clip, placeholder -> arguments, what the error says)}
    "no text": (lambda film, clip, place: {"videos": [clip]}, "text"),
    "text a number": (lambda film, clip, place: {"text": 5}, "text"),
    "text with None": (lambda film, clip, place: {"text": [place, None], "videos": [clip]}, "text"),
    "no texts": (lambda film, clip, place: {"text": []}, "text"),
    "no placeholder": (lambda film, clip, place: {"text": "hello", "videos": [clip]}, "0 video placeholders"),
    "two placeholders": (lambda film, clip, place: {"text": place * 2, "videos": [clip]}, "2 video placeholders"),
    "no video": (lambda film, clip, place: {"text": place}, "1 video placeholders"),
    "video a number": (lambda film, clip, place: {"text": place, "videos": [5]}, "5"),
    "video an array": (
        lambda film, clip, place: {"text": place, "videos": [PIXELS]},
        "an object of ndarray, expected a path",
    ),
    "video missing": (lambda film, clip, place: {"text": place, "videos": "nowhere.mp4"}, "nowhere.mp4"),
    "gaze a number": (lambda film, clip, place: {"text": place, "videos": [clip], "scanpaths": 5}, "scanpaths"),
    "gaze an array, not a list": (
        lambda film, clip, place: {"text": place, "videos": [clip], "scanpaths": np.array([ROW])},
        "scanpaths",
    ),
    "gaze a path, not a list": (
        lambda film, clip, place: {"text": place, "videos": [clip], "scanpaths": "f.csv"},
        "scanpaths",
    ),
    "gaze not nested": (lambda film, clip, place: {"text": place, "videos": [clip], "scanpaths": [ROW]}, "(4,)"),
    "gaze for two": (
        lambda film, clip, place: {"text": place, "videos": [clip], "scanpaths": [None, [ROW]]},
        "2 scanpaths for 1 videos",
    ),
    "gaze for none": (lambda film, clip, place: {"text": "hello", "scanpaths": [[ROW]]}, "without a video"),
    "snap a number": (
        lambda film, clip, place: {"text": place, "videos": [clip], "scanpaths": [[ROW]], "snap_s": 1.0},
        "snap_s",
    ),
    "snap for two": (
        lambda film, clip, place: {"text": place, "videos": [clip], "scanpaths": [[ROW]], "snap_s": [1.0, 1.0]},
        "snap_s",
    ),
    "num_frames 0": (lambda film, clip, place: {"text": place, "videos": film, "num_frames": 0}, "num_frames"),
    "fps 0": (lambda film, clip, place: {"text": place, "videos": film, "fps": 0}, "fps"),
    "max_frames 0": (lambda film, clip, place: {"text": place, "videos": film, "max_frames": 0}, "max_frames"),
    "both": (lambda film, clip, place: {"text": place, "videos": film, "num_frames": 2, "fps": 1}, "num_frames=2"),
    "NumPy asked for": (
        lambda film, clip, place: {"text": place, "videos": [clip], "return_tensors": "np"},
        "return_tensors",
    ),
    "a misspelt argument": (
        lambda film, clip, place: {"text": place, "videos": [clip], "scanpath": [ROW]},
        "scanpath",
    ),
}


@table_of(CALLS)
def test_calls_that_are_refused(film, toy_processor, case):
    make, part = case
    clip, place = read_clip(film, num_frames=2), toy_processor.video_token
    assert "scanpaths" in toy_processor(text=place, videos=[clip], scanpaths=[[ROW]], snap_s=[1.0])
    with refused(part):
        toy_processor(**make(film, clip, place))


# ================================================================ recipes
RECIPES = {  # {id: (content, overrides, what the error says)}
    "not YAML": ("model: [a: {", (), "not YAML"),
    "tabs": ("model:\n\tdtype: float32", (), "not YAML"),
    "a list": ("- model", (), "expected keys"),
    "a text": ("model", (), "expected keys"),
    "a number": ("5", (), "expected keys"),
    "unknown section": ("modle: {}", (), "'model'"),
    "unknown key": ("model: {basemodel: x}", (), "'base_model'"),
    "a section that is a value": ("model: 5", (), "model"),
    "a section that is a list": ("model: [1]", (), "model"),
    "a section without keys": ("model:", (), "model"),
    "text for a number": ("model: {max_frames: many}", (), "max_frames"),
    "fraction for a whole number": ("model: {max_frames: 6.5}", (), "max_frames"),
    "a bool for a number": ("model: {max_frames: true}", (), "max_frames"),
    "a number for a text": ("model: {base_model: 5}", (), "base_model"),
    "null for a text": ("model: {base_model: null}", (), "base_model"),
    "a list for a number": ("model: {max_frames: [1]}", (), "max_frames"),
    "a number for a list": ("adapter: {foveal_sigmas: 1}", (), "foveal_sigmas"),
    "a tag": ("model: !!python/object:os.system {}", (), "not YAML"),
    "Latin-1": ("output_dir: höhe".encode("latin-1"), (), "recipe.yaml"),
    "binary": (bytes(range(256)), (), "recipe.yaml"),
    "override without =": ("{}", ("model.max_frames",), "model.max_frames"),
    "unknown key of an override": ("{}", ("model.maxframes=2",), "'max_frames'"),
    "override into a value": ("output_dir: x", ("output_dir.y=2",), "output_dir"),
    "override not YAML": ("{}", ("model.max_frames=[1",), "model.max_frames"),
    "override of a list": ("- 1", ("model.max_frames=2",), "recipe.yaml"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_that_are_refused(tmp_path, name):
    text, overrides, part = RECIPES[name]
    path = write(tmp_path / "recipe.yaml", text)
    with refused("override" if name.startswith("override") and part != "recipe.yaml" else path, part):
        read_recipe(Recipe, path, overrides)


RANGES = {  # {setting: values that are refused}
    "seed": (-1, 2**32),
    "batch_size": (0, -1),
    "evaluation_batch_size": (0,),
    "gradient_accumulation_steps": (0,),
    "checkpoint_every": (0,),
    "keep_checkpoints": (0,),
    "weight_decay": (-0.01, ".nan", ".inf"),
    "warmup_steps": (-1,),
    "max_grad_norm": (0, -1, ".nan"),
    "label_smoothing": (2, 1, -0.1, ".nan"),
    "lora_rank": (0, 10**9),
    "lora_alpha": (0, -16, ".nan"),
    "stage1.epochs": (-1,),
    "stage1.learning_rate": (-1, ".nan", ".inf"),
    "stage1.patience": (-1,),
    "stage2.epochs": (-1,),
    "stage2.lora_learning_rate": (-3e-4, ".nan"),
    "model.video_encoder_size": (0, -64),
    "model.num_frames": (0, -2),
    "model.max_frames": (0, 1),
    "model.max_pixels_per_frame": (0, -1),
    "model.snap_s": (-0.5, ".nan", ".inf"),
    "model.fps": (0, -1, ".nan"),
    "adapter.num_blocks": (0, 10**9),
    "adapter.num_latents": (-1, 10**9),
    "adapter.latent_dim": (0, 10**9),
    "adapter.heatmap_sigma": (0, ".nan", ".inf"),
    "adapter.foveal_sigmas": ("[]", "[0]", "[.nan]", "[a]"),
    "adapter.gaze_coordinate_scale": (0, ".nan"),
    "adapter.injection_layers": ("[]", "[3, 1]", "[-1]", "[a]", "[0.5]"),
    "adapter.video_encoder_window": (0,),
    "adapter.gaze_encoding": ("none",),
    "data.num_workers": (-1,),
    "data.scanpath_noise": (-0.1, ".nan", ".inf"),
    "data.fixation_dropout": (-0.1, 1, 2, ".nan"),
}


@pytest.mark.parametrize("name", RANGES)
def test_numbers_of_recipes_that_are_out_of_range_are_refused(name):
    for value in RANGES[name]:
        with refused(ROOT / "recipes" / "demo.yaml", name, "expected"):
            read_recipe(Recipe, ROOT / "recipes" / "demo.yaml", [f"{name}={value}"])


def test_the_recipes_here_are_legal():
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        assert read_recipe(Recipe, path, ["model.max_frames=8"]).model.max_frames == 8


# ================================================================ anything
KEPT = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def mutated(draw, data: bytes) -> bytes:
    """`data` with some bytes replaced, inserted, doubled or taken out."""
    changed = bytearray(data)
    interesting = st.sampled_from(
        [b",", b'"', b"\n", b"\r", b"\0", b"-", b".", b"e", b"9", b"nan", b"[", b"{", b"}", b"\xff"]
    )
    for _ in range(draw(st.integers(1, 4))):
        begin = draw(st.integers(0, len(changed)))
        end = min(begin + draw(st.integers(0, 6)), len(changed))
        changed[begin:end] = draw(
            st.one_of(interesting, st.binary(max_size=4), st.just(bytes(changed[begin:end]) * 2))
        )
    return bytes(changed)


@given(mutated(CSV.encode()))
@KEPT
def test_any_change_of_a_table_is_read_or_named(data):
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        path = write(Path(folder) / TABLE, data)
        try:
            scanpath = Scanpath.from_csv(path)
        except Exception as error:
            assert type(error) in KINDS and str(path) in str(error), repr(error)
            return
    table = scanpath.table
    assert np.isfinite(table).all() and ((table[:, :2] >= 0) & (table[:, :2] <= 1)).all() and (table[:, 3] > 0).all()
    assert all(str(path) in str(warning.message) for warning in said)


QA = [entry(question()), entry(question(question="Other?", time_stamp="00:05"))]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["00:05", "B", "A. x", VIDEO]),
) | st.lists(st.text(max_size=3), max_size=3)


def places(value, path=()):
    yield path
    for key, inner in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from places(inner, (*path, key))


@st.composite
def mutated_json(draw) -> bytes:
    if draw(st.booleans()):
        return draw(mutated(json.dumps(QA).encode()))
    changed = copy.deepcopy([*QA, entry(alert())])
    for _ in range(draw(st.integers(1, 3))):
        *where, last = draw(st.sampled_from([place for place in places(changed) if place]))
        target = changed
        for key in where:
            target = target[key]
        if draw(st.booleans()):
            target[last] = draw(VALUES)
        else:
            del target[last]
    return json.dumps(changed).encode()


@given(mutated_json(), st.sampled_from([OI_E, GTA]))
@settings(KEPT, max_examples=40)
def test_any_change_of_questions_is_built_left_out_or_named(film, data, task):
    with tempfile.TemporaryDirectory() as folder:
        release = write_release(Path(folder) / "r", film, {task: data})
        try:
            report = build(release, Path(folder) / "d", progress=False)
        except Exception as error:
            assert type(error) in KINDS and str(release) in str(error), repr(error)
            return
        counts = report.tasks[task]
        missing = len(report.missing_videos)
        assert counts["kept"] >= 1 and counts["kept"] + len(report.excluded) + missing >= counts["found"]


# ================================================================ the command line
COMMANDS = {  # {id: (content of the QA file, further arguments, what stderr says)}
    "legal": ([entry(question())], [], None),
    "not JSON": ("[", [], f"{OI_E}.json: not JSON"),
    "splits": ([entry(question())], ["--splits", "nowhere.json"], "nowhere.json: no such file"),
    "strict": ([entry(question()), entry(question(answer="Z"))], ["--strict"], "something was left out"),
    "nothing": ([entry(question(answer="Z"))], [], "answer is 'Z'"),
}


@pytest.mark.parametrize(("qa", "arguments", "part"), COMMANDS.values(), ids=COMMANDS)
def test_the_command_line_says_one_clear_line(tmp_path, film, qa, arguments, part):
    release = write_release(tmp_path / "release", film, {OI_E: qa})
    result = run_in_process("gazeqwen.questions", release, tmp_path / "out", *arguments)
    assert (result.returncode == 0) == (part is None), result.stderr
    if part is not None:
        lines = [
            line for line in re.split(r"[\r\n]", result.stderr) if line.strip() and not line.startswith("videos:")
        ]
        assert part in result.stderr
        assert len(lines) == 1 or part == COMMANDS["nothing"][2]  # that one lists what was left out


# ================================================================ how many
def test_there_are_more_than_two_hundred_different_ones():
    lists = [TABLES, WARNED_TABLES, dict.fromkeys(NO_TABLES), ARRAYS, dict.fromkeys(CUTS), VIDEOS, WINDOWS, SAMPLING]
    lists += [FRAME_TIMES, CLIPS, ENTRIES, BEYOND, FILES, SPLITS_FILES, BUILDS, DATASETS, ROWS, CHATS, CALLS, RECIPES]
    for contents in ([case[0] for case in TABLES.values()], [repr(case[:2]) for case in ENTRIES.values()]):
        assert len(set(contents)) == len(contents)  # different in what they hold, not only in name
    assert sum(map(len, lists)) >= 200
