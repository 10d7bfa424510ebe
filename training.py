"""Two-stage training (paper section 2.4): the resamplers alone, then with LoRA on the language model's q and v."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup

from .evaluation import (
    SampleReader,
    accuracy,
    option_logits,
    predict,
    save_predictions,
    trained_counts,
)
from .modeling_gazeqwen import GazeQwenForConditionalGeneration
from .processing_gazeqwen import GazeQwenProcessor
from .runs import new_folder, provenance, write_json, write_text
from .streamgaze import PROMPT_STYLES, Question, load_questions


@dataclass
class ModelSettings:
    """The frozen models, and how clips, gaze and questions are put to them (see GazeQwenProcessor)."""

    base_model: str = "Qwen/Qwen2.5-VL-7B-Instruct"
    base_model_revision: str | None = None
    video_encoder: str = ""
    video_encoder_revision: str | None = None
    dtype: str = "bfloat16"
    video_encoder_size: int = 384
    num_frames: int | None = None
    fps: float | None = None
    max_frames: int = 64
    snap_s: float = 0.0
    prompt_style: str = "reference"


@dataclass
class AdapterSettings:
    """What is trained and how gaze enters: the arguments of GazeQwenConfig."""

    resampler_type: str = "attention"
    gaze_encoding: str = "foveated"
    fixation_weighting: str | None = None
    gaze_coordinate_scale: float = 1.0
    foveal_sigmas: list = field(default_factory=lambda: [0.5, 1.0, 2.0])
    heatmap_sigma: float = 1.0
    injection_layers: list | None = None
    share_resampler: bool = False
    num_latents: int = 32
    latent_dim: int = 256
    num_blocks: int = 2


@dataclass
class DataSettings:
    """
    `dataset`: a folder that `gazeqwen.streamgaze build` wrote, or an id on the Hub; `config` names its split scheme.
    `without_gaze`: see `load_questions`. `keep_in_memory`: clips' pixels and features, for small data.
    """

    dataset: str = ""
    config: str = "default"
    train_split: str = "train"
    validation_split: str = "validation"
    tasks: list | None = None
    without_gaze: str = "error"
    keep_in_memory: bool = False


@dataclass
class StageSettings:
    """One stage. `epochs: 0` leaves it out. LoRA's rate applies in stage 2."""

    epochs: int = 0
    learning_rate: float = 3e-4
    lora_learning_rate: float = 3e-4


