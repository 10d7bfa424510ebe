"""Two-stage training (paper section 2.4): the resamplers alone, then with LoRA on the language model's q and v."""

import dataclasses
import json
import os
import shutil
import signal
import warnings
from collections import defaultdict
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup

from gazeqwen.evaluation.predictions import predict, save_predictions, text_loss
from gazeqwen.evaluation.scoring import score as scored
from gazeqwen.model_card.card import render_model_card
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.pipeline.answers import option_logits, text_losses
from gazeqwen.pipeline.batches import Augmentation, Batch, MicroBatchSampler, QuestionDataset
from gazeqwen.pipeline.clip_cache import ClipCache
from gazeqwen.pipeline.conditions import Condition
from gazeqwen.plots.curves import draw_curves
from gazeqwen.questions.dataset import load_questions
from gazeqwen.questions.question import Question, sources_of
from gazeqwen.training.recipe import Recipe, StageSettings, base_arguments, build_processor, changed_settings
from gazeqwen.utils.files import atomic_folder, write_json, write_text
from gazeqwen.utils.hub import open_repository, publish
from gazeqwen.utils.loading import repeatable_loader
from gazeqwen.utils.provenance import describe_trained_parameters, provenance
from gazeqwen.utils.settings import flat
from gazeqwen.utils.tensors import write_tensors


def optimizer_groups(model, stage: StageSettings, weight_decay: float) -> list[dict]:
    """Return the trained parameters by rate, LoRA's or the resampler's, and decay, none where the model says so."""
    groups: dict[tuple, list] = {}
    undecayed = model.no_weight_decay()
    for name, parameter in model.trained_parameters().items():
        rate = stage.lora_learning_rate if "lora_" in name else stage.learning_rate
        groups.setdefault((rate, 0.0 if name in undecayed else weight_decay), []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]


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


@dataclass
class Progress:
    """Where a run stands: `batches` of `epoch` of `stage` are done, after `steps` optimizer steps of that stage."""

    stage: int = 1
    epoch: int = 1
    batches: int = 0
    steps: int = 0
    epochs_since_best: int = 0
    best: dict | None = None
    finished: bool = False


