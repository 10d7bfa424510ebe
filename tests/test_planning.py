"""What a plan says, against models that are really built, batches that are really drawn, and bytes really kept."""

import dataclasses
import functools
import math
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from bases import make_clip, with_gaze
from support import BACKBONE, ROOT, VIDEO_ENCODER, perturb, tiny_config, video_inputs
from transformers import Qwen2_5_VLConfig, Qwen3VLConfig

from gazeqwen.backbones_gazeqwen import embed_dim, family_of
from gazeqwen.configuration_gazeqwen import GazeQwenConfig
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.modeling_vjepa2_1 import VJEPA21Config
from gazeqwen.pipeline.batches import MicroBatchSampler, QuestionDataset
from gazeqwen.pipeline.clip_cache import ClipCache
from gazeqwen.questions.dataset import load_questions
from gazeqwen.training.memory import ClipShape, estimate_memory, parameter_counts
from gazeqwen.training.planning import model_on_meta, plan
from gazeqwen.training.recipe import DataSettings, ModelSettings, Recipe, StageSettings
from gazeqwen.training.setup import build_processor, checkpoint_activations, config_of
from gazeqwen.utils.settings import read_recipe

RECIPES = sorted(
    path for path in (ROOT / "recipes").glob("*.yaml") if path.stem not in ("demo", "toyworld", "kitchen")
)
GUIDE = (ROOT / "docs" / "guides" / "train.md").read_text()
TASK = "present_object_identification_easy"
CARDS = {"24gb": 24, "12gb": 12}  # GB

# Of the models' config.json on the Hub, what decides about sizes.
TEXT_7B = {
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
}
TEXT_3B = TEXT_7B | {
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "intermediate_size": 11008,
    "vocab_size": 151936,
}


VISION = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
TEXT_8B = {  # of Qwen3-VL
    "hidden_size": 4096,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 12288,
    "vocab_size": 151936,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
}
VISION_8B = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16}
SHAPES = {
    "Qwen/Qwen2.5-VL-7B-Instruct": (Qwen2_5_VLConfig, TEXT_7B, VISION, False),
    "Qwen/Qwen2.5-VL-3B-Instruct": (Qwen2_5_VLConfig, TEXT_3B, VISION, True),
    "Qwen/Qwen3-VL-8B-Instruct": (
        Qwen3VLConfig,
        TEXT_8B,
        VISION_8B | {"deepstack_visual_indexes": [8, 16, 24]},
        False,
    ),
}


def qwen(base_model: str):
    config_class, text, vision, tied = SHAPES[base_model]
    return config_class(
        text_config=text | {"tie_word_embeddings": tied},
        vision_config=vision | {"out_hidden_size": text["hidden_size"]},
        tie_word_embeddings=tied,
    )


@functools.cache
def real_model(path: Path):
    """A recipe's model on the meta device, from the shapes above: nothing can be downloaded here."""
    recipe = read_recipe(Recipe, path)
    adapter = dataclasses.asdict(recipe.adapter)
    backbone = qwen(recipe.model.base_model)
    return model_on_meta(
        recipe, GazeQwenConfig(backbone_config=backbone, video_encoder_config=VJEPA21Config(), **adapter)
    )


def toy_recipe(dataset: Path, **changes) -> Recipe:
    model = {"dtype": "float32", "video_encoder_size": 64, "num_frames": 8}
    values = {
        "model": ModelSettings(base_model=str(BACKBONE), video_encoder=str(VIDEO_ENCODER), **model),
        "data": DataSettings(dataset=str(dataset), cache="embeddings", num_workers=0),
        "stage1": StageSettings(epochs=2),
        "stage2": StageSettings(epochs=3),
        "batch_size": 3,
        "gradient_accumulation_steps": 2,
    }
    return Recipe(**values | changes)


# ---------------------------------------------------------------- the plan of the toy world
def test_parameters_are_those_of_the_loaded_model(toy_data):
    recipe = toy_recipe(toy_data)
    found = plan(recipe)
    model = GazeQwenForConditionalGeneration.from_base(str(BACKBONE), str(VIDEO_ENCODER))

    def count(parameters):
        return sum(value.numel() for value in parameters)

    assert found.parameters["base model"] == count(model.backbone.parameters())
    assert found.parameters["video encoder"] == count(model.video_encoder.parameters())
    assert found.parameters["resampler"] == count(model.resampler.parameters())
    assert found.stages[1].trained_parameters == count(model.trained_parameters().values())
    model.add_lora(recipe.lora_rank, recipe.lora_alpha)
    assert found.stages[2].trained_parameters == count(model.trained_parameters().values())
    assert found.parameters["LoRA"] == found.stages[2].trained_parameters - found.stages[1].trained_parameters > 0