@dataclass
class Recipe:
    """A whole training run. Defaults are the paper's where it gives them (section 3.1)."""

    output_dir: str = "runs/gazeqwen"
    seed: int = 0
    model: ModelSettings = field(default_factory=ModelSettings)
    adapter: AdapterSettings = field(default_factory=AdapterSettings)
    data: DataSettings = field(default_factory=DataSettings)
    stage1: StageSettings = field(default_factory=StageSettings)
    stage2: StageSettings = field(default_factory=StageSettings)
    batch_size: int = 1
    evaluation_batch_size: int = 8
    gradient_accumulation_steps: int = 8
    weight_decay: float = 1e-2
    warmup_steps: int = 20
    max_grad_norm: float = 1.0
    label_smoothing: float = 0.0
    lora_rank: int = 8
    lora_alpha: float = 16.0

    def __post_init__(self):
        for name in ("batch_size", "evaluation_batch_size", "gradient_accumulation_steps", "lora_rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if self.model.prompt_style not in PROMPT_STYLES:
            raise ValueError(f"model.prompt_style: got {self.model.prompt_style!r}, expected one of {PROMPT_STYLES}")
        if self.model.snap_s < 0:
            raise ValueError(f"model.snap_s: got {self.model.snap_s}, expected 0 or more seconds")
        if self.stage1.epochs + self.stage2.epochs < 1:
            raise ValueError("stage1.epochs and stage2.epochs are both 0: nothing to train")
        for name, value in (("model.video_encoder", self.model.video_encoder), ("data.dataset", self.data.dataset)):
            if not value:
                raise ValueError(f"{name} is empty, expected an id or a folder")


def optimizer_groups(model, stage: StageSettings, weight_decay: float) -> list[dict]:
    """Trained parameters by rate and decay: none for norms, biases, amplitudes, gains and LoRA."""
    groups: dict[tuple, list] = {}
    for name, parameter in model.trained_parameters().items():
        is_lora = "lora_" in name
        kind = name.rsplit(".", 2)[-2:]
        decays = not is_lora and (name.endswith(("latents", "foveal_query")) or _is_linear_weight(kind))
        rate = stage.lora_learning_rate if is_lora else stage.learning_rate
        groups.setdefault((rate, weight_decay if decays else 0.0), []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]


def _is_linear_weight(kind: list[str]) -> bool:
    return kind[-1] == "weight" and "norm" not in kind[0]


def answer_loss(logits: torch.Tensor, answers: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """
    Cross-entropy over the letters that each question offers: `logits` (B, options) with -inf for letters not offered,
    `answers` (B,). Smoothing spreads over the offered letters alone.
    """
    log_probabilities = F.log_softmax(logits, dim=-1)
    loss = -log_probabilities.gather(1, answers[:, None]).squeeze(1)
    if label_smoothing:
        offered = torch.isfinite(logits)
        mean = log_probabilities.masked_fill(~offered, 0).sum(-1) / offered.sum(-1)
        loss = (1 - label_smoothing) * loss - label_smoothing * mean
    return loss.mean()


class Trainer:
    """`Trainer(recipe).run()` trains, keeps the best adapter in `<output_dir>/best`, and returns its score."""

    def __init__(self, recipe: Recipe):
        self.recipe, model = recipe, recipe.model
        self.accelerator = Accelerator(gradient_accumulation_steps=recipe.gradient_accumulation_steps)
        set_seed(recipe.seed)
        self.folder = Path(recipe.output_dir)
        data = recipe.data
        self.questions, self.validation = (
            load_questions(data.dataset, split, data.tasks, data.config, data.without_gaze)
            for split in (data.train_split, data.validation_split)
        )
        overlap = {q.video_name for q in self.questions} & {q.video_name for q in self.validation}
        if overlap:
            raise ValueError(f"{data.dataset}: {len(overlap)} videos are in both splits, such as {min(overlap)}")
        self.model = GazeQwenForConditionalGeneration.from_base(
            model.base_model,
            model.video_encoder,
            model.base_model_revision,
            model.video_encoder_revision,
            dtype=model.dtype,
            **dataclasses.asdict(recipe.adapter),
        ).to(self.accelerator.device)
        self.processor = GazeQwenProcessor.from_base(
            model.base_model,
            model.base_model_revision,
            video_encoder_size=model.video_encoder_size,
            num_frames=model.num_frames,
            fps=model.fps,
            max_frames=model.max_frames,
            snap_s=model.snap_s,
            prompt_style=model.prompt_style,
        )
        self.reader = SampleReader(self.model, self.processor, keep=data.keep_in_memory)
        self.best = {"macro": -1.0}
        self.log: list[dict] = []

    def run(self) -> dict:
        """Train both stages. Returns the best validation score, with its stage and epoch."""
        recipe = self.recipe
        if self.accelerator.is_main_process:
            settings = dataclasses.asdict(recipe)
            write_text(self.folder / "recipe.yaml", yaml.safe_dump(settings, sort_keys=False))
            write_json(self.folder / "provenance.json", provenance())
        if recipe.stage1.epochs:
            self._stage(1, recipe.stage1)
        if recipe.stage2.epochs:
            self.model.add_lora(recipe.lora_rank, recipe.lora_alpha)
            self.model.to(self.accelerator.device)
            self._stage(2, recipe.stage2)
        return self.best

    def _stage(self, number: int, stage: StageSettings) -> None:
        recipe, accelerator = self.recipe, self.accelerator
        optimizer = torch.optim.AdamW(optimizer_groups(self.model, stage, recipe.weight_decay))
        loader = torch.utils.data.DataLoader(
            self.questions,
            batch_size=recipe.batch_size,
            shuffle=True,
            collate_fn=list,
            generator=torch.Generator().manual_seed(recipe.seed + number),
        )
        model, optimizer, loader = accelerator.prepare(self.model, optimizer, loader)
        steps = stage.epochs * math.ceil(len(loader) / recipe.gradient_accumulation_steps)
        # Stepped by hand once per optimizer step, so that the schedule does not depend on the number of processes.
        schedule = get_cosine_schedule_with_warmup(optimizer, min(recipe.warmup_steps, steps - 1), steps)
        trained = list(self.model.trained_parameters().values())
        accelerator.print(
            f"stage {number}: {trained_counts(self.model)}, "
            f"{len(self.questions)} questions, {stage.epochs} epochs, {steps} steps"
        )
        with tqdm(total=steps, desc=f"stage {number}", unit="step", disable=not accelerator.is_main_process) as bar:
            for epoch in range(1, stage.epochs + 1):
                model.train()
                for batch in loader:
                    with accelerator.accumulate(model):
                        loss = self._loss(model, batch)
                        accelerator.backward(loss)
                        if accelerator.sync_gradients:
                            accelerator.clip_grad_norm_(trained, recipe.max_grad_norm)
                        optimizer.step()
                        optimizer.zero_grad()
                    if accelerator.sync_gradients:
                        schedule.step()
                        self._record(number, epoch, accelerator.gather(loss.detach()).mean().item(), schedule, bar)
                self._validate(number, epoch, bar)
        accelerator.free_memory()

    def _loss(self, model, batch: list[Question]) -> torch.Tensor:
        inputs, tokens = self.reader.batch(batch, [question.scanpath for question in batch])
        logits = option_logits(model, inputs.to(self.accelerator.device), tokens)
        answers = torch.tensor([question.answer for question in batch], device=logits.device)
        loss = answer_loss(logits, answers, self.recipe.label_smoothing)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {loss.item()} on {[question.key for question in batch]}")
        return loss

    def _record(self, stage: int, epoch: int, loss: float, schedule, bar) -> None:
        self.log.append({"stage": stage, "epoch": epoch, "step": bar.n, "loss": loss, "lr": schedule.get_last_lr()[0]})
        bar.update()
        bar.set_postfix(loss=f"{loss:.3f}", best=f"{self.best['macro']:.3f}")

    def _validate(self, stage: int, epoch: int, bar) -> None:
        predictions = predict(
            self.accelerator, self.model, self.reader, self.validation, "gaze", self.recipe.evaluation_batch_size
        )
        score = accuracy(predictions)
        self.log.append({"stage": stage, "epoch": epoch, "step": bar.n, "validation_macro": score["macro"]})
        bar.write(f"stage {stage}, epoch {epoch}: validation accuracy {100 * score['macro']:.1f} % (mean over tasks)")
        better = score["macro"] >= self.best["macro"]  # of equals the later, which has seen more
        if better:
            self.best = {**score, "stage": stage, "epoch": epoch}
        if self.accelerator.is_main_process:
            write_text(self.folder / "log.jsonl", "".join(json.dumps(line) + "\n" for line in self.log))
            if better:
                with new_folder(self.folder / "best") as folder:
                    self.model.save_pretrained(folder)
                    self.processor.save_pretrained(folder)
                save_predictions(self.folder / "validation_predictions.jsonl", predictions)
                write_json(self.folder / "validation.json", self.best)
        self.accelerator.wait_for_everyone()
