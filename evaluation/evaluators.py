"""How a model is evaluated: an adapter or any other video-text model, and every setting that the numbers depend on."""

from dataclasses import dataclass

import torch
from accelerate import Accelerator

from gazeqwen.evaluation.baselines import Baseline, BaselineItem, is_gazeqwen
from gazeqwen.evaluation.prediction_file import DATA_DIGEST, Prediction, PredictionFile
from gazeqwen.evaluation.predictions import CONDITIONS, predict, run_predictions
from gazeqwen.evaluation.scoring import score
from gazeqwen.evaluation.settings import EvaluationSettings
from gazeqwen.evaluation.statistics import intervals, option_robustness
from gazeqwen.evaluation.streamed import predict_streamed
from gazeqwen.pipeline.batches import prompt_under
from gazeqwen.pipeline.clip_cache import ClipCache
from gazeqwen.pipeline.conditions import Condition, assign_scanpaths
from gazeqwen.pipeline.overlays import draw_gaze
from gazeqwen.questions.digest import digest_of_data
from gazeqwen.questions.question import Question, sources_of
from gazeqwen.utils.adapters import check_4bit, four_bit_arguments, is_in_4bit, load_model, load_processor
from gazeqwen.utils.hub import digest_of_adapter
from gazeqwen.video_gazeqwen import MAX_FRAMES, check_sampling, read_clip


class AdapterEvaluator:
    """Evaluate a GazeQwen adapter, with its processor and cache."""

    default_conditions = CONDITIONS

    def __init__(self, settings: EvaluationSettings, accelerator: Accelerator):
        self.settings, self.accelerator = settings, accelerator
        code = {"revision": settings.revision, "trust_remote_code": settings.trust_remote_code}
        placed = (accelerator.device, settings.dtype)
        self.model = load_model(settings.model, *placed, **code, load_in_4bit=settings.load_in_4bit)
        self.processor = load_processor(settings.model, **code)
        for name in ("snap_s", "prompt_style", "max_frames", "sampling", "keep_tokens", "keep_by"):
            if getattr(settings, name) is not None:
                setattr(self.processor, name, getattr(settings, name))
        if settings.num_frames is not None or settings.fps is not None:
            self.processor.num_frames, self.processor.fps = settings.num_frames, settings.fps
        if settings.video_encoder_window is not None:
            self.model.config.video_encoder_window = settings.video_encoder_window
        check_sampling(self.processor.sampling, self.processor.num_frames, self.processor.fps)
        if settings.stream and self.processor.sampling != "grid":
            raise ValueError(
                f"stream: the adapter's sampling is {self.processor.sampling!r}, expected 'grid': evaluate one that "
                "was trained on it, or give --sampling grid --fps"
            )
        self.cache = ClipCache.from_model(self.model, self.processor, settings.cache, settings.cache_dir)

    @staticmethod
    def check_condition(settings: EvaluationSettings, condition: Condition) -> None:
        """Raise ValueError for a condition that cannot be streamed; any other way accept all."""
        if settings.stream and (condition.text_only or condition.channels - {"model"}):
            raise ValueError("a stream shows the video as it is, and gives gaze to the model alone")

    def recorded_settings(self, questions: list[Question]) -> dict:
        """Return all that the numbers depend on."""
        processor = self.processor
        own = {
            "adapter": self.model.config.to_dict(),
            "lora": self.model.has_lora,
            "weights": digest_of_adapter(self.settings.model, self.settings.revision, self.model.has_lora),
            "video_encoder_size": processor.video_encoder_size,
            "snap_s": processor.snap_s,
        }
        if processor.keep_tokens is not None:
            own |= {"keep_tokens": processor.keep_tokens, "keep_by": processor.keep_by}
        if is_in_4bit(self.model):
            own |= {"base_model_in_4bit": True}
        if self.settings.stream:
            own |= {"streamed": True, "max_frames": None}
        return _recorded_settings(self.settings, questions, self.model.dtype, processor, processor) | own

    def prepare(self, conditions: list[Condition], questions: list[Question]) -> None:
        """Fill the cache, if some condition shows clips as they are; a stream keeps nothing."""
        if not self.settings.stream and not all(condition.draws or condition.text_only for condition in conditions):
            settings = self.settings
            self.cache.fill(self.accelerator, self.model, questions, settings.batch_size, settings.num_workers)

    def predict(
        self, questions: list[Question], condition: Condition, file: PredictionFile | None
    ) -> list[Prediction]:
        """Return the adapter's answers to the questions, in their order."""
        cache, settings = self.cache, self.settings
        if settings.stream:
            return predict_streamed(
                self.accelerator, self.model, self.processor, questions, condition, settings.seed, file
            )
        if condition.draws:  # clips that are shown in this evaluation alone are not kept
            encoded = cache.for_video_encoder and "model" in condition.channels
            cache = ClipCache(self.processor, for_video_encoder=encoded)
        return predict(
            self.accelerator,
            self.model,
            cache,
            questions,
            condition.name,
            settings.batch_size,
            settings.seed,
            settings.num_workers,
            file=file,
        )


