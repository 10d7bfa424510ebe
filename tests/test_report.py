"""The report: what stands in its tables, what may not share one, and what its figures show."""

import json
import re
import subprocess

import numpy as np
import pytest
from forked import PACKAGE_PYTHON
from huggingface_hub.repocard_data import model_index_to_eval_results
from PIL import Image
from support import ROOT

from gazeqwen.evaluation import report
from gazeqwen.evaluation.report import write_report
from gazeqwen.evaluation.results import Result, differing, read_result
from gazeqwen.evaluation.scoring import read_predictions, score
from gazeqwen.evaluation.statistics import intervals, paired_difference
from gazeqwen.plots.report import draw_estimates
from gazeqwen.questions.tasks import TASKS

FIXTURES = ROOT / "tests" / "fixtures" / "results"  # of an earlier format, without predictions
DEMO, COORD_PE = FIXTURES / "demo.json", FIXTURES / "demo_coord_pe.json"
ALERT, RECALL = "proactive_gaze_triggered_alert", "past_scene_recall"


def write_result(
    folder, name="ours", tasks=tuple(TASKS), lift=2.0, videos=12, predictions=True, scorer="strict", **changes
):
    """An invented result on StreamGaze's tasks, with gaze (better by `lift`) and without, as eval.py writes one."""
    draw, lines = np.random.default_rng(0), []
    for condition in ("gaze", "none"):
        for video in range(videos):
            for task in tasks:
                count = 2 if task.startswith("proactive") else 4
                answer = (video + list(tasks).index(task)) % count
                logits = draw.normal(size=count)
                logits[answer] += lift * (condition == "gaze")
                line = {"key": f"{video} {task}", "video_name": f"P{video:02d}-R01-Soup.mp4", "task": task}
                line |= {"answer": answer, "options": count, "logits": logits.tolist(), "condition": condition}
                lines.append(line)
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    value = {
        "scores": {condition: score(items, scorer) for condition, items in read_predictions(file).items()},
        "settings": {"data": "data/streamgaze", "split": "test", "num_frames": 16, "seed": 0},
        "provenance": {"git": "0123456789abcdef" * 2 + "01234567", "device": "a GPU"},
        "scorer": scorer,
    } | ({"predictions": file.name} if predictions else {})
    for key, change in changes.items():
        value[key] = value[key] | change if isinstance(value.get(key), dict) else change
    (folder / f"{name}.json").write_text(json.dumps(value))
    return folder / f"{name}.json"


def section(report: str, title: str) -> str:
    """What stands below a heading, up to the next of its level or above."""
    level = title.split()[0]
    inside, found = False, []
    for line in report.splitlines():
        if re.match(rf"#{{1,{len(level)}}} ", line):
            inside = line.startswith(title)
        elif inside:
            found.append(line)
    assert found, title
    return "\n".join(found)


def cells(text: str) -> list[list[str]]:
    """The first Markdown table of a text: header and rows."""
    lines = re.search(r"(^\|.*\n?)+", text, flags=re.MULTILINE)[0].splitlines()
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    return [rows[0], *rows[2:]]


@pytest.fixture
def no_pictures(monkeypatch):
    """For tests of what is written: pictures take most of a report's time."""
    monkeypatch.setattr(report, "_draw_figures", lambda *_: {})


