"""Two-stage training (paper section 2.4): the resamplers alone, then with LoRA on the language model's q and v."""

import dataclasses
import shutil
import signal
import time
import warnings
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from accelerate.utils import set_seed
from tqdm.auto import tqdm
from transformers import get_cosine_schedule_with_warmup

from gazeqwen.evaluation.prediction_file import save_predictions
from gazeqwen.evaluation.predictions import predict, text_loss
from gazeqwen.evaluation.scoring import score as score_predictions
from gazeqwen.pipeline.answers import memory_errors_name, option_logits, text_losses
from gazeqwen.pipeline.batches import Augmentation, Batch, MicroBatchSampler, QuestionDataset
from gazeqwen.pipeline.clip_cache import ClipCache
from gazeqwen.pipeline.conditions import Condition
from gazeqwen.plots.curves import draw_curves
from gazeqwen.questions.digest import digest_of_data
from gazeqwen.questions.question import Question, sources_of
from gazeqwen.training.checkpoints import (
    RUN_FILES,
    Progress,
    check_data,
    check_removable,
    check_settings,
    last_checkpoint,
    load_checkpoint,
    read_progress,
    remove_run,
    save_adapter,
    save_checkpoint,
    write_log,
)
from gazeqwen.training.recipe import Recipe, StageSettings
from gazeqwen.training.setup import build_accelerator, build_model, build_processor, load_splits, place
from gazeqwen.utils.files import make_folder, remove_leftovers, write_json, write_text
from gazeqwen.utils.loading import repeatable_loader
from gazeqwen.utils.locks import lock
from gazeqwen.utils.provenance import describe_trained_parameters, provenance
from gazeqwen.utils.settings import flat

CURVES_EVERY_S = 30  # a picture takes longer than an epoch of a tiny model


def optimizer_groups(model, stage: StageSettings, weight_decay: float) -> list[dict]:
    """
    Return the trained parameters as groups of an optimizer: by learning rate, LoRA's or the resampler's, and weight
    decay, 0 for those that the model names (`no_weight_decay`).
    """
    groups: dict[tuple, list] = {}
    undecayed = model.no_weight_decay()
    for name, parameter in model.trained_parameters().items():
        rate = stage.lora_learning_rate if "lora_" in name else stage.learning_rate
        groups.setdefault((rate, 0.0 if name in undecayed else weight_decay), []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]


