"""
What the features that the resampler sees contribute to GazeQwen:
`python -m gazeqwen.toyworld.video_encoder_controls [--study kitchen] [--row dinov2-normalized] [--gaze noise10]`.

The trained adapters of a study's row (`runs/evidence/gazeqwen-0` and so on, which `make evidence` trains) answer the
test questions again, each with its own gaze, while the features of its clip are replaced: by those of another video,
by zeros, and by noise. They are the video encoder's, or where there is none the base model's own embeddings of the
video. The decoder sees the video as it is. Written to `video-encoder.json` beside the study's results, or of another
row than its default to `video-encoder-<row>.json`, under another condition than the own gaze `...-<condition>.json`.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from gazeqwen.evaluation.prediction_file import Prediction
from gazeqwen.evaluation.predictions import predict
from gazeqwen.evaluation.scoring import score
from gazeqwen.evaluation.statistics import intervals_over_seeds, paired_difference_over_seeds
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.pipeline.clip_cache import ClipCache
from gazeqwen.processing_gazeqwen import GazeQwenProcessor
from gazeqwen.questions.dataset import load_questions
from gazeqwen.questions.question import Question
from gazeqwen.toyworld.evidence import best_rate, pooled, run_folder
from gazeqwen.toyworld.studies import ROOT, STUDIES
from gazeqwen.utils.command_line import one_line_errors
from gazeqwen.utils.files import write_json
from gazeqwen.utils.provenance import provenance

# (question, its clip's features (T, N, D)) -> the features that the adapter is shown instead, of the same shape.
Replacement = Callable[[Question, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class ReplacedFeatures:
    """A clip cache whose clips hold other features for the resampler than their own."""

    cache: ClipCache
    replacement: Replacement

    @property
    def processor(self) -> GazeQwenProcessor:
        return self.cache.processor

    def read(self, question: Question, drawing=None) -> dict[str, torch.Tensor]:
        """Return the question's clip with its features replaced."""
        clip = self.cache.read(question, drawing)
        own = features_of(clip)
        features = self.replacement(question, own)
        if features.shape != own.shape:
            raise ValueError(
                f"{question.video_name}: features {tuple(own.shape)} cannot be replaced by {tuple(features.shape)}, "
                "expected the same shape"
            )
        return clip | {"video_encoder_features": features}


def features_of(clip: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return what the resampler sees of a cached clip, (T, N, D): the video encoder's features, or its embeddings."""
    if "video_encoder_features" in clip:
        return clip["video_encoder_features"]
    return clip["video_embeds"].unflatten(0, (len(clip["step_spans_s"]), -1))


def replacements(cache: ClipCache, questions: list[Question], seed: int) -> dict[str, Replacement]:
    """
    Return the replacements by name: `own` (none), `other_video` (of a question about another video, drawn once),
    `zeros`, and `noise` (normal, with each channel's mean and variance over the questions' clips).
    """
    draw = random.Random(seed)
    donors = {
        question.key: draw.choice([donor for donor in questions if donor.video_name != question.video_name])
        for question in questions
    }
    features = torch.cat([features_of(cache.read(question)).flatten(0, 1) for question in questions])
    mean, deviation = features.mean(0), features.std(0)
    generator = torch.Generator().manual_seed(seed)
    return {
        "own": lambda question, own: own,
        "other_video": lambda question, own: features_of(cache.read(donors[question.key])),
        "zeros": lambda question, own: torch.zeros_like(own),
        "noise": lambda question, own: mean + deviation * torch.randn(own.shape, generator=generator),
    }


def answer_with_replaced_features(
    best: Path, data: Path, cache_dir: Path, seed: int, gaze: str = "gaze"
) -> dict[str, list[Prediction]]:
    """Return the adapter's predictions on the test split, under the condition `gaze`, by replacement."""
    model = GazeQwenForConditionalGeneration.from_pretrained(best).eval()
    processor = GazeQwenProcessor.from_pretrained(best)
    accelerator, questions = Accelerator(), load_questions(data, "test")
    cache = ClipCache.from_model(model, processor, "embeddings", cache_dir)
    cache.fill(accelerator, model, questions, 64)
    return {
        name: predict(accelerator, model, ReplacedFeatures(cache, replacement), questions, gaze, 64, seed)
        for name, replacement in replacements(cache, questions, seed).items()
    }


def result_of(name: str, title: str, answers: dict[int, dict[str, list[Prediction]]], settings: dict) -> dict:
    """
    Return the result, called `name`, of all seeds' predictions, in the other results' form; `title`: of the adapters;
    `against_own`: gains in accuracy.
    """
    shown = list(next(iter(answers.values())))
    runs = {features: {seed: by_features[features] for seed, by_features in answers.items()} for features in shown}
    scores, against_own = {}, {}
    for features, by_seed in runs.items():
        scores[features] = score(pooled(by_seed)) | {"intervals": intervals_over_seeds(list(by_seed.values()))}
        if features != "own":
            gain = paired_difference_over_seeds(list(by_seed.values()), list(runs["own"].values()))
            against_own[features] = {"macro": gain["macro"], "interval": gain["intervals"]["macro"]}
    seeds = {
        str(seed): {
            features: {task: round(values["accuracy"], 4) for task, values in score(predictions)["tasks"].items()}
            for features, predictions in by_features.items()
        }
        for seed, by_features in answers.items()
    }
    return {
        "name": f"{title}, its features replaced",
        "row": name,
        "scorer": "strict",
        "scores": scores,
        "against_own": against_own,
        "seeds": seeds,
        "settings": settings | {"seeds": list(answers)},
        "provenance": provenance(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=list(STUDIES), default="shapes", help="of which world")
    parser.add_argument("--row", help="whose adapters (default: the study's default)")
    parser.add_argument("--gaze", default="gaze", help="the condition that is asked under (default: gaze)")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: all of the row's")
    parser.add_argument("--work", type=Path, help="where the study's runs are kept (default: the study's)")
    parser.add_argument("--output", type=Path, help="default: see above")
    args = parser.parse_args()
    study, answers = STUDIES[args.study], {}
    row, work = study.row(args.row or study.default), args.work or study.work
    rate = best_rate(row, work)
    for seed in args.seeds or row.seeds:
        best = run_folder(row, seed, work, rate) / "best"
        if not best.exists():
            raise FileNotFoundError(
                f"{best}: not there; train it: python -m gazeqwen.toyworld.evidence --study {args.study} --rows "
                f"{row.name}"
            )
        answers[seed] = answer_with_replaced_features(best, work / "data", work / "cache", seed, args.gaze)
    own = json.loads((run_folder(row, next(iter(answers)), work, rate) / "results.json").read_text())["settings"]
    settings = json.loads(json.dumps(own).replace(f"{ROOT}/", ""))
    name = "video-encoder" if row.name == study.default else f"video-encoder-{row.name}"
    name += "" if args.gaze == "gaze" else f"-{args.gaze}"
    output = args.output or study.results / f"{name}.json"
    write_json(output, result_of(name, row.title, answers, settings | {"world": study.world, "gaze": args.gaze}))
    print(f"written to {output}")


if __name__ == "__main__":
    with one_line_errors():
        main()