def test_toy_results_stand_in_a_table_of_their_own(tmp_path):
    written = write_report([DEMO, COORD_PE, ROOT / "results" / "published.json"], tmp_path, latex=True)
    assert {path.name for path in written} == {path.name for path in tmp_path.iterdir()}
    assert [path.name for path in written] == [
        *["report.md", "toy_world_accuracy.png", "toy_world_gain.png", "model-index.json", "report.tex"]
    ]
    report = (tmp_path / "report.md").read_text()
    toy, real = section(report, "## Toy world"), section(report, "## StreamGaze")
    assert "demo" not in real and "published" not in cells(toy)[1][-1] and "not compare with any published row" in toy
    header, *rows = cells(toy)
    assert header == ["method", "params", "frames", "NFI", "OI-E", "OI-H", "OAR", "overall", "source"]
    expected = ["demo, gaze", "–", "8", "97.6", "100.0", "100.0", "100.0"]
    assert rows[0] == [*expected, "99.4 (4 tasks)", "measured here"]
    conditions = ("gaze", "none", "shuffled")
    assert [row[0] for row in rows] == [f"{name}, {c}" for name in ("demo", "demo_coord_pe") for c in conditions]
    measured = cells(section(report, "### Measured here"))
    expected = ["demo", "runs/demo/world", "test", "strict", "gaze", "371", "–", "–", "fe1bd62664", "2 CPU cores"]
    assert measured[1] == expected
    different = {row[0]: row[1:] for row in cells(section(report, "### Settings that differ"))[1:]}
    assert different["adapter.gaze_encoding"] == ['"foveated"', '"coord_pe"']
    assert different["lora"] == ["true", "false"]
    assert "num_frames" not in different


@pytest.mark.usefixtures("no_pictures")
def test_published_rows_are_all_there_with_their_source(tmp_path):
    write_report([write_result(tmp_path, tasks=[RECALL, ALERT])], tmp_path / "out")
    report = (tmp_path / "out" / "report.md").read_text()
    header, *rows = cells(section(report, "## StreamGaze"))
    published, ours = rows[:16], rows[16:]
    assert all(row[-1] == "published: GazeQwen, arXiv 2603.25841, Table 1" for row in published)
    by_name = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert [by_name[name]["overall"] for name in ("Human", "GazeQwen", "GPT-4o")] == ["82.7", "63.9", "53.4"]
    assert by_name["GPT-4o"]["OAA"] == "14.9"
    assert (by_name["AssistGaze"]["overall"], by_name["AssistGaze"]["GTA"]) == ("24.0 (8 tasks)", "")
    assert published[-1][0].startswith("GazeQwen minus Qwen2.5-VL") and published[-1][-2] == "+16.1"
    assert [row[0] for row in ours] == ["ours, gaze", "ours, none"] and ours[0][-1] == "measured here"
    filled = {name for name, cell in by_name["ours, gaze"].items() if cell}
    assert filled == {"method", "params", "frames", "SR", "GTA", "overall", "source"}
    assert by_name["ours, gaze"]["overall"].endswith(" (2 tasks)")
    assert "Not comparable" in section(report, "### Published elsewhere")


def test_statistics_stand_where_predictions_are_at_hand(tmp_path):
    path = write_result(tmp_path)
    written = {file.name for file in write_report([path], tmp_path / "out")}
    pictures = {"streamgaze_accuracy.png", "streamgaze_gain.png", "streamgaze_reliability.png"}
    assert pictures < written and all((tmp_path / "out" / name).stat().st_size > 5000 for name in pictures)
    report, items = (tmp_path / "out" / "report.md").read_text(), read_predictions(tmp_path / "ours.jsonl")
    spread, found = intervals(items["gaze"]), score(items["gaze"])
    low, high = (100 * value for value in spread["macro"])
    (row, _) = cells(section(report, "### 95 % intervals"))[1:]
    assert row[0] == "ours, gaze" and row[-1] == f"{100 * found['macro']:.1f} [{low:.1f}, {high:.1f}]"
    gained = {row[1]: row[2:] for row in cells(section(report, "### Gain over no gaze"))[1:]}
    difference = paired_difference(items["gaze"], items["none"])["macro"]
    assert len(gained) == 11 and gained["overall"][1].startswith(f"{100 * difference:.1f} [")
    assert re.fullmatch(r"permutation by video, p = 0\.000\d+", gained["overall"][2])
    points = cells(section(report, "### Test points"))
    assert {row[1] for row in points[1:]} == {"GTA", "OAA"} and points[0][3:6] == [
        "accuracy",
        "balanced accuracy",
        "majority baseline",
    ]
    overall = cells(section(report, "## StreamGaze"))[17][-2]
    assert overall == f"{100 * found['macro']:.1f}"  # of all ten tasks

    write_report([write_result(tmp_path, predictions=False)], tmp_path / "out")
    report = (tmp_path / "out" / "report.md").read_text()
    assert "intervals" not in report and "reliability" not in report
    assert not (tmp_path / "out" / "streamgaze_reliability.png").exists()


