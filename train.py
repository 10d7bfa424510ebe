"""
Train GazeQwen.

    accelerate launch train.py recipes/demo.yaml [section.key=value ...]

Stage 1 trains the resamplers alone, stage 2 the resamplers and LoRA. The adapter with the best validation accuracy
(mean over tasks) is kept in `<output_dir>/best`, ready for `from_pretrained`, `eval.py`, `ask.py` and the Hub.
"""

import argparse

from gazeqwen.runs import clear_errors, read_recipe
from gazeqwen.training import Recipe, Trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a YAML file, see recipes/")
    parser.add_argument("overrides", nargs="*", help="such as stage1.epochs=2 adapter.gaze_encoding=coord_pe")
    arguments = parser.parse_args()
    trainer = Trainer(read_recipe(Recipe, arguments.recipe, arguments.overrides))
    best = trainer.run()
    trainer.accelerator.print(
        f"best: stage {best['stage']}, epoch {best['epoch']}, validation accuracy {100 * best['macro']:.1f} %, "
        f"saved in {trainer.folder / 'best'}"
    )


if __name__ == "__main__":
    with clear_errors():
        main()
