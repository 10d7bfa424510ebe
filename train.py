"""
Train GazeQwen.

    gazeqwen train recipes/demo.yaml stage1.epochs=2
    accelerate launch train.py recipes/demo.yaml            # the same, on each process that accelerate starts

Stage 1 trains the resamplers alone, stage 2 the resamplers and LoRA. The adapter with the best validation accuracy
(mean over tasks) is kept in `<output_dir>/best`, ready for `from_pretrained`, `eval.py`, `ask.py` and the Hub.

A run that was stopped, or killed, goes on when the same command is given again, and ends as if it had never stopped.
"""

import argparse
import os

from gazeqwen.utils.command_line import named_extra, one_line_errors

with named_extra():
    from gazeqwen.training.planning import plan
    from gazeqwen.training.recipe import Recipe
    from gazeqwen.training.trainer import Trainer
    from gazeqwen.utils.settings import read_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a YAML file, see recipes/")
    parser.add_argument("overrides", nargs="*", help="such as stage1.epochs=2 adapter.gaze_encoding=coord_pe")
    parser.add_argument(
        "--dry_run", action="store_true", help="print parameters, steps, cache and memory, load no weights"
    )
    parser.add_argument("--no_cache", action="store_true", help="compute frozen features on the fly (data.cache=none)")
    parser.add_argument("--restart", action="store_true", help="remove the run that output_dir holds, and start anew")
    arguments = parser.parse_intermixed_args()
    overrides = [*arguments.overrides, *(["data.cache=none"] if arguments.no_cache else [])]
    recipe = read_recipe(Recipe, arguments.recipe, overrides)
    if arguments.dry_run:
        print(plan(recipe, int(os.environ.get("WORLD_SIZE", 1))))
        return
    trainer = Trainer(recipe, arguments.restart)
    best = trainer.run()
    said = f"loss {best['text_loss']:.3f}" if best["macro"] is None else f"accuracy {100 * best['macro']:.1f} %"
    trainer.accelerator.print(
        f"best: stage {best['stage']}, epoch {best['epoch']}, validation {said}, saved in {trainer.folder / 'best'}"
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
