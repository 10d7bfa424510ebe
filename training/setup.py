"""What a run is made of: processes, questions, and the models that its recipe names."""

import dataclasses
import os
import warnings
from collections import defaultdict

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from transformers import PreTrainedModel

from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.processing_gazeqwen import GazeQwenProcessor
from gazeqwen.questions.dataset import load_questions
from gazeqwen.questions.question import Question
from gazeqwen.training.recipe import DataSettings, ModelSettings, Recipe
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


def build_model(recipe: Recipe, device: torch.device) -> GazeQwenForConditionalGeneration:
    """Return a new adapter on the recipe's frozen models, on `device`, set up for training."""
    settings = recipe.model
    model = GazeQwenForConditionalGeneration.from_base(
        settings.base_model,
        settings.video_encoder,
        settings.base_model_revision,
        settings.video_encoder_revision,
        dtype=settings.dtype,
        base_kwargs=base_arguments(settings, device),
        load_in_4bit=settings.load_in_4bit,
        **dataclasses.asdict(recipe.adapter),
    )
    place(model, recipe, device)
    if recipe.gradient_checkpointing:
        checkpoint_activations(model.backbone)
    if recipe.compile:
        model.resampler.factors = torch.compile(model.resampler.factors, backend=recipe.compile)
    return model


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
