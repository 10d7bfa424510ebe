"""The reader of raw gaze of Ego-Exo4D: a file in that format, read back; bad ones, named."""

import numpy as np
import pytest
from gaze_recordings import OUT, UNKNOWN, UNTRACKED, text_file

from gazeqwen.gaze_sources import SOURCES


def test_egoexo4d_counts_ten_rows_a_second_in_pixels_of_the_upright_frame(tmp_path):
    rows = "0,704.0,352.0\n3,1408.5,10\n4,,\n20,140.8,1267.2\n"
    path = text_file(tmp_path / "take_1" / "eye_gaze" / "general_eye_gaze_2d.csv", f"frame_num,x,y\n{rows}")
    for place in (path, tmp_path / "take_1", tmp_path / "take_1" / "eye_gaze"):
        samples = SOURCES["egoexo4d"].read(place)
        assert samples.times_s.tolist() == [0, 0.3, 0.4, 2.0] and samples.frame_size == (1408, 1408)
        assert samples.status.tolist() == [UNKNOWN, OUT, UNTRACKED, UNKNOWN]
        np.testing.assert_allclose(samples.xy[[0, 3]], [[0.5, 0.25], [0.1, 0.9]])
    assert "1 of 4 rows have no position, so they are untracked" in samples.notes
    text_file(path.with_name("personalized_eye_gaze_2d.csv"), f"frame_number,x,y\n{rows}")
    samples = SOURCES["egoexo4d"].read(tmp_path / "take_1")
    assert samples.source.endswith("personalized_eye_gaze_2d.csv") and samples.times_s[-1] == 2.0


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("frame_num,x,y\n0,1,1\n-2,1,1\n", "g.csv, line 3: frame_num is -2, expected 0 or more"),
        ("frame_num,x,y\n0,1,1\n1.5,1,1\n", "g.csv, line 3: frame_num is '1.5', expected a whole number"),
        ("frame_num,x,y\n5,1,1\n4,20,1\n", "g.csv, line 3: time 0.4"),
        ("frame_num,x,y\n0,0.5,0.5\n", "g.csv: all positions lie within 1 pixel"),
        ("frame,x,y\n0,5,5\n", "g.csv: no column frame_num"),
    ],
)
def test_egoexo4d_names_what_is_wrong(tmp_path, text, named):
    with pytest.raises(ValueError, match=named):
        SOURCES["egoexo4d"].read(text_file(tmp_path / "g.csv", text))
