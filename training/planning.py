"""
What a recipe would take, before any weight is loaded: parameters, steps, video tokens, disk, and memory.

Models are built from their configs on the meta device, so only configs, processor and data have to be there.
"""

from collections import Counter
from dataclasses import dataclass

import torch

from gazeqwen.backbones_gazeqwen import embed_dim
from gazeqwen.configuration_gazeqwen import GazeQwenConfig
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.pipeline.batches import MicroBatchSampler, QuestionDataset
from gazeqwen.pipeline.clip_cache import CacheSize, ClipCache
from gazeqwen.pipeline.conditions import Condition
from gazeqwen.questions.dataset import load_questions
from gazeqwen.questions.prompts import chat_message
from gazeqwen.questions.question import Question
from gazeqwen.training.memory import (
    ClipShape,
    Memory,
    base_dtype,
    count_trained,
    estimate_memory,
    feature_dim,
    parameter_counts,
)
from gazeqwen.training.recipe import Recipe
from gazeqwen.training.setup import build_processor, config_of, config_to_start_from, reading

_GB = 1e9


@dataclass(frozen=True)
class StagePlan:
    """Hold the size of one stage, of all processes together. A `step` is one of the optimizer."""

    epochs: int
    trained_parameters: int
    samples_per_epoch: int
    steps_per_epoch: int
    samples_per_step: int


@dataclass(frozen=True)
class Plan:
    """
    Hold what training takes: `parameters` by part, `questions` by split and task, `stages` by number. `longest`: the
    largest sample of both splits; `mean_frames`, `mean_video_tokens`: means over both. `memory`: an
    estimate by phase (`estimate_memory`).
    """

    parameters: dict[str, int]
    questions: dict[str, dict[str, int]]
    stages: dict[int, StagePlan]
    num_processes: int
    longest: ClipShape
    mean_frames: float
    mean_video_tokens: float
    cache_kind: str
    cache: CacheSize
    memory: dict[str, Memory]

    @property
    def peak(self) -> float:
        """Return the bytes of the phase that needs most."""
        return max(phase.peak for phase in self.memory.values())

    def __str__(self) -> str:
        lines = ["parameters"]
        lines += [f"  {part:<16}{count:>16,}" for part, count in self.parameters.items()]
        for split, tasks in self.questions.items():
            lines.append(f"questions of {split}: {sum(tasks.values()):,}")
            lines += [f"  {task:<42}{count:>8,}" for task, count in tasks.items()]
        for number, stage in self.stages.items():
            lines.append(
                f"stage {number}: {stage.trained_parameters:,} trained parameters, {stage.epochs} epochs of "
                f"{stage.samples_per_epoch:,} samples in {stage.steps_per_epoch:,} optimizer steps "
                f"({stage.samples_per_step} samples each, processes: {self.num_processes})"
            )
        lines.append(
            f"longest sample: {self.longest.frames} frames, {self.longest.video_tokens:,} video tokens, up to "
            f"{self.longest.text_tokens:,} of text; mean: {self.mean_frames:.1f} frames, "
            f"{self.mean_video_tokens:,.0f} video tokens"
        )
        lines.append("no cache on disk" if self.cache_kind == "none" else f"cache of {self.cache_kind}: {self.cache}")
        lines.append("memory of one accelerator in GB (10^9 bytes), estimated, not measured, for the longest sample:")
        for name, phase in self.memory.items():
            lines.append(f"  {name:<48}{phase.peak / _GB:>8.2f}")
            lines += [f"    {term:<46}{count / _GB:>8.2f}" for term, count in phase.persistent.items()]
            most = max(phase.transient, key=phase.transient.get)
            for term, count in phase.transient.items():
                if count:
                    counted = "" if term == most else "  not at the same time"
                    lines.append(f"    working space: {term:<31}{count / _GB:>8.2f}{counted}")
        lines.append("not counted: the accelerator's own context and its allocator's gaps; leave 2 GB for them")
        return "\n".join(lines)


