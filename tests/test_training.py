"""The chain: train both stages on a small toy world, evaluate under the conditions, load and ask in new processes."""

import json
import math
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from accelerate import Accelerator
from forked import PACKAGE_PYTHON
from PIL import Image
from safetensors.torch import load_file
from support import (
    BACKBONE,
    FIXATION_TABLE,
    ROOT,
    VIDEO_ENCODER,
    index_frames,
    run_here,
    tiny_model,
    write_fixations,
    write_video,
)

from gazeqwen.evaluation.prediction_file import Prediction
from gazeqwen.evaluation.predictions import CONDITIONS, accuracy_table, predict
from gazeqwen.evaluation.scoring import score
from gazeqwen.model_card.card import render_model_card
from gazeqwen.questions.dataset import load_questions
from gazeqwen.train import find_recipe
from gazeqwen.training.recipe import Recipe, StageSettings
from gazeqwen.training.trainer import Trainer, answer_loss, optimizer_groups
from gazeqwen.utils.adapters import load_model
from gazeqwen.utils.files import atomic_folder, write_json
from gazeqwen.utils.hub import digest_of_adapter
from gazeqwen.utils.settings import read_recipe

# What most runs train on: 21 questions, 10 for validation.
TASKS = [
    "past_gaze_sequence_matching",
    "past_non_fixated_object_identification",
    "present_object_attribute_recognition",
    "present_object_identification_easy",
]
# Of the run that is trained here: 10 questions, three steps of 4, 4 and 2; 3 for validation.
RUN_TASKS = TASKS[-2:]
ON_TASKS = [f"data.tasks=[{','.join(RUN_TASKS)}]", "batch_size=2"]


def recipe_text(dataset: Path, output: Path, **changes) -> str:
    values = {
        "output_dir": str(output),
        "model": {
            "base_model": str(BACKBONE),
            "video_encoder": str(VIDEO_ENCODER),
            "dtype": "float32",
            "video_encoder_size": 64,
            "num_frames": 8,
        },
        "adapter": {"latent_dim": 16, "num_latents": 8},
        "data": {
            "dataset": str(dataset),
            "cache": "embeddings",
            "cache_dir": str(output.parent / "cache"),
            "num_workers": 0,
        },
        "tracker": None,
        "stage1": {"epochs": 1, "learning_rate": 1e-2},
        "stage2": {"epochs": 1, "learning_rate": 1e-2, "lora_learning_rate": 1e-2},
        "batch_size": 4,
        "gradient_accumulation_steps": 2,
        "warmup_steps": 2,
        **changes,
    }
    return yaml.safe_dump(values)


