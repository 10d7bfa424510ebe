"""The reader of raw gaze of Ego4D: a file in that format, read back; bad ones, named."""

import numpy as np
import pytest
from gaze_recordings import EGO4D, OUT, UNKNOWN, UNTRACKED, text_file

from gazeqwen.gaze_sources import SOURCES


def test_ego4d_turns_y_over_unless_told(tmp_path):
    path = text_file(tmp_path / "uid.csv", EGO4D)
    samples = SOURCES["ego4d"].read(path)
    np.testing.assert_allclose(samples.xy, [[0.25, 0.9], [np.nan, np.nan], [0.5, -0.2]])
    assert samples.status.tolist() == [UNKNOWN, UNTRACKED, OUT] and samples.times_s.tolist() == [0, 0.1, 0.2]
    np.testing.assert_allclose(SOURCES["ego4d"].read(path, origin="top-left").xy[0], [0.25, 0.1])
    assert SOURCES["ego4d"].read(path, min_confidence=0.5).status.tolist() == [UNKNOWN, UNTRACKED, UNTRACKED]
    with pytest.raises(ValueError, match="origin 'centre'"):
        SOURCES["ego4d"].read(path, origin="centre")
