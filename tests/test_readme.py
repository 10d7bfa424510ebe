"""README and guides say what the code does: their numbers, their snippet, their commands."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from datasets import Dataset, load_dataset
from forked import LIBRARIES_PYTHON, PACKAGE_PYTHON, PYTHON
from huggingface_hub import HfApi
from local_hub import TOKEN, LocalHub
from PIL import Image
from safetensors.torch import load_file, save_file
from support import BACKBONE, FIXTURES, ROOT, VIDEO_ENCODER, index_frames, write_fixations, write_video

from gazeqwen.evaluation.prediction_file import Prediction, PredictionFile
from gazeqwen.evaluation.predictions import accuracy_table, run_predictions
from gazeqwen.gaze_sources.fixations import detect_fixations
from gazeqwen.gaze_sources.generic import read
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.questions.dataset import load_questions
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.toyworld.example_recording import SEED, VIDEO, write_recording
from gazeqwen.toyworld.generate import make_video
from gazeqwen.toyworld.trained import ADAPTER_DIR
from gazeqwen.training.checkpoints import check_data, last_checkpoint
from gazeqwen.training.planning import plan
from gazeqwen.training.recipe import DataSettings, ModelSettings, Recipe, StageSettings
from gazeqwen.training.trainer import Trainer
from gazeqwen.utils.adapters import load_model
from gazeqwen.utils.files import write_text
from gazeqwen.utils.locks import lock
from gazeqwen.utils.settings import read_recipe
from gazeqwen.video_gazeqwen import read_clip

GUIDES = ("recording", "live", "python", "data", "train", "evaluate", "lmms-eval", "hub")
PAGES = ("README.md", "docs/quickstart.md", *(f"docs/guides/{name}.md" for name in GUIDES), "docs/concepts.md")
MANUAL = "\n".join((ROOT / page).read_text() for page in PAGES)
BLOCKS = list(dict.fromkeys(re.findall(r"```(\w*)\n(.*?)```", MANUAL, flags=re.DOTALL)))


def test_the_table_is_the_committed_result():
    result = json.loads((ROOT / "results" / "demo.json").read_text())
    assert f"<!-- results/demo.json -->\n```\n{accuracy_table(result['scores'])}\n```" in MANUAL


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


def test_the_snippet_runs(tmp_path):
    """As pasted, once the fixations are there: it shows that gaze makes a difference."""
    (snippet,) = (code for language, code in BLOCKS if language == "python")
    video, table = write_recording(tmp_path / "example")
    columns = {"time_unit": "ms", "coordinates": "pixels", "origin": "top-left", "min_confidence": 0.5}
    samples = read(table, video, **columns, offset_s=12.5)
    write_text(tmp_path / "example" / "fixations.csv", detect_fixations(samples).to_csv())
    result = subprocess.run([LIBRARIES_PYTHON, "-c", snippet], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == re.findall(r"# ([A-D])\b", snippet) == ["D", "C"]


# ---------------------------------------------------------------- commands
# What is put in place of the models that cannot be here.
TINY_MODEL = (
    f"model.base_model={BACKBONE} model.video_encoder_size=64 model.dtype=float32 "
    "model.max_frames=4 data.num_workers=0 stage1.epochs=1 stage2.epochs=0 tracker="
)
ONE_TASK = " data.tasks=[present_object_identification_easy]"
MORE = {  # by how a command begins: what is said beside it
    "gazeqwen convert vjepa2_1": "--num_attention_heads 2 --image_size 64",
    "accelerate launch train.py recipes/gazeqwen-7b.yaml data.dataset=data/streamgaze": TINY_MODEL + ONE_TASK,
    "accelerate launch train.py recipes/gazeqwen-7b.yaml data.dataset=data/mine": TINY_MODEL,
    "accelerate launch --config_file": TINY_MODEL + ONE_TASK + " output_dir=runs/two_processes data.cache=none",
    "gazeqwen train": TINY_MODEL,
    "gazeqwen train recipes/paper-7b.yaml": " adapter.injection_layers=[0,2,3,5]",
    # A 28-layer model, once for each question under each condition.
    "accelerate launch eval.py --model runs/gazeqwen-7b": "tasks=[past_gaze_sequence_matching,past_scene_recall]",
}
BASE_MODEL_28 = "Qwen/Qwen2.5-VL-7B-Instruct"  # in the reference's checkpoints: one with 28 layers
ELSEWHERE = {  # which tests run them
    "make install": "every target of the Makefile",
    "make demo": "test_training.py, on a smaller world",
    "make evidence": "test_evidence.py, one row of a smaller world",
    "make test": "this",
    "make test-app": "itself",
    "make docs": "test_site.py",
    "gazeqwen app": "test_app.py",
    "lmms-eval": "test_suites.py, what of it is ours; benchmarks/bench_suites.py, all of it where it is installed",
}


def commands() -> list[str]:
    lines = "\n".join(code for language, code in BLOCKS if not language).replace("\\\n", " ").splitlines()
    found = [" ".join(shlex.split(line, comments=True)) if line.startswith("make") else line for line in lines]
    found = [line for line in found if re.match(r"(python|accelerate|gazeqwen|lmms-eval|make) ", line)]
    return list(dict.fromkeys(re.sub(r" +", " ", line.split("  #")[0]).strip() for line in found))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory, toy_world, reference_parts):
    """A folder in which the README's commands find what they name."""
    folder = tmp_path_factory.mktemp("workshop")
    for name in ("train.py", "eval.py", "recipes", "results"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "downloads" / "raw_gaze").mkdir(parents=True)
    (folder / "downloads" / "StreamGaze").symlink_to(toy_world)
    (folder / "vjepa2_1_vitb_dist_vitG_384.pt").symlink_to(FIXTURES / "vjepa2_1_tiny_official.pt")
    (folder / "best_model.pt").symlink_to(FIXTURES / "gazeqwen_tiny_original.pt")
    (csv,) = (code for language, code in BLOCKS if language == "csv")
    (folder / "questions.csv").write_text(csv)
    for name, seconds in (("my", 10), ("lunch", 32), ("dinner", 13), ("snack", 11)):
        write_video(folder / f"{name}.mp4", index_frames(2 * seconds, 112, 112), fps=2)
        write_fixations(folder / f"{name}.csv", [(0.5, 2.5, 0.25, 0.75), (6.0, 9.5, 0.8, 0.2)])
    (folder / "my.csv").rename(folder / "fixations.csv")
    return folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Where the README's repository is."""
    with LocalHub() as hub:
        HfApi(hub.url, TOKEN).create_repo("user/name")
        yield hub.environment(tmp_path_factory.mktemp("home"))


