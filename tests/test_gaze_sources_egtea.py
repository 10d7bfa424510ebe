"""The reader of raw gaze of EGTEA Gaze+: a file in that format, read back; bad ones, named."""

import numpy as np
import pytest
from gaze_recordings import FIXATION, OUT, SACCADE, UNKNOWN, UNTRACKED, begaze_1, text_file

from gazeqwen.gaze_sources import SOURCES


def begaze_2(samples) -> str:
    """Second layout, from (x, y, time code, kind)."""
    header = ["## header"] * 34
    header[10] = f"## Number of Samples:\t{len(samples)}"
    rows = ["\t".join(["0"] * 5 + [str(x), str(y)] + ["0"] * 17 + [code, kind]) for x, y, code, kind in samples]
    return "\r\n".join([*header, *rows]) + "\r\n"


def test_egtea_first_layout(tmp_path):
    rows = [(640, 480, 0, "Fixation"), (320, 240, 2, "Saccade"), (1280.5, 0, 2, "Fixation"), (0, 0, 3, "-")]
    samples = SOURCES["egtea"].read(text_file(tmp_path / "OP01.txt", begaze_1(rows)))
    assert samples.times_s.tolist() == [0, 2 / 24, 2 / 24, 3 / 24] and samples.frame_index.tolist() == [0, 2, 2, 3]
    assert samples.status.tolist() == [FIXATION, SACCADE, OUT, UNTRACKED]
    np.testing.assert_array_equal(samples.xy, [[0.5, 0.5], [0.25, 0.25], [1280.5 / 1280, 0], [np.nan, np.nan]])
    assert samples.repeated_times == 1 and samples.notes == ("1 frames up to the last one have no sample",)


def test_egtea_second_layout_counts_time_codes_at_24_frames_a_second(tmp_path):
    rows = [(640, 480, "00:00:00:23", "Fixation"), ("-", "-", "00:00:01:00", "Blink"), (64, 48, "01:01:01:05", "?")]
    samples = SOURCES["egtea"].read(text_file(tmp_path / "P01.txt", begaze_2(rows)))
    assert samples.frame_index.tolist() == [23, 24, 3661 * 24 + 5]
    np.testing.assert_allclose(samples.times_s, [23 / 24, 1.0, 3661 + 5 / 24])
    assert samples.status.tolist() == [FIXATION, UNTRACKED, UNKNOWN]


def test_egtea_takes_the_videos_frame_times(tmp_path, uneven_video):
    rows = [(10, 10, frame, "Fixation") for frame in (0, 1, 2, 3, 5)]
    samples = SOURCES["egtea"].read(text_file(tmp_path / "P01.txt", begaze_1(rows)), uneven_video)
    beyond = 0.7 + 2 * 0.7 / 3  # two frames after the last one, at the mean rate
    np.testing.assert_allclose(samples.times_s, [0, 0.1, 0.3, 0.7, beyond], atol=1e-6)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "expected a text export of BeGaze"),
        ("a\n" * 50, "expected a text export of BeGaze"),
        (begaze_1([]), "no gaze sample"),
        (begaze_1([(1, 1, 0, "Fixation")]) + "0 SMP 1 2\n", "line 36: 4 fields, expected 7"),
        (begaze_1([("1,5", 1, 0, "Fixation")]), "line 35: position is '1,5'"),
        (begaze_1([(1, 1, -1, "Fixation")]), "line 35: frame -1"),
        (begaze_1([(1, 1, 9, "Fixation"), (1, 1, 8, "Fixation")]), "line 36: time 0.333333 s follows 0.375000 s"),
        (begaze_2([(1, 1, "00:00:01", "Fixation")]), "line 35: time code is '00:00:01'"),
    ],
)
def test_egtea_names_what_is_wrong(tmp_path, text, named):
    with pytest.raises(ValueError, match="P 01.txt") as error:
        SOURCES["egtea"].read(text_file(tmp_path / "P 01.txt", text))
    assert named in str(error.value)


def test_egtea_reports_a_header_that_counts_wrongly(tmp_path):
    text = begaze_1([(1, 1, 0, "Fixation")]).replace("Samples:\t1", "Samples:\t7")
    samples = SOURCES["egtea"].read(text_file(tmp_path / "P01.txt", text))
    assert samples.notes == ("the header announces 7 samples, the file holds 1",)
