"""The README says what the code does: its numbers, its snippet, its commands."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_dataset
from PIL import Image
from support import BACKBONE, FIXTURES, ROOT, VIDEO_ENCODER, index_frames, write_fixations, write_video

from gazeqwen.evaluation import accuracy_table
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.scanpath_gazeqwen import Scanpath

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


# ---------------------------------------------------------------- commands
# What is put in place of the models that cannot be here.
TINY_MODEL = (
    f"model.base_model={BACKBONE} model.video_encoder={VIDEO_ENCODER} model.video_encoder_size=64 model.dtype=float32 "
    "model.max_frames=4 data.num_workers=0 stage1.epochs=1 stage2.epochs=1 tracker="
)
MORE = {  # by how a command begins: what is said beside it
    "python convert.py vjepa2_1": "--num_attention_heads 2 --image_size 64",
    "accelerate launch train.py recipes/gazeqwen-7b.yaml data.dataset=data/streamgaze": TINY_MODEL,
    "accelerate launch train.py recipes/gazeqwen-7b.yaml data.dataset=data/mine": TINY_MODEL,
    "accelerate launch --config_file": TINY_MODEL + " output_dir=runs/two_processes data.cache=none",
    "python train.py": TINY_MODEL,
}
BASE_MODEL_28 = "Qwen/Qwen2.5-VL-7B-Instruct"  # in the reference's checkpoints: one with 28 layers
ELSEWHERE = {  # which tests run them
    "make install": "every target of the Makefile",
    "make demo": "test_training.py, on a smaller world",
    "make evidence": "test_evidence.py, one row of a smaller world",
    "make test": "this",
    "make test-app": "itself",
    "python app.py": "test_app.py",
}


def commands() -> list[str]:
    lines = "\n".join(code for language, code in BLOCKS if not language).replace("\\\n", " ").splitlines()
    found = [" ".join(shlex.split(line, comments=True)) if line.startswith("make") else line for line in lines]
    found = [line for line in found if re.match(r"(python|accelerate|make) ", line)]
    return [re.sub(r" +", " ", line.split("  #")[0]).strip() for line in found]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory, toy_world, reference_parts):
    """A folder in which the README's commands find what they name."""
    folder = tmp_path_factory.mktemp("workshop")
    for name in ("train.py", "eval.py", "ask.py", "convert.py", "recipes", "results"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "downloads" / "raw_gaze").mkdir(parents=True)
    (folder / "downloads" / "StreamGaze").symlink_to(toy_world)
    (folder / "vjepa2_1_vitb_dist_vitG_384.pt").symlink_to(FIXTURES / "vjepa2_1_tiny_official.pt")
    (folder / "best_model.pt").symlink_to(FIXTURES / "gazeqwen_tiny_original.pt")
    (csv,) = (code for language, code in BLOCKS if language == "csv")
    (folder / "questions.csv").write_text(csv)
    write_video(folder / "my.mp4", index_frames(200, 112, 112), fps=20)
    for name, seconds in (("lunch", 32), ("dinner", 13)):
        write_video(folder / f"{name}.mp4", index_frames(2 * seconds, 112, 112), fps=2)
        write_fixations(folder / f"{name}.csv", [(0.5, 2.5, 0.25, 0.75), (6.0, 11.5, 0.8, 0.2)])
    # 10 s of gaze at 100 Hz on a clock in milliseconds that reads 12.5 s when the video begins: two places, 5 s each.
    samples = [f"{12500 + 10 * i},{(28 if i < 500 else 84) + i % 2},{56 + i % 3},1" for i in range(1000)]
    (folder / "gaze.csv").write_text("\n".join(["time,x,y,confidence", *samples]) + "\n")
    return folder


@pytest.mark.parametrize("command", commands())
def test_the_commands_run(command, workshop, reference_parts):
    """In their order: what one writes the next ones read."""
    if command in ELSEWHERE:
        if command.startswith("make"):
            assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        return
    more = [words for begin, words in MORE.items() if command.startswith(begin)]
    base, _ = reference_parts
    run = " ".join([command.replace(BASE_MODEL_28, base), *more])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    result = subprocess.run(["bash", "-c", run], capture_output=True, text=True, cwd=workshop, env=environment)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]


def test_what_the_commands_leave_is_what_the_readme_says(workshop):
    """After them all: before, none of it is there."""
    scanpath = Scanpath.from_csv(workshop / "fixations.csv")
    assert np.allclose(scanpath.table, [[0.25, 0.51, 2.5, 5], [0.755, 0.51, 7.5, 5]], atol=0.02)
    for picture in ("check.png", "out.png", "docs/report/toy_world_accuracy.png"):
        assert Image.open(workshop / picture).size[0] > 500
    own = load_dataset(str(workshop / "data" / "mine"))
    assert {split: len(rows) for split, rows in own.items()} == {"train": 2, "validation": 1, "test": 1}
    for name in ("results.json", "results-mine.json"):
        assert list(json.loads((workshop / name).read_text())["scores"]) == ["gaze", "none", "shuffled"]
    for folder in ("models/reference", "runs/gazeqwen-7b/best", "runs/mine/best", "runs/two_processes/best"):
        assert (workshop / folder / "model.safetensors").exists()


def test_links_and_pictures_exist():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


@pytest.mark.parametrize("recipe", sorted(path.name for path in (ROOT / "recipes").glob("*.yaml")))
def test_recipes_are_valid(recipe):
    from gazeqwen.runs import read_recipe
    from gazeqwen.training import Recipe

    assert read_recipe(Recipe, ROOT / "recipes" / recipe).stage2.epochs > 0