@dataclass
class InputSettings:
    """Say how clips, gaze and questions are put to a model whose processor does not, unlike GazeQwenProcessor."""

    num_frames: int | None
    fps: float | None
    max_frames: int
    sampling: str
    snap_s: float
    prompt_style: str

    @classmethod
    def from_settings(cls, settings: EvaluationSettings) -> "InputSettings":
        """Return them from an evaluation's settings, with the defaults for models that are no adapter."""
        return cls(
            settings.num_frames,
            settings.fps,
            MAX_FRAMES if settings.max_frames is None else settings.max_frames,
            settings.sampling or "spread",
            settings.snap_s or 0.0,
            settings.prompt_style or "streamgaze",
        )


class BaselineEvaluator:
    """Evaluate any video-text model of transformers: it has no place for gaze but its pixels and its prompt."""

    default_conditions = ("none",)

    def __init__(self, settings: EvaluationSettings, accelerator: Accelerator):
        self.settings, self.accelerator = settings, accelerator
        device, placement = accelerator.device, {"device_map": {"": accelerator.device}}
        if settings.load_in_4bit:
            check_4bit(device)
            placement = four_bit_arguments(device)
        self.baseline = Baseline.from_pretrained(
            settings.model,
            settings.revision,
            settings.dtype,
            trust_remote_code=settings.trust_remote_code,
            **placement,
        )
        self.inputs = InputSettings.from_settings(settings)

    @staticmethod
    def check_condition(settings: EvaluationSettings, condition: Condition) -> None:
        """Raise ValueError for a condition that gives a scanpath to the model itself, and for streaming."""
        if settings.stream:
            raise ValueError(f"stream: {settings.model} is no GazeQwen adapter, and only those are streamed")
        if "model" in condition.channels:
            raise ValueError(
                f"{settings.model} is no GazeQwen adapter and takes no scanpath; choose among none, text, overlay, "
                "ring, cross, saliency, text_only"
            )

    def recorded_settings(self, questions: list[Question]) -> dict:
        """Return all that the numbers depend on."""
        model, processor = self.baseline.model, self.baseline.processor
        own = {
            "scoring": self.settings.scoring,
            "snap_s": self.inputs.snap_s,
            "position_convention": self.baseline.position_convention,
        }
        if self.settings.load_in_4bit:
            own |= {"base_model_in_4bit": True}
        return _recorded_settings(self.settings, questions, model.dtype, self.inputs, processor) | own

    def prepare(self, conditions: list[Condition], questions: list[Question]) -> None:
        """Do nothing: no results of these models are cached."""

    def predict(
        self, questions: list[Question], condition: Condition, file: PredictionFile | None
    ) -> list[Prediction]:
        """Return the model's answers to the questions, in their order."""
        settings = self.settings
        data = BaselineData(questions, condition, settings.seed, self.inputs)

        def answers(batch: BaselineBatch) -> list[dict]:
            if settings.scoring == "generate":
                return [{"response": text} for text in self.baseline.generate(batch.items, max_new_tokens=16)]
            rows = self.baseline.scores(batch.items).tolist()
            return [{"logits": row[: len(q.options)]} for q, row in zip(batch.questions, rows, strict=True)]

        return run_predictions(
            self.accelerator, data, answers, condition.name, settings.batch_size, settings.num_workers, file=file
        )


@dataclass
class BaselineBatch:
    """Hold the items of some questions, whose places in the dataset are `indices`."""

    indices: list[int]
    questions: list[Question]
    items: list[BaselineItem]


