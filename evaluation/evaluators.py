"""What `eval.py` does: a model, its conditions, and every setting that the numbers depend on."""

import types
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from transformers import AutoModel, AutoProcessor

from gazeqwen.evaluation.baselines import Baseline, BaselineItem, is_gazeqwen
from gazeqwen.evaluation.predictions import CONDITIONS, Prediction, PredictionFile, predict, run_predictions
from gazeqwen.evaluation.scoring import score
from gazeqwen.evaluation.statistics import intervals, option_robustness
from gazeqwen.pipeline.batches import prompt_under
from gazeqwen.pipeline.clip_cache import ClipCache
from gazeqwen.pipeline.conditions import Condition, assign_scanpaths
from gazeqwen.pipeline.overlays import draw_gaze
from gazeqwen.questions.question import Question, sources_of
from gazeqwen.utils.hub import digest_of_adapter
from gazeqwen.video_gazeqwen import MAX_FRAMES, read_clip


class AdapterEvaluator:
    """A GazeQwen adapter, with its processor and cache."""

    default_conditions = CONDITIONS

    def __init__(self, args, accelerator: Accelerator):
        loading = {"trust_remote_code": True, "revision": args.revision or "main"}
        self.model = AutoModel.from_pretrained(args.model, dtype=args.dtype, **loading).to(accelerator.device).eval()
        self.processor = AutoProcessor.from_pretrained(args.model, **loading)
        for name in ("snap_s", "prompt_style", "max_frames"):
            if getattr(args, name) is not None:
                setattr(self.processor, name, getattr(args, name))
        if args.num_frames is not None or args.fps is not None:
            self.processor.num_frames, self.processor.fps = args.num_frames, args.fps
        self.cache = ClipCache.of(self.model, self.processor, args.cache, args.cache_dir)

    def settings(self, args, questions: list[Question]) -> dict:
        """All that the numbers depend on."""
        processor = self.processor
        own = {
            "adapter": self.model.config.to_dict(),
            "lora": self.model.has_lora,
            "weights": digest_of_adapter(args.model, args.revision, self.model.has_lora),
            "video_encoder_size": processor.video_encoder_size,
            "snap_s": processor.snap_s,
        }
        return _settings(args, questions, processor, self.model.dtype) | own

    def prepare(self, accelerator, conditions: list[Condition], questions: list[Question], args) -> None:
        if not all(condition.draws or condition.text_only for condition in conditions):
            self.cache.fill(accelerator, self.model, questions, args.batch_size, args.num_workers)

    def predict(self, accelerator, questions, condition: str, args, file) -> list[Prediction]:
        parsed, cache = Condition.parse(condition), self.cache
        if parsed.draws:  # clips that are shown in this evaluation alone are not kept
            encoded = cache.for_video_encoder and "model" in parsed.channels
            cache = ClipCache(self.processor, for_video_encoder=encoded)
        return predict(
            accelerator,
            self.model,
            cache,
            questions,
            condition,
            args.batch_size,
            args.seed,
            args.num_workers,
            file=file,
        )


class BaselineEvaluator:
    """Any video-text model of transformers: it has no place for gaze but its pixels and its prompt."""

    default_conditions = ("none",)

    def __init__(self, args, accelerator: Accelerator):
        self.baseline = Baseline.from_pretrained(
            args.model, args.revision, args.dtype, device_map={"": accelerator.device}
        )
        self.sampling = {"num_frames": args.num_frames, "fps": args.fps, "max_frames": args.max_frames or MAX_FRAMES}
        self.prompt_style, self.snap_s = args.prompt_style or "streamgaze", args.snap_s or 0.0

    def settings(self, args, questions: list[Question]) -> dict:
        sampling = types.SimpleNamespace(
            **self.sampling, prompt_style=self.prompt_style, video_processor=self.baseline.processor.video_processor
        )
        own = {"scoring": args.scoring, "snap_s": self.snap_s}
        return _settings(args, questions, sampling, self.baseline.model.dtype) | own

    def prepare(self, accelerator, conditions: list[Condition], questions: list[Question], args) -> None:
        given = [condition.name for condition in conditions if "model" in condition.channels]
        if given:
            raise ValueError(
                f"{args.model} is no GazeQwen adapter and takes no scanpath: {given}; choose among none, text, "
                "overlay, ring, saliency, text_only"
            )

    def predict(self, accelerator, questions, condition: str, args, file) -> list[Prediction]:
        parsed = Condition.parse(condition)
        data = BaselineData(questions, parsed, args.seed, self.snap_s, self.prompt_style, self.sampling)

        def answers(batch: BaselineBatch) -> list[dict]:
            if args.scoring == "generate":
                return [{"response": text} for text in self.baseline.generate(batch.items, max_new_tokens=16)]
            rows = self.baseline.scores(batch.items).tolist()
            return [{"logits": row[: len(q.options)]} for q, row in zip(batch.questions, rows, strict=True)]

        return run_predictions(accelerator, data, answers, condition, args.batch_size, args.num_workers, file=file)


