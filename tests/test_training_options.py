"""What a recipe can ask for: caches, schedules, checkpointing, trackers, open-ended answers; and what goes wrong."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedType
from datasets import Dataset, Features, Value, load_dataset
from forked import run
from safetensors.torch import load_file
from support import run_here, tiny_model, video_inputs
from test_training import TASKS, recipe_text
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import AutoModel

from gazeqwen.pipeline import clip_cache
from gazeqwen.pipeline.answers import text_losses
from gazeqwen.pipeline.batches import Augmentation, MicroBatchSampler, QuestionDataset
from gazeqwen.pipeline.clip_cache import ClipCache
from gazeqwen.questions.dataset import load_questions
from gazeqwen.questions.dataset_folder import COLUMNS
from gazeqwen.training import setup
from gazeqwen.training.recipe import ModelSettings, Recipe
from gazeqwen.training.setup import base_arguments, build_model, checkpoint_activations
from gazeqwen.training.trainer import Trainer
from gazeqwen.utils.settings import read_recipe

OI_E, OAR = "present_object_identification_easy", "present_object_attribute_recognition"


def trainer_of(dataset: Path, folder: Path, /, **changes) -> Trainer:
    folder.mkdir(exist_ok=True)
    values = yaml.safe_load(recipe_text(dataset, folder / "out"))
    values["data"]["cache_dir"] = str(dataset.parent / "cache")  # of all tests: what they do not count is encoded once
    values["data"]["tasks"] = [OI_E, OAR]  # 10 questions, 3 for validation
    values["model"]["num_frames"] = 4
    for name, value in changes.items():
        values[name] = {**values[name], **value} if isinstance(values.get(name), dict) else value
    (folder / "r.yaml").write_text(yaml.safe_dump(values))
    trainer = Trainer(read_recipe(Recipe, folder / "r.yaml"))
    trainer._draw_curves = lambda: None  # which takes as long as an epoch here
    return trainer


def losses(trainer: Trainer) -> list[float]:
    return [line["loss"] for line in trainer.log if "loss" in line]


# ---------------------------------------------------------------- frozen work once
def test_every_cache_gives_the_same_losses(toy_data, tmp_path):
    found = {}
    for kind in ("none", "features", "embeddings"):
        data = {"cache": kind, "cache_dir": str(tmp_path / "cache"), "tasks": [OI_E]}
        steps = {"batch_size": 2, "gradient_accumulation_steps": 1, "stage2": {"epochs": 0}}
        trainer = trainer_of(toy_data, tmp_path / kind, data=data, **steps)
        trainer.run()
        found[kind] = losses(trainer)
    assert found["features"] == pytest.approx(found["none"], abs=1e-5)
    assert found["embeddings"] == pytest.approx(found["none"], abs=1e-5)
    assert len(found["none"]) > 1


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen3_vl", "qwen3_vl_moe"])
def test_both_stages_of_every_family_train_the_same_from_the_cache(toy_data, bases, tmp_path, model_type):
    """On a tiny base model with random weights: losses, and what is trained, with nothing cached and everything."""
    trainers = {}
    for kind in ("none", "embeddings"):
        trainers[kind] = trainer_of(
            toy_data,
            tmp_path / kind,
            model={"base_model": bases(model_type).folder, "num_frames": 4},
            adapter={"injection_layers": [0, 2]},
            data={"cache": kind, "cache_dir": str(tmp_path / "cache"), "tasks": [OI_E]},
            batch_size=2,
            gradient_accumulation_steps=1,
        )
        trainers[kind].run()
    on_the_fly, cached = trainers["none"], trainers["embeddings"]
    assert {line["stage"] for line in cached.log if "loss" in line} == {1, 2}
    assert losses(cached) == pytest.approx(losses(on_the_fly), abs=1e-5) and len(losses(cached)) > 2
    expected = on_the_fly.model.trained_parameters()
    for name, value in cached.model.trained_parameters().items():
        torch.testing.assert_close(value, expected[name], atol=1e-4, rtol=1e-3)
        assert "lora_B" not in name or value.abs().max() > 0
    loaded = AutoModel.from_pretrained(tmp_path / "embeddings" / "out" / "best")
    assert type(loaded.backbone) is bases(model_type).family.model_class


def test_later_epochs_decode_no_video_and_run_no_frozen_encoder(toy_data, tmp_path, monkeypatch):
    """Counted at the real functions: once per clip to fill the cache, never again."""
    tasks = ["present_object_identification_hard", OAR]  # two questions are about one clip
    own_cache = {"cache_dir": str(tmp_path / "cache"), "tasks": tasks}
    trainer = trainer_of(toy_data, tmp_path, data=own_cache, stage1={"epochs": 2})
    counts = {"decoded": 0, "encoder": 0, "vision": 0, "epochs": []}
    read_clip = type(trainer.processor).read_clip

    def counting(self, *arguments, **options):
        counts["decoded"] += 1
        return read_clip(self, *arguments, **options)

    monkeypatch.setattr(type(trainer.processor), "read_clip", counting)
    for name, module in (("encoder", trainer.model.video_encoder), ("vision", trainer.model.backbone.model.visual)):
        module.register_forward_hook(lambda *_, name=name: counts.__setitem__(name, counts[name] + 1))
    validate = trainer._validate

    def validating(*arguments):
        counts["epochs"].append((counts["decoded"], counts["encoder"], counts["vision"]))
        return validate(*arguments)

    trainer._validate = validating
    trainer.run()
    everything = trainer.questions + trainer.validation
    clips = len({(q.video, q.start_s, q.end_s) for q in everything})
    assert clips < len(everything) and counts["decoded"] == clips
    assert len(counts["epochs"]) == 3 and len(set(counts["epochs"])) == 1
    assert 0 < counts["encoder"] <= clips and counts["vision"] > 0


def test_embeddings_in_place_of_pixels_give_the_same_logits_and_bad_ones_are_named():
    model = tiny_model(lora=True)
    inputs = video_inputs([(3, 2, 2), (2, 2, 3)], [[(0.2, 0.3, 1.0, 1.0)], None])
    pixels = inputs["pixel_values_videos"]
    given = {name: value for name, value in inputs.items() if name != "pixel_values_videos"}
    given["video_embeds"] = model.embed_video(pixels, inputs["video_grid_thw"])
    assert torch.equal(model(**given).logits, model(**inputs).logits)
    with model.gaze_disabled():
        assert torch.equal(model(**given).logits, model(**inputs).logits)
    with pytest.raises(ValueError, match=r"video_embeds are \(23, 32\), expected \(24, 32\)"):
        model(**{**given, "video_embeds": given["video_embeds"][1:]})
    with pytest.raises(ValueError, match="in place of pixel_values_videos"):
        model(**given, pixel_values_videos=pixels)


# ---------------------------------------------------------------- the steps
def plain_loop(recipe: Recipe, questions: list, cache: ClipCache, weights: dict) -> tuple[list[float], dict]:
    """
    Stage 1 as one would write it by hand, from `weights` of the resampler: a whole optimizer step at once, torch's own
    smoothed cross-entropy, the rate and the groups written out. Returns the steps' losses and the weights.
    """
    model = build_model(recipe, torch.device("cpu")).train()
    model.resampler.load_state_dict(weights)
    plain = ("norm", "bias", "amplitude", "foveal_gain")
    groups = {0.0: [], recipe.weight_decay: []}
    for name, value in model.resampler.named_parameters():
        groups[0.0 if any(word in name for word in plain) else recipe.weight_decay].append(value)
    groups = [{"params": values, "weight_decay": decay} for decay, values in groups.items()]
    optimizer = torch.optim.AdamW(groups, lr=0.0)

    noise = Augmentation(recipe.data.scanpath_noise, recipe.data.fixation_dropout, recipe.seed + 1)
    data = QuestionDataset(cache, questions, augmentation=noise)
    size = recipe.batch_size * recipe.gradient_accumulation_steps
    lengths = [cache.num_frames(question) for question in questions]
    sampler = MicroBatchSampler(questions, lengths, size, seed=recipe.seed + 1, balance_tasks=True)
    steps, warm_up, losses = recipe.stage1.epochs * sampler.steps_per_epoch(), recipe.warmup_steps, []
    for epoch in range(1, recipe.stage1.epochs + 1):
        sampler.epoch = data.epoch = epoch
        for indices in sampler:
            batch = data.collate([data[index] for index in indices])
            logits = model(**batch.inputs).logits[:, -1]
            each = [
                F.cross_entropy(row[tokens], torch.tensor(q.answer), label_smoothing=recipe.label_smoothing)
                for row, tokens, q in zip(logits, batch.answer_tokens, batch.questions, strict=True)
            ]
            loss, step = sum(each) / len(each), len(losses)
            cosine = 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up)))
            for group in optimizer.param_groups:
                group["lr"] = recipe.stage1.learning_rate * (step / warm_up if step < warm_up else cosine)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.resampler.parameters(), recipe.max_grad_norm)
            optimizer.step()
            losses.append(loss.item())
    return losses, model.resampler.state_dict()


def test_the_trainer_is_a_plain_loop(toy_data, tmp_path):
    """With all that changes a step: accumulation, balance, smoothing, decay, clipping, warm-up, augmentation."""
    trainer = trainer_of(
        toy_data,
        tmp_path,
        data={"tasks": [OI_E, OAR], "balance_tasks": True, "scanpath_noise": 0.02, "fixation_dropout": 0.2},
        stage1={"epochs": 3, "learning_rate": 3e-3},
        stage2={"epochs": 0},
        batch_size=2,
        gradient_accumulation_steps=2,
        warmup_steps=2,
        label_smoothing=0.2,
        weight_decay=1.0,
        max_grad_norm=0.05,
    )
    before = {name: value.clone() for name, value in trainer.model.resampler.state_dict().items()}
    trainer.run()
    by_hand, weights = plain_loop(trainer.recipe, trainer.questions, trainer.cache, before)
    assert len(by_hand) >= 9 and losses(trainer) == pytest.approx(by_hand, abs=1e-4)
    for name, value in trainer.model.resampler.state_dict().items():
        torch.testing.assert_close(value, weights[name], atol=3e-4, rtol=1e-2)
        assert torch.equal(value, before[name]) == name.endswith("key.bias"), name


@pytest.mark.parametrize("limit", [1e-3, 1e6])
def test_gradients_are_clipped_to_the_recipe_s_norm(toy_data, tmp_path, limit):
    norms = []

    def look(optimizer, *_):
        gradients = [p.grad.norm() for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(torch.stack(gradients).norm().item())

    trainer = trainer_of(toy_data, tmp_path, data={"tasks": [OI_E]}, max_grad_norm=limit)
    hook = register_optimizer_step_pre_hook(look)
    trainer.run()
    hook.remove()
    stages = {line["stage"] for line in trainer.log if "loss" in line}
    assert stages == {1, 2} and len(norms) == len(losses(trainer))
    assert max(norms) == pytest.approx(1e-3, rel=1e-3) if limit == 1e-3 else max(norms) > 1e-2


def test_the_best_epoch_of_both_stages_is_kept_and_patience_counts_in_each(toy_data, tmp_path):
    """Scores in place of those of validation: of equals the later is better, and stage 2 may be worse than stage 1."""
    scores = {(1, 1): 0.5, (1, 2): 0.7, (1, 3): 0.7, (1, 4): 0.6, (1, 5): 0.65, (2, 1): 0.6, (2, 2): 0.55}
    stages = {"stage1": {"epochs": 8, "patience": 2}, "stage2": {"epochs": 2, "patience": 2}}
    trainer, weights = trainer_of(toy_data, tmp_path, data={"tasks": [OI_E]}, **stages), {}

    def score():
        epoch = (trainer.progress.stage, trainer.progress.epoch)
        weights[epoch] = trainer.model.resampler.latents.detach().clone()
        if epoch == (2, 1):
            ended = sorted((trainer.folder / "checkpoints").glob("stage1*"))[-1]
            assert not json.loads((ended / "progress.json").read_text())["finished"]
        return {"macro": scores[epoch], "tasks": {}}, []

    trainer._validation_score = score
    best = trainer.run()
    assert list(weights) == list(scores)  # stage 1 ends after two epochs without a better one, stage 2 has its own two
    assert (best["stage"], best["epoch"], best["macro"]) == (1, 3, 0.7)
    folder = trainer.folder / "best"
    assert torch.equal(load_file(folder / "model.safetensors")["resampler.latents"], weights[1, 3])
    assert not torch.equal(weights[1, 3], weights[1, 2]) and not (folder / "lora").exists()
    assert json.loads((trainer.folder / "validation.json").read_text()) == best and trainer.progress.finished


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_processes_that_would_divide_the_weights_are_refused(toy_data, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(Accelerator, "distributed_type", kind)  # as Accelerate finds it on GPUs
    with pytest.raises(ValueError, match=f"got {kind.value}, expected the whole model on every GPU: .*ddp.yaml"):
        trainer_of(toy_data, tmp_path)


def test_the_schedule_is_a_linear_warm_up_and_a_cosine(toy_data, tmp_path):
    """10 questions, batches of 2: five steps an epoch. Two of warm-up, then half a cosine over the other eight."""
    stages = {"stage1": {"epochs": 2, "learning_rate": 1.0}, "stage2": {"epochs": 0}}
    changes = {"batch_size": 2, "gradient_accumulation_steps": 1, "warmup_steps": 2}
    trainer = trainer_of(toy_data, tmp_path, **changes, **stages)
    trainer.run()
    rates = [line["lr"] for line in trainer.log if "lr" in line]
    cosine = [0.5 * (1 + math.cos(math.pi * step / 8)) for step in range(9)]
    by_hand = [0.5, 1.0, 0.9619398, 0.8535534, 0.6913417, 0.5, 0.3086583, 0.1464466, 0.0380602, 0.0]
    assert rates == pytest.approx([0.5, *cosine], abs=1e-7) and rates == pytest.approx(by_hand, abs=1e-6)


def test_gradient_checkpointing_gives_the_same_losses_and_is_on(toy_data, tmp_path):
    tasks = {"tasks": [OI_E]}
    plain = trainer_of(toy_data, tmp_path / "plain", data=tasks)
    plain.run()
    saving = trainer_of(toy_data, tmp_path / "saving", data=tasks, gradient_checkpointing=True)
    runs = []
    layer = saving.model.backbone.model.language_model.layers[-1]
    layer.self_attn.register_forward_hook(lambda *_: runs.append(torch.is_grad_enabled()))
    saving.run()
    assert losses(saving) == pytest.approx(losses(plain), abs=1e-6)
    steps = len([line for line in saving.log if "loss" in line])
    assert sum(runs) > steps  # run again in backward, where a graph is kept


def test_a_compiled_resampler_gives_the_same_losses(toy_data, tmp_path):
    """`aot_eager` traces forward and backward as `inductor` does, and needs no C++ compiler."""
    found = []
    for backend in (None, "aot_eager"):
        # Tracing takes long: a small resampler, and one batch of all questions, whose shape does not change.
        small = {"num_blocks": 1, "injection_layers": [0, 2]}
        changes = {"data": {"tasks": [OI_E]}, "batch_size": 6, "gradient_accumulation_steps": 1, "adapter": small}
        stages = {"stage1": {"epochs": 3}, "stage2": {"epochs": 0}}
        trainer = trainer_of(toy_data, tmp_path / str(backend), compile=backend, **changes, **stages)
        trainer.run()
        found.append(losses(trainer))
    assert len(set(found[0])) > 1
    assert found[1] == pytest.approx(found[0], abs=1e-4)


def test_nothing_below_the_first_injection_keeps_a_graph_in_stage_1():
    model = tiny_model(injection_layers=[1, 2]).train()
    checkpoint_activations(model.backbone)
    needs = {}
    for index, layer in enumerate(model.backbone.model.language_model.layers):

        def look(layer, args, output, index=index):  # after the injection's hook, which was registered before
            needs[index] = output.requires_grad

        layer.register_forward_hook(look)
    model(**video_inputs([(2, 2, 2)], [[(0.5, 0.5, 1.0, 1.0)]])).logits.sum()
    assert needs == {0: False, 1: True, 2: True, 3: True}


def test_lora_is_float32_on_a_half_base():
    model = tiny_model()
    model.backbone.bfloat16()
    model.add_lora(rank=2, alpha=4)
    kinds = {value.dtype for name, value in model.named_parameters() if "lora_" in name}
    assert kinds == {torch.float32} and model.dtype == torch.bfloat16
    model(**video_inputs([(2, 2, 2)], [[(0.5, 0.5, 1.0, 1.0)]])).logits.float().sum().backward()


def test_four_bits_and_attention_reach_the_base_model():
    arguments = base_arguments(ModelSettings(load_in_4bit=True, attn_implementation="sdpa"), "cuda:1")
    quantization = arguments["quantization_config"]
    assert arguments["device_map"] == {"": "cuda:1"} and arguments["attn_implementation"] == "sdpa"
    assert quantization.load_in_4bit and quantization.bnb_4bit_quant_type == "nf4"
    assert quantization.bnb_4bit_compute_dtype == torch.bfloat16
    assert base_arguments(ModelSettings(), "cpu") == {}


def test_the_config_records_that_the_base_model_was_in_four_bits(toy_data, tmp_path, monkeypatch):
    """Without bitsandbytes, which would refuse the CPU, all but the quantization itself."""
    (tmp_path / "r.yaml").write_text(recipe_text(toy_data, tmp_path / "out"))
    recipe = read_recipe(Recipe, tmp_path / "r.yaml", ["model.load_in_4bit=true"])
    monkeypatch.setattr(setup, "four_bit_arguments", lambda device: {})
    model = build_model(recipe, torch.device("cpu"))
    assert model.config.load_in_4bit
    model.save_pretrained(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "config.json").read_text())["load_in_4bit"] is True


def test_the_tracker_writes_what_happened(toy_data, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = trainer_of(toy_data, tmp_path, tracker="tensorboard", stage2={"epochs": 0})
    del trainer._draw_curves
    trainer.run()
    (events,) = (tmp_path / "out" / "tracker").rglob("events.*.0")
    found = EventAccumulator(str(events.parent)).Reload()
    assert [event.value for event in found.Scalars("loss")] == pytest.approx(losses(trainer), rel=1e-6)
    assert len(found.Scalars("validation_macro")) == 1
    assert (tmp_path / "out" / "curves.png").stat().st_size > 5000


# ---------------------------------------------------------------- people's own data
def rows_with_options(data: Path) -> dict[str, list[dict]]:
    """The rows of a dataset's splits but for the proactive tasks', which need a column that is left out here."""
    return {
        split: [row for row in rows if row["answer"] is not None] for split, rows in load_dataset(str(data)).items()
    }


def write_dataset(folder: Path, videos: Path, splits: dict[str, list[dict]]) -> Path:
    """A dataset folder as people would write it: the columns that they need, and no others."""
    (folder / "videos").mkdir(parents=True)
    columns = {name: kind for name, kind in COLUMNS.items() if name not in ("video", "test_points", "fixation_ids")}
    features, files = Features({"file_name": Value("string"), **columns}), []
    for split, rows in splits.items():
        for row in rows:
            (folder / "videos" / row["video_name"]).write_bytes((videos / row["video_name"]).read_bytes())
        rows = [{name: row[name] for name in columns} | {"file_name": f"videos/{row['video_name']}"} for row in rows]
        Dataset.from_list(rows, features=features).to_parquet(str(folder / f"{split}.parquet"))
        files.append({"split": split, "path": ["videos/*", f"{split}.parquet"]})
    config = {
        "config_name": "default",
        "description": str(folder),
        "data_files": files,
        "metadata_filenames": [file["path"][1] for file in files],
        "drop_labels": True,
        "features": Features({"video": COLUMNS["video"], **columns})._to_yaml_list(),
    }
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': [config]})}---\n")
    return folder


@pytest.fixture(scope="module")
def own_data(toy_data, tmp_path_factory) -> Path:
    """The toy videos with open-ended questions beside those with options, of some tasks."""
    splits = {}
    for split, rows in rows_with_options(toy_data).items():
        splits[split], tasks = [], TASKS if split == "test" else (OI_E, OAR)
        for row in rows:
            if row["task"] not in tasks:
                continue
            text = f"the {row['options'][row['answer']]}"
            splits[split].append({**row, "task": "which object"})
            splits[split].append({**row, "task": "say it", "options": [], "answer": None, "answer_text": text})
    return write_dataset(tmp_path_factory.mktemp("own") / "data", toy_data / "videos", splits)


def test_open_ended_answers_are_learned_as_text(own_data, tmp_path):
    stages = {"stage1": {"epochs": 3}, "stage2": {"epochs": 0}}
    trainer = trainer_of(own_data, tmp_path, data={"tasks": None}, batch_size=5, **stages)
    best = trainer.run()
    found = [line for line in trainer.log if "validation_text_loss" in line]
    assert len(found) == 3 and all("validation_macro" in line for line in found)
    assert found[-1]["validation_text_loss"] < found[0]["validation_text_loss"]
    assert set(best["tasks"]) == {"which object"} and "text_loss" in best


def test_only_open_ended_questions_choose_the_best_by_loss(own_data, tmp_path):
    trainer = trainer_of(own_data, tmp_path, data={"tasks": ["say it"]}, stage1={"epochs": 2}, stage2={"epochs": 0})
    best = trainer.run()
    found = [line["validation_text_loss"] for line in trainer.log if "validation_text_loss" in line]
    assert best["macro"] is None and best["text_loss"] == min(found)


def test_the_loss_of_a_text_is_that_of_its_tokens_alone(own_data, toy_model, toy_processor):
    """Against the plain model on the same text: log-probabilities of the answer's tokens, one after the other."""
    asked = [question for question in load_questions(own_data, "test") if question.answer_text is not None][:3]
    data = QuestionDataset(ClipCache(toy_processor), asked)
    batch = data.collate([data[index] for index in range(3)])
    with torch.no_grad():
        found = text_losses(toy_model, batch.inputs, batch.labels)
        logits = toy_model(**batch.inputs).logits.log_softmax(-1)
    for row, question in enumerate(asked):
        tokens = toy_processor.tokenizer.encode(
            question.answer_text + toy_processor.tokenizer.eos_token, add_special_tokens=False
        )
        places = range(logits.shape[1] - len(tokens) - 1, logits.shape[1] - 1)
        by_hand = [-logits[row, place, token].item() for place, token in zip(places, tokens, strict=True)]
        assert found[row].item() == pytest.approx(sum(by_hand) / len(tokens), abs=1e-5)


