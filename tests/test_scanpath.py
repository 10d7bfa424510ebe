"""Fixation tables: what is read, what is refused and how the error names it, and how scanpaths are cut."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import FIXATION_TABLES, write_fixations

from gazeqwen.scanpath_gazeqwen import Scanpath, as_scanpath


def table(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_reads_a_streamgaze_table(tmp_path):
    scanpath = Scanpath.from_csv(write_fixations(tmp_path / "f.csv", [(1.0, 3.0, 0.25, 0.75), (4.0, 4.5, 0.5, 0.5)]))
    assert scanpath.table.tolist() == [[0.25, 0.75, 2.0, 2.0], [0.5, 0.5, 4.25, 0.5]]
    assert scanpath.ids.tolist() == [0, 1]


@pytest.mark.parametrize(
    "text",
    [
        "start_time_seconds,end_time_seconds,center_x,center_y\n1,3,.25,.75\n",
        "center_y,center_x,episode_start_time,duration\n.75,.25,1,2\n",
        "\ufeffstart_time,end_time,center_x,center_y\r\n1,3,.25,.75\r\n",
    ],
    ids=["other names", "duration instead of end", "BOM and Windows line ends"],
)
def test_column_aliases(tmp_path, text):
    assert Scanpath.from_csv(table(tmp_path / "f.csv", text)).table.tolist() == [[0.25, 0.75, 2.0, 2.0]]


def test_rows_are_sorted_by_time_and_keep_their_numbers(tmp_path):
    path = write_fixations(tmp_path / "f.csv", [(4, 5, 0.1, 0.1), (1, 2, 0.9, 0.9)])
    with pytest.warns(UserWarning, match=r"f.csv: 2 of 2 fixations are out of order, sorted by time"):
        scanpath = Scanpath.from_csv(path)
    assert scanpath.table[:, 2].tolist() == [1.5, 4.5] and scanpath.ids.tolist() == [1, 0]


def test_repeated_rows_are_left_out_and_named(tmp_path):
    path = write_fixations(
        tmp_path / "f.csv", [(1, 2, 0.9, 0.9), (4, 5, 0.1, 0.1), (4, 5, 0.1, 0.1), (4, 5, 0.2, 0.1)]
    )
    with pytest.warns(UserWarning, match=r"f.csv: 1 fixations repeat an earlier one, left out: line 4"):
        scanpath = Scanpath.from_csv(path)
    assert scanpath.ids.tolist() == [0, 1, 3]


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 2), st.floats(0.01, 9)), max_size=8))
def test_what_is_written_is_read_again(rows):
    ends = np.cumsum([gap + duration for _, _, gap, duration in rows])
    table = [(x, y, end - duration / 2, duration) for (x, y, _, duration), end in zip(rows, ends, strict=True)]
    scanpath = Scanpath.from_array(table, ids=np.arange(len(rows)) * 3)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "f.csv").write_text(scanpath.to_csv())
        again = Scanpath.from_csv(Path(folder) / "f.csv")
    np.testing.assert_allclose(again.table, scanpath.table, atol=1e-9)
    assert again.ids.tolist() == scanpath.ids.tolist()


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ("1,3,nan,.5", ["line 3", "x is nan", "finite"]),
        ("1,3,.5,inf", ["line 3", "y is inf", "finite"]),
        ("1,3,1.2,.5", ["line 3", "x is 1.2", "0 to 1"]),
        ("1,3,.5,-0.1", ["line 3", "y is -0.1", "0 to 1"]),
        ("3,3,.5,.5", ["line 3", "3.0 to 3.0", "end after its start"]),
        ("3,2,.5,.5", ["line 3", "3.0 to 2.0", "end after its start"]),
        ("-2,1,.5,.5", ["line 3", "begins at or after 0"]),
        ("1,3,left,.5", ["line 3", "center_x is 'left'", "a number"]),
        ("1,3,.5", ["line 3", "center_y is None", "a number"]),
        ("nan,3,.5,.5", ["line 3", "nan"]),
        ("1,3,0,5,0,5", ["line 3", "6 cells, expected 4", "point"]),
        ('"1,0",3,.5,.5', ["line 3", "start_time is '1,0'", "a number"]),
        ("1e400,3,.5,.5", ["line 3", "expected an end after its start"]),
    ],
)
def test_bad_rows_are_named(tmp_path, row, named):
    path = table(tmp_path / "my fixations.csv", f"start_time,end_time,center_x,center_y\n0,1,.5,.5\n{row}\n")
    with pytest.raises(ValueError, match="my fixations.csv") as error:
        Scanpath.from_csv(path)
    for part in named:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "empty file"),
        ("start_time,end_time,x,y\n1,2,.5,.5\n", "no column for x, y"),
        ("start_time,center_x,center_y\n1,.5,.5\n", "no column for end or duration"),
        ("start_time;end_time;center_x;center_y\n1;2;.5;.5\n", "no column for start"),
    ],
)
def test_bad_headers_are_named(tmp_path, text, named):
    with pytest.raises(ValueError, match=named):
        Scanpath.from_csv(table(tmp_path / "f.csv", text))


def test_a_binary_file_is_refused(tmp_path):
    (tmp_path / "f.csv").write_bytes(bytes(range(256)))
    with pytest.raises(ValueError, match="not a CSV text file"):
        Scanpath.from_csv(tmp_path / "f.csv")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.csv"):
        Scanpath.from_csv(tmp_path / "nowhere.csv")


def test_arrays():
    assert as_scanpath(None) is None
    assert len(as_scanpath(np.zeros((0, 4)))) == 0
    with pytest.raises(ValueError, match=r"shape \(2, 3\)"):
        as_scanpath(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="row 1: duration is 0.0"):
        as_scanpath([[0.5, 0.5, 1.0, 1.0], [0.5, 0.5, 1.0, 0.0]])


def test_clipping_is_by_overlap_and_cuts_at_the_edges():
    scanpath = as_scanpath([[0.1, 0.1, 1.0, 2.0], [0.2, 0.2, 4.0, 2.0], [0.3, 0.3, 8.0, 2.0]])
    clipped = scanpath.clip(1.5, 4.5)
    np.testing.assert_allclose(clipped.table, [[0.1, 0.1, 1.75, 0.5], [0.2, 0.2, 3.75, 1.5]])
    assert clipped.ids.tolist() == [0, 1]


def test_a_cut_leaves_no_sliver_of_rounding():
    end_s = 0.1 + 0.2  # 4e-17 more than 0.3
    scanpath = as_scanpath([[0.1, 0.1, end_s / 2, end_s], [0.2, 0.2, 1.0, 0.5]])
    assert scanpath.end_s[0] > 0.3
    assert scanpath.clip(0.3, 2.0).ids.tolist() == [1] and scanpath.clip(0.29, 2.0).ids.tolist() == [0, 1]


def test_fixations_that_overlap_are_sorted_by_time_after_a_cut():
    """The second, around the first, has the later middle until what lies after 7 s is cut off."""
    scanpath = as_scanpath([[0.1, 0.1, 5.0, 2.0], [0.2, 0.2, 5.5, 9.0], [0.3, 0.3, 8.2, 0.4]])
    clipped, snapped = scanpath.clip(0.0, 7.0), scanpath.snap(8.0, 7.0)
    assert clipped.ids.tolist() == [1, 0] and snapped.ids.tolist() == [1, 0, 2]
    np.testing.assert_allclose(clipped.table[:, 2], [4.0, 5.0])
    np.testing.assert_allclose(snapped.table[:, 2], [4.0, 5.0, 7.5])


fixations = st.lists(
    st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(5, 50), st.floats(0.01, 9)), min_size=0, max_size=8
)


@pytest.mark.filterwarnings("ignore:scanpath")
@given(fixations, st.floats(0, 60), st.floats(0.1, 60))
def test_clipping_keeps_exactly_the_time_that_overlaps(rows, start_s, length_s):
    scanpath, end_s = as_scanpath(np.array(rows).reshape(-1, 4)), start_s + length_s
    clipped = scanpath.clip(start_s, end_s)
    assert (clipped.begin_s >= start_s - 1e-9).all() and (clipped.end_s <= end_s + 1e-9).all()
    overlap = np.clip(np.minimum(scanpath.end_s, end_s) - np.maximum(scanpath.begin_s, start_s), 0, None)
    assert clipped.table[:, 3].sum() == pytest.approx(overlap.sum(), abs=1e-6)


@pytest.mark.parametrize("path", FIXATION_TABLES, ids=lambda path: path.name)
def test_a_table_of_the_release(path):
    scanpath = Scanpath.from_csv(path)
    assert len(scanpath) == len(path.read_text().splitlines()) - 1 == 35
    last = scanpath.clip(216, 276)
    assert last.ids.tolist() == [6, 7, 8, 9, 10, 11]
    assert last.table[-1, 3] == pytest.approx(276 - 275.9583333)  # 42 ms: cut at the query
    snapped = scanpath.snap(276, 272).clip(216, 276)  # the last of 15 steps of 4 s
    assert snapped.ids.tolist() == [6, 7, 8, 9, 10, 11]
    assert (snapped.begin_s[-1], snapped.end_s[-1]) == (272, 276) and (snapped.end_s[:-1] <= 272).all()


# Fixations that end at 10, run from 9 to 11.5, and begin at 12; the query is at 11, its last step is [8, 11].
NEAR = [[0.1, 0.1, 8.0, 4.0], [0.2, 0.2, 10.6, 1.2], [0.3, 0.3, 12.2, 1.0]]


@pytest.mark.parametrize(
    ("query_s", "within_s", "asked", "others"),
    [
        (10.2, 1.0, 1, {0: (6.0, 8.0)}),  # begins 0.2 s before the query: fills the step, the other is cut there
        (9.8, 1.0, 1, {0: (6.0, 8.0)}),  # begins 0.2 s after the query
        (9.8, 0.1, None, None),  # too far
        (11.5, 1.0, 2, {0: (6.0, 8.0)}),  # what began earlier in the step gives way
        (7.9, 0.5, None, None),
    ],
)
def test_snapping_gives_the_last_step_to_the_fixation_that_begins_at_the_query(query_s, within_s, asked, others):
    scanpath = as_scanpath(NEAR)
    snapped = scanpath.snap(query_s, 8.0, within_s)
    if asked is None:
        assert snapped is scanpath
        return
    spans = {int(i): (b, e) for i, b, e in zip(snapped.ids, snapped.begin_s, snapped.end_s, strict=True)}
    assert spans.pop(asked) == pytest.approx((8.0, query_s))
    assert spans == {i: pytest.approx(span) for i, span in others.items()}


def test_a_fixation_that_began_before_the_last_step_keeps_its_beginning():
    snapped = as_scanpath([[0.5, 0.5, 10.0, 4.0]]).snap(8.4, 8.2, 1.0)
    assert (snapped.begin_s[0], snapped.end_s[0]) == pytest.approx((8.0, 8.4))
    assert len(as_scanpath(np.zeros((0, 4))).snap(8.0, 7.0)) == 0


def test_the_fixation_at_a_time_and_the_one_to_snap():
    scanpath = as_scanpath([[0.5, 0.5, 1.0, 1.0], [0.5, 0.5, 3.0, 1.0], [0.5, 0.5, 3.4, 1.0]])
    at = [scanpath.index_at(time_s) for time_s in (0.4, 0.5, 1.49, 1.5, 2.6, 3.0, 3.9)]
    assert at == [None, 0, 0, None, 1, 2, None]
    assert [scanpath.index_to_snap(query_s, 0.25) for query_s in (0.25, 0.2, 2.6, 2.8, 3.2)] == [0, None, 1, 2, None]
    assert as_scanpath(np.zeros((0, 4))).index_at(1.0) is as_scanpath(np.zeros((0, 4))).index_to_snap(1.0) is None


def test_rows_as_dicts_are_a_table():
    rows = [{"start_time": 0, "end_time": 1.5, "center_x": 0.2, "center_y": 0.4}, {"start_time": 2, "end_time": 3}]
    scanpath = as_scanpath([rows[0], {**rows[1], "center_x": 0.5, "center_y": 0.6}])
    np.testing.assert_allclose(scanpath.table, [[0.2, 0.4, 0.75, 1.5], [0.5, 0.6, 2.5, 1.0]])
    with pytest.raises(ValueError, match="scanpath, row 1: got .*, expected a dict with the columns"):
        as_scanpath(rows)