@pytest.fixture(scope="module")
def run(toy_data, tmp_path_factory):
    """A finished run, the frozen weights before it, and what stage 1 left."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "recipe.yaml").write_text(recipe_text(toy_data, folder / "out"))
    trainer = Trainer(read_recipe(Recipe, folder / "recipe.yaml", ON_TASKS))
    frozen = {name: value.clone() for name, value in trainer.model.state_dict().items() if "resampler" not in name}
    fresh = {name: value.clone() for name, value in trainer.model.resampler.state_dict().items()}
    stage1, add_lora = {}, trainer.model.add_lora

    def add_lora_and_look(*arguments):
        stage1.update({name: value.clone() for name, value in trainer.model.state_dict().items()})
        add_lora(*arguments)

    trainer.model.add_lora = add_lora_and_look
    best = trainer.run()
    return {"trainer": trainer, "frozen": frozen, "fresh": fresh, "stage1": stage1, "best": best, "folder": folder}


def test_frozen_weights_are_bit_equal_after_both_stages(run):
    after = run["trainer"].model.state_dict()
    for name, value in run["frozen"].items():
        assert torch.equal(run["stage1"][name], value), name
        moved_by_peft = re.sub(r"(self_attn\.[qv]_proj)\.", r"\1.base_layer.", name)
        assert torch.equal(after[moved_by_peft if moved_by_peft in after else name], value), name
    assert len(run["frozen"]) > 100


def test_both_stages_move_the_resampler_and_stage_2_moves_lora(run):
    after = run["trainer"].model.state_dict()
    assert not any("lora_" in name for name in run["stage1"])
    for name, value in run["fresh"].items():
        frozen_bias = name.endswith("key.bias")
        assert torch.equal(run["stage1"][f"resampler.{name}"], value) == frozen_bias, name
        assert torch.equal(run["stage1"][f"resampler.{name}"], after[f"resampler.{name}"]) == frozen_bias, name
    matrices = {name: value for name, value in after.items() if "lora_B" in name}
    assert len(matrices) == 2 * 6
    # The last layer's queries and values act on the answer's position too, so every one of them learns.
    assert all(value.abs().max() > 0 for value in matrices.values())


def test_the_run_folder_tells_what_ran(run):
    out = run["folder"] / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "best",
        "checkpoints",
        "curves.png",
        "log.jsonl",
        "provenance.json",
        "recipe.yaml",
        "validation.json",
        "validation_predictions.jsonl",
    ]
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    questions = len(run["trainer"].questions)
    steps = math.ceil(math.ceil(questions / 2) / 2)
    losses = [line for line in log if "loss" in line]
    assert len(losses) == 2 * steps and {line["stage"] for line in losses} == {1, 2}
    scores = [line["validation_macro"] for line in log if "validation_macro" in line]
    assert json.loads((out / "validation.json").read_text())["macro"] == max(scores) == run["best"]["macro"]
    again = read_recipe(Recipe, out / "recipe.yaml")
    assert again == run["trainer"].recipe
    origin = json.loads((out / "provenance.json").read_text())
    assert origin["sources"] == ["toyworld"] and origin["dataset_from_hub"] is False


def test_the_same_seed_gives_the_same_run(run, toy_data, tmp_path):
    (tmp_path / "recipe.yaml").write_text(recipe_text(toy_data, tmp_path / "out"))
    again = Trainer(read_recipe(Recipe, tmp_path / "recipe.yaml", ON_TASKS))
    again.run()
    for name, value in run["trainer"].model.trained_parameters().items():
        assert torch.equal(again.model.trained_parameters()[name], value), name
    assert again.log == run["trainer"].log
    (tmp_path / "recipe.yaml").write_text(recipe_text(toy_data, tmp_path / "other"))
    encoded = f"data.cache_dir={run['folder'] / 'cache'}"
    other = Trainer(read_recipe(Recipe, tmp_path / "recipe.yaml", [*ON_TASKS, encoded, "seed=1", "stage2.epochs=0"]))
    other.run()
    assert other.log[0] != run["trainer"].log[0]


@pytest.mark.parametrize(
    ("adapter", "scales"),
    [
        ({}, {"amplitude", "foveal_gain"}),
        ({"gaze_encoding": "heatmap_decay"}, {"amplitude", "heatmap_key", "decay_rate"}),
        ({"gaze_encoding": "coord_pe", "share_resampler": True}, {"amplitude"}),
        ({"resampler_type": "heatmap_vector"}, {"amplitude", "vector"}),
        ({"resampler_type": "none"}, set()),
    ],
)
def test_optimizer_groups(adapter, scales):
    """LoRA has a rate of its own; norms, biases, LoRA and what scales gaze are not decayed, all else is."""
    model = tiny_model(lora=True, **adapter)
    stage = StageSettings(epochs=1, learning_rate=1e-3, lora_learning_rate=1e-4)
    groups = optimizer_groups(model, stage, weight_decay=0.01)
    names = {id(value): name for name, value in model.trained_parameters().items()}
    held = {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert set(held) == set(names.values())
    own = {name: name.removeprefix("resampler.") for name in held}
    assert scales <= set(own.values())
    for name, (rate, decay) in held.items():
        plain = "lora_" in name or "norm" in name or name.endswith("bias") or own[name] in scales
        assert decay == (0.0 if plain else 0.01), name
        assert rate == (1e-4 if "lora_" in name else 1e-3), name


def test_the_loss_sees_only_the_letters_offered():
    logits = torch.tensor([[2.0, 0.0, float("-inf"), float("-inf")], [0.0, 0.0, 0.0, 0.0]])
    loss = answer_loss(logits, torch.tensor([0, 3]))
    assert loss.item() == pytest.approx((math.log(1 + math.exp(-2)) + math.log(4)) / 2)
    smoothed = answer_loss(logits, torch.tensor([0, 3]), label_smoothing=0.1)
    rows = ((logits[0, :2], 0), (logits[1], 3))
    by_torch = [F.cross_entropy(row, torch.tensor(answer), label_smoothing=0.1) for row, answer in rows]
    assert smoothed.item() == pytest.approx(sum(by_torch).item() / 2) and smoothed > loss


def test_conditions_reach_the_model(run, toy_data):
    trainer, questions = run["trainer"], load_questions(toy_data, "test", [*TASKS[:2], TASKS[3]])
    cache = trainer.cache
    cache.fill(Accelerator(), trainer.model, questions)
    by_condition = {
        condition: predict(Accelerator(), trainer.model, cache, questions, condition, batch_size=5)
        for condition in CONDITIONS
    }
    with trainer.model.gaze_disabled():
        base = predict(Accelerator(), trainer.model, cache, questions, "gaze", batch_size=5)
    assert [p.logits for p in by_condition["none"]] == [p.logits for p in base]
    assert by_condition["gaze"][0].logits != by_condition["none"][0].logits
    for control in ("shuffled", "centre"):
        assert by_condition["gaze"][0].logits != by_condition[control][0].logits
    assert [p.key for p in by_condition["gaze"]] == [question.key for question in questions]
    alone = predict(Accelerator(), trainer.model, cache, questions[2:3], "gaze", batch_size=1)
    assert alone[0].logits == pytest.approx(by_condition["gaze"][2].logits, abs=1e-5)


def test_the_table_holds_tasks_and_their_mean():
    first, second = "past_scene_recall", "present_future_action_prediction"
    predictions = [Prediction(str(i), "v", first, 0, 2, [1.0, 0.0]) for i in range(3)]
    table = accuracy_table({"gaze": score([*predictions, Prediction("x", "v", second, 1, 2, [1.0, 0.0])])})
    assert table.splitlines()[1].split() == ["gaze", "100.0", "0.0", "50.0"]


# ---------------------------------------------------------------- scripts
def run_script(*command, expect: int = 0) -> str:
    """Return what a script prints in a new process; stderr if it is to fail."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [PACKAGE_PYTHON, *map(str, command)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert result.returncode == expect, result.stderr
    return result.stdout if expect == 0 else result.stderr