CENTRAL = {"mean_distance": 0.123, "within_0.1": 0.5, "within_0.2": 0.804, "fixation_s": 60.0}


def with_centre(folder, name: str, centre: float, own: str = "gaze", control: str = "centre", **changes):
    """A result of one task whose mean is 60 %, from 50 to 70 %, and which the centre control got so much of right."""
    path = write_result(folder, name, [RECALL], predictions=False, **changes)
    value = json.loads(path.read_text())

    def scores(accuracy: float, bounds: list[float] | None) -> dict:
        tasks = {RECALL: {"correct": 100 * accuracy, "total": 100, "accuracy": accuracy}}
        return {"tasks": tasks, "macro": accuracy} | ({"intervals": {"tasks": {}, "macro": bounds}} if bounds else {})

    value["scores"] = {own: scores(0.6, [0.5, 0.7]), control: scores(centre, [0.4, 0.6]), "none": scores(0.6, None)}
    path.write_text(json.dumps(value))
    return path


@pytest.mark.usefixtures("no_pictures")
def test_the_report_says_how_central_the_gaze_is(tmp_path):
    """Once for results of the same gaze; nothing where no result has it."""
    paths = [with_centre(tmp_path, name, 0.3, gaze_centrality=CENTRAL) for name in ("one", "two")]
    paths.append(with_centre(tmp_path, "three", 0.3))
    write_report(paths, tmp_path / "out")
    said = section((tmp_path / "out" / "report.md").read_text(), "### How central the gaze is")
    assert cells(said) == [
        ["gaze of", "gaze from the middle", "within .1", "within .2"],
        ["one, two", "0.12", "50 %", "80 %"],
        ["evenly drawn places", "0.38", "3 %", "13 %"],
    ]
    assert "x in frame widths and y in frame heights" in said and "Warning" not in said
    write_report(paths[2:], tmp_path / "out")
    assert "central" not in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    "centre, own, control, explained",
    [
        (0.49, "gaze", "centre", False),
        (0.5, "gaze", "centre", True),
        (0.65, "model", "centre", True),
        (0.8, "gaze", "centre", True),
        (0.6, "ring", "centre+ring", True),
        (0.6, "ring+model", "ring+gaze+centre", True),
        (0.6, "ring", "centre", False),  # given to the adapter, not drawn: another control
        (0.6, "gaze", "shuffled", False),
    ],
)
def test_a_constant_centre_explains_what_it_is_no_worse_than(centre, own, control, explained, tmp_path):
    """By the interval of the condition that it is the control of, from 50 to 70 %."""
    result = read_result(with_centre(tmp_path, "ours", centre, own, control))
    assert result.explained_by_centre == ({own: control} if explained else {})


@pytest.mark.usefixtures("no_pictures")
def test_the_report_warns_where_a_constant_centre_explains_the_answers_as_well(tmp_path):
    paths = [with_centre(tmp_path, name, value) for name, value in (("low", 0.49), ("same", 0.65), ("high", 0.8))]
    write_report(paths, tmp_path / "out")
    said = section((tmp_path / "out" / "report.md").read_text(), "### How central the gaze is")
    warning = "**Warning: a constant centre explains the answers as well.**"
    assert f"{warning} same: `centre` 65.0, within the interval of `gaze`, 60.0 [50.0, 70.0]." in said
    assert f"{warning} high: `centre` 80.0, above the interval of `gaze`, 60.0 [50.0, 70.0]." in said
    assert said.count("Warning") == 2