@pytest.mark.parametrize("command", commands())
def test_the_commands_run(command, workshop, reference_parts, hub):
    """In their order: what one writes the next ones read."""
    if command in ELSEWHERE or command.split()[0] in ELSEWHERE:
        if command.startswith("make"):
            assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        return
    more = [words for begin, words in MORE.items() if command.startswith(begin)]
    base, _ = reference_parts
    run = " ".join([command.replace(BASE_MODEL_28, base), *more])
    environment = {**hub, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    # What goes to the Hub reads its address on import; the other commands need import nothing anew.
    python = PYTHON if "--push" in command else PACKAGE_PYTHON
    environment["PATH"] = f"{python.parent}:{environment['PATH']}"
    result = subprocess.run(["bash", "-c", run], capture_output=True, text=True, cwd=workshop, env=environment)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]


def test_what_the_commands_leave_is_what_the_readme_says(workshop):
    """After them all: before, none of it is there."""
    scanpath = Scanpath.from_csv(workshop / "example" / "fixations.csv")
    recording, _ = make_video(SEED, "test", VIDEO)
    seen = [fixation for fixation in recording.fixations if fixation.start_s <= 15 < fixation.end_s]
    assert np.allclose(scanpath.table[scanpath.index_at(15), :2], [seen[0].x_norm, seen[0].y_norm], atol=0.1)
    for picture in ("example/check.png", "example/answer.png", "docs/report/toy_world_accuracy.png"):
        assert Image.open(workshop / picture).size[0] > 500
    own = load_dataset(str(workshop / "data" / "mine"))
    assert {split: len(rows) for split, rows in own.items()} == {"train": 2, "validation": 1, "test": 2}
    for name in ("results.json", "results-mine.json"):
        assert list(json.loads((workshop / name).read_text())["scores"]) == ["gaze", "none", "shuffled", "centre"]
    for folder in ("models/reference", "runs/gazeqwen-7b/best", "runs/mine/best", "runs/two_processes/best"):
        assert (workshop / folder / "model.safetensors").exists()


