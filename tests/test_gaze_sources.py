"""Readers of raw gaze: samples, where recordings lie, guesses of the source, and the command line."""

import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gaze_recordings import (
    EGO4D,
    FIXATION,
    GLASSES3,
    INVISIBLE,
    PRO_LAB_ROWS,
    READING,
    SACCADE,
    T0,
    UNKNOWN,
    begaze_1,
    pro_lab,
    pupil_export,
    text_file,
)
from PIL import Image
from support import run_in_process, write_video

from gazeqwen.gaze_sources import SOURCES, guess_source
from gazeqwen.gaze_sources.samples import GazeSamples
from gazeqwen.scanpath_gazeqwen import Scanpath


@pytest.mark.parametrize("number", ["1_0", "٣", "0x1"])
def test_numbers_are_those_that_a_table_means(tmp_path, number):
    """Python reads underscores and digits of other scripts too."""
    for cells, column in ((f"{number},0.1,0.2", "time"), (f"1,{number},0.2", "x")):
        table = text_file(tmp_path / "gaze.csv", f"time,x,y\n0,0.1,0.2\n{cells}\n")
        with pytest.raises(ValueError, match=f"gaze.csv, line 3: {column} is '{number}', expected a number"):
            SOURCES["generic"].read(table, **READING)
    recording = text_file(tmp_path / "v.txt", begaze_1([(1, 2, 0, "Fixation"), (number, 2, 1, "Fixation")]))
    with pytest.raises(ValueError, match=f"v.txt, line 36: position is '{number}', expected a number"):
        SOURCES["egtea"].read(recording)


def test_binary_missing_and_folders_are_named(tmp_path):
    (tmp_path / "g.csv").write_bytes(bytes(range(255, 0, -1)))
    with pytest.raises(ValueError, match="g.csv: not a text file"):
        SOURCES["generic"].read(tmp_path / "g.csv", **READING)
    with pytest.raises(FileNotFoundError, match="a folder, expected a file"):
        SOURCES["generic"].read(tmp_path, **READING)
    for name, module in SOURCES.items():
        options = READING if name == "generic" else {}
        with pytest.raises(FileNotFoundError, match="nowhere"):
            module.read(tmp_path / "nowhere.x", **options)


def test_samples_refuse_what_does_not_fit_together():
    with pytest.raises(ValueError, match="f: status has shape"):
        GazeSamples(np.zeros(2), np.zeros((2, 2)), np.zeros(3), "f")
    with pytest.raises(ValueError, match="f, sample 1: .* does not lie in the frame"):
        GazeSamples(np.zeros(2), np.array([[0, 0], [2, 0]]), np.full(2, UNKNOWN), "f")
    with pytest.raises(ValueError, match="f, sample 1: time 0"):
        GazeSamples.from_recording([1, 0], [[0, 0], [0, 0]], [True, True], "f")


def test_kept_samples_keep_all_that_belongs_to_them():
    positions = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    samples = GazeSamples(
        np.arange(3.0), positions, np.array([FIXATION, SACCADE, UNKNOWN]), "f", (64, 48), np.arange(7, 10)
    )
    kept = samples.keep(np.array([True, False, True]))
    assert kept.times_s.tolist() == [0, 2] and kept.recorded_xy.tolist() == [[0.1, 0.2], [0.5, 0.6]]
    assert kept.status.tolist() == [FIXATION, UNKNOWN] and kept.frame_index.tolist() == [7, 9]


@pytest.mark.parametrize(
    ("source", "path"),
    [
        ("egtea", "gaze_data/OP01 [1].txt"),
        ("egoexolearn", "gazes_30fps_npy/OP01 [1].npy"),
        ("holoassist", "OP01 [1]/Export_py/Eyes/Eyes_sync.txt"),
        ("holoassist", "a/OP01 [1]_gaze_2d.csv"),
        ("ego4d", "v2/gaze/OP01 [1].csv"),
        ("pupil_labs", "OP01 [1]/gaze.csv"),
        ("tobii", "a/OP01 [1].tsv"),
        ("tobii", "OP01 [1]/gazedata.gz"),
        ("generic", "OP01 [1].csv"),
    ],
)
def test_find_looks_below_the_sources_folder(tmp_path, source, path):
    text_file(tmp_path / path, "")
    expected = tmp_path / path
    if source == "holoassist" and "Export_py" in path:
        expected = expected.parent.parent
    if source == "pupil_labs":
        expected = expected.parent
    assert SOURCES[source].find(tmp_path, "OP01 [1]") == expected
    assert SOURCES[source].find(tmp_path, "OP01") is None