def plan(recipe: Recipe, num_processes: int = 1) -> Plan:
    """
    Return what training by `recipe` on `num_processes` accelerators takes. Reads the configs, the processor and
    the dataset, with the sizes of its videos, but no weights. Raises ValueError or OSError naming what cannot be read.
    """
    if num_processes < 1:
        raise ValueError(f"num_processes: got {num_processes}, expected at least 1")
    data = recipe.data  # first: a mistake in it should not cost the time that the Hub takes
    splits = {
        split: load_questions(data.dataset, split, data.tasks, data.config, data.without_gaze)
        for split in (data.train_split, data.validation_split)
    }
    with reading("model.base_model", recipe.model.base_model):
        processor = build_processor(recipe.model)
    if recipe.start_from:
        config_to_start_from(recipe)
    model = model_on_meta(recipe, config_of(recipe))
    training = splits[data.train_split]
    everything = [question for questions in splits.values() for question in questions]

    cache = ClipCache(processor, data.cache, for_video_encoder=model.config.has_video_encoder)
    gaze = Condition.parse(data.gaze)
    drawings = []
    for questions in splits.values():
        drawings += QuestionDataset(cache, questions, gaze, recipe.seed).drawings
    frames, tokens = zip(*cache.shapes(everything), strict=True)
    largest = max(range(len(everything)), key=lambda index: (tokens[index], frames[index]))
    longest = ClipShape(frames[largest], tokens[largest], _text_tokens(cache, everything))
    hidden = embed_dim(model.config.load_backbone_config())
    return Plan(
        parameters=parameter_counts(model),
        questions={
            split: dict(sorted(Counter(question.task for question in questions).items()))
            for split, questions in splits.items()
        },
        stages=_stage_plans(recipe, model, training, frames[: len(training)], num_processes),
        num_processes=num_processes,
        longest=longest,
        mean_frames=sum(frames) / len(frames),
        mean_video_tokens=sum(tokens) / len(tokens),
        cache_kind=cache.kind,
        cache=cache.size(everything, feature_dim(model), hidden, base_dtype(recipe, model).itemsize, drawings),
        memory=estimate_memory(recipe, model, longest),
    )


def _stage_plans(
    recipe: Recipe, model, questions: list[Question], frames: list[int], num_processes: int
) -> dict[int, StagePlan]:
    """Return the plans of the stages that are trained, by number. `frames`: of each question's clip."""
    stages = {}
    for number, stage in ((1, recipe.stage1), (2, recipe.stage2)):
        if not stage.epochs:
            continue
        batches = MicroBatchSampler(
            questions,
            frames,
            recipe.batch_size,
            recipe.gradient_accumulation_steps,
            recipe.seed + number,
            recipe.data.balance_tasks,
            num_processes=num_processes,
        )
        stages[number] = StagePlan(
            epochs=stage.epochs,
            trained_parameters=count_trained(model, number),
            samples_per_epoch=len(questions),
            steps_per_epoch=batches.steps_per_epoch(),
            samples_per_step=batches.step_size,
        )
    return stages


# ------------------------------------------------------------------ models without weights
def model_on_meta(recipe: Recipe, config: GazeQwenConfig) -> GazeQwenForConditionalGeneration:
    """Return the model on the meta device, where parameters have shapes and no memory; with LoRA if stage 2 is run."""
    with torch.device("meta"):
        model = GazeQwenForConditionalGeneration(config)
        if recipe.stage2.epochs:
            model.add_lora(recipe.lora_rank, recipe.lora_alpha)
    return model


# ------------------------------------------------------------------ the data's sizes
def _text_tokens(cache: ClipCache, questions: list[Question]) -> int:
    """
    Return the most tokens of a prompt beside its video's, with the answer where a question is open-ended, and with
    each step's time where the prompt tells it.
    """
    processor = cache.processor
    merge = processor.video_processor.merge_size
    prompts, times = {}, ()
    for question in questions:
        if processor.family.seconds_in_text:
            times = tuple(processor.step_times_s(cache.frame_times_s(question) - question.start_s).tolist())
        prompt = question.prompt(processor.prompt_style)[0]
        prompts.setdefault((prompt, question.answer_text or ""), set()).add(times)
    texts, steps = [], []
    for (prompt, answer), all_times in sorted(prompts.items()):
        text = processor.apply_chat_template(chat_message(prompt), add_generation_prompt=True) + answer
        for times in sorted(all_times):
            steps.append(len(times) or 1)  # of one token each
            clip = {"video_grid_thw": torch.tensor([steps[-1], merge, merge]), "step_times_s": torch.tensor(times)}
            texts += processor.expand_videos([text], [clip])
    encoded = processor.tokenizer(texts, add_special_tokens=False)["input_ids"]
    return max(len(ids) - count for ids, count in zip(encoded, steps, strict=True))


__all__ = ["Plan", "StagePlan", "model_on_meta", "plan"]
