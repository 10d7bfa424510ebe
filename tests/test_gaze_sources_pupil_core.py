"""The reader of raw gaze of Pupil Core: a file in that format, read back; bad ones, named."""

from pathlib import Path

import numpy as np
import pytest
from gaze_recordings import OUT, UNKNOWN, UNTRACKED, text_file

from gazeqwen.gaze_sources import SOURCES


def core_export(folder: Path, gaze, world=range(4)) -> Path:
    header = "gaze_timestamp,world_index,confidence,norm_pos_x,norm_pos_y,base_data"
    text_file(folder / "gaze_positions.csv", "\n".join([header, *gaze]) + "\n")
    times = "\n".join(f"{5000.25 + tenth / 10:f},{tenth}" for tenth in world)
    text_file(folder / "world_timestamps.csv", f"# timestamps [seconds],pts\n{times}\n")
    return folder


CORE = ["5000.35,1,0.9,0.25,0.1,5000.35-0", "5000.30,0,0.8,0.5,0.5,", "5000.40,1,0.3,0.5,0.5,", "5000.5,2,1.0,1.5,0,"]


def test_pupil_core_export(tmp_path, uneven_video):
    """Frames shown at 0, 0.1, 0.3, 0.7 s, taken 0.1 s apart; two samples in the wrong order."""
    folder = core_export(tmp_path / "rec 1" / "exports" / "000", CORE)
    samples = SOURCES["pupil_core"].read(folder, uneven_video)
    np.testing.assert_allclose(samples.times_s, [0.05, 0.1, 0.2, 0.5], atol=1e-6)
    np.testing.assert_allclose(samples.recorded_xy, [[0.5, 0.5], [0.25, 0.9], [0.5, 0.5], [1.5, 1.0]])
    assert samples.status.tolist() == [UNKNOWN, UNKNOWN, UNTRACKED, OUT] and samples.frame_size == (64, 48)
    assert samples.notes[0] == "2 samples are out of order, sorted by time"
    assert samples.notes[1] == "1 samples with a confidence below 0.6 (or none) are untracked"
    trusting = SOURCES["pupil_core"].read(folder / "gaze_positions.csv", min_confidence=0.2)
    np.testing.assert_allclose(trusting.times_s, [0.05, 0.1, 0.15, 0.25], atol=1e-9)
    assert trusting.status.tolist() == [UNKNOWN, UNKNOWN, UNKNOWN, OUT]
    assert SOURCES["pupil_core"].find(tmp_path, "rec 1") == folder
    assert SOURCES["pupil_core"].find(tmp_path, "000") == folder


@pytest.mark.parametrize(
    ("gaze", "world", "named"),
    [
        (["later,0,1,0.5,0.5,"], range(4), "gaze_positions.csv, line 2: gaze_timestamp is 'later', expected a number"),
        (
            [*CORE, "inf,0,1,0.5,0.5,"],
            range(4),
            "gaze_positions.csv, line 6: gaze_timestamp is inf, expected a finite",
        ),
        ([*CORE, "5001,0,high,0.5,0.5,"], range(4), "gaze_positions.csv, line 6: confidence is 'high'"),
        (CORE, [0, 2, 1], "world_timestamps.csv, line 4: .* does not increase"),
        (CORE, [], "world_timestamps.csv: a header and no rows"),
    ],
)
def test_pupil_core_names_what_is_wrong(tmp_path, gaze, world, named):
    with pytest.raises(ValueError, match=named):
        SOURCES["pupil_core"].read(core_export(tmp_path, gaze, world))
