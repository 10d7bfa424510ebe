"""The README says what the code does: its numbers, its snippet, its commands."""

import json
import re
import shlex
import subprocess
import sys

import pytest
import torch
from support import BACKBONE, ROOT, VIDEO_ENCODER

from gazeqwen.evaluation import accuracy_table
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.DOTALL)


def test_the_table_is_the_committed_result():
    result = json.loads((ROOT / "results" / "demo.json").read_text())
    assert f"<!-- results/demo.json -->\n```\n{accuracy_table(result['scores'])}\n```" in README


def test_results_come_from_committed_code():
    for path in (*(ROOT / "results").glob("*.json"), *(ROOT / "benchmarks/results").glob("*.json")):
        if path.name == "published.json":  # other people's numbers
            continue
        commit = json.loads(path.read_text())["provenance"]["git"]
        assert re.fullmatch(r"[0-9a-f]{40}", commit), f"{path.name}: {commit}"


def test_the_committed_result_shows_that_gaze_matters():
    """What `make demo` must show on the test videos: 40 points above both controls on the present tasks."""
    scores = json.loads((ROOT / "results" / "demo.json").read_text())["scores"]
    present = [task for task in scores["gaze"]["tasks"] if task.startswith("present_")]
    assert len(present) == 4
    for task in present:
        with_gaze, without, shuffled = (scores[c]["tasks"][task]["accuracy"] for c in ("gaze", "none", "shuffled"))
        assert with_gaze - max(without, shuffled) >= 0.4


def test_the_snippet_runs(toy_world, toy_processor, tmp_path):
    torch.manual_seed(0)
    model = GazeQwenForConditionalGeneration.from_base(str(BACKBONE), str(VIDEO_ENCODER), latent_dim=16)
    model.save_pretrained(tmp_path)
    toy_processor.save_pretrained(tmp_path)
    (snippet,) = (code for language, code in BLOCKS if language == "python")
    assert len([line for line in snippet.splitlines() if line.strip()]) <= 12
    (table, *_) = sorted((toy_world / "metadata").rglob("*.csv"))
    video = toy_world / "videos" / "original_video" / f"{table.parent.name}.mp4"
    for name, value in {"runs/demo/best": tmp_path, "VIDEO": video, "FIXATIONS": table}.items():
        assert name in snippet
        snippet = snippet.replace(name, str(value))
    result = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 2


def commands() -> list[str]:
    lines = "\n".join(code for language, code in BLOCKS if not language).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith(("python ", "accelerate ", "make "))]


@pytest.mark.parametrize("command", commands())
def test_the_commands_exist(command):
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        return
    if "-m" in words:
        module = words[words.index("-m") + 1 :]
        build = ["build"] if "build" in module else []
        run = [sys.executable, "-m", module[0], *build, "--help"]
        source = subprocess.run(run, capture_output=True, text=True, check=True, cwd=ROOT).stdout
        source = re.sub(r"(--[a-z_]+)", r'"\1"', source)
    else:
        script = next(word for word in words if word.endswith(".py"))
        words = [word for word in words[: words.index(script)] if "recipes/" in word] + words[words.index(script) :]
        source = (ROOT / script).read_text()
    for word in words:
        if word.startswith("--"):
            assert f'"{word}"' in source, word
        if word.startswith("recipes/"):
            assert (ROOT / word).exists(), word


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


@pytest.mark.parametrize("recipe", sorted(path.name for path in (ROOT / "recipes").glob("*.yaml")))
def test_recipes_are_valid(recipe):
    from gazeqwen.runs import read_recipe
    from gazeqwen.training import Recipe

    assert read_recipe(Recipe, ROOT / "recipes" / recipe).stage2.epochs > 0