@dataclass
class BaselineBatch:
    indices: list[int]
    questions: list[Question]
    items: list[BaselineItem]


class BaselineData(torch.utils.data.Dataset):
    """Questions as other models are asked: decoded clips, with gaze drawn on them or told in the prompt."""

    def __init__(self, questions, condition: Condition, seed: int, snap_s: float, prompt_style: str, sampling: dict):
        self.questions, self.condition, self.snap_s = questions, condition, snap_s
        self.prompt_style, self.sampling = prompt_style, sampling
        given = assign_scanpaths(condition, questions, seed)
        self.scanpaths_of, self.scanpaths = [of for of, _ in given], [scanpath for _, scanpath in given]

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, index: int) -> tuple[int, Question, BaselineItem]:
        question, scanpath, condition = self.questions[index], self.scanpaths[index], self.condition
        clip = None
        if not condition.text_only:
            clip = read_clip(question.video, question.start_s, question.end_s, **self.sampling)
            scanpath = question.seen(scanpath, clip.step_spans_s(), self.snap_s)  # steps as Qwen2.5-VL has them
            if condition.draws and scanpath is not None:
                clip = draw_gaze(clip, scanpath, condition.channels)
        prompt, answers = prompt_under(condition, question, scanpath, self.prompt_style)
        return index, question, BaselineItem(clip, prompt, answers)

    def collate(self, samples: list[tuple]) -> BaselineBatch:
        return BaselineBatch(*(list(column) for column in zip(*samples, strict=True)))


def load_evaluated(args, accelerator: Accelerator) -> AdapterEvaluator | BaselineEvaluator:
    """The model of `eval.py`'s arguments: an adapter, or a baseline."""
    if args.snap_s is not None and not args.snap_s >= 0:
        raise ValueError(f"--snap_s: got {args.snap_s}, expected 0 or more seconds")
    kind = AdapterEvaluator if is_gazeqwen(args.model, args.revision) else BaselineEvaluator
    return kind(args, accelerator)


def _settings(args, questions: list[Question], processor, dtype) -> dict:
    asked = ("model", "revision", "data", "config", "split", "tasks", "without_gaze", "seed", "batch_size", "scorer")
    question = next((q for q in questions if q.answer_text is None), questions[0])
    return {name: getattr(args, name) for name in asked} | {
        "sources": sources_of(questions),
        "permute_options": args.permute_options,
        "dtype": str(dtype),
        "num_frames": processor.num_frames,
        "fps": processor.fps,
        "max_frames": processor.max_frames,
        "frame_size": dict(processor.video_processor.to_dict()["size"]),
        "prompt_style": processor.prompt_style,
        "prompt": question.prompt(processor.prompt_style)[0],
    }


def evaluate(
    accelerator: Accelerator, evaluated, questions: list[Question], args, file: PredictionFile | None
) -> tuple[dict[str, dict], dict[str, list[Prediction]]]:
    """
    Scores and predictions by condition. Open-ended questions are left out, and counted. With `permute_options` each
    condition is asked with several orders of the options; its scores are those of the order of the data, and
    `options_permuted` says how the others did.
    """
    names = args.gaze
    conditions = [Condition.parse(name) for name in names]
    if len(set(names)) < len(names):
        raise ValueError(f"conditions {names}, expected each once")
    open_ended = [question for question in questions if question.answer_text is not None]
    questions = [question for question in questions if question.answer_text is None]
    if open_ended:
        accelerator.print(f"left out {len(open_ended)} open-ended questions: they are not scored")
    if not questions:
        raise ValueError("no question with options to evaluate")
    evaluated.prepare(accelerator, conditions, questions, args)
    scores, predictions = {}, {}
    for name in names:
        runs = []
        for by in range(args.permute_options):
            asked = [q if by == 0 or not q.permutable else q.permuted(by) for q in questions]
            label = name if by == 0 else f"{name}, options moved by {by}"
            runs.append(evaluated.predict(accelerator, asked, name, args, None if file is None else file.named(label)))
        predictions[name] = runs[0]
        scores[name] = {**score(runs[0], args.scorer), "intervals": intervals(runs[0], args.scorer, seed=args.seed)}
        if len(runs) > 1:
            scores[name]["options_permuted"] = option_robustness(runs)
    return scores, predictions