@pytest.mark.parametrize("num_processes", [1, 3])
def test_steps_and_samples_are_those_of_the_batches(toy_data, num_processes):
    found = plan(toy_recipe(toy_data), num_processes)
    questions = load_questions(toy_data, "train")
    batches = list(MicroBatchSampler(questions, [8] * len(questions), 3, num_processes=num_processes))
    for number, epochs in ((1, 2), (2, 3)):
        stage = found.stages[number]
        assert stage.epochs == epochs and stage.samples_per_epoch == len(questions)
        assert stage.steps_per_epoch == math.ceil(len(batches) / 2)
        assert stage.samples_per_step == 3 * 2 * num_processes
    assert found.questions["train"] == Counter(question.task for question in questions)
    assert set(found.questions) == {"train", "validation"}


@pytest.mark.parametrize("model_type", ["toy world", "qwen2_vl", "qwen3_vl", "qwen3_vl_moe"])
def test_tokens_and_cache_are_those_of_real_batches(toy_data, bases, model_type):
    """Of a Qwen3-VL the frames are smaller the more there are; the cache holds its DeepStack maps."""
    base, hidden, tasks = str(BACKBONE), 96, None
    if model_type != "toy world":
        base, hidden, tasks = bases(model_type).folder, embed_dim(bases(model_type).model.backbone.config), [TASK]
    model = {"dtype": "float32", "video_encoder_size": 64, "fps": 1.0, "max_frames": 12}
    recipe = toy_recipe(
        toy_data,
        model=ModelSettings(base_model=base, video_encoder=str(VIDEO_ENCODER), **model),
        data=DataSettings(dataset=str(toy_data), cache="embeddings", tasks=tasks, num_workers=0),
    )
    found, processor = plan(recipe), build_processor(recipe.model)
    questions = load_questions(toy_data, "train", tasks) + load_questions(toy_data, "validation", tasks)
    frames, tokens, texts = [], [], []
    data = QuestionDataset(ClipCache(processor), questions)
    for index in range(len(questions)):
        inputs = data.collate([data[index]]).inputs
        frames.append(inputs["video_encoder_pixel_values"].shape[1])
        tokens.append(int((inputs["input_ids"] == processor.video_token_id).sum()))
        texts.append(inputs["input_ids"].shape[1] - tokens[-1])
    assert (found.longest.video_tokens, found.longest.frames) == max(zip(tokens, frames, strict=True))
    assert found.longest.text_tokens == max(texts)
    assert found.mean_frames == pytest.approx(sum(frames) / len(frames))
    assert found.mean_video_tokens == pytest.approx(sum(tokens) / len(tokens))
    clips = {
        (question.video, question.start_s, question.end_s): count
        for question, count in zip(questions, tokens, strict=True)
    }
    assert found.cache.bytes == sum(clips.values()) * (hidden + model_width()) * 4
    per_step = {count / number for count, number in zip(tokens, frames, strict=True)}
    assert (len(per_step) > 1) == processor.family.size_of_whole_video


def model_width() -> int:
    return config_of(toy_recipe(Path("x"))).load_video_encoder_config().hidden_size


def test_the_plan_says_everything(toy_data):
    said = str(plan(toy_recipe(toy_data), 2))
    for part in (
        *("parameters", "LoRA", "questions of train", "questions of validation", "stage 1: ", "stage 2: "),
        *("processes: 2", "longest sample: 8 frames", "cache of embeddings", "estimated, not measured"),
        *("filling the cache", "activations for backward", "working space: decoder", "leave 2 GB"),
    ):
        assert part in said, part
    without = toy_recipe(toy_data, stage2=StageSettings(), data=DataSettings(dataset=str(toy_data), cache="none"))
    said = str(plan(without))
    assert "stage 2" not in said and "no cache on disk" in said and "filling the cache" not in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ModelSettings(base_model="/nowhere", video_encoder=str(VIDEO_ENCODER))}, "base_model: .*/nowhere"),
        ({"model": ModelSettings(base_model=str(BACKBONE), video_encoder="/nowhere")}, "video_encoder: .*/nowhere"),
        ({"data": DataSettings(dataset="/nowhere")}, "/nowhere: no such folder"),
        (  # before the Hub is asked for a model
            {
                "data": DataSettings(dataset="/no/data"),
                "model": ModelSettings(base_model="/nowhere", video_encoder="/"),
            },
            "/no/data: no such folder",
        ),
        (
            {"model": ModelSettings(base_model=str(BACKBONE), video_encoder=str(VIDEO_ENCODER), dtype="float12")},
            "model.dtype: got 'float12'",
        ),
    ],
)
def test_names_what_cannot_be_read(toy_data, changes, message):
    with pytest.raises((ValueError, OSError), match=message):
        plan(toy_recipe(toy_data, **changes))
    with pytest.raises(ValueError, match="num_processes: got 0"):
        plan(toy_recipe(toy_data), 0)