# ---------------------------------------------------------------- when something goes wrong
TROUBLES = re.findall(r"^\| `(.+?)` \|", (ROOT / "docs" / "faq.md").read_text(), flags=re.MULTILINE)


def table_of(folder: Path, text: str) -> Path:
    (folder / "f.csv").write_text(text)
    return folder / "f.csv"


def ten_seconds(folder: Path) -> Path:
    return write_video(folder / "v.mp4", index_frames(20), fps=2)


def without_gaze(folder: Path, data: Path) -> list:
    copy = folder / "data"
    shutil.copytree(data, copy)
    table = copy / "default-train.parquet"
    rows = Dataset.from_parquet(str(table), cache_dir=str(folder / "cache"))
    blind = rows[0]["video_name"]
    rows.map(lambda row: row | {"scanpath": None} if row["video_name"] == blind else row).to_parquet(str(table))
    (copy / "README.md").write_text((copy / "README.md").read_text().replace("build ", "build without "))
    return load_questions(copy, "train")


def other_settings(path: Path) -> None:
    for settings in ({"seed": 0}, {"seed": 1}):
        file = PredictionFile(path, settings)
        file.start()
        file.append(0, [Prediction("k", "v", "t", 0, ["a", "b"], logits=[0.0, 1.0])])


def edited_answer(path: Path) -> None:
    file = PredictionFile(path, {"seed": 0})
    file.start()
    file.append(0, [Prediction("k", "v", "t", 0, ["a", "b"], logits=[0.0, 1.0])])
    file.merge()
    path.write_text(path.read_text().replace("[0.0, 1.0]", "[1.0, 0.0]"))
    PredictionFile(path, {"seed": 0}).start()