class Trainer:
    """
    `Trainer(recipe).run()` trains, keeps the best adapter in `<output_dir>/best`, and returns its score. If the folder
    holds a run with the same settings, it goes on where its last checkpoint was written, and ends as if it had never
    stopped; SIGTERM and SIGINT write one. A run with other settings is refused, naming them; `restart` removes it.
    """

    def __init__(self, recipe: Recipe, restart: bool = False):
        self.recipe = recipe
        self.accelerator = Accelerator(log_with=recipe.tracker, project_dir=recipe.output_dir)
        if int(os.environ.get("WORLD_SIZE", 1)) != self.accelerator.num_processes:
            raise ValueError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but Accelerate knows of {self.accelerator.num_processes} "
                "process: on a machine without GPUs set ACCELERATE_USE_CPU=true"
            )
        set_seed(recipe.seed)
        self.folder, data = Path(recipe.output_dir), recipe.data
        self.settings = dataclasses.asdict(recipe)
        if restart and self.accelerator.is_main_process and (self.folder / "recipe.yaml").exists():
            shutil.rmtree(self.folder)
        self.accelerator.wait_for_everyone()
        self.checkpoint = self._checkpoint_to_go_on_with()
        if recipe.push_to_hub and self.accelerator.is_main_process:
            open_repository(recipe.push_to_hub)  # now, not after days of training: the token may be wrong
        self.questions, self.validation = (
            load_questions(data.dataset, split, data.tasks, data.config, data.without_gaze)
            for split in (data.train_split, data.validation_split)
        )
        overlap = {q.video_name for q in self.questions} & {q.video_name for q in self.validation}
        if overlap:
            raise ValueError(f"{data.dataset}: {len(overlap)} videos are in both splits, such as {min(overlap)}")
        for task, answers in sorted(answers_of_tasks(self.questions).items()):
            if len(answers) == 1:
                warnings.warn(
                    f"{data.dataset}: every question of {task} to train on has the same answer", stacklevel=2
                )
        self.condition = Condition.parse(data.gaze)
        self.processor = build_processor(recipe.model)
        self.model = GazeQwenForConditionalGeneration.from_base(
            recipe.model.base_model,
            recipe.model.video_encoder,
            recipe.model.base_model_revision,
            recipe.model.video_encoder_revision,
            dtype=recipe.model.dtype,
            base_kwargs=base_arguments(recipe.model, self.accelerator.device),
            **dataclasses.asdict(recipe.adapter),
        )
        if not recipe.model.load_in_4bit:  # that one is where it belongs, and may not be moved
            self.model.to(self.accelerator.device)
        if recipe.gradient_checkpointing:
            self.model.backbone.gradient_checkpointing_enable({"use_reentrant": False})
            # Without this the embeddings, and the vision tower with them, would carry a graph that nothing needs.
            self.model.backbone.disable_input_require_grads()
        if recipe.compile:
            self.model.resampler.factors = torch.compile(self.model.resampler.factors, backend=recipe.compile)
        self.cache = ClipCache.of(self.model, self.processor, data.cache, data.cache_dir)
        self.progress, self.log = Progress(), []
        self._signal: int | None = None

    # ---------------------------------------------------------------- the run
    def run(self) -> dict:
        """Train both stages. Returns the best validation score, with its stage and epoch."""
        recipe, data = self.recipe, self.recipe.data
        if self.accelerator.is_main_process and not self.checkpoint:
            write_text(self.folder / "recipe.yaml", yaml.safe_dump(self.settings, sort_keys=False))
            dataset_from_hub = not Path(data.dataset).exists()  # nobody could tell later
            data_origin = {"dataset_from_hub": dataset_from_hub, "sources": sources_of(self.questions)}
            write_json(self.folder / "provenance.json", provenance() | data_origin)
        if self.checkpoint:
            state = json.loads((self.checkpoint / "progress.json").read_text(encoding="utf-8"))
            self.progress = Progress(**state)
            lines = (self.checkpoint / "log.jsonl").read_text(encoding="utf-8").splitlines()
            self.log = [json.loads(line) for line in lines]
            if self.progress.finished:
                self.accelerator.print(f"{self.folder}: this run is finished; choose another output_dir, or --restart")
                self._publish()
                return self.progress.best
        asked = [
            QuestionDataset(self.cache, questions, self.condition, recipe.seed)
            for questions in (self.questions, *by_kind(self.validation))
        ]
        self.cache.fill(
            self.accelerator,
            self.model,
            [question for part in asked for question in part.questions],
            recipe.evaluation_batch_size,
            data.num_workers,
            [drawing for part in asked for drawing in part.drawings],
        )
        if recipe.tracker:
            self.accelerator.init_trackers("tracker", config=_simple(self.settings))
        with self._stopping_on_signals():
            for number, stage in ((1, recipe.stage1), (2, recipe.stage2)):
                if number < self.progress.stage or not stage.epochs:
                    continue
                if number > self.progress.stage:
                    self.progress = Progress(stage=number, best=self.progress.best)
                if number == 2:
                    self.model.add_lora(recipe.lora_rank, recipe.lora_alpha)
                    if not recipe.model.load_in_4bit:
                        self.model.to(self.accelerator.device)
                self._stage(number, stage)
        if recipe.tracker:
            self.accelerator.end_training()
        self._publish()
        return self.progress.best

    def _publish(self) -> None:
        repository = self.recipe.push_to_hub
        if repository and self.accelerator.is_main_process:
            best = self.folder / "best"
            if not (best / "README.md").exists():  # or one with results was written since
                write_text(best / "README.md", str(render_model_card(best, repository=repository)))
            self.accelerator.print(f"published: {publish(best, repository)}")

    def _stage(self, number: int, stage: StageSettings) -> None:
        recipe, accelerator, progress = self.recipe, self.accelerator, self.progress
        self.steps_before = sum("loss" in line for line in self.log if line["stage"] < number)
        data = QuestionDataset(
            self.cache,
            self.questions,
            self.condition,
            recipe.seed,
            Augmentation(recipe.data.scanpath_noise, recipe.data.fixation_dropout, recipe.seed + number),
        )
        batches = MicroBatchSampler(
            self.questions,
            [self.cache.num_frames(question) for question in self.questions],
            recipe.batch_size,
            recipe.gradient_accumulation_steps,
            recipe.seed + number,
            recipe.data.balance_tasks,
            accelerator.process_index,
            accelerator.num_processes,
        )
        loader = repeatable_loader(
            data, batch_sampler=batches, collate_fn=data.collate, num_workers=recipe.data.num_workers
        )
        optimizer = torch.optim.AdamW(optimizer_groups(self.model, stage, recipe.weight_decay))
        if accelerator.state.deepspeed_plugin is not None:
            if recipe.gradient_accumulation_steps > 1:
                raise ValueError(
                    "DeepSpeed counts its own steps: set gradient_accumulation_steps=1, batch_size as needed"
                )
            accelerator.state.deepspeed_plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = recipe.batch_size
        model, optimizer = accelerator.prepare(self.model, optimizer)
        steps = stage.epochs * batches.steps_of_an_epoch()
        # Stepped by hand once per optimizer step, so that the schedule does not depend on the number of processes.
        # Linear warm-up, then cosine (paper section 3.1).
        schedule = get_cosine_schedule_with_warmup(optimizer, min(recipe.warmup_steps, steps - 1), steps)
        if self.checkpoint:
            self._load(self.checkpoint, model, optimizer)
            self.checkpoint = None
            with warnings.catch_warnings():  # that the schedule is ahead of the optimizer, which is the point
                warnings.simplefilter("ignore")
                for _ in range(progress.steps):
                    schedule.step()
        trained = list(self.model.trained_parameters().values())
        accelerator.print(
            f"stage {number}: {describe_trained_parameters(self.model)}, {len(self.questions)} questions, "
            f"{stage.epochs} epochs, {steps} steps"
            + (f", going on after step {progress.steps}" if progress.steps else "")
        )
        with tqdm(
            total=steps,
            initial=progress.steps,
            desc=f"stage {number}",
            unit="step",
            disable=not accelerator.is_main_process,
        ) as bar:
            while progress.epoch <= stage.epochs:
                batches.epoch, batches.first, data.epoch = progress.epoch, progress.batches, progress.epoch
                model.train()
                step_loss = torch.zeros((), device=accelerator.device)
                for micro_batch, batch in zip(batches.micro_batches(), loader, strict=True):
                    with nullcontext() if micro_batch.ends_step else accelerator.no_sync(model):
                        # Gradients are averaged over the processes; the step's loss is the mean over its samples.
                        loss = micro_batch.share * accelerator.num_processes * self._loss(model, batch)
                        accelerator.backward(loss)
                    step_loss += loss.detach()
                    progress.batches += 1
                    if not micro_batch.ends_step:
                        continue
                    accelerator.clip_grad_norm_(trained, recipe.max_grad_norm)
                    optimizer.step()
                    optimizer.zero_grad()
                    schedule.step()
                    progress.steps += 1
                    self._record(step_loss, schedule, bar, batches.step_size)
                    step_loss = torch.zeros_like(step_loss)
                    if self._told_to_stop():
                        self._save(model, optimizer)
                        self._stop_if_told()
                    if progress.steps % recipe.checkpoint_every == 0:
                        self._save(model, optimizer)
                self._save(model, optimizer)
                self._validate(model, bar)
                progress.epoch, progress.batches = progress.epoch + 1, 0
                ended = progress.epoch > stage.epochs
                if stage.patience and progress.epochs_since_best >= stage.patience and not ended:
                    bar.write(f"stage {number} ends: no better epoch among the last {progress.epochs_since_best}")
                    progress.epoch, ended = stage.epochs + 1, True
                progress.finished = ended and (number == 2 or not recipe.stage2.epochs)
                self._save(model, optimizer)
        accelerator.free_memory()

    def _loss(self, model, batch: Batch) -> torch.Tensor:
        batch.inputs.to(self.accelerator.device)
        if batch.labels is not None:
            loss = text_losses(model, batch.inputs, batch.labels).mean()
        else:
            logits = option_logits(model, batch.inputs, batch.answer_tokens)
            answers = torch.tensor([question.answer for question in batch.questions], device=logits.device)
            loss = answer_loss(logits, answers, self.recipe.label_smoothing)
        if any(question.scanpath is None for question in batch.questions):
            # Without gaze nothing that is trained takes part; backward, and other processes, expect that it does.
            loss = loss + 0 * sum(value.sum() for value in self.model.trained_parameters().values())
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {loss.item()} on {[question.key for question in batch.questions]}")
        return loss

    def _record(self, loss: torch.Tensor, schedule, bar, samples: int) -> None:
        progress, loss = self.progress, self.accelerator.gather(loss).mean().item()
        rate = schedule.get_last_lr()[0]
        line = {"stage": progress.stage, "epoch": progress.epoch, "step": progress.steps, "loss": loss, "lr": rate}
        self.log.append(line)
        if self.recipe.tracker:
            self.accelerator.log({"loss": loss, "lr": rate}, step=self.steps_before + progress.steps)
        bar.update()
        per_second = bar.format_dict["rate"] or bar.format_dict["n"] / max(bar.format_dict["elapsed"], 1e-9)
        best = "" if progress.best is None else f"{progress.best['macro'] or 0:.3f}"
        bar.set_postfix(loss=f"{loss:.3f}", best=best, samples_per_s=f"{per_second * samples:.1f}")

    def _validate(self, model, bar) -> None:
        recipe, progress = self.recipe, self.progress
        with_options, open_ended = by_kind(self.validation)
        score, predictions = {"macro": None}, []
        asked = {
            "condition": self.condition.name,
            "batch_size": recipe.evaluation_batch_size,
            "seed": recipe.seed,
            "num_workers": recipe.data.num_workers,
            "between_batches": self._stop_if_told,
        }
        if with_options:
            predictions = predict(self.accelerator, self.model, self.cache, with_options, **asked)
            score = {name: value for name, value in scored(predictions).items() if name in ("tasks", "macro")}
        if open_ended:
            score["text_loss"] = text_loss(self.accelerator, self.model, self.cache, open_ended, **asked)
        figures = {f"validation_{name}": score[name] for name in ("macro", "text_loss") if score.get(name) is not None}
        self.log.append({"stage": progress.stage, "epoch": progress.epoch, "step": progress.steps, **figures})
        if recipe.tracker:
            self.accelerator.log(figures, step=self.steps_before + progress.steps)
        said = [] if score["macro"] is None else [f"accuracy {100 * score['macro']:.1f} % (mean over tasks)"]
        said += [f"loss of open-ended answers {score['text_loss']:.3f}"] if open_ended else []
        bar.write(f"stage {progress.stage}, epoch {progress.epoch}: validation {', '.join(said)}")
        better = progress.best is None or _selection_score(score) >= _selection_score(
            progress.best
        )  # of equals the later has seen more
        progress.epochs_since_best = 0 if better else progress.epochs_since_best + 1
        if better:
            progress.best = {**score, "stage": progress.stage, "epoch": progress.epoch}
        weights = self._trained_weights(model)
        if self.accelerator.is_main_process:
            self._write_log(self.folder)
            draw_curves(self.folder / "curves.png", self.log)
            if better:
                with atomic_folder(self.folder / "best") as folder:
                    self.model.save_pretrained(folder, state_dict=weights)
                    self.processor.save_pretrained(folder)
                save_predictions(self.folder / "validation_predictions.jsonl", predictions)
                write_json(self.folder / "validation.json", progress.best)
        self.accelerator.wait_for_everyone()

    def _write_log(self, folder: Path) -> None:
        write_text(folder / "log.jsonl", "".join(json.dumps(line) + "\n" for line in self.log))

    # ---------------------------------------------------------------- stopping and going on
    @contextmanager
    def _stopping_on_signals(self):
        def stop(number, frame):
            self._signal = number

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop_if_told(self) -> None:
        """Between two batches of what changes nothing: all is saved."""
        if self._signal is None:
            return
        self.accelerator.print(f"\nstopped by signal {self._signal}, saved: the same command goes on from here")
        raise SystemExit(128 + self._signal)

    def _told_to_stop(self) -> bool:
        """Whether any process was: all stop after the same step."""
        if self.accelerator.num_processes == 1:
            return self._signal is not None
        told = torch.tensor(self._signal or 0, device=self.accelerator.device)
        self._signal = int(self.accelerator.gather(told).max()) or None
        return self._signal is not None

    def _checkpoint_to_go_on_with(self) -> Path | None:
        """The last checkpoint of the run that the output folder holds; ValueError if that run had other settings."""
        recipe = self.folder / "recipe.yaml"
        if not recipe.exists():
            return None
        changed = changed_settings(yaml.safe_load(recipe.read_text(encoding="utf-8")), self.settings)
        if changed:
            raise ValueError(
                f"{self.folder} holds a run with other settings; choose another output_dir, or --restart:\n  "
                + "\n  ".join(changed)
            )
        checkpoints = sorted((self.folder / "checkpoints").glob("stage*"))
        return checkpoints[-1] if checkpoints else None

    def _trained_weights(self, model) -> dict[str, torch.Tensor]:
        """What is trained, whole, on the main process; sharded parameters are gathered from all."""
        weights = get_model_state_dict(model, options=_WHOLE)
        names = self.model.trained_parameters() if self.accelerator.is_main_process else ()
        return {name: weights[name] for name in names}

    def _save(self, model, optimizer) -> None:
        """Write a checkpoint: what was trained, the optimizer's state, random states, and the progress."""
        progress, accelerator = self.progress, self.accelerator
        weights = self._trained_weights(model)
        moments = get_optimizer_state_dict(model, optimizer.optimizer, options=_WHOLE)
        random_states = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            random_states["cuda"] = torch.cuda.get_rng_state()
        random_states = gather_object([random_states])
        if accelerator.is_main_process:
            name = f"stage{progress.stage}-epoch{progress.epoch:04d}-step{progress.steps:08d}"
            with atomic_folder(self.folder / "checkpoints" / name) as folder:
                write_tensors(folder / "trained.safetensors", weights)
                named = {
                    f"{of}/{kind}": value for of, kinds in moments["state"].items() for kind, value in kinds.items()
                }
                write_tensors(folder / "optimizer.safetensors", named)
                states = {f"{kind}-{i}": value for i, each in enumerate(random_states) for kind, value in each.items()}
                write_tensors(folder / "random.safetensors", states)
                self._write_log(folder)
                write_json(folder / "progress.json", dataclasses.asdict(progress))
            for old in sorted((self.folder / "checkpoints").glob("stage*"))[: -self.recipe.keep_checkpoints]:
                shutil.rmtree(old)
        accelerator.wait_for_everyone()

    def _load(self, folder: Path, model, optimizer) -> None:
        options = StateDictOptions(full_state_dict=True, strict=False)
        weights = load_file(folder / "trained.safetensors")
        expected = set(self.model.trained_parameters())
        if set(weights) != expected:
            raise ValueError(
                f"{folder}/trained.safetensors does not fit this model: {sorted(set(weights) ^ expected)}"
            )
        set_model_state_dict(model, weights, options=options)
        current = get_optimizer_state_dict(model, optimizer.optimizer, options=options)
        state: dict[str, dict] = defaultdict(dict)
        for name, value in load_file(folder / "optimizer.safetensors").items():
            of, _, kind = name.rpartition("/")
            state[of][kind] = value
        current["state"] = dict(state)
        set_optimizer_state_dict(model, optimizer.optimizer, current, options=options)
        random_states, rank = load_file(folder / "random.safetensors"), self.accelerator.process_index
        if f"cpu-{rank}" in random_states:
            torch.set_rng_state(random_states[f"cpu-{rank}"])
        if f"cuda-{rank}" in random_states and torch.cuda.is_available():
            torch.cuda.set_rng_state(random_states[f"cuda-{rank}"])


_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)


def _selection_score(score: dict) -> float:
    """What the best epoch has most of: accuracy; where no question has options, the lowest loss."""
    return score["macro"] if score["macro"] is not None else -score["text_loss"]


def by_kind(questions: list[Question]) -> tuple[list[Question], list[Question]]:
    """Questions with options, and open-ended ones: they are asked apart."""
    with_options = [question for question in questions if question.answer_text is None]
    return with_options, [question for question in questions if question.answer_text is not None]


def answers_of_tasks(questions: list[Question]) -> dict[str, set]:
    """The different answers of each task: letters, or texts."""
    answers = defaultdict(set)
    for question in questions:
        answers[question.task].add(question.answer if question.answer_text is None else question.answer_text)
    return answers


def _simple(settings: dict) -> dict:
    """Settings as trackers take them."""
    plain = (int, float, str, bool)
    return {name: value if isinstance(value, plain) else str(value) for name, value in flat(settings).items()}