class BaselineData(torch.utils.data.Dataset):
    """Read questions as other models are asked: decoded clips, with gaze drawn on them or told in the prompt."""

    def __init__(self, questions: list[Question], condition: Condition, seed: int, inputs: InputSettings):
        self.questions, self.condition, self.inputs = questions, condition, inputs
        assigned = assign_scanpaths(condition, questions, seed, inputs.snap_s)
        self.scanpaths_of, self.scanpaths = [video for video, _ in assigned], [scanpath for _, scanpath in assigned]

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> tuple[int, Question, BaselineItem]:
        question, scanpath, condition, inputs = (
            self.questions[index],
            self.scanpaths[index],
            self.condition,
            self.inputs,
        )
        clip = None
        if not condition.text_only:
            frames = inputs.num_frames, inputs.fps, inputs.max_frames, inputs.sampling
            clip = read_clip(question.video, question.start_s, question.end_s, *frames)
            scanpath = question.seen(scanpath, clip.step_spans_s(), inputs.snap_s)  # steps as base models have them
            if condition.draws and scanpath is not None:
                clip = draw_gaze(clip, scanpath, condition.channels)
        prompt, answers = prompt_under(condition, question, scanpath, inputs.prompt_style)
        return index, question, BaselineItem(clip, prompt, answers)

    def collate(self, samples: list[tuple]) -> BaselineBatch:
        return BaselineBatch(*(list(column) for column in zip(*samples, strict=True)))


def _recorded_settings(settings: EvaluationSettings, questions: list[Question], dtype, inputs, processor) -> dict:
    """
    Return the settings that are recorded for both kinds of models. `inputs` has the sampling and the wording,
    `processor` the frame's size.
    """
    names = ("model", "revision", "data", "config", "split", "tasks", "without_gaze", "seed", "batch_size", "scorer")
    question = next((q for q in questions if q.answer_text is None), questions[0])
    return {name: getattr(settings, name) for name in names} | {
        "trust_remote_code": settings.trust_remote_code,
        "sources": sources_of(questions),
        DATA_DIGEST: digest_of_data(questions),
        "permute_options": settings.permute_options,
        "dtype": str(dtype),
        "num_frames": inputs.num_frames,
        "fps": inputs.fps,
        "max_frames": inputs.max_frames,
        "sampling": inputs.sampling,
        "frame_size": _frame_size(processor),
        "prompt_style": inputs.prompt_style,
        "prompt": question.prompt(inputs.prompt_style)[0],
    }


def _frame_size(processor) -> dict:
    """Return what bounds a frame's pixels: the settings of the video processor, and an adapter's own if it has one."""
    most = getattr(processor, "max_pixels_per_frame", None)
    own = {} if most is None else {"max_pixels_per_frame": most}
    return dict(processor.video_processor.to_dict()["size"]) | own


# ------------------------------------------------------------------ an evaluation
def evaluator_class(settings: EvaluationSettings) -> type[AdapterEvaluator] | type[BaselineEvaluator]:
    """Return what evaluates the model, by its config: no weights are loaded, and no code of its repository is run."""
    return AdapterEvaluator if is_gazeqwen(settings.model, settings.revision) else BaselineEvaluator


def check_conditions(
    kind: type[AdapterEvaluator] | type[BaselineEvaluator],
    settings: EvaluationSettings,
    names: list[str],
    questions: list[Question],
) -> list[Condition]:
    """
    Return the conditions of these names. Raises ValueError, naming condition and remedy, for one that the model or the
    questions do not allow: before a model is loaded, so that no answer is lost to the last condition.
    """
    conditions = [Condition.parse(name) for name in names]
    for condition in conditions:
        try:
            kind.check_condition(settings, condition)
            assign_scanpaths(condition, questions, settings.seed)
        except ValueError as error:
            others = " ".join(name for name in names if name != condition.name)
            remedy = f", or leave this condition out: --gaze {others}" if others else ""
            raise ValueError(f"condition {condition.name!r}: {error}{remedy}") from None
    return conditions


def evaluate_condition(
    evaluator: AdapterEvaluator | BaselineEvaluator,
    condition: Condition,
    questions: list[Question],
    file: PredictionFile | None = None,
) -> tuple[dict, list[Prediction]]:
    """
    Return the scores and the predictions of multiple-choice questions under one condition. With `permute_options` they
    are asked with several orders of the options; the scores are those of the order of the data, and `options_permuted`
    says how the others did.
    """
    settings, runs = evaluator.settings, []
    for places in range(settings.permute_options):
        permuted = [q.permuted(places) if places and q.permutable else q for q in questions]
        label = condition.name if places == 0 else f"{condition.name}, options moved by {places}"
        runs.append(evaluator.predict(permuted, condition, None if file is None else file.for_condition(label)))
    scores = score(runs[0], settings.scorer)
    scores["intervals"] = intervals(runs[0], settings.scorer, seed=settings.seed)
    if len(runs) > 1:
        scores["options_permuted"] = option_robustness(runs)
    return scores, runs[0]