@pytest.mark.parametrize("value", [0.3, [], {"mean_distance": 0.3}, CENTRAL | {"within_0.2": "half"}])
def test_a_centrality_that_is_none_is_refused(value, tmp_path):
    path = write_result(tmp_path, tasks=[RECALL], predictions=False)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"gaze_centrality": value}))
    with pytest.raises(ValueError, match="ours.json: gaze_centrality is .*, expected null or numbers for mean_dist"):
        read_result(path)


@pytest.mark.usefixtures("no_pictures")
def test_keys_that_a_result_may_have_are_used(tmp_path):
    path = write_result(tmp_path, tasks=[RECALL], predictions=False, name="plain")
    value = json.loads(path.read_text())
    value["name"], value["settings"]["parameters"] = "A | B", "7B"
    value["scores"]["gaze"]["intervals"] = {"tasks": {RECALL: [0.1, 0.9]}, "macro": [0.2, 0.8]}
    value["scores"]["gaze"]["options_permuted"] = {
        "permutations": 2,
        "questions": 20,
        "accuracies": [0.5, 0.6],
        "accuracy": 0.55,
        "same_share": 0.75,
    }
    value["scores"]["gaze"]["counts"] = {"expected": 20, "answered": 12, "failed": 8}
    path.write_text(json.dumps(value))
    write_report([path], tmp_path / "out")
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| A \\| B, gaze | 7B | 16 |" in report
    assert re.search(r"\[10\.0, 90\.0\] \| .*\[20\.0, 80\.0\]", report)
    assert "| A \\| B, gaze | 2 | 20 | 50.0, 60.0 | 55.0 | 75.0 |" in section(report, "### Other orders")
    assert "| gaze | 20 | 12 | 8 | 0123456789 | a GPU |" in report


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    "changes, shown",
    [
        ({"settings": {"split": "validation"}}, "split: 'test' and 'validation'"),
        ({"settings": {"data": "somewhere"}}, "data: 'data/streamgaze' and 'somewhere'"),
        ({"settings": {"config": "participants"}}, "config: 'default' and 'participants'"),
        ({"scorer": "streamgaze"}, "scorer: 'strict' and 'streamgaze'"),
        ({"videos": 11}, f"questions of {RECALL}: 12 and 11"),
    ],
)
def test_results_that_do_not_compare_are_refused_unless_mixed(changes, shown, tmp_path):
    pair = [write_result(tmp_path, "one", [RECALL]), write_result(tmp_path, "two", [RECALL], **changes)]
    with pytest.raises(ValueError, match=re.escape(shown)) as error:
        write_report(pair, tmp_path / "out")
    assert "one.json" in str(error.value) and "two.json" in str(error.value) and "--mixed" in str(error.value)
    assert not (tmp_path / "out").exists()
    write_report(pair, tmp_path / "out", mixed=True)
    header, *rows = cells(section((tmp_path / "out" / "report.md").read_text(), "## StreamGaze"))
    settings = {row[0]: row[-1] for row in rows}
    assert header[-1] == "settings" and settings["GPT-4o"] == ""
    assert settings["one, gaze"] == "data data/streamgaze, config default, split test, scorer strict"
    if "videos" not in changes:
        assert settings["two, gaze"] != settings["one, gaze"]


def test_predictions_under_other_conditions_are_passed_over(tmp_path):
    """A file that was resumed holds all that was ever asked, other orders of the options among it."""
    path = write_result(tmp_path, "x", [RECALL])
    value = json.loads(path.read_text())
    del value["scores"]["none"]
    path.write_text(json.dumps(value))
    assert read_result(path).items.keys() == {"gaze"}


