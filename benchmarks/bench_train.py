"""
Training as it is done here against the naive step, side by side in one run: samples per second over whole epochs.

    python benchmarks/bench_train.py --scale tiny [--epochs 3] [--output benchmarks/results/train_tiny_cpu.json]

Naive is what the published code does: each sample of each epoch is decoded and sent through the video encoder and the
vision tower again; batch 1 with accumulated gradients, eager attention, a loop over layers and steps in the resampler,
logits of the whole vocabulary at every position. (It also writes each clip to a file first; this does not.) Ours is
`train.py` with the embeddings cache, its filling included. Both train stage 1 of the same adapter on the same
questions of the toy world, with equally many samples per optimizer step, and the losses of their first step are
compared. At the scale of 7B this needs a GPU; it has not been run there.
"""

import argparse
import functools
import tempfile
import time
from pathlib import Path

import torch
import yaml
from bench_resampler import loop

from gazeqwen.pipeline.batches import MicroBatchSampler, QuestionDataset
from gazeqwen.pipeline.clip_cache import ClipCache
from gazeqwen.questions.release import build
from gazeqwen.toyworld.generate import generate
from gazeqwen.training.recipe import Recipe
from gazeqwen.training.trainer import Trainer, answer_loss, optimizer_groups
from gazeqwen.utils.command_line import one_line_errors
from gazeqwen.utils.files import write_json
from gazeqwen.utils.provenance import provenance
from gazeqwen.utils.settings import read_recipe

ROOT = Path(__file__).parent.parent


class OneStage(Trainer):
    """Training without what the naive loop does not do either: validation and checkpoints."""

    def _validate(self, bar) -> None:
        pass

    def _save(self, stage) -> None:
        pass


def recipe_for(folder: Path, epochs: int, step_size: int, **changes) -> Recipe:
    model = {"base_model": str(ROOT / "toyworld/backbone"), "video_encoder": str(ROOT / "toyworld/video_encoder")}
    values = {
        "output_dir": str(folder / "run"),
        "model": {**model, "dtype": "float32", "video_encoder_size": 64, "num_frames": 8},
        "adapter": {"latent_dim": 48},
        "data": {"dataset": str(folder / "data"), "cache": "embeddings", "cache_dir": str(folder / "cache")},
        "stage1": {"epochs": epochs},
        "batch_size": step_size,
        "gradient_accumulation_steps": 1,
        "tracker": None,
    }
    values["data"]["num_workers"] = 0
    for name, value in changes.items():
        values[name] = {**values[name], **value}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return read_recipe(Recipe, path)


class DenseResiduals:
    """Residuals of `bench_resampler.loop`, handed to the decoder's hooks as the model hands its factors."""

    def __init__(self, resampler, features, scanpaths, present, step_spans_s, grids):
        assert len(features) == 1 and present.all() and features.shape[2] == int(grids[0].prod())
        self.residuals = loop(resampler, features[0].float(), scanpaths[0], step_spans_s[0], grids[0].tolist())

    def layer(self, index: int) -> torch.Tensor:
        return self.residuals[index][None]  # (1, T, N, D)


def naive(trainer: Trainer, order: list[int], epochs: int, step_size: int) -> tuple[float, float]:
    """(seconds, loss of the first step) of the naive loop on the samples of `trainer`, in the given order."""
    model, data = trainer.model.train(), QuestionDataset(ClipCache(trainer.processor, "none"), trainer.questions)
    optimizer = torch.optim.AdamW(optimizer_groups(model, trainer.recipe.stage1, trainer.recipe.weight_decay))
    model.resampler.factors = functools.partial(DenseResiduals, model.resampler)
    first, began = 0.0, time.perf_counter()
    for epoch in range(epochs):
        for number, index in enumerate(order):
            batch = data.collate([data[index]])
            logits = model(**batch.inputs).logits[:, -1, batch.answer_tokens[0]]  # of the whole vocabulary, everywhere
            loss = answer_loss(logits.float(), torch.tensor([batch.questions[0].answer]))
            (loss / step_size).backward()
            if epoch == 0 and number < step_size:
                first += loss.item() / step_size
            if (number + 1) % step_size == 0 or number + 1 == len(order):
                torch.nn.utils.clip_grad_norm_(model.trained_parameters().values(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
    return time.perf_counter() - began, first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=["tiny"], default="tiny")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--videos", type=int, default=60)
    parser.add_argument("--step_size", type=int, default=32, help="samples per optimizer step, in both")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    with tempfile.TemporaryDirectory() as name:
        folder, epochs, step_size = Path(name), arguments.epochs, arguments.step_size
        generate(folder / "world", train=arguments.videos, val=2, test=2, seed=0)
        build(folder / "world", folder / "data")
        slow = OneStage(recipe_for(folder, epochs, step_size, model={"attn_implementation": "eager"}))
        fast = OneStage(recipe_for(folder, epochs, step_size))
        frames = [fast.cache.num_frames(question) for question in fast.questions]
        batches = MicroBatchSampler(fast.questions, frames, step_size, 1, fast.recipe.seed + 1)
        batches.epoch = 1
        order = [index for indices in batches for index in indices]
        samples = epochs * len(fast.questions)

        began = time.perf_counter()
        fast.run()
        fast_s = time.perf_counter() - began
        slow_s, first = naive(slow, order, epochs, step_size)
    ours = next(line["loss"] for line in fast.log if "loss" in line)
    result = {
        "samples": samples,
        "naive_samples_per_second": samples / slow_s,
        "samples_per_second": samples / fast_s,
        "ratio": slow_s / fast_s,
        "difference_of_the_first_loss": abs(first - ours),
    }
    print(f"{samples} samples: naive {samples / slow_s:.1f} per second, here {samples / fast_s:.1f}, the cache filled")
    print(f"ratio {slow_s / fast_s:.1f}; the loss of the first step differs by {abs(first - ours):.1e}")
    if arguments.output:
        write_json(arguments.output, {"settings": vars(arguments), "result": result, "provenance": provenance()})


if __name__ == "__main__":
    with one_line_errors():
        main()
