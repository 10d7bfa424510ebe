"""The reader of raw gaze of EgoExoLearn: a file in that format, read back; bad ones, named."""

import numpy as np
import pytest
from gaze_recordings import OUT, UNKNOWN, UNTRACKED

from gazeqwen.gaze_sources import SOURCES


def test_egoexolearn(tmp_path, video):
    rows = np.array([[0.25, 0.5, 1], [1.5, 0.5, 1], [0.5, 0.5, 0], [np.nan, 0.5, 1], [np.inf, 0.5, 1]], np.float32)
    np.save(tmp_path / "bee9 ü.npy", rows)
    samples = SOURCES["egoexolearn"].read(tmp_path / "bee9 ü.npy", video)
    np.testing.assert_allclose(samples.times_s, np.arange(5) / 30)
    assert samples.status.tolist() == [UNKNOWN, OUT, UNTRACKED, UNTRACKED, UNTRACKED]
    np.testing.assert_array_equal(samples.xy[:3], [[0.25, 0.5], [1.5, 0.5], [np.nan, np.nan]])
    assert samples.frame_size == (64, 48)
    assert samples.notes == ("2 samples without a finite position count as untracked",)


def test_egoexolearn_says_when_gaze_and_video_last_differently(tmp_path, video):
    np.save(tmp_path / "a.npy", np.ones((90, 3)))
    assert SOURCES["egoexolearn"].read(tmp_path / "a.npy", video).notes == (
        "90 rows at 30 Hz last 3.0 s, the video 1.0 s",
    )


@pytest.mark.parametrize(
    ("array", "named"),
    [
        (np.zeros((4, 2)), r"float64 \(4, 2\), expected a float array \(N, 3\)"),
        (np.zeros(4), r"\(4,\)"),
        (np.array([["a", "b", "c"]]), "expected a float array"),
        (np.zeros((0, 3)), "no gaze sample"),
        (np.array([{"x": 1}], dtype=object), "not a .npy file of numbers"),
    ],
    ids=["two columns", "one axis", "text", "empty", "pickled"],
)
def test_egoexolearn_refuses_other_arrays(tmp_path, array, named):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=named) as error:
        SOURCES["egoexolearn"].read(tmp_path / "a.npy")
    assert "a.npy" in str(error.value)


@pytest.mark.parametrize("data", [b"", b"\x93NUMPY\x01\x00", b"not an array"], ids=["empty", "cut off", "text"])
def test_egoexolearn_refuses_what_is_no_array(tmp_path, data):
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(ValueError, match="a.npy: not a .npy file"):
        SOURCES["egoexolearn"].read(tmp_path / "a.npy")