def taken_here(path: Path) -> None:
    code = f"from gazeqwen.utils.locks import lock\nwith lock({str(path)!r}):\n    print(flush=True)\n    input()"
    with subprocess.Popen([PYTHON, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        try:
            with lock(path):
                pass
        finally:
            other.kill()


def taken_elsewhere(path: Path) -> None:
    holder = {"process": 1, "host": "elsewhere", "boot": "another"}
    path.with_name(f".{path.name}.lock").write_text(json.dumps(holder))
    with lock(path):
        pass


def torn_checkpoint(folder: Path) -> None:
    checkpoint = folder / "checkpoints" / "stage1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "progress.json").write_bytes(b"")
    last_checkpoint(folder)


def other_data(folder: Path) -> None:
    (folder / "recipe.yaml").write_text("{}")
    (folder / "provenance.json").write_text(json.dumps({"data": {"train": {"questions": "a"}}}))
    check_data(folder, {"train": {"questions": "b"}})


def other_run(folder: Path, data: Path) -> None:
    settings = {"model": {"base_model": str(BACKBONE), "video_encoder": str(VIDEO_ENCODER)}}
    settings |= {"data": {"dataset": str(data)}, "stage1": {"epochs": 1}, "output_dir": str(folder / "run")}
    (folder / "r.yaml").write_text(yaml.safe_dump(settings))
    Trainer(read_recipe(Recipe, folder / "r.yaml"))
    (folder / "run").mkdir()
    (folder / "run" / "recipe.yaml").write_text(yaml.safe_dump(settings | {"seed": 1}))  # of a run that was begun
    Trainer(read_recipe(Recipe, folder / "r.yaml"))


def too_much(data: Path) -> None:
    def answers(batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    class Asked:
        questions, scanpaths_of = load_questions(data, "test"), [None]

        def __getitem__(self, index):
            return index

        def collate(self, items):
            return SimpleNamespace(indices=items, questions=[self.questions[i] for i in items])

    run_predictions(Accelerator(cpu=True), Asked(), answers, "gaze", 1)


def unwritable() -> None:
    imports = "from gazeqwen.utils.command_line import one_line_errors\nfrom gazeqwen.utils.hub import open_repository"
    code = f"{imports}\nwith one_line_errors(): open_repository('user/name')"
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9"}
    result = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, env=environment)
    assert result.returncode == 1
    raise OSError(result.stderr)


def not_its_weights(folder: Path) -> None:
    load_model(ADAPTER_DIR).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    save_file(dict(list(weights.items())[1:]), folder / "model.safetensors", metadata={"format": "pt"})
    GazeQwenForConditionalGeneration.from_pretrained(folder)


HEADER = "start_time,end_time,center_x,center_y\n"
PROVOKED = {  # folder, toy dataset, release of the toy world
    "x is 1.25, expected 0 to 1": lambda d, *_: Scanpath.from_csv(table_of(d, HEADER + "0,1,1.25,0.5\n")),
    "no column for": lambda d, *_: Scanpath.from_csv(table_of(d, "begin,x,y\n0,0.5,0.5\n")),
    "query time 30.0 s lies beyond the video": lambda d, *_: read_clip(ten_seconds(d), 0.0, 30.0, num_frames=4),
    "not a readable video": lambda d, *_: read_clip(table_of(d, HEADER), num_frames=4),
    "no gaze for 1 videos": lambda d, data, _: without_gaze(d, data),
    "no such folder, and no id of a dataset on the Hub": lambda *_: load_questions("data/not/there", "train"),
    "a release; build a dataset": lambda d, data, release: load_questions(release, "train"),
    "holds a run with other settings": lambda d, data, _: other_run(d, data),
    "holds predictions of other settings": lambda d, *_: other_settings(d / "p.jsonl"),
    "holds a run on other data": lambda d, *_: other_data(d),
    "writes there; wait until it has ended": lambda d, *_: taken_here(d / "run"),
    "if that has ended, delete": lambda d, *_: taken_elsewhere(d / "run"),
    "no checkpoint is whole": lambda d, *_: torn_checkpoint(d),
    "was edited after it was written": lambda d, *_: edited_answer(d / "p.jsonl"),
    "out of memory on": lambda d, data, _: too_much(data),
    "expected a folder or an id on the Hub": lambda d, data, _: plan(
        Recipe(
            model=ModelSettings("/not/there", video_encoder="x"), data=DataSettings(str(data)), stage1=StageSettings(1)
        )
    ),
    "cannot be written to on the Hub": lambda *_: unwritable(),
    "does not fit this model: missing": lambda d, *_: not_its_weights(d),
}


def test_all_troubles_are_provoked():
    assert list(PROVOKED) == TROUBLES


@pytest.mark.parametrize("trouble", TROUBLES)
def test_the_code_says_so(trouble, tmp_path, toy_data, toy_world):
    with pytest.raises((ValueError, OSError), match=re.escape(trouble)):
        PROVOKED[trouble](tmp_path, toy_data, toy_world)


# ---------------------------------------------------------------- links, recipes
def test_the_readme_is_short_and_its_links_lead_somewhere():
    """Those of all other pages are checked where the site is built (test_site.py)."""
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    for target in re.findall(r"\]\(([^)]+)\)", readme):
        assert target.startswith("https://") or (ROOT / target).exists(), target


@pytest.mark.parametrize("recipe", sorted(path.name for path in (ROOT / "recipes").glob("*.yaml")))
def test_recipes_are_valid(recipe):
    assert read_recipe(Recipe, ROOT / "recipes" / recipe).stage2.epochs > 0