# ---------------------------------------------------------------- memory
GRID, TEXT = (8, 8, 10), 8  # visual tokens; begin and end of the video and 6 tokens of text


def tiny_recipe(dtype="float32", batch=1, checkpointed=False, attention="sdpa", **data) -> Recipe:
    return Recipe(
        model=ModelSettings(video_encoder="x", dtype=dtype, video_encoder_size=32, attn_implementation=attention),
        data=DataSettings(dataset="x", **{"cache": "embeddings", **data}),
        stage1=StageSettings(epochs=1),
        stage2=StageSettings(epochs=1),
        lora_rank=2,
        batch_size=batch,
        gradient_checkpointing=checkpointed,
    )


def bytes_kept_for_backward(model, inputs) -> int:
    """Of distinct memory that autograd keeps in a forward, parameters left out."""
    parameters = {value.untyped_storage().data_ptr() for value in model.parameters()}
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**inputs, logits_to_keep=1)
    return sum(storage.nbytes() for address, storage in kept.items() if address not in parameters)


@pytest.mark.parametrize(
    ("stage", "dtype", "batch", "checkpointed", "attention"),
    [
        (1, "float32", 1, False, "sdpa"),
        (1, "bfloat16", 2, False, "sdpa"),
        (1, "bfloat16", 1, False, "eager"),
        (1, "bfloat16", 2, True, "sdpa"),
        (2, "float32", 1, False, "sdpa"),
        (2, "bfloat16", 1, False, "eager"),
        (2, "float32", 1, True, "sdpa"),
    ],
)
def test_activations_are_near_what_autograd_keeps(stage, dtype, batch, checkpointed, attention):
    config = tiny_config()
    config.backbone_config._attn_implementation = attention
    model = GazeQwenForConditionalGeneration(config).train()
    for frozen in (model.backbone, model.video_encoder):
        frozen.to(getattr(torch, dtype))
    if checkpointed:
        checkpoint_activations(model.backbone)
    if stage == 2:
        model.add_lora(2, 4)
    perturb(model)
    inputs = video_inputs([GRID] * batch, [[(0.5, 0.5, 1.0, 1.0)]] * batch, text_lengths=[TEXT - 2] * batch)
    inputs["video_embeds"] = model.embed_video(inputs.pop("pixel_values_videos"), inputs["video_grid_thw"])
    measured = bytes_kept_for_backward(model, inputs)

    recipe = tiny_recipe(dtype, batch, checkpointed, attention)
    clip = ClipShape(2 * GRID[0], math.prod(GRID), TEXT)
    memory = estimate_memory(recipe, model_on_meta(recipe, config), clip)[f"stage {stage}"].persistent
    assert memory["activations for backward"] + memory["residuals"] == pytest.approx(measured, rel=0.2)