def test_videos_without_gaze_may_be_kept(toy_data, tmp_path):
    """The base model answers them, so that they teach nothing; a batch of them alone does not break a step."""
    splits = rows_with_options(toy_data)
    blind = {row["video_name"] for row in splits["train"]} - {splits["train"][0]["video_name"]}
    splits["train"] = [row | ({"scanpath": None} if row["video_name"] in blind else {}) for row in splits["train"]]
    data = write_dataset(tmp_path / "data", toy_data / "videos", splits)
    with pytest.raises(ValueError, match=f"no gaze for {len(blind)} videos"):
        trainer_of(data, tmp_path / "error", data={"tasks": TASKS})
    trainer = trainer_of(data, tmp_path / "keep", data={"without_gaze": "keep", "tasks": [OI_E, OAR]}, batch_size=1)
    trainer.run()
    assert len(trainer.questions) == 10 and len(losses(trainer)) == 2 * 5


# ---------------------------------------------------------------- what goes wrong
def test_a_task_with_one_answer_is_said(toy_data, tmp_path):
    splits = rows_with_options(toy_data)
    splits["train"] = [row for row in splits["train"] if row["answer"] == 0 or row["task"] != OI_E]
    data = write_dataset(tmp_path / "data", toy_data / "videos", splits)
    with pytest.warns(UserWarning, match=f"every question of {OI_E} to train on has the same answer") as said:
        trainer_of(data, tmp_path / "run")
    assert len([warning for warning in said if "same answer" in str(warning.message)]) == 1


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(toy_data, tmp_path):
    trainer = trainer_of(toy_data, tmp_path, checkpoint_every=1, batch_size=3, gradient_accumulation_steps=1)
    record = trainer._record

    def poison(*arguments):
        record(*arguments)
        if trainer.progress.steps == 3:
            with torch.no_grad():
                trainer.model.resampler.latents.fill_(float("nan"))

    trainer._record = poison
    with pytest.raises(FloatingPointError, match=r"loss is nan on \['\[\"toy-train-"):
        trainer.run()
    kept = sorted(path.name for path in (tmp_path / "out" / "checkpoints").iterdir())
    assert kept == ["stage1-epoch0001-step00000002", "stage1-epoch0001-step00000003"]
    error = run_here("train.py", tmp_path / "r.yaml", "--restart", "stage1.learning_rate=1e30", expect=1)
    assert error.splitlines()[-1].startswith("train.py: loss is nan on")


