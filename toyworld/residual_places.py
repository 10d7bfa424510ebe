"""
Where residuals are when gaze is not exact: `python -m gazeqwen.toyworld.residual_places`.

Adapters of the kitchen are told each fixation with noise of 10 % of the frame. In every temporal step of the test
split that one fixation covers half of, and no other touches: how far the visual token to which most is added (but for
what is added to all of the step) is from where the wearer looked, in widths of a token. A heatmap is where the noise
put it; an adapter that sees features, its own or others in their place, can be elsewhere. Written to
`results/kitchen/residual-places.json`, with a picture of the first steps whose fixation is told one to two tokens
beside its place.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.stats import bootstrap
from tqdm import tqdm

from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.pipeline.batches import QuestionDataset
from gazeqwen.pipeline.clip_cache import ClipCache
from gazeqwen.pipeline.conditions import Condition
from gazeqwen.plots.style import FONT, GAZE_COLOR, PATH_COLOR, save_png
from gazeqwen.processing_gazeqwen import GazeQwenProcessor
from gazeqwen.questions.dataset import load_questions
from gazeqwen.questions.question import Question
from gazeqwen.resampler_gazeqwen import fixation_shares
from gazeqwen.toyworld.evidence import best_rate, run_folder
from gazeqwen.toyworld.studies import KITCHEN, ROOT
from gazeqwen.toyworld.video_encoder_controls import ReplacedFeatures, replacements
from gazeqwen.utils.command_line import one_line_errors
from gazeqwen.utils.files import write_json
from gazeqwen.utils.provenance import provenance
from gazeqwen.video_gazeqwen import read_frames

NOISE = "noise10"
# How a column is called, the row whose adapter adds, and the features that it is shown.
SHOWN = {
    "a heatmap": ("heatmap-vector-narrow-then-noise", "own"),
    "GazeQwen": ("dinov2-normalized-then-noise", "own"),
    "other features (another video's)": ("dinov2-normalized-then-noise", "other_video"),
    "no features (zeros)": ("dinov2-normalized-then-noise", "zeros"),
}
PICTURE = ROOT / "docs" / "images" / "residual_places.png"
EXAMPLES = 3


@dataclass(frozen=True)
class Step:
    """
    Hold a temporal step of a question's clip that one fixation explains: where the wearer looked, and what the model
    was told, (x, y) in visual tokens; the middle of the fixation, in seconds; how much is added to each token, (H, W).
    """

    question: Question
    looked: np.ndarray
    told: np.ndarray
    time_s: float
    added: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """Return (x, y) of the centre of the token to which most is added."""
        row, column = np.unravel_index(self.added.argmax(), self.added.shape)
        return np.array([column + 0.5, row + 0.5])


def distinct_clips(questions: list[Question]) -> list[Question]:
    """Return one question for each clip."""
    return list({(q.video_name, q.start_s, q.end_s): q for q in reversed(questions)}.values())[::-1]


def steps_of(model, cache, questions: list[Question]) -> Iterator[Step]:
    """Yield the steps of the questions' clips that one fixation covers half of, and no other touches."""
    looked, told = (QuestionDataset(cache, questions, Condition.parse(name)) for name in ("gaze", NOISE))
    for index, question in enumerate(tqdm(questions, unit="clip")):
        inputs = told.collate([told[index]]).inputs
        residuals = model.gaze_residuals(**inputs)[:, 0]  # (layers, T, N, D)
        added = (residuals - residuals.mean(2, keepdim=True)).norm(dim=-1).mean(0).numpy()
        _, height, width = model.token_grids(inputs["video_grid_thw"])[0].tolist()
        exact, noisy = looked[index][2].table, told[index][2].table
        spans = inputs["step_spans_s"][0]
        shares = fixation_shares(torch.as_tensor(exact, dtype=spans.dtype), spans).numpy()  # (T, F)
        for step, of_step in enumerate(shares):
            (touching,) = np.nonzero(of_step)
            if len(touching) == 1 and of_step[touching[0]] >= 0.5:
                places = (table[touching[0], :2] * (width, height) for table in (exact, noisy))
                yield Step(question, *places, float(exact[touching[0], 2]), added[step].reshape(height, width))


