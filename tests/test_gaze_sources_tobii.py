"""The reader of raw gaze of Tobii: a file in that format, read back; bad ones, named."""

import gzip

import numpy as np
import pytest
from gaze_recordings import FIXATION, GLASSES3, OUT, PRO_LAB_ROWS, SACCADE, UNKNOWN, UNTRACKED, pro_lab, text_file

from gazeqwen.gaze_sources import SOURCES


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tobii_pro_lab(tmp_path, video, encoding):
    (tmp_path / "p 1.tsv").write_bytes(pro_lab(rows=PRO_LAB_ROWS).replace("\n", "\r\n").encode(encoding))
    samples = SOURCES["tobii"].read(tmp_path / "p 1.tsv", video)
    np.testing.assert_allclose(samples.times_s, [0, 0.02, 0.04, 0.06, 0.08, 0.09])
    assert samples.status.tolist() == [FIXATION, SACCADE, UNTRACKED, UNTRACKED, OUT, UNTRACKED]
    np.testing.assert_allclose(samples.xy[:2], [[0.5, 0.5], [16.5 / 64, 0.25]])
    assert samples.notes == ("1 rows of other sensors are left out",)


@pytest.mark.parametrize(("unit", "time_unit"), [("μs", None), ("µs", None), ("us", None), ("ms", None), ("", "us")])
def test_tobii_pro_lab_units_of_time(tmp_path, unit, time_unit):
    rows = [(2000, "Eye Tracker", 0.5, 0.25, "Valid", "Valid", "Fixation")]
    path = text_file(tmp_path / "p.tsv", pro_lab(unit, " [MCS norm]", rows))
    samples = SOURCES["tobii"].read(path, time_unit=time_unit, offset_s=0.001)
    np.testing.assert_allclose(samples.times_s, [1.999 if unit == "ms" else 0.001])
    assert samples.xy.tolist() == [[0.5, 0.25]]


def test_tobii_pro_lab_prefers_positions_that_need_no_frame_size(tmp_path):
    names = [f"Gaze point {axis} [MCS {kind}]" for kind in ("px", "norm") for axis in "XY"]
    header = "\t".join(["Recording timestamp [ms]", *names])
    path = text_file(tmp_path / "p.tsv", f"{header}\n0\t32\t12\t0.5\t0.25\n")
    assert SOURCES["tobii"].read(path).xy.tolist() == [[0.5, 0.25]]


def test_tobii_pro_lab_picks_one_of_several_recordings(tmp_path):
    header = "Recording name\tRecording timestamp [ms]\tGaze point X [MCS norm]\tGaze point Y [MCS norm]"
    path = text_file(tmp_path / "p.tsv", f"{header}\none\t5\t0.5\t0.5\none\t9\t0.5\t0.5\ntwo\t1\t0.25\t0.5\n")
    assert SOURCES["tobii"].read(path, recording="two").xy.tolist() == [[0.25, 0.5]]
    with pytest.raises(ValueError, match=r"p.tsv: recording None, expected one of \['one', 'two'\]"):
        SOURCES["tobii"].read(path)
    with pytest.raises(ValueError, match="recording 'three'"):
        SOURCES["tobii"].read(path, recording="three")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (pro_lab("", " [MCS norm]", PRO_LAB_ROWS), "carries no unit"),
        (pro_lab("μs", " [DACS px]", PRO_LAB_ROWS), "only positions on a display"),
        (pro_lab("μs", " [MCS px]", PRO_LAB_ROWS), "give the video, or the frame size"),
        ("time\tx\n1\t2\n", "no column Recording timestamp"),
        ("", "no column Recording timestamp"),
        (pro_lab("μs", " [MCS norm]", [(0, "Eye Tracker", "left", 0.5, "", "", "")]), "line 2: .* is 'left'"),
        (pro_lab("μs", " [MCS norm]", [(0, "Eye Tracker", 0.5)]), "line 2: 3 fields, expected 7"),
    ],
)
def test_tobii_pro_lab_names_what_is_wrong(tmp_path, text, named):
    with pytest.raises(ValueError, match=f"p.tsv.*{named}"):
        SOURCES["tobii"].read(text_file(tmp_path / "p.tsv", text))


def test_tobii_glasses3(tmp_path):
    text = "\n".join(GLASSES3) + "\n"
    text_file(tmp_path / "plain" / "gazedata", text)
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "gazedata.gz").write_bytes(gzip.compress(text.encode()))
    for folder in ("plain", "packed"):
        samples = SOURCES["tobii"].read(tmp_path / folder)
        np.testing.assert_allclose(samples.times_s, [0.01, 0.03, 0.05])
        assert samples.status.tolist() == [UNKNOWN, UNTRACKED, OUT]
        np.testing.assert_array_equal(samples.xy[0], [0.25, 0.75])
        assert samples.notes == ("1 lines of other types than gaze are left out",)
        cut = SOURCES["tobii"].read(tmp_path / folder, offset_s=0.02)  # the video begins 0.02 s into the recording
        np.testing.assert_allclose(cut.times_s, [-0.01, 0.01, 0.03])


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (("\n".join(GLASSES3) + "\n" + GLASSES3[0][:-1]).encode(), "line 5: "),
        (b'{"type": "gaze", "data": {}}', "line 1: .*timestamp"),
        (b'{"type": "gaze", "timestamp": 0, "data": {"gaze2d": [1]}}', "line 1: "),
        (f"{GLASSES3[3]}\n{GLASSES3[0]}".encode(), "line 2: time 0.01"),
        (gzip.compress("\n".join(GLASSES3).encode())[:-12], "cut off"),
        (b"", "no gaze sample"),
        (b"\xff\xfe\xfd", "not gaze data"),
    ],
)
def test_tobii_glasses3_names_what_is_wrong(tmp_path, data, named):
    (tmp_path / "gazedata").write_bytes(data)
    with pytest.raises(ValueError, match=f"gazedata.*{named}"):
        SOURCES["tobii"].read(tmp_path)