def test_eval_reloads_the_adapter_with_equal_logits_and_writes_every_setting(run, toy_data, tmp_path):
    out = run["folder"] / "out"
    printed = run_script(
        *("eval.py", "--model", out / "best", "--data", toy_data, "--split", "validation", "--tasks", *RUN_TASKS),
        *("--compare", out / "validation_predictions.jsonl", "--output", tmp_path / "result.json"),
    )
    assert re.search(r"largest difference of a logit .*: \d\.\de[-+]\d+ ", printed)
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result["scores"]) == set(CONDITIONS)
    assert result["scores"]["gaze"]["macro"] == run["best"]["macro"]
    assert result["settings"]["adapter"]["gaze_encoding"] == "foveated" and result["settings"]["num_frames"] == 8
    assert result["settings"]["weights"] == digest_of_adapter(out / "best", has_lora=result["settings"]["lora"])
    card = render_model_card(out / "best", [tmp_path / "result.json"])
    assert card.data.eval_results[-1].metric_value == result["scores"]["gaze"]["macro"]
    assert "points over no gaze, " in card.text and "not run" not in card.text
    assert set(result["provenance"]) == {"gazeqwen", "git", "python", "versions", "device"}


def test_eval_refuses_an_adapter_that_answers_otherwise(run, toy_data, tmp_path):
    lines = (run["folder"] / "out" / "validation_predictions.jsonl").read_text().splitlines()
    rows = [{name: value for name, value in json.loads(line).items() if name != "digest"} for line in lines]
    rows[0]["logits"][0] += 0.01  # of another adapter, not edited
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    best = run["folder"] / "out" / "best"
    arguments = (
        "--conditions",
        "gaze",
        "--split",
        "validation",
        "--tasks",
        *RUN_TASKS,
        "--compare",
        tmp_path / "p.jsonl",
    )
    error = run_script("eval.py", "--model", best, "--data", toy_data, *arguments, expect=1)
    assert "does not give the logits it was saved with" in error


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recording")
    video = write_video(folder / "my video.mp4", index_frames(100, 112, 112))
    table = write_fixations(folder / "f.csv", [(0.5, 2.5, 0.25, 0.75), (6.0, 9.5, 0.8, 0.2)])
    return video, table


def test_ask_answers_and_says_which_fixation_counted_when(run, recording, tmp_path):
    video, table = recording
    printed = run_here(
        *("ask.py", "--model", run["folder"] / "out" / "best", "--video", video, "--scanpath", table),
        *("--question", "Which object is the user currently gazing at?", "--options", "box", "knife", "jar"),
        *("--time", 8, "--plot", tmp_path / "out.png"),
    )
    assert re.search(r"with gaze: +[ABC]\. (box|knife|jar) \(\d+\.\d %\)", printed)
    assert re.search(r"without gaze: +[ABC]\. ", printed)
    # Frames at 0.5, 1.5, ... 7.5 s: steps of 2 s. The first fixation covers 1.5 s of step 1 and 0.5 s of step 2.
    assert re.findall(r"^ +(\d\.00) to +\d\.00 s +(.*)$", printed, flags=re.MULTILINE) == [
        ("0.00", "fixation 0: 75 %"),
        ("2.00", "fixation 0: 25 %"),
        ("4.00", "no fixation"),
        ("6.00", "fixation 1: 100 %"),
    ]
    assert Image.open(tmp_path / "out.png").size[0] > 500


