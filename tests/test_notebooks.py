"""The notebooks run, offline and in good time, and print what is kept in them."""

import base64
import io
import json
import re
import subprocess

import pytest
from forked import PACKAGE_PYTHON
from PIL import Image
from support import ROOT

# By notebook: how far a number may be from the one that is kept, where another processor computes; a training's
# accuracies move by two questions of 37.
NOTEBOOKS = {"my_recording": 0.5, "train_on_my_questions": 6.0}
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def code_cells(name: str) -> list[dict]:
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def kept_text(cell: dict) -> str:
    """Return what a cell printed when it was run to be kept."""
    return "".join("".join(output["text"]) for output in cell["outputs"] if output["output_type"] == "stream")


def kept_size(cell: dict) -> list[int] | None:
    """Return (width, height) in pixels of the picture that is kept of a cell; None without one."""
    pictures = [output["data"]["image/png"] for output in cell["outputs"] if output["output_type"] == "execute_result"]
    return list(Image.open(io.BytesIO(base64.b64decode("".join(pictures)))).size) if pictures else None


def comparable(text: str) -> tuple[str, list[float]]:
    """Return a text without its numbers, and these. What is said of a cache depends on the disk, and is left out."""
    text = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("cache of "))
    return NUMBER.sub("#", text), [float(number) for number in NUMBER.findall(text)]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_prints_what_is_kept_in_it(name, tmp_path):
    """In seconds: two minutes on two cores is the most, and a machine may be busy, so that CPU time is counted."""
    command = [PACKAGE_PYTHON, ROOT / "tests" / "run_notebook.py", ROOT / "notebooks" / f"{name}.ipynb", "out.json"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    run = json.loads((tmp_path / "out.json").read_text())
    assert run["cpu_s"] < 60
    for cell, outcome in zip(code_cells(name), run["cells"], strict=True):
        (text, numbers), (kept, kept_numbers) = comparable(outcome["printed"]), comparable(kept_text(cell))
        assert text == kept, outcome["printed"]
        assert numbers == pytest.approx(kept_numbers, abs=NOTEBOOKS[name]), outcome["printed"]
        assert outcome["size"] == kept_size(cell), (
            f"another picture: run the notebook anew (CONTRIBUTING.md), {cell['source']}"
        )


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_is_kept_is_whole_small_and_of_no_machine(name):
    file = ROOT / "notebooks" / f"{name}.ipynb"
    assert file.stat().st_size < 200_000
    assert not re.search(r"(?<![\w.])/(?:work|root|home|tmp|Users)/", file.read_text())
    cells = code_cells(name)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output.get("name", "picture") for output in outputs} == {"stdout", "picture"}


def test_what_is_kept_shows_that_gaze_matters():
    recording = "".join(map(kept_text, code_cells("my_recording")))
    assert "with gaze     D. onion" in recording and "without gaze  D. onion" not in recording
    assert not re.search("gaze of recording .*onion", recording)
    training = "".join(map(kept_text, code_cells("train_on_my_questions")))
    lows = [int(low) for low in re.findall(r"gaze - \w+ *: .* interval (\d+) to", training)]
    assert len(lows) == 3 and min(lows) > 30


def test_no_notebook_is_left_out():
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == set(NOTEBOOKS)