def measured(steps: list[Step]) -> dict:
    """
    Return what the steps say: their number, mean distances to where the wearer looked (of what was told, and of where
    most is added) in tokens, and the gain of the latter over the former, with its interval over videos.
    """
    told, found = (
        np.array([np.linalg.norm(getattr(step, name) - step.looked) for step in steps]) for name in ("told", "found")
    )
    videos = np.array([step.question.video_name for step in steps])
    gains = [(told - found)[videos == video] for video in sorted(set(videos))]
    sums, counts = np.array([gain.sum() for gain in gains]), np.array([len(gain) for gain in gains])

    def mean_gain(sums, counts, axis=-1):
        return sums.sum(axis) / counts.sum(axis)

    interval = bootstrap(
        (sums, counts), mean_gain, paired=True, method="percentile", n_resamples=2000, rng=np.random.default_rng(0)
    ).confidence_interval
    return {
        "steps": len(steps),
        "videos": len(gains),
        "told": round(float(told.mean()), 4),
        "found": round(float(found.mean()), 4),
        "nearer": round(float((found < told).mean()), 4),
        "gain": round(float(mean_gain(sums, counts)), 4),
        "interval": [round(float(value), 4) for value in interval],
    }


def draw(path: Path, columns: dict[str, list[Step]]) -> None:
    """Draw the first steps, each of another video, whose fixation is told one to two tokens beside its place."""
    first = next(iter(columns.values()))
    beside = [1 <= np.linalg.norm(step.told - step.looked) <= 2 for step in first]
    chosen = {step.question.video_name: index for index, step in reversed(list(enumerate(first))) if beside[index]}
    chosen = sorted(chosen.values())[:EXAMPLES]
    figure = Figure(figsize=(2.1 * (1 + len(columns)), 2.2 * len(chosen)), layout="constrained")
    for index, axes in zip(chosen, figure.subplots(len(chosen), 1 + len(columns), squeeze=False), strict=True):
        step = first[index]
        frame = read_frames(step.question.video, [step.time_s])[0][0]
        scale = np.array(frame.shape[1::-1]) / step.added.shape[::-1]  # pixels of a token
        maps = {"looked at (dot), and told (cross)": None}
        maps |= {name: steps[index].added for name, steps in columns.items()}
        for axis, (name, added) in zip(axes, maps.items(), strict=True):
            axis.imshow(frame)
            if added is not None:
                extent = (0, frame.shape[1], frame.shape[0], 0)
                axis.imshow(added, extent=extent, cmap="inferno", alpha=0.7, interpolation="nearest")
            axis.plot(*(step.looked * scale), "o", color=GAZE_COLOR, markersize=7, markeredgecolor="white")
            axis.plot(*(step.told * scale), "X", color=PATH_COLOR, markersize=7, markeredgecolor="black")
            axis.axis("off")
            if index == chosen[0]:
                axis.set_title(name, fontsize=8, **FONT)
    save_png(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=KITCHEN.work, help="where the study's runs are kept")
    parser.add_argument("--output", type=Path, default=KITCHEN.results / "residual-places.json")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    args = parser.parse_args()
    questions = distinct_clips(load_questions(args.work / "data", "test"))
    columns = {}
    for name, (row_name, features) in SHOWN.items():
        row = KITCHEN.row(row_name)
        adapter = run_folder(row, 0, args.work, best_rate(row, args.work)) / "best"
        model = GazeQwenForConditionalGeneration.from_pretrained(adapter).eval()
        cache = ClipCache.from_model(
            model, GazeQwenProcessor.from_pretrained(adapter), "embeddings", args.work / "cache"
        )
        if features != "own":
            cache = ReplacedFeatures(cache, replacements(cache, questions, 0)[features])
        columns[name] = list(steps_of(model, cache, questions))
    result = {name: measured(steps) for name, steps in columns.items()}
    settings = {"noise": NOISE, "seed": 0, "world": KITCHEN.world, "shown": SHOWN}
    write_json(args.output, {"columns": result, "settings": settings, "provenance": provenance()})
    draw(args.picture, columns)
    print(f"{args.output} and {args.picture} written")


if __name__ == "__main__":
    with one_line_errors():
        main()
