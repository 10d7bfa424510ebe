"""What a run is made of: processes, questions, and the models that its recipe names."""

import dataclasses
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from transformers import PreTrainedModel

from gazeqwen.configuration_gazeqwen import GazeQwenConfig, absolute_if_folder
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.processing_gazeqwen import GazeQwenProcessor
from gazeqwen.questions.dataset import load_questions
from gazeqwen.questions.question import Question
from gazeqwen.training.recipe import AdapterSettings, DataSettings, ModelSettings, Recipe
from gazeqwen.utils.adapters import four_bit_arguments


def build_accelerator(recipe: Recipe) -> Accelerator:
    """
    Return Accelerate's handle on the processes. Raises ValueError where they do not know of each other, or where the
    weights or the optimizer would be divided among them, which has not been made to work here (docs/log.md).
    """
    accelerator = Accelerator(log_with=recipe.tracker, project_dir=recipe.output_dir)
    if int(os.environ.get("WORLD_SIZE", 1)) != accelerator.num_processes:
        raise ValueError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but Accelerate knows of {accelerator.num_processes} "
            "process: on a machine without GPUs set ACCELERATE_USE_CPU=true"
        )
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise ValueError(
            f"Accelerate's distributed_type: got {accelerator.distributed_type.value}, expected the whole model on "
            "every GPU: recipes/accelerate/ddp.yaml"
        )
    return accelerator


def load_splits(data: DataSettings) -> tuple[list[Question], list[Question]]:
    """
    Return the questions to train and to validate with. Raises ValueError if a video is in both; warns of a task to
    train on whose questions all have one answer.
    """
    training, validation = (
        load_questions(data.dataset, split, data.tasks, data.config, data.without_gaze)
        for split in (data.train_split, data.validation_split)
    )
    overlap = {question.video_name for question in training} & {question.video_name for question in validation}
    if overlap:
        raise ValueError(f"{data.dataset}: {len(overlap)} videos are in both splits, such as {min(overlap)}")
    for task, answers in sorted(_answers_of_tasks(training).items()):
        if len(answers) == 1:
            warnings.warn(f"{data.dataset}: every question of {task} to train on has the same answer", stacklevel=2)
    return training, validation


def _answers_of_tasks(questions: list[Question]) -> dict[str, set]:
    """Return the different answers of each task: indices of options, or texts."""
    answers = defaultdict(set)
    for question in questions:
        answers[question.task].add(question.answer if question.answer_text is None else question.answer_text)
    return answers


def build_processor(model: ModelSettings) -> GazeQwenProcessor:
    """
    Return the processor of a recipe's base model, with the recipe's sampling, size of frames, snapping and wording.
    """
    return GazeQwenProcessor.from_base(
        model.base_model,
        model.base_model_revision,
        video_encoder_size=model.video_encoder_size,
        num_frames=model.num_frames,
        fps=model.fps,
        max_frames=model.max_frames,
        sampling=model.sampling,
        snap_s=model.snap_s,
        prompt_style=model.prompt_style,
        keep_tokens=model.keep_tokens,
        keep_by=model.keep_by,
        max_pixels_per_frame=model.max_pixels_per_frame,
    )


