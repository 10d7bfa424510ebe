"""Recordings of raw gaze in the formats of their sources, for tests."""

from pathlib import Path

from gazeqwen.gaze_sources.samples import Status

UNTRACKED, FIXATION, SACCADE, UNKNOWN, OUT = Status
READING = {"time_unit": "s", "coordinates": "normalised", "origin": "top-left"}


def text_file(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def begaze_1(samples) -> str:
    """First layout, from (x, y, frame, kind)."""
    header = ["## header"] * 34
    header[9] = f"## Number of Samples:\t{len(samples)}"
    return "\n".join([*header, *(f"{5 * f}\tSMP\t1\t{x}\t{y}\t{f}\t{kind}" for x, y, f, kind in samples)]) + "\n"


EGO4D = "canonical_timestamp_s,norm_pos_x,norm_pos_y,confidence\n0.0,0.25,0.1,1.0\n0.1,0.5,,0.9\n0.2,0.5,1.2,0.3\n"
T0 = 1_700_000_000_000_000_000


def pupil_export(folder: Path, gaze, world=range(10), header="timestamp [ns],gaze x [px],gaze y [px],worn") -> Path:
    text_file(folder / "gaze.csv", "\n".join([header, *gaze]) + "\n")
    times = "\n".join(f"{T0 + tenth * 10**8}" for tenth in world)
    text_file(folder / "world_timestamps.csv", f"timestamp [ns]\n{times}\n")
    return folder


def pro_lab(unit="μs", kind=" [MCS px]", rows=()) -> str:
    header = ["Recording timestamp" + (f" [{unit}]" if unit else ""), "Sensor"]
    header += [f"Gaze point X{kind}", f"Gaze point Y{kind}", "Validity left", "Validity right", "Eye movement type"]
    return "\n".join("\t".join(map(str, row)) for row in [header, *rows]) + "\n"


PRO_LAB_ROWS = [
    (0, "Eye Tracker", 32, 24, "Valid", "Valid", "Fixation"),
    (500, "Gyro", "", "", "", "", ""),
    (20_000, "Eye Tracker", "16,5", 12, "Valid", "Invalid", "Saccade"),
    (40_000, "Eye Tracker", "", "", "Invalid", "Invalid", "EyesNotFound"),
    (60_000, "Eye Tracker", 32, 24, "Invalid", "Invalid", "Unclassified"),
    (80_000, "Eye Tracker", 65, 24, "Valid", "Valid", "Fixation"),
    (90_000, "Eye Tracker", 65, 24, "Valid", "Valid", "EyesNotFound"),
]
GLASSES3 = [
    '{"type": "gaze", "timestamp": 0.01, "data": {"gaze2d": [0.25, 0.75], "gaze3d": [1, 2, 3]}}',
    '{"type": "gaze", "timestamp": 0.03, "data": {}}',
    '{"type": "sync", "timestamp": 0.04, "data": {}}',
    '{"type": "gaze", "timestamp": 0.05, "data": {"gaze2d": [1.25, 0.5]}}',
]
INVISIBLE = "section id,recording id,timestamp [ns],gaze x [px],gaze y [px],worn,fixation id,blink id"
