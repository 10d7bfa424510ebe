"""Guess a recording's source from its files and their columns."""

import csv
from pathlib import Path

import numpy as np

# What lies in a folder of a source, the first that is there. Ego-Exo4D's takes hold Project Aria's tables too.
_IN_FOLDERS = (
    ("egoexo4d", ("personalized_eye_gaze_2d.csv", "general_eye_gaze_2d.csv")),
    ("aria", ("personalized_eye_gaze.csv", "general_eye_gaze.csv")),
    ("holoassist", ("Export_py", "Eyes/Eyes_sync.txt")),
    ("pupil_core", ("gaze_positions.csv",)),
    ("pupil_labs", ("gaze.csv", "info.json")),
    ("tobii", ("gazedata.gz", "gazedata")),
)
_FOLDERS = ("", "eye_gaze", "mps/eye_gaze")
# Columns that a source's tables have and others' do not.
_COLUMNS = (
    ("aria", ("tracking_timestamp_us", "pitch_rads_cpf")),
    ("egoexo4d", ("frame_num", "x", "y")),
    ("egoexo4d", ("frame_number", "x", "y")),
    ("ego4d", ("canonical_timestamp_s", "norm_pos_x", "norm_pos_y")),
    ("pupil_labs", ("timestamp [ns]", "gaze x [px]", "gaze y [px]")),
    ("pupil_core", ("gaze_timestamp", "norm_pos_x", "norm_pos_y")),
    ("holoassist", ("frame_idx", "timestamp_sec", "u", "v")),
)
_READ_BYTES = 65536


def guess_source(path) -> tuple[str, str]:
    """
    Return the source of a recording (a file, or a folder where the source has one), and what tells it. A table with a
    header that is no other source's is `generic`. Raises FileNotFoundError, or ValueError if nothing tells.
    """
    path = Path(path)
    if path.is_dir():
        for source, names in _IN_FOLDERS:
            places = [f"{folder}/{name}".lstrip("/") for folder in _FOLDERS for name in names]
            present = next((place for place in places if (path / place).exists()), None)
            if present is not None:
                return source, f"{present} in it"
        raise ValueError(f"{path}: a folder of no known source, expected --source")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix.lower() == ".vrs":
        raise ValueError(f"{path}: a VRS file, expected the eye_gaze folder of its recording, and the file as --vrs")
    with path.open("rb") as file:
        data = file.read(_READ_BYTES)
    if data.startswith(np.lib.format.MAGIC_PREFIX):
        return "egoexolearn", "an array of numpy"
    if data.startswith(b"\x1f\x8b"):
        return "tobii", "compressed, as Glasses 3 does"
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    lines = data.decode(encoding, errors="replace").splitlines()
    if any(line.startswith("## Number of Samples:") for line in lines[:34]):
        return "egtea", "a header of BeGaze"
    if lines and lines[0].startswith("{"):
        return "tobii", "lines of JSON, as Glasses 3 writes them"
    delimiter = "\t" if lines and "\t" in lines[0] else ","
    header = [name.strip() for name in next(csv.reader(lines[:1], delimiter=delimiter), [])]
    if any(name.startswith("Recording timestamp") for name in header):
        return "tobii", "the column Recording timestamp"
    for source, columns in _COLUMNS:
        if set(columns) <= set(header):
            return source, f"the columns {', '.join(columns)}"
    if len(header) >= 3 and all(name and not name.isdigit() for name in header) and "\ufffd" not in lines[0]:
        return "generic", f"a table with the columns {', '.join(header[:6])}{', ...' if len(header) > 6 else ''}"
    raise ValueError(f"{path}: a file of no known source, expected --source")
