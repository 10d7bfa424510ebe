"""
Train GazeQwen.

    gazeqwen train recipes/demo.yaml stage1.epochs=2
    accelerate launch train.py recipes/demo.yaml            # the same, on each process that accelerate starts

Stage 1 trains the resamplers alone, stage 2 the resamplers and LoRA. The adapter with the best validation accuracy
(mean over tasks) is kept in `<output_dir>/best`, ready for `from_pretrained`, `eval.py`, `ask.py` and the Hub.

A run that was stopped, or killed, goes on when the same command is given again, and ends as if it had never stopped.
SIGTERM to it, or to `accelerate launch`, saves first.
"""

import argparse
import os
from pathlib import Path

from gazeqwen.utils.command_line import end_with_launcher, one_line_errors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help=f"a YAML file, or one of the package's: {recipe_names()}")
    parser.add_argument(
        "overrides", nargs="*", default=[], help="such as stage1.epochs=2 adapter.gaze_encoding=coord_pe"
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="print parameters, steps, cache and memory, load no weights"
    )
    parser.add_argument("--no_cache", action="store_true", help="compute frozen features on the fly (data.cache=none)")
    parser.add_argument(
        "--restart", action="store_true", help="remove what a run wrote into output_dir, and start anew"
    )
    arguments = parser.parse_intermixed_args()

    # Seconds, which --help and mistakes in the arguments need not wait for.
    from gazeqwen.training.planning import plan
    from gazeqwen.training.recipe import Recipe
    from gazeqwen.training.trainer import Trainer, describe_score
    from gazeqwen.utils.hub import open_repository
    from gazeqwen.utils.settings import read_recipe

    overrides = [*arguments.overrides, *(["data.cache=none"] if arguments.no_cache else [])]
    recipe = read_recipe(Recipe, find_recipe(arguments.recipe), overrides)
    if arguments.dry_run:
        print(plan(recipe, int(os.environ.get("WORLD_SIZE", 1))))
        return
    end_with_launcher()
    is_main_process = int(os.environ.get("RANK", 0)) == 0
    if recipe.push_to_hub and is_main_process:
        open_repository(recipe.push_to_hub)  # now, not after days of training: the token may be wrong
    trainer = Trainer(recipe, arguments.restart)
    best, folder = trainer.run(), trainer.folder / "best"
    if is_main_process:
        if recipe.push_to_hub:
            print(f"published: {publish_adapter(folder, recipe.push_to_hub)}")
        print(
            f"best: stage {best['stage']}, epoch {best['epoch']}, validation {describe_score(best)}, saved in {folder}"
        )


RECIPES = Path(__file__).parent / "recipes"


def recipe_names() -> str:
    """Return the names of the recipes that come with the package."""
    return ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))


def find_recipe(name: str) -> Path:
    """Return the path of a recipe: a file, or the name of one of the package. Raises FileNotFoundError."""
    for path in (Path(name), RECIPES / f"{name}.yaml"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{name}: no such file, and no recipe of the package, which are {recipe_names()}")


def publish_adapter(folder: Path, repository: str) -> str:
    """Upload an adapter with its card to a repository on the Hub. Return the address."""
    from gazeqwen.model_card.card import render_model_card
    from gazeqwen.utils.files import write_text
    from gazeqwen.utils.hub import publish

    card = folder / "README.md"
    if not card.exists():  # or one with results was written since
        write_text(card, str(render_model_card(folder, repository=repository)))
    return publish(folder, repository)


if __name__ == "__main__":
    with one_line_errors():
        main()