def test_find_refuses_two_candidates_and_knows_a_recording_by_its_video(tmp_path):
    text_file(tmp_path / "a" / "P01.txt", "")
    text_file(tmp_path / "b" / "P01.txt", "")
    with pytest.raises(ValueError, match="2 places for P01.txt"):
        SOURCES["egtea"].find(tmp_path, "P01")
    text_file(tmp_path / "c" / "scene.mp4", "")
    assert SOURCES["pupil_labs"].find(tmp_path, "scene") is None
    text_file(tmp_path / "c" / "gaze.csv", "")
    assert SOURCES["pupil_labs"].find(tmp_path, "scene") == tmp_path / "c"


def command(*arguments) -> subprocess.CompletedProcess:
    """In this process; the last test shows one in a process of its own."""
    return run_in_process("gazeqwen.gaze_sources", *arguments)


def gaze_table(path: Path, until_s: float) -> Path:
    """60 Hz: x 0.25 for 0.4 s, 0.75 until 1 s (the video's end), then 0.76; one sample lost, one out of the frame."""
    times = np.arange(0, until_s, 1 / 60)
    rows = [f"{time:.6f},{0.25 if time < 0.4 else 0.75 if time < 1.001 else 0.76},0.5" for time in times]
    rows[5], rows[40] = f"{times[5]:.6f},,", f"{times[40]:.6f},1.5,0.5"
    return text_file(path, "time,x,y\n" + "\n".join(rows) + "\n")


GENERIC = ("--source", "generic", "--time_unit", "s", "--coordinates", "normalised", "--origin", "top-left")


def test_command_line_from_recording_to_table_and_picture(tmp_path, video):
    gaze, table, picture = gaze_table(tmp_path / "my gäze.csv", 1.02), tmp_path / "out" / "f.csv", tmp_path / "p.png"
    result = command(gaze, *GENERIC, "--video", video, "-o", table, "--plot", picture)
    assert result.returncode == 0 and result.stderr == ""
    scanpath = Scanpath.from_csv(table)
    np.testing.assert_allclose(scanpath.table[:, :2], [[0.25, 0.5], [0.75, 0.5]])
    np.testing.assert_allclose(scanpath.begin_s, [0, 0.4], atol=1e-5)
    np.testing.assert_allclose(scanpath.end_s, [23 / 60, 1.0], atol=1e-5)
    for line in (
        "samples: 62 from 0.000 to 1.017 s, 0 repeat a time",
        "rate: 60.0 Hz (median)",
        "in the frame: 96.8 % (1 untracked, 0 fixation, 0 saccade, 60 unknown, 1 out of frame)",
        "outside the video (0.000 to 1.000 s), left out: 1 samples, at 1.017 s",
        "fixations: 2",
        "duration: median 0.492 s; together 1.0 s, 98.3 % of the video",
    ):
        assert line in result.stdout
    assert list(table.parent.iterdir()) == [table]
    with Image.open(picture) as image:
        assert image.format == "PNG" and len(image.convert("RGB").getcolors(2**24)) > 100


def test_command_line_tells_another_clock_from_a_tracker_that_was_started_earlier(tmp_path, video):
    gaze = gaze_table(tmp_path / "g.csv", 2.0)  # of a video of 1 s
    words = [gaze, *GENERIC, "--video", video, "-o", tmp_path / "f.csv"]
    result = command(*words)
    assert result.returncode == 0
    assert (
        f"WARNING: the gaze lasts until 2.0 s, {video} until 1.0 s: is it this video's, on its clock?" in result.stderr
    )
    assert Scanpath.from_csv(tmp_path / "f.csv").end_s.max() <= 1.0
    result = command(*words, "--offset_s", "1")
    assert result.returncode == 0 and result.stderr == ""
    assert "the tracker was started 1.0 s before the video begins" in result.stdout
    result = command(*words, "--offset_s", "-0.5")
    assert "WARNING: 74.2 % of the samples lie outside" in result.stderr and "clocks are likely not" in result.stderr


def test_command_line_writes_no_table_of_gaze_that_is_never_in_the_frame(tmp_path):
    percent = text_file(tmp_path / "percent.csv", "time,x,y\n0,25,25\n0.2,75,50\n0.4,,\n")
    result = command(percent, *GENERIC, "--frame_size", "64x48", "-o", tmp_path / "f.csv")
    assert result.returncode == 1 and not (tmp_path / "f.csv").exists()
    assert "WARNING: 100.0 % of the tracked samples lie outside the frame" in result.stderr
    assert "percent.csv: none of 3 samples lies in the frame (2 out of frame, 1 untracked)" in result.stderr
    saccades = text_file(tmp_path / "fast.csv", "time,x,y\n0,0.2,0.2\n0.2,0.8,0.8\n")  # in the frame, no fixation
    result = command(saccades, *GENERIC, "--frame_size", "64x48", "-o", tmp_path / "f.csv")
    assert result.returncode == 0 and (tmp_path / "f.csv").read_text().count("\n") == 1