@contextmanager
def reading(name: str, value: str) -> Iterator[None]:
    """Raise the errors of a block that reads a model as ValueError naming the setting `name` and its `value`."""
    try:
        yield
    except (OSError, ValueError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{name}: cannot read {value!r}, expected a folder or an id on the Hub ({first})") from error


def config_of(recipe: Recipe) -> GazeQwenConfig:
    """
    Return the config of the model that `recipe` trains, with those of base model and video encoder read. Raises
    ValueError naming the setting that cannot be read.
    """
    model = recipe.model
    config = GazeQwenConfig(
        base_model_name_or_path=model.base_model,
        base_model_revision=model.base_model_revision,
        video_encoder_name_or_path=model.video_encoder or None,
        video_encoder_revision=model.video_encoder_revision,
        **dataclasses.asdict(recipe.adapter),
    )
    with reading("model.base_model", model.base_model):
        config.load_backbone_config()
    if config.has_video_encoder:
        with reading("model.video_encoder", model.video_encoder):
            config.load_video_encoder_config()
    return config


def config_to_start_from(recipe: Recipe) -> GazeQwenConfig:
    """
    Return the config of the adapter that training begins with, `start_from`. Raises ValueError naming the settings in
    which it is another adapter than the recipe trains, or stage 1 where the adapter has LoRA, which that leaves alone.
    """
    source = recipe.start_from
    with reading("start_from", source):
        stored = GazeQwenConfig.from_pretrained(source, revision=recipe.start_from_revision or "main")
    stored_settings, settings = _trained_as(stored), _trained_as(config_of(recipe))
    differing = [
        f"{name}: {stored_settings[name]!r} in the adapter, {settings[name]!r} in the recipe"
        for name in settings
        if stored_settings[name] != settings[name]
    ]
    if differing:
        lines = "\n  ".join(differing)
        raise ValueError(
            f"start_from: {source} is another adapter than the recipe trains; change the recipe, or where the same "
            f"models have another name, write it into the adapter's config.json:\n  {lines}"
        )
    if stored.has_lora and recipe.stage1.epochs:
        raise ValueError(
            f"stage1.epochs: got {recipe.stage1.epochs}, expected 0: {source} (start_from) has LoRA, so that stage 2 "
            "goes on with it"
        )
    stored.load_in_4bit = recipe.model.load_in_4bit
    return stored


def _trained_as(config: GazeQwenConfig) -> dict:
    """Return what an adapter is made of and was trained on; of another one, weights mean something else."""
    settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(AdapterSettings)}
    settings["injection_layers"] = config.resolved_injection_layers()
    for name, source in config.sources().items():
        revision = getattr(config, name.replace("name_or_path", "revision"))
        settings[name] = (absolute_if_folder(source), revision or "main")
    return settings


def build_model(recipe: Recipe, device: torch.device) -> GazeQwenForConditionalGeneration:
    """
    Return an adapter on the recipe's frozen models, on `device`, set up for training: a new one, or as it is in
    `start_from`. Raises ValueError as `config_to_start_from` does, and for a LoRA there that is not the recipe's.
    """
    settings = recipe.model
    base_kwargs = base_arguments(settings, device)
    if recipe.start_from:
        model = GazeQwenForConditionalGeneration.from_pretrained(
            recipe.start_from,
            config=config_to_start_from(recipe),
            revision=recipe.start_from_revision or "main",
            dtype=settings.dtype,
            **base_kwargs,
        )
        if model.has_lora:
            _check_lora(recipe, model)
    else:
        model = GazeQwenForConditionalGeneration.from_base(
            settings.base_model,
            settings.video_encoder,
            settings.base_model_revision,
            settings.video_encoder_revision,
            dtype=settings.dtype,
            base_kwargs=base_kwargs,
            load_in_4bit=settings.load_in_4bit,
            **dataclasses.asdict(recipe.adapter),
        )
    place(model, recipe, device)
    if recipe.gradient_checkpointing:
        checkpoint_activations(model.backbone)
    if recipe.compile:
        model.resampler.factors = torch.compile(model.resampler.factors, backend=recipe.compile)
    return model


def _check_lora(recipe: Recipe, model: GazeQwenForConditionalGeneration) -> None:
    """Raise ValueError where the LoRA that training begins with has another rank or strength than the recipe's."""
    (lora,) = model.backbone.peft_config.values()
    for name, value in (("lora_rank", lora.r), ("lora_alpha", lora.lora_alpha)):
        if getattr(recipe, name) != value:
            raise ValueError(f"{name}: got {getattr(recipe, name)}, expected {value} as in {recipe.start_from}")


def checkpoint_activations(backbone: PreTrainedModel) -> None:
    """Make the base model compute activations again in the backward pass instead of keeping them."""
    if hasattr(backbone, "activation_checkpointing_enable"):
        backbone.activation_checkpointing_enable({"use_reentrant": False})
    else:  # its name in transformers 5.17, deprecated in 5.23
        backbone.gradient_checkpointing_enable({"use_reentrant": False})
    # Without this the embeddings, and the vision tower with them, would carry a graph that nothing needs.
    backbone.disable_input_require_grads()


def base_arguments(model: ModelSettings, device) -> dict:
    """Return the arguments of the base model's `from_pretrained` beside id, revision and dtype."""
    arguments = {}
    if model.attn_implementation is not None:
        arguments["attn_implementation"] = model.attn_implementation
    if model.load_in_4bit:
        arguments |= four_bit_arguments(device)
    return arguments


def place(model, recipe: Recipe, device: torch.device) -> None:
    """Move the model to `device`; in 4 bits its base model was loaded there, and may not be moved."""
    if not recipe.model.load_in_4bit:
        model.to(device)