def test_memory_that_is_too_small_is_named_with_the_questions(toy_data, tmp_path):
    trainer = trainer_of(toy_data, tmp_path, data={"tasks": [OI_E]})

    def full(module, args):  # as CUDA's allocator says it
        if module.training:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    trainer.model.backbone.lm_head.register_forward_pre_hook(full)
    with pytest.raises(ValueError, match=r"out of memory on \d questions such as \[\"toy-train-.*batch_size.*GiB"):
        trainer.run()


def test_no_space_left_is_said_and_leaves_no_half_file(toy_data, tmp_path):
    """A real limit of the operating system on how large a file may grow."""
    (tmp_path / "r.yaml").write_text(recipe_text(toy_data, tmp_path / "out"))
    printed = run("train.py", tmp_path / "r.yaml", expect=1, file_size=20)
    assert "cannot be written" in printed and "Traceback" not in printed
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_cache_larger_than_the_disk_is_refused_beforehand(toy_data, tmp_path, monkeypatch):
    usage = clip_cache.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(clip_cache.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"needed, 1.0 kB free; choose another cache_dir"):
        trainer_of(toy_data, tmp_path, data={"cache_dir": str(tmp_path / "cache")}).run()


def test_dry_run_prints_the_plan_and_loads_nothing(toy_data, tmp_path):
    (tmp_path / "r.yaml").write_text(recipe_text(toy_data, tmp_path / "out"))
    printed = run("train.py", tmp_path / "r.yaml", "--dry_run")
    assert "optimizer steps" in printed and "estimated, not measured" in printed
    assert not (tmp_path / "out").exists() and "Loading weights" not in printed