def test_command_line_compat_and_its_phantoms(tmp_path):
    rows = [(640, 480, frame, "Fixation") for frame in range(60)] + [(640, 480, 200, "Fixation")]
    gaze = text_file(tmp_path / "P01.txt", begaze_1(rows))
    result = command(gaze, "--source", "egtea", "--algorithm", "streamgaze", "-o", tmp_path / "f.csv")
    assert result.returncode == 0 and "clock: StreamGaze's" in result.stdout
    assert "WARNING: 1 fixations have no sample in the frame" in result.stderr
    scanpath = Scanpath.from_csv(tmp_path / "f.csv")
    np.testing.assert_allclose(scanpath.table[:, :2], [[0.5, 0.5], [0, 0]])
    np.testing.assert_allclose(scanpath.end_s, [59 / 24, 199 / 24])


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nowhere.csv", *GENERIC], "nowhere.csv: no such file"),
        (["GAZE", "--source", "generic", "--time_unit", "s"], "needs --coordinates, --origin"),
        (["GAZE", "--source", "egtea", "--origin", "centre"], "--origin: no option of source egtea"),
        (["GAZE", *GENERIC], "the frame's aspect is unknown"),
        (["GAZE", *GENERIC, "--frame_size", "64x48", "--algorithm", "export"], "no fixations of its own"),
        (["GAZE", *GENERIC, "--frame_size", "64x48", "--algorithm", "streamgaze"], "StreamGaze has egtea"),
        (["GAZE", *GENERIC, "--frame_size", "64x48", "--min_duration_s", "-1"], "min_duration_s is -1.0"),
        (["GAZE", *GENERIC, "--frame_size", "64x48", "--scene_filter"], "--scene_filter needs --video"),
        (["GAZE", *GENERIC, "--video", "GAZE"], "not a readable video"),
        (["GAZE", *GENERIC, "--offset_s", "-100", "--video", "VIDEO"], "no sample lies within"),
    ],
)
def test_command_line_errors_are_one_line(tmp_path, video, arguments, named):
    gaze = gaze_table(tmp_path / "g.csv", 0.8)
    words = [{"GAZE": gaze, "VIDEO": video}.get(word, word) for word in arguments]
    result = command(*words, "-o", tmp_path / "f.csv")
    *warnings, error = result.stderr.splitlines()
    assert result.returncode == 1 and named in error
    assert all(line.startswith("WARNING: ") for line in warnings)
    assert not (tmp_path / "f.csv").exists()


def test_command_line_takes_the_exports_fixations_and_filters_scenes(tmp_path):
    """A cut at 3 s: of the export's fixations, the one across it goes, and so does the one outside the frame."""
    colors = np.repeat([[250, 20, 20], [20, 250, 20]], 30, axis=0).astype(np.uint8)
    scenes = write_video(tmp_path / "cut.mp4", np.broadcast_to(colors[:, None, None], (60, 48, 64, 3)), fps=10)
    folder = pupil_export(tmp_path / "export", [f"{T0 + 10**9},32,24,1"], world=range(60))
    header = "fixation id,start timestamp [ns],end timestamp [ns],fixation x [px],fixation y [px]"
    rows = [(1, 0, 20, 32, 24), (2, 20, 45, 32, 24), (3, 46, 70, 16, 12), (4, 50, 51, 99, 24)]
    lines = [f"{number},{T0 + begin * 10**8},{T0 + end * 10**8},{x},{y}" for number, begin, end, x, y in rows]
    text_file(folder / "fixations.csv", "\n".join([header, *lines]) + "\n")
    words = [folder, "--source", "pupil_labs", "--video", scenes, "-o", tmp_path / "f.csv", "--algorithm", "export"]
    printed = command(*words, "--scene_filter").stdout
    scanpath = Scanpath.from_csv(tmp_path / "f.csv")
    np.testing.assert_allclose(scanpath.table, [[0.5, 0.5, 1.0, 2.0], [0.25, 0.25, 5.3, 1.4]], atol=1e-6)
    assert scanpath.ids.tolist() == [0, 2]
    assert "left out: 3 fixations or parts of them" in printed
    for line in ("5.000 to 5.100 s at (1.547, 0.500): its position lies outside the frame", "after the video ends"):
        assert line in printed
    assert "2.000 to 4.500 s at (0.500, 0.500): the scene changes" in printed


