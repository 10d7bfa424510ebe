"""The reader of any table of raw gaze: columns, units and origins; bad ones, named."""

import numpy as np
import pytest
from gaze_recordings import READING, T0, UNKNOWN, UNTRACKED, text_file

from gazeqwen.gaze_sources import SOURCES
from gazeqwen.gaze_sources.samples import GazeSamples


def test_generic_units_and_origins(tmp_path, video):
    def read(rows, **options) -> GazeSamples:
        path = text_file(tmp_path / "g.csv", "time,x,y\n" + "\n".join(rows) + "\n")
        return SOURCES["generic"].read(path, video, **{**READING, **options})

    for unit, factor in (("s", 1), ("ms", 10**3), ("us", 10**6), ("ns", 10**9)):
        samples = read([f"{2 * factor},0.25,0.75", f"{3 * factor},0.5,0.5"], time_unit=unit, offset_s=1.5)
        np.testing.assert_allclose(samples.times_s, [0.5, 1.5])
    np.testing.assert_allclose(read(["2500.5,0,0", "2750,0,0"], time_unit="ms", offset_s=1.5).times_s, [1.0005, 1.25])
    assert read(["0,0.25,0.75"]).xy.tolist() == [[0.25, 0.75]]
    assert read(["0,0.25,0.75"], origin="bottom-left").xy.tolist() == [[0.25, 0.25]]
    assert read(["0,-0.25,0.125"], origin="centre").xy.tolist() == [[0.25, 0.375]]
    assert read(["0,16,12"], coordinates="pixels").xy.tolist() == [[0.25, 0.25]]
    assert read(["0,16,12"], coordinates="pixels", origin="bottom-left").xy.tolist() == [[0.25, 0.75]]
    assert read(["0,16,12"], coordinates="pixels", origin="centre").xy.tolist() == [[0.75, 0.25]]
    assert read(["0,16,12"], coordinates="pixels", frame_size=(32, 24)).xy.tolist() == [[0.5, 0.5]]


def test_generic_nanoseconds_since_1970_stay_exact(tmp_path):
    path = text_file(tmp_path / "g.csv", f"time,x,y\n{T0 + 1},0.5,0.5\n{T0 + 129},0.5,0.5\n")
    samples = SOURCES["generic"].read(path, **{**READING, "time_unit": "ns", "offset_s": 1.7e9})
    assert samples.times_s.tolist() == [1e-9, 129e-9]


def test_generic_columns_delimiter_confidence_and_line_ends(tmp_path):
    rows = [
        "quality;t;gx;gy;other",
        "0.9;0;0.5;0.25;a",
        "",
        "0.4;0;0.5;0.25;b",
        ";1;nan;0.25;c",
        "0.8;2;1;inf;d",
        "0.5;3;1;1;e",
    ]
    path = text_file(tmp_path / "g.csv", "\ufeff" + "\r\n".join(rows) + "\r\n")
    columns = {"time_column": "t", "x_column": "gx", "y_column": "gy", "confidence_column": "quality"}
    samples = SOURCES["generic"].read(path, **READING, **columns, delimiter=";", min_confidence=0.5)
    assert samples.times_s.tolist() == [0, 0, 1, 2, 3] and samples.repeated_times == 1
    assert samples.status.tolist() == [UNKNOWN, UNTRACKED, UNTRACKED, UNTRACKED, UNKNOWN]
    assert len(samples.notes) == 2 and "2 samples with a confidence below 0.5" in samples.notes[0]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "empty, expected a header with time, x, y"),
        ("time,x,y\n", "a header and no rows"),
        ("t,x,y\n0,0,0\n", r"no column time among \['t', 'x', 'y'\]"),
        ("time;x;y\n0;0;0\n", "fields seem to be separated by ';', not ','"),
        ("time,x,y,x\n0,0,0,0\n", "column x occurs 2 times"),
        ("time,x,y\n0,0.5,0.5\n1,0.5\n", "line 3: 2 fields, expected 3"),
        ("time,x,y\n0,0,5,0,5\n", "line 2: 5 fields, expected 3"),
        ('time,x,y\n0,"0,5",0\n', r"line 2: x is '0,5' \(a decimal comma\?\), expected a number"),
        ("time,x,y\n0,0.5,0.5\nnan,0.5,0.5\n", "line 3: time is nan, expected a finite number"),
        ("time,x,y\ninf,0.5,0.5\n", "line 2: time is inf"),
        ("time,x,y\n,0.5,0.5\n", "line 2: time is '', expected a number"),
        ("time,x,y\n0,0.5,0.5\n2,0.5,0.5\n\n1,0.5,0.5\n", "line 5: time 1.000000 s follows 2.000000 s"),
        ("time,x,y\n0,left,0.5\n", "line 2: x is 'left'"),
        ('time,x,y\n0,"0.5,0.5\n', "line 2"),
    ],
)
def test_generic_names_what_is_wrong(tmp_path, text, named):
    with pytest.raises(ValueError, match="my gäze.csv") as error:
        SOURCES["generic"].read(text_file(tmp_path / "my gäze.csv", text), **READING)
    error.match(named)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"time_unit": "min"}, "time_unit 'min', expected one of s, ms, us, ns"),
        ({"coordinates": "percent"}, "coordinates 'percent'"),
        ({"origin": "left"}, "origin 'left'"),
        ({"coordinates": "pixels"}, "give the video, or the frame size"),
        ({"coordinates": "pixels", "frame_size": (64, 48)}, "are they normalised"),
        ({"coordinates": "pixels", "frame_size": (64, 0)}, "positive width and height"),
        ({"min_confidence": 0.5}, "no column confidence"),
    ],
)
def test_generic_refuses_options_that_do_not_fit(tmp_path, options, named):
    path = text_file(tmp_path / "g.csv", "time,x,y\n0,0.5,0.5\n")
    with pytest.raises(ValueError, match=named):
        SOURCES["generic"].read(path, **{**READING, **options})