@pytest.mark.parametrize(
    ("model_type", "stage", "dtype", "batch"),
    [("qwen2_vl", 2, "bfloat16", 2), ("qwen3_vl", 1, "float32", 2), ("qwen3_vl_moe", 2, "bfloat16", 1)],
)
def test_activations_of_every_family(bases, model_type, stage, dtype, batch):
    """Norms of queries, experts, DeepStack maps, and time as text: on clips of 8 steps of 8 x 8 tokens."""
    base = bases(model_type)
    model = base.adapter().train()
    for frozen in (model.backbone, model.video_encoder):
        frozen.to(getattr(torch, dtype))
    if stage == 2:
        model.add_lora(2, 4)
    perturb(model)
    side = 8 * base.family.pixels_per_token
    inputs = with_gaze(base, [make_clip(16, side=side)] * batch, max_pixels=side**2)
    tokens = int((inputs["input_ids"] == model.backbone.config.video_token_id).sum()) // batch
    clip = ClipShape(16, tokens, inputs["input_ids"].shape[1] - tokens)
    inputs["video_embeds"] = model.embed_video(inputs.pop("pixel_values_videos"), inputs["video_grid_thw"])
    measured = bytes_kept_for_backward(model, inputs)

    recipe = tiny_recipe(dtype, batch)
    recipe.model.video_encoder_size = 64
    memory = estimate_memory(recipe, model_on_meta(recipe, model.config), clip)
    kept = memory[f"stage {stage}"].persistent
    assert kept["activations for backward"] + kept["residuals"] == pytest.approx(measured, rel=0.12)
    assert tokens == 8 * 64
    assert memory["filling the cache"].transient["vision tower"] > 0


def test_activations_grow_with_batch_length_and_stage():
    config = tiny_config(injection_layers=[1, 2])

    def activations(stage=1, batch=1, length=100, checkpointed=False):
        recipe = tiny_recipe(batch=batch, checkpointed=checkpointed)
        memory = estimate_memory(recipe, model_on_meta(recipe, config), ClipShape(8, length - 20, 20))
        return memory[f"stage {stage}"].persistent["activations for backward"]

    assert activations(length=300) == 3 * activations()
    assert activations(batch=4, checkpointed=True) == 4 * activations(checkpointed=True)
    assert activations(batch=4) == 2 * activations(batch=2) > 4 * activations()  # padding repeats keys and values
    # Of four layers stage 1 has a graph in the two after the first residual, stage 2 in all.
    last_norm = 4 * 32 * 100
    for stage, layers in ((1, 2), (2, 4)):
        assert activations(stage, checkpointed=True) - last_norm == layers * 4 * 32 * 100


def test_what_is_cached_needs_no_working_space():
    config = tiny_config()
    is_run = {}
    for cache in ("none", "features", "embeddings"):
        recipe = tiny_recipe(cache=cache)
        memory = estimate_memory(recipe, model_on_meta(recipe, config), ClipShape(16, 640, 8))
        is_run[cache] = {name: memory["stage 1"].transient[name] > 0 for name in ("vision tower", "video encoder")}
        assert ("filling the cache" in memory) == (cache != "none")
    assert is_run == {
        "none": {"vision tower": True, "video encoder": True},
        "features": {"vision tower": True, "video encoder": False},
        "embeddings": {"vision tower": False, "video encoder": False},
    }


def test_weights_take_what_their_types_take():
    config = tiny_config()
    model = GazeQwenForConditionalGeneration(config)
    numbers = {"resampler": sum(value.numel() for value in model.trained_parameters().values())}
    model.add_lora(2, 4)
    numbers["both"] = sum(value.numel() for value in model.trained_parameters().values())
    for dtype, b in (("float32", 4), ("bfloat16", 2)):
        recipe = tiny_recipe(dtype)
        memory = estimate_memory(recipe, model_on_meta(recipe, config), ClipShape(16, 640, 8))
        model.to(getattr(torch, dtype))
        frozen = [value for name, value in model.backbone.named_parameters() if "lora_" not in name]
        assert memory["stage 1"].persistent["base model"] == sum(value.nbytes for value in frozen)
        assert memory["stage 1"].persistent["video encoder"] == b * sum(
            v.numel() for v in model.video_encoder.parameters()
        )
        assert memory["stage 1"].persistent["trained"] == 16 * numbers["resampler"]
        assert memory["stage 2"].persistent["trained"] == 16 * numbers["both"]


# ---------------------------------------------------------------- recipes
def test_counts_of_the_published_sizes():
    """8.29, 3.75 and 8.77 billion, as their model cards say; the reference's adapter (streamgaze.md, section 5.3)."""
    paper = real_model(ROOT / "recipes" / "paper-7b.yaml")
    assert parameter_counts(paper)["base model"] == 8_292_166_656
    assert parameter_counts(paper)["LoRA"] == 2_523_136
    # The reference keeps 28 amplitudes where 4 are used.
    assert parameter_counts(paper)["resampler"] == 10_807_324 - 24
    small = real_model(ROOT / "recipes" / "gazeqwen-3b.yaml")
    assert parameter_counts(small)["base model"] == 3_754_622_976
    next_family = real_model(ROOT / "recipes" / "gazeqwen-qwen3-8b.yaml")
    assert parameter_counts(next_family)["base model"] == 8_767_123_696