def test_command_line_fails_in_one_line_and_leaves_the_old_table(tmp_path):
    table = text_file(tmp_path / "f.csv", "old")
    gaze = text_file(tmp_path / "g.csv", "time,x,y\n0,0.5,0.5\nend\n")
    line = [sys.executable, "-m", "gazeqwen.gaze_sources", gaze, *GENERIC, "--frame_size", "64x48", "-o", table]
    result = subprocess.run(line, capture_output=True, text=True)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("gazeqwen gaze: ") and result.stderr.count("\n") == 1
    assert "g.csv, line 3: 1 fields, expected 3" in result.stderr
    assert table.read_text() == "old"


@pytest.mark.parametrize(
    ("name", "text", "source", "folder_tells"),
    [
        ("eye_gaze/general_eye_gaze_2d.csv", "frame_num,x,y\n0,1,1\n", "egoexo4d", True),
        (
            "mps/eye_gaze/general_eye_gaze.csv",
            "tracking_timestamp_us,yaw_rads_cpf,pitch_rads_cpf\n0,0,0\n",
            "aria",
            True,
        ),
        ("gaze_positions.csv", "gaze_timestamp,world_index,confidence,norm_pos_x,norm_pos_y\n", "pupil_core", True),
        ("gaze.csv", f"{INVISIBLE}\n", "pupil_labs", True),
        ("gazedata", GLASSES3[0], "tobii", True),
        ("uid.csv", EGO4D, "ego4d", False),
        ("s_gaze_2d.csv", "frame_idx,timestamp_sec,u,v,valid,in_frame\n", "holoassist", False),
        ("p.tsv", pro_lab(rows=PRO_LAB_ROWS), "tobii", False),
        ("OP01.txt", begaze_1([(1, 2, 0, "Fixation")]), "egtea", False),
        ("mine.csv", "time,x,y\n0,0.5,0.5\n", "generic", False),
    ],
)
def test_the_source_is_guessed_from_a_file_and_from_its_folder(tmp_path, name, text, source, folder_tells):
    assert guess_source(text_file(tmp_path / "recording" / name, text))[0] == source
    if folder_tells:
        assert guess_source(tmp_path / "recording")[0] == source


def test_arrays_archives_and_folders_are_guessed_and_what_tells_no_source_is_refused(tmp_path):
    np.save(tmp_path / "g.npy", np.zeros((2, 3)))
    assert guess_source(tmp_path / "g.npy")[0] == "egoexolearn"
    (tmp_path / "gazedata.gz").write_bytes(gzip.compress(b"{}"))
    assert guess_source(tmp_path / "gazedata.gz")[0] == "tobii"
    with pytest.raises(FileNotFoundError, match="nowhere.csv: no such file"):
        guess_source(tmp_path / "nowhere.csv")
    for data in (b"", b"0,1,2\n", bytes(range(255, 0, -1))):
        (tmp_path / "other").write_bytes(data)
        with pytest.raises(ValueError, match="other: a file of no known source, expected --source"):
            guess_source(tmp_path / "other")
    text_file(tmp_path / "neon" / "info.json", "{}")
    assert guess_source(tmp_path / "neon")[0] == "pupil_labs"
    text_file(tmp_path / "session" / "Export_py" / "Eyes" / "Eyes_sync.txt", "")
    assert [guess_source(tmp_path / "session" / place)[0] for place in ("", "Export_py")] == ["holoassist"] * 2
    (tmp_path / "recording.vrs").touch()
    with pytest.raises(ValueError, match="recording.vrs: a VRS file, expected the eye_gaze folder .* as --vrs"):
        guess_source(tmp_path / "recording.vrs")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: a folder of no known source"):
        guess_source(tmp_path / "empty")


def test_command_line_says_what_it_guessed(tmp_path):
    rows = "\n".join(f"{frame},704,704" for frame in range(10))
    gaze = text_file(tmp_path / "general_eye_gaze_2d.csv", f"frame_num,x,y\n{rows}\n")
    result = command(gaze, "-o", tmp_path / "f.csv")
    assert result.returncode == 0, result.stderr
    assert "max_gap_s: 0.25 s, two and a half steps of this recording" in result.stdout
    assert "source: egoexo4d, guessed from the columns frame_num, x, y (--source says another)" in result.stdout
    np.testing.assert_allclose(Scanpath.from_csv(tmp_path / "f.csv").table, [[0.5, 0.5, 0.45, 0.9]], atol=1e-9)
    unsaid = command(gaze_table(tmp_path / "mine.csv", 0.8), "-o", tmp_path / "f.csv")
    assert unsaid.returncode == 1 and "source generic needs --time_unit, --coordinates, --origin" in unsaid.stderr