def test_toy_own_and_streamgaze_results_share_a_report_but_no_table(tmp_path, monkeypatch):
    draw = report._draw_figures  # of the others, whose pictures other tests see, it takes most of the time
    own_alone = lambda kind, *of_kind: draw(kind, *of_kind) if kind == "Other data" else {}  # noqa: E731
    monkeypatch.setattr(report, "_draw_figures", own_alone)
    own = write_result(tmp_path, "own", ["reading", RECALL], settings={"data": "mine"})
    write_report([DEMO, own, write_result(tmp_path)], tmp_path / "out")
    assert (tmp_path / "out" / "other_data_accuracy.png").exists()
    text = (tmp_path / "out" / "report.md").read_text()
    for title, name in (
        ("## StreamGaze", "ours, gaze"),
        ("## Toy world", "demo, gaze"),
        ("## Other data", "own, gaze"),
    ):
        rows = {row[0] for row in cells(section(text, title))}
        assert name in rows and len(rows & {"ours, gaze", "demo, gaze", "own, gaze"}) == 1
        assert ("GPT-4o" in rows) == (title == "## StreamGaze")
    tasks = cells(section(text, "## Other data"))[0][3:-2]
    assert tasks == ["SR", "reading"]  # and no empty columns of StreamGaze's other tasks


def test_the_toy_world_is_known_by_where_its_videos_come_from(tmp_path):
    """The settings say it, or else the predictions; names of files, folders and models say nothing."""

    def kind(**changes) -> str:
        return read_result(write_result(tmp_path, "x", [RECALL], **changes)).kind

    assert kind() == kind(settings={"data": "runs/toyworld"}) == kind(settings={"sources": ["egtea"]}) == "StreamGaze"
    assert kind(settings={"adapter": {"base_model_name_or_path": "here/toyworld/backbone"}}) == "StreamGaze"
    assert kind(settings={"sources": ["toyworld"]}) == "Toy world"
    assert kind(settings={"sources": ["egtea", "toyworld"]}) == "StreamGaze"
    path = write_result(tmp_path, "x", [RECALL])
    lines = (tmp_path / "x.jsonl").read_text()
    (tmp_path / "x.jsonl").write_text(re.sub(r"P(\d\d)-R01-Soup", r"toy-test-00\1", lines))
    assert read_result(path).kind == "StreamGaze"
    (tmp_path / "x.jsonl").write_text(lines.replace('"task":', '"source": "toyworld", "task":'))
    assert read_result(path).kind == "Toy world"
    own = write_result(tmp_path, "own", ["reading"], settings={"sources": ["own"]})
    assert read_result(own).kind == "Other data"