def answer_loss(logits: torch.Tensor, answers: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """
    Return the mean cross-entropy over the letters that each question offers: `logits` (B, options) with -inf for
    letters not offered, `answers` (B,) their indices. Smoothing spreads over the offered letters alone.
    """
    log_probabilities = F.log_softmax(logits, dim=-1)
    loss = -log_probabilities.gather(1, answers[:, None]).squeeze(1)
    if label_smoothing:
        offered = torch.isfinite(logits)
        mean = log_probabilities.masked_fill(~offered, 0).sum(-1) / offered.sum(-1)
        loss = (1 - label_smoothing) * loss - label_smoothing * mean
    return loss.mean()


@dataclass
class Stage:
    """Hold what one stage trains with. `model` is the model as Accelerate wraps it, `steps` all optimizer steps."""

    number: int
    epochs: int
    patience: int
    data: QuestionDataset
    batches: MicroBatchSampler
    loader: torch.utils.data.DataLoader
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    steps: int


class Trainer:
    """
    Train by a recipe: `Trainer(recipe).run()` keeps the best adapter in `<output_dir>/best`, and returns its score. If
    the folder holds a run with the same settings and data, it goes on where its last checkpoint was written, and ends
    as if it had never stopped; SIGTERM and SIGINT write one. A run with other settings or data is refused, naming
    them; `restart` removes it, and nothing else, once all has been checked. Nothing is uploaded: that is for the
    caller, such as `train.py`. Raises ValueError naming the setting and its value for what cannot be trained.
    """

    def __init__(self, recipe: Recipe, restart: bool = False):
        self.recipe = recipe
        self.accelerator = build_accelerator(recipe)
        set_seed(recipe.seed)
        self.folder, self.settings = Path(recipe.output_dir), dataclasses.asdict(recipe)
        self.restart = restart
        self.checkpoint: Path | None = None
        with self._lock():  # what can be refused is refused now, not after the models are loaded
            self._find_checkpoint()
        self.questions, self.validation = load_splits(recipe.data)
        self.data = {"train": digest_of_data(self.questions), "validation": digest_of_data(self.validation)}
        if not restart:
            check_data(self.folder, self.data)
        self.condition = Condition.parse(recipe.data.gaze)
        self.processor = build_processor(recipe.model)
        self.model = build_model(recipe, self.accelerator.device)
        self.cache = ClipCache.from_model(self.model, self.processor, recipe.data.cache, recipe.data.cache_dir)
        self.progress, self.log = Progress(), []
        self._signal: int | None = None
        self._drawn_at = time.monotonic()

    # ---------------------------------------------------------------- the run
    def run(self) -> dict:
        """Train both stages. Return the best validation score, with its stage and epoch."""
        with self._lock():
            return self._run()

    def _lock(self) -> AbstractContextManager:
        """Return what keeps the run's folder for this run; the main process holds it for all."""
        if not self.accelerator.is_main_process:
            return nullcontext()
        make_folder(self.folder.parent)
        return lock(self.folder)

    def _run(self) -> dict:
        if self.restart and self.accelerator.is_main_process:
            remove_run(self.folder)
        self.accelerator.wait_for_everyone()
        self.restart = False
        self._find_checkpoint()  # another run may have been here since
        check_data(self.folder, self.data)
        if self.checkpoint is None:
            self._write_settings()
        else:
            self.progress, self.log = read_progress(self.checkpoint)
        if self.progress.finished:
            self.accelerator.print(f"{self.folder}: this run is finished; choose another output_dir, or --restart")
            return self.progress.best
        self._fill_cache()
        if self.recipe.tracker:
            self.accelerator.init_trackers("tracker", config=_tracked(self.settings))
        with self._deferred_signals():
            for number, settings in ((1, self.recipe.stage1), (2, self.recipe.stage2)):
                if number >= self.progress.stage and settings.epochs:
                    self._train_stage(number, settings)
        if self.recipe.tracker:
            self.accelerator.end_training()
        return self.progress.best

    def _find_checkpoint(self) -> None:
        """
        Find the checkpoint to go on from, and remove what a kill or a power cut left half written. Raises ValueError
        where the folder holds a run that this one may not go on with, or may not remove.
        """
        if self.restart:
            check_removable(self.folder)
            return
        check_settings(self.folder, self.settings)
        if self.accelerator.is_main_process:
            for name in RUN_FILES:  # results of evaluations may be written into this folder meanwhile
                remove_leftovers(self.folder, name)
            remove_leftovers(self.folder / "checkpoints")
        self.accelerator.wait_for_everyone()
        self.checkpoint, damages = last_checkpoint(self.folder)
        self.accelerator.wait_for_everyone()
        for checkpoint, damage in damages.items():
            self.accelerator.print(f"{checkpoint}: not whole, passed over and removed ({damage})")
            if self.accelerator.is_main_process:
                shutil.rmtree(checkpoint)

    def _write_settings(self) -> None:
        """Write the recipe, and what code, packages and data it is run with, before anything is trained."""
        if self.accelerator.is_main_process:
            dataset_from_hub = not Path(self.recipe.data.dataset).exists()  # nobody could tell later
            origin = {"dataset_from_hub": dataset_from_hub, "sources": sources_of(self.questions), "data": self.data}
            write_json(self.folder / "provenance.json", provenance() | origin)
            # Last: where a recipe is, there is a run.
            write_text(self.folder / "recipe.yaml", yaml.safe_dump(self.settings, sort_keys=False))

    def _fill_cache(self) -> None:
        """Compute what the frozen models give for each clip, once for the whole run."""
        recipe = self.recipe
        datasets = [
            QuestionDataset(self.cache, questions, self.condition, recipe.seed)
            for questions in (self.questions, *by_kind(self.validation))
        ]
        self.cache.fill(
            self.accelerator,
            self.model,
            [question for data in datasets for question in data.questions],
            recipe.evaluation_batch_size,
            recipe.data.num_workers,
            [drawing for data in datasets for drawing in data.drawings],
        )

    # ---------------------------------------------------------------- a stage
    def _train_stage(self, number: int, settings: StageSettings) -> None:
        """Train one stage to its end, from its beginning or from where the checkpoint stands."""
        if number > self.progress.stage:
            self.progress = Progress(stage=number, best=self.progress.best)
        stage, progress = self._prepare_stage(number, settings), self.progress
        self.accelerator.print(
            f"stage {number}: {describe_trained_parameters(self.model)}, {len(self.questions)} questions, "
            f"{stage.epochs} epochs, {stage.steps} steps"
            + (f", going on after step {progress.steps}" if progress.steps else "")
        )
        with tqdm(
            total=stage.steps,
            initial=progress.steps,
            desc=f"stage {number}",
            unit="step",
            disable=not self.accelerator.is_main_process,
        ) as bar:
            while progress.epoch <= stage.epochs:
                self._train_epoch(stage, bar)
                self._save(stage)
                self._validate(bar)
                self._end_epoch(stage, bar)
                self._draw_curves()
                self._save(stage)
        self.accelerator.free_memory()

    def _prepare_stage(self, number: int, settings: StageSettings) -> Stage:
        """Return what a stage trains with, in the state of the checkpoint if the run goes on from one."""
        recipe, accelerator = self.recipe, self.accelerator
        self.steps_before = sum("loss" in line for line in self.log if line["stage"] < number)
        if number == 2 and not self.model.has_lora:  # else training began with an adapter that has it
            self.model.add_lora(recipe.lora_rank, recipe.lora_alpha)
            place(self.model, recipe, accelerator.device)
        noise = Augmentation(
            recipe.data.scanpath_noise,
            recipe.data.fixation_dropout,
            recipe.seed + number,
            tuple(recipe.data.keep_tokens or ()),
        )
        data = QuestionDataset(self.cache, self.questions, self.condition, recipe.seed, noise)
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
        optimizer = torch.optim.AdamW(optimizer_groups(self.model, settings, recipe.weight_decay))
        model, optimizer = accelerator.prepare(self.model, optimizer)
        steps = settings.epochs * batches.steps_per_epoch()
        # Stepped by hand once per optimizer step, so that the schedule does not depend on the number of processes.
        # Linear warm-up, then cosine (paper section 3.1).
        schedule = get_cosine_schedule_with_warmup(optimizer, min(recipe.warmup_steps, steps - 1), steps)
        if self.checkpoint:
            load_checkpoint(self.checkpoint, accelerator, self.model, optimizer)
            self.checkpoint = None
            with warnings.catch_warnings():  # that the schedule is ahead of the optimizer, which is the point
                warnings.simplefilter("ignore")
                for _ in range(self.progress.steps):
                    schedule.step()
        return Stage(
            number, settings.epochs, settings.patience, data, batches, loader, model, optimizer, schedule, steps
        )

    def _train_epoch(self, stage: Stage, bar: tqdm) -> None:
        """Train the rest of the epoch that `progress` is in. Checkpoints are written between optimizer steps."""
        recipe, accelerator, progress, batches = self.recipe, self.accelerator, self.progress, stage.batches
        batches.epoch, batches.first, stage.data.epoch = progress.epoch, progress.batches, progress.epoch
        trained = list(self.model.trained_parameters().values())
        stage.model.train()
        step_loss = torch.zeros((), device=accelerator.device)
        for micro_batch, batch in zip(batches.micro_batches(), stage.loader, strict=True):
            together = nullcontext() if micro_batch.ends_step else accelerator.no_sync(stage.model)
            with together, memory_errors_name(batch.questions):
                # Gradients are averaged over the processes; the step's loss is the mean over its samples.
                loss = micro_batch.share * accelerator.num_processes * self._loss(stage.model, batch)
                accelerator.backward(loss)
            step_loss += loss.detach()
            progress.batches += 1
            if not micro_batch.ends_step:
                continue
            accelerator.clip_grad_norm_(trained, recipe.max_grad_norm)
            stage.optimizer.step()
            stage.optimizer.zero_grad()
            stage.schedule.step()
            progress.steps += 1
            self._record(step_loss, stage.schedule, bar, batches.step_size)
            step_loss = torch.zeros_like(step_loss)
            stop = self._stop_requested()
            if stop or progress.steps % recipe.checkpoint_every == 0:
                self._save(stage)
            if stop:
                self._stop()

    def _end_epoch(self, stage: Stage, bar: tqdm) -> None:
        """Go to the next epoch, or to the stage's end: after its last, or `patience` epochs without a better score."""
        progress = self.progress
        progress.epoch, progress.batches = progress.epoch + 1, 0
        if stage.patience and progress.epochs_since_best >= stage.patience and progress.epoch <= stage.epochs:
            bar.write(f"stage {stage.number} ends: no better epoch among the last {progress.epochs_since_best}")
            progress.epoch = stage.epochs + 1
        is_last_stage = stage.number == 2 or not self.recipe.stage2.epochs
        progress.finished = is_last_stage and progress.epoch > stage.epochs

    def _loss(self, model, batch: Batch) -> torch.Tensor:
        """Return a batch's mean loss. Raises FloatingPointError, with the questions' keys, if it is not finite."""
        batch.inputs.to(self.accelerator.device)
        if batch.labels is not None:
            loss = text_losses(model, batch.inputs, batch.labels).mean()
        else:
            logits = option_logits(model, batch.inputs, batch.answer_tokens)
            answers = torch.tensor([question.answer for question in batch.questions], device=logits.device)
            loss = answer_loss(logits, answers, self.recipe.label_smoothing)
        if any(question.scanpath is None for question in batch.questions):
            # Where no sample has gaze, no trained parameter takes part; backward and other processes expect that all
            # do.
            loss = loss + 0 * sum(value.sum() for value in self.model.trained_parameters().values())
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {loss.item()} on {[question.key for question in batch.questions]}")
        return loss

    def _record(self, loss: torch.Tensor, schedule, bar: tqdm, samples: int) -> None:
        """Log an optimizer step over `samples` samples. `loss` (scalar) is this process's share of the step's."""
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

    # ---------------------------------------------------------------- validation
    def _validate(self, bar: tqdm) -> None:
        """Ask the validation questions, log the scores, and keep the adapter if none before was better."""
        progress = self.progress
        score, predictions = self._validation_score()
        scores = {}
        for name in ("macro", "text_loss"):
            if score.get(name) is not None:
                scores[f"validation_{name}"] = score[name]
        self.log.append({"stage": progress.stage, "epoch": progress.epoch, "step": progress.steps, **scores})
        if self.recipe.tracker:
            self.accelerator.log(scores, step=self.steps_before + progress.steps)
        bar.write(f"stage {progress.stage}, epoch {progress.epoch}: validation {describe_score(score)}")
        # Of epochs with equal scores the later one has trained for longer.
        is_best = progress.best is None or _selection_score(score) >= _selection_score(progress.best)
        progress.epochs_since_best = 0 if is_best else progress.epochs_since_best + 1
        if is_best:
            progress.best = {**score, "stage": progress.stage, "epoch": progress.epoch}
        if self.accelerator.is_main_process:
            write_log(self.folder, self.log)
            if is_best:
                save_adapter(self.folder / "best", self.model, self.processor)
                save_predictions(self.folder / "validation_predictions.jsonl", predictions)
                write_json(self.folder / "validation.json", progress.best)
        self.accelerator.wait_for_everyone()

    def _draw_curves(self) -> None:
        """Draw losses and validation: when the run ends, and before if the last picture is `CURVES_EVERY_S` old."""
        is_old = time.monotonic() - self._drawn_at > CURVES_EVERY_S
        if self.accelerator.is_main_process and (self.progress.finished or is_old):
            draw_curves(self.folder / "curves.png", self.log)
            self._drawn_at = time.monotonic()

    def _validation_score(self) -> tuple[dict, list]:
        """
        Return the score and the predictions of the questions with options. The score's `macro`: mean accuracy over
        tasks, None where no question has options; `text_loss`: mean loss of open-ended answers, where there are any.
        """
        recipe = self.recipe
        with_options, open_ended = by_kind(self.validation)
        score, predictions = {"macro": None}, []
        options = {
            "condition": self.condition.name,
            "batch_size": recipe.evaluation_batch_size,
            "seed": recipe.seed,
            "num_workers": recipe.data.num_workers,
            "between_batches": self._stop_between_batches,
        }
        if with_options:
            predictions = predict(self.accelerator, self.model, self.cache, with_options, **options)
            scores = score_predictions(predictions)
            score = {name: value for name, value in scores.items() if name in ("tasks", "macro")}
        if open_ended:
            score["text_loss"] = text_loss(self.accelerator, self.model, self.cache, open_ended, **options)
        return score, predictions

    # ---------------------------------------------------------------- stopping and going on
    @contextmanager
    def _deferred_signals(self):
        """
        Note SIGTERM and SIGINT while the block runs. They take effect between batches: an exception raised in a
        handler may surface inside torch as another one.
        """

        def note(number, frame):
            self._signal = number

        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop_requested(self) -> bool:
        """Return whether any process got a signal, so that all stop after the same step. All processes call this."""
        if self.accelerator.num_processes == 1:
            return self._signal is not None
        number = torch.tensor(self._signal or 0, device=self.accelerator.device)
        self._signal = int(self.accelerator.gather(number).max()) or None
        return self._signal is not None

    def _stop_between_batches(self) -> None:
        """End the process if it got a signal: during validation, when all that is trained is saved."""
        if self._signal is not None:
            self._stop()

    def _stop(self) -> None:
        """End the process as a shell expects after a signal: with status 128 plus its number."""
        self.accelerator.print(f"\nstopped by signal {self._signal}, saved: the same command goes on from here")
        raise SystemExit(128 + self._signal)

    def _save(self, stage: Stage) -> None:
        """Write a checkpoint. All processes call this."""
        save_checkpoint(
            self.folder,
            self.accelerator,
            self.model,
            stage.optimizer,
            self.progress,
            self.log,
            self.recipe.keep_checkpoints,
        )


def describe_score(score: dict) -> str:
    """Return a validation score in words."""
    words = []
    if score["macro"] is not None:
        words.append(f"accuracy {100 * score['macro']:.1f} % (mean over tasks)")
    if "text_loss" in score:
        words.append(f"loss of open-ended answers {score['text_loss']:.3f}")
    return ", ".join(words)


def _selection_score(score: dict) -> float:
    """Return what is highest for the best epoch: accuracy, or minus the loss where no question has options."""
    return score["macro"] if score["macro"] is not None else -score["text_loss"]


def by_kind(questions: list[Question]) -> tuple[list[Question], list[Question]]:
    """Return the questions with options, and the open-ended ones: the two are asked separately."""
    with_options = [question for question in questions if question.answer_text is None]
    return with_options, [question for question in questions if question.answer_text is not None]


def _tracked(settings: dict) -> dict:
    """Return settings as trackers take them: flat, numbers and booleans as they are, everything else as text."""
    plain = (int, float, str, bool)
    return {name: value if isinstance(value, plain) else str(value) for name, value in flat(settings).items()}