def test_ask_answers_in_json(run, recording):
    video, table = recording
    printed = run_here(
        *("ask.py", "--model", run["folder"] / "out" / "best", "--video", video, "--scanpath", table, "--json"),
        *("--question", "Which object is the user currently gazing at?", "--options", "box", "knife", "--time", 8),
    )
    answer = json.loads(printed)
    assert set(answer["answers"]) == {"with gaze", "without gaze"} and answer["end_s"] == 8
    for each in answer["answers"].values():
        assert sum(each["probabilities"].values()) == pytest.approx(1)
        assert each["answer"] == max(each["probabilities"], key=each["probabilities"].get)
    assert [step["fixations"] for step in answer["steps"]] == [{"0": 0.75}, {"0": 0.25}, {}, {"1": 1.0}]


def test_a_device_that_is_not_there_is_named(run):
    with pytest.raises(ValueError, match="device: got 'nowhere', which torch has not"):
        load_model(str(run["folder"] / "out" / "best"), "nowhere")


def test_recipes_of_the_package_have_names(tmp_path):
    assert find_recipe("gazeqwen-7b") == ROOT / "recipes" / "gazeqwen-7b.yaml"
    with pytest.raises(FileNotFoundError, match="gazeqwen-8b: no such file, and no recipe of the package, .*demo"):
        find_recipe("gazeqwen-8b")


def test_ask_with_a_table_of_the_release(run, tmp_path):
    """Any video long enough stands in for the one that the table belongs to."""
    video = write_video(tmp_path / "OP99.mp4", index_frames(280, 112, 112), fps=1)
    printed = run_here(
        *("ask.py", "--model", run["folder"] / "out" / "best", "--video", video, "--scanpath", FIXATION_TABLE),
        *("--question", "Which object is the user currently gazing at?", "--options", "pot", "sponge", "spoon", "cup"),
        *("--time", 276, "--num_frames", 30, "--plot", tmp_path / "out.png"),
    )
    assert "6 fixations in the clip" in printed and re.search(r"with gaze: +[ABCD]\. ", printed)
    # Steps of 4 s. Fixation 8 lasts until 251.75 s, 9 begins at 251.875 s, and 11 at 275.958 s.
    assert re.search(r"248.00 to +252.00 s +fixation 8: 94 %, fixation 9: 3 %", printed)
    assert re.search(r"272.00 to +276.00 s +fixation 11: 1 %", printed)


def test_ask_answers_freely(run, recording):
    video, _ = recording
    arguments = ("--model", run["folder"] / "out" / "best", "--video", video, "--question", "What is this?")
    assert "without gaze:" in run_here("ask.py", *arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--time", "30"], "query time 30.0 s lies beyond the video, which ends at 10.0"),
        (["--scanpath", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_ask_names_what_is_wrong(run, recording, changes, message):
    video, table = recording
    arguments = ["ask.py", "--model", run["folder"] / "out" / "best", "--video", video, "--scanpath", table]
    error = run_here(*arguments, "--question", "What?", "--options", "a", "b", *changes, expect=1)
    assert message in error and "Traceback" not in error


def test_train_names_what_is_wrong(toy_data, tmp_path):
    (tmp_path / "r.yaml").write_text(recipe_text(toy_data, tmp_path / "out"))
    for override, message in [
        ("stage1.epoch=2", "r.yaml: stage1: unknown key 'epoch', did you mean 'epochs'"),
        ("batch_size=0", "batch_size: got 0"),
        ("batch_size=many", "batch_size: got 'many'"),
        ("stage1=3", "stage1: got 3"),
        ("seed", "expected section.key=value"),
        ("stage1.epochs=0 stage2.epochs=0", "nothing to train"),
        ("data.dataset=/nowhere", "/nowhere: no such folder"),
        ("data.tasks=[x]", r"of the tasks \['x'\], found"),
        ("model.prompt_style=rude", "model.prompt_style: got 'rude'"),
        ("adapter.gaze_encoding=gabor", "gaze_encoding: got 'gabor'"),
        ("data.validation_split=train", "videos are in both splits"),
    ]:
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            Trainer(read_recipe(Recipe, tmp_path / "r.yaml", override.split()))
    error = run_here("train.py", tmp_path / "r.yaml", "stage1.epoch=2", expect=1)
    assert error.strip().splitlines()[-1].startswith("train.py: ") and "Traceback" not in error


# ---------------------------------------------------------------- atomic writes
def test_an_interrupted_write_leaves_the_old_file_and_folder(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 1}
    with atomic_folder(tmp_path / "best") as folder:
        (folder / "file").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "best") as folder:
        (folder / "file").write_text("new")
        raise RuntimeError
    assert (tmp_path / "best" / "file").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "best"]


def test_the_adapter_of_the_best_epoch_is_the_one_saved(run):
    weights = load_file(run["folder"] / "out" / "best" / "model.safetensors")
    last = run["trainer"].model.resampler.state_dict()
    same = all(torch.equal(value, last[name.removeprefix("resampler.")]) for name, value in weights.items())
    assert same == (run["best"]["stage"] == 2)