def broken(folder, change) -> str:
    path = write_result(folder, "x", [RECALL, ALERT])
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    return str(path)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda v: v.pop("scores"), r"x.json: scores is None, expected an object"),
        (lambda v: v.update(provenance=[]), r"x.json: provenance is \[\], expected an object"),
        (lambda v: v["scores"].update(gaze={}), "x.json: scores, gaze: tasks are None"),
        (
            lambda v: v["scores"]["gaze"]["tasks"][RECALL].update(correct=1, accuracy=1),
            f"gaze, {RECALL}: .*do not fit",
        ),
        (lambda v: v["scores"]["none"]["tasks"][RECALL].update(total="12"), f"none, {RECALL}: .*'12'.* do not fit"),
        (lambda v: v["scores"]["gaze"].update(macro=0.123), "gaze: macro is 0.123, but the mean of its 2 tasks is"),
        (lambda v: v["scores"]["gaze"].pop("macro"), "gaze: macro is None"),
        (lambda v: v.update(scorer="lenient"), "x.json: scorer is 'lenient', expected one of"),
        (lambda v: v.update(predictions="/etc/passwd"), "x.json: predictions: got '/etc/passwd', expected .* beside"),
        (lambda v: v.update(predictions="../x.jsonl"), "x.json: predictions: got '../x.jsonl', expected .* beside"),
        (lambda v: v.update(predictions=5), "x.json: predictions: got 5, expected .* beside"),
        (lambda v: v.update(predictions="gone.jsonl"), "x.json: its predictions .*gone.jsonl are not there"),
        (
            lambda v: v.update(scores={"other": v["scores"]["gaze"]}),
            r"x.jsonl has conditions \['gaze', 'none'\], scores \['other'\]",
        ),
        (lambda v: v["scores"].update(none=v["scores"]["gaze"]), "none: macro is .*, but that of .*x.jsonl is"),
    ],
)
def test_result_files_that_are_none_are_named(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_report([broken(tmp_path, change)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_predictions_behind_a_link_out_of_the_folder_are_not_opened(tmp_path):
    path = write_result(tmp_path, "x", [RECALL])
    (tmp_path / "x.jsonl").unlink()
    (tmp_path / "x.jsonl").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="x.json: predictions: got 'x.jsonl', expected .* beside") as error:
        read_result(path)
    assert "root:" not in str(error.value)


def test_predictions_that_are_not_utf8_are_named(tmp_path):
    path = write_result(tmp_path, "x", [RECALL])
    with (tmp_path / "x.jsonl").open("ab") as file:
        file.write('{"key": "é"}\n'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"x.jsonl, line \d+: not JSON"):
        read_result(path)


def test_files_that_are_no_results_are_named(tmp_path):
    torn = tmp_path / "torn.json"
    torn.write_text(DEMO.read_text()[:500])
    with pytest.raises(ValueError, match="torn.json: not JSON"):
        write_report([torn], tmp_path / "out")
    torn.write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"torn.json: got \[1, 2\]"):
        write_report([torn], tmp_path / "out")
    with pytest.raises(ValueError, match=r"no result among .*published.json"):
        write_report([ROOT / "results" / "published.json"], tmp_path / "out")
    again = tmp_path / "demo.json"
    again.write_text(DEMO.read_text())
    with pytest.raises(ValueError, match="are named 'demo'; give each a `name`"):
        write_report([DEMO, again], tmp_path / "out")


def test_settings_that_differ_are_found_at_any_depth():
    pair = [
        Result(DEMO, name, {}, {"a": {"b": {"c": number}}, "same": 1} | extra, {"git": "x"}, "strict", {})
        for name, number, extra in (("one", 1, {}), ("two", 2, {"new": None}))
    ]
    assert differing(pair) == {"a.b.c": [1, 2]}  # a setting that is absent is as one that is null
    assert differing([*pair, Result(DEMO, "three", {}, {}, {"git": "y"}, "streamgaze", {})]).keys() == {
        *("a.b.c", "same", "provenance.git", "scorer")
    }


@pytest.mark.usefixtures("no_pictures")
def test_the_model_index_is_one_that_the_hub_reads(tmp_path):
    write_report([DEMO, write_result(tmp_path)], tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model-index.json").read_text())["model-index"]
    assert [entry["name"] for entry in index] == ["demo", "ours"]
    toy, real = (model_index_to_eval_results([entry])[1] for entry in index)
    assert {row.dataset_name for row in toy} == {"toy world (not StreamGaze)"} and len(toy) == 5
    assert {row.dataset_type for row in real} == {"danaleee/StreamGaze"} and len(real) == 11
    assert real[0].dataset_args == {"condition": "gaze", "scorer": "strict"} and real[0].dataset_split == "test"
    values = {row.metric_name: row.metric_value for row in toy}
    assert values["accuracy, NFI"] == 41 / 42
    assert values["accuracy, mean over 4 tasks"] == pytest.approx(0.99405, abs=1e-5)


@pytest.mark.usefixtures("no_pictures")
def test_latex_has_the_same_cells(tmp_path):
    path = write_result(tmp_path, "50 % & more_tasks", [RECALL])
    write_report([path], tmp_path / "out", latex=True)
    tex = (tmp_path / "out" / "report.tex").read_text()
    marked = re.sub(r"\\([&%_])", r"<\1>", tex).splitlines()
    lines = [line.removesuffix(r" \\").split(" & ") for line in marked if " & " in line]
    header, *rows = cells(section((tmp_path / "out" / "report.md").read_text(), "## StreamGaze"))
    plain = [[re.sub(r"<(.)>", r"\1", cell).replace("--", "–").strip() for cell in line] for line in lines]
    assert plain == [header, *rows]
    assert r"50 \% \& more\_tasks, gaze & --" in tex
    assert tex.count(r"\begin{tabular}{lllllllllllllll}") == tex.count(r"\end{tabular}") == 1


def test_dots_stand_at_values_and_bars_end_at_intervals(tmp_path):
    """In a picture of one panel the dots' and the bar's columns are found by colour, between dots at 0 and 100 %."""
    rows = {"none": {"SR": (0.0, None)}, "all": {"SR": (1.0, None)}, "ours": {"SR": (0.5, [0.25, 0.625])}}
    colors = {"none": "#ff0000", "all": "#00ff00", "ours": "#0000ff"}
    draw_estimates(tmp_path / "p.png", "", ["SR"], rows, colors, "", (0, 100))
    red, green, blue = np.moveaxis(np.asarray(Image.open(tmp_path / "p.png").convert("RGB")).astype(int), -1, 0)
    middle = {
        name: np.argwhere((one > 200) & (others.max(0) < 60))[:, 1].mean()
        for name, one, others in (
            ("none", red, np.stack([green, blue])),
            ("all", green, np.stack([red, blue])),
            ("ours", blue, np.stack([red, green])),
        )
    }
    width = middle["all"] - middle["none"]
    assert width > 50 and (middle["ours"] - middle["none"]) / width == pytest.approx(0.5, abs=0.02)
    bar = np.argwhere((blue > 240) & (red < 200) & (green < 200))[:, 1]  # the dot's colour, or paler
    ends = (np.array([bar.min(), bar.max()]) - middle["none"]) / width
    np.testing.assert_allclose(ends, [0.25, 0.625], atol=0.02)


def test_of_few_videos_no_interval_is_given(tmp_path):
    few = read_result(write_result(tmp_path, "few", tasks=[RECALL, ALERT], videos=9))
    assert few.has_few_videos and few.intervals["gaze"]["macro"] is few.intervals["gaze"]["tasks"][RECALL] is None
    assert set(few.against_none["gaze"]["intervals"]["groups"].values()) == {None}
    enough = read_result(write_result(tmp_path, "enough", tasks=[RECALL], videos=10))
    assert not enough.has_few_videos and enough.intervals["gaze"]["macro"] is not None
    (tmp_path / "few.jsonl").unlink()
    value = json.loads((tmp_path / "few.json").read_text())
    value["scores"]["gaze"]["intervals"] = {"tasks": {RECALL: [1, 1]}, "macro": [1, 1], "videos": 2}
    del value["predictions"]
    (tmp_path / "few.json").write_text(json.dumps(value))
    write_report([tmp_path / "few.json"], tmp_path / "out")
    report = (tmp_path / "out" / "report.md").read_text()
    assert "Of fewer than 10 videos no interval is given" in report and "[100.0, 100.0]" not in report


def test_the_command(tmp_path):
    def run(*arguments):
        command = [
            PACKAGE_PYTHON,
            "-m",
            "gazeqwen.evaluation.report",
            *map(str, arguments),
            "-o",
            str(tmp_path / "out"),
        ]
        return subprocess.run(command, capture_output=True, text=True)

    done = run(*sorted((ROOT / "results").glob("*.json")), "--latex")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"written to {tmp_path / 'out' / 'report.md'}"
    refused = run(DEMO, tmp_path / "none.json")
    assert refused.returncode == 1 and "none.json" in refused.stderr and "Traceback" not in refused.stderr