def longest_clip(recipe: Recipe) -> ClipShape:
    """500 tokens of text, and 12 more for each step whose time is told in the prompt."""
    family = family_of(qwen(recipe.model.base_model))
    steps = recipe.model.max_frames // 2
    tokens = steps * recipe.model.max_pixels_per_frame // family.pixels_per_token**2
    return ClipShape(recipe.model.max_frames, tokens, 500 + 12 * steps * family.seconds_in_text)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_needs_what_its_head_says(path):
    recipe, text = read_recipe(Recipe, path), path.read_text()
    head = " ".join(line.removeprefix("#").strip() for line in text[: text.index("output_dir")].splitlines())
    claimed = int(re.search(r"Needs, estimated, not measured: (\d+) GB of GPU memory", head).group(1))
    card = int(re.search(r"\(an? (\d+) GB card\)", head).group(1))
    assert "What differs from the paper" in head
    model = real_model(path)
    clip = longest_clip(recipe)
    phases = estimate_memory(recipe, model, clip)
    peak = max(phase.peak for phase in phases.values()) / 1e9
    assert 0.85 * claimed < peak < claimed <= card - 2
    assert CARDS.get(path.stem, card) == card
    if recipe.data.cache == "none":
        assert "nothing is cached" in head
        return
    megabytes = int(re.search(r"cache: at most (\d+) MB a clip", head).group(1))
    width = 768 if model.config.has_video_encoder else 0
    width += model.config.get_text_config().hidden_size if recipe.data.cache == "embeddings" else 0
    assert 0.9 * megabytes < clip.video_tokens * width * 2 / 1e6 < megabytes


def test_the_guide_s_table_of_gpus():
    """To train: what the recipe's head says. To ask: the estimate for one question, nothing cached, rounded up."""
    line = r"^\| `(.+?)\.yaml`.*?\| (\d+) x ([\d,]+) \| (\d+) GB \| (\d+) GB \| (\d+) GB \|$"
    rows = re.findall(line, GUIDE, re.MULTILINE)
    assert sorted(row[0] for row in rows) == [path.stem for path in RECIPES]
    for name, frames, pixels, train, answer, card in rows:
        path = ROOT / "recipes" / f"{name}.yaml"
        recipe, head = read_recipe(Recipe, path), path.read_text()
        assert f"Needs, estimated, not measured: {train} GB" in head and f" {card} GB card)" in head
        shown = (recipe.model.max_frames, recipe.model.max_pixels_per_frame)
        assert shown == (int(frames), int(pixels.replace(",", "")))
        one = dataclasses.replace(recipe, evaluation_batch_size=1, data=dataclasses.replace(recipe.data, cache="none"))
        memory = estimate_memory(one, real_model(path), longest_clip(recipe))["validation"].peak
        assert int(answer) == math.ceil(memory / 1e9)


def test_the_paper_s_recipe_is_the_paper_s():
    recipe = read_recipe(Recipe, ROOT / "recipes" / "paper-7b.yaml")
    adapter = recipe.adapter
    assert (adapter.gaze_encoding, adapter.injection_layers) == ("coord_pe", [6, 13, 20, 27])
    assert (adapter.num_latents, adapter.latent_dim, adapter.num_blocks) == (32, 256, 2)
    assert (recipe.lora_rank, recipe.lora_alpha, recipe.label_smoothing, recipe.warmup_steps) == (8, 16, 0, 20)
    assert (recipe.batch_size, recipe.gradient_accumulation_steps) == (1, 8)
    assert {recipe.stage1.learning_rate, recipe.stage2.learning_rate, recipe.stage2.lora_learning_rate} == {3e-4}
    assert (recipe.model.snap_s, recipe.model.prompt_style, recipe.data.balance_tasks) == (0, "reference", False)
    assert (recipe.data.scanpath_noise, recipe.data.fixation_dropout) == (0, 0)


def test_accelerate_reads_its_configs():
    paths = sorted((ROOT / "recipes" / "accelerate").iterdir())
    assert [path.name for path in paths] == ["ddp.yaml"]
    config = load_config_from_file(str(paths[0]))
    assert config.distributed_type == "MULTI_GPU" and config.mixed_precision == "no"
    assert set(yaml.safe_load(paths[0].read_text())) <= set(vars(config))
