"""Training that begins with a trained adapter, `start_from`, in place of a new one."""

from dataclasses import replace

import pytest
import torch
from support import BACKBONE
from test_training_options import OI_E, losses, trainer_of
from torch.optim.optimizer import register_optimizer_step_pre_hook

from gazeqwen.model_card.card import render_model_card
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.training.planning import plan
from gazeqwen.training.setup import build_model, config_to_start_from
from gazeqwen.training.trainer import Trainer

STEPS = {"data": {"tasks": [OI_E]}, "batch_size": 2, "gradient_accumulation_steps": 1}
STAGE_1 = STEPS | {"stage1": {"epochs": 2}, "stage2": {"epochs": 0}}
STAGE_2 = STEPS | {"stage1": {"epochs": 0}, "stage2": {"epochs": 1}}


@pytest.fixture(scope="module")
def adapters(toy_data, tmp_path_factory):
    """The folders of an adapter after stage 1, and of that after stage 2, which goes on with it."""
    folder = tmp_path_factory.mktemp("adapters")
    first = trainer_of(toy_data, folder / "1", **STAGE_1)
    first.run()
    first.model.save_pretrained(folder / "stage 1")
    second = trainer_of(toy_data, folder / "2", **STAGE_2, start_from=str(folder / "stage 1"))
    second.run()
    second.model.save_pretrained(folder / "stage 2")
    return {1: folder / "stage 1", 2: folder / "stage 2"}


def trained(model) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.trained_parameters().items()}


@pytest.mark.parametrize("stage", [1, 2])
def test_it_begins_with_the_adapters_weights_and_moves_them(adapters, toy_data, tmp_path, stage):
    """Of stage 2, LoRA too: at a rate of 0 validation is the adapter's, and its first loss is not a new one's."""
    changes = STAGE_1 if stage == 1 else STAGE_2
    stored = trained(GazeQwenForConditionalGeneration.from_pretrained(adapters[stage]))
    assert any("lora_" in name for name in stored) == (stage == 2)
    still = {"learning_rate": 0.0, "lora_learning_rate": 0.0, "epochs": 1}
    changed = changes | {"start_from": str(adapters[stage]), f"stage{stage}": still}
    trainer = trainer_of(toy_data, tmp_path / "still", **changed)
    assert all(torch.equal(value, stored[name]) for name, value in trained(trainer.model).items())
    trainer.run()
    kept = trained(GazeQwenForConditionalGeneration.from_pretrained(tmp_path / "still" / "out" / "best"))
    assert kept.keys() == stored.keys() and all(torch.equal(value, stored[name]) for name, value in kept.items())

    moving = trainer_of(toy_data, tmp_path / "moving", **changes, start_from=str(adapters[stage]))
    moving.run()
    assert losses(moving)[0] == pytest.approx(losses(trainer)[0], abs=1e-5)
    moved = [name for name, value in trained(moving.model).items() if not torch.equal(value, stored[name])]
    assert len(moved) > len(stored) / 2
    card = str(render_model_card(moving.folder / "best"))
    assert "began with a trained adapter" in card and str(adapters[stage]) not in card
    new = trainer_of(toy_data, tmp_path / "new", **changes)
    new.run()
    assert abs(losses(new)[0] - losses(moving)[0]) > 1e-3
    assert "began with a trained adapter" not in str(render_model_card(new.folder / "best"))


def test_a_run_that_began_with_an_adapter_goes_on_where_it_was_stopped(adapters, toy_data, tmp_path):
    settings = STAGE_2 | {"start_from": str(adapters[2]), "checkpoint_every": 1}
    whole = trainer_of(toy_data, tmp_path / "whole", **settings)
    whole.run()
    stopped, steps = trainer_of(toy_data, tmp_path / "stopped", **settings), []

    def fall_over(*_):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt

    hook = register_optimizer_step_pre_hook(fall_over)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    hook.remove()
    again = Trainer(stopped.recipe)
    assert again.run() == whole.progress.best and losses(again) == losses(whole)
    for name, value in trained(whole.model).items():
        assert torch.equal(value, trained(again.model)[name]), name


def test_another_adapter_than_the_recipes_is_refused(adapters, toy_data, tmp_path):
    """By the dry run, too, before anything is loaded."""
    recipe = trainer_of(toy_data, tmp_path, **STAGE_2).recipe
    recipe = replace(recipe, start_from=str(adapters[2]))
    plan(recipe)
    adapter, model = recipe.adapter, recipe.model
    for in_4bit in (True, False):  # what is trained says how its base model was loaded
        changed = replace(recipe, model=replace(model, load_in_4bit=in_4bit))
        assert config_to_start_from(changed).load_in_4bit == in_4bit
    stage_1 = replace(recipe, stage1=replace(recipe.stage1, epochs=3))
    for changed, message in (
        (replace(recipe, adapter=replace(adapter, gaze_encoding="coord_pe")), "gaze_encoding: 'foveated' in the adap"),
        (
            replace(recipe, adapter=replace(adapter, injection_layers=[0])),
            "injection_layers: .* in the adapter, .0. in",
        ),
        (replace(recipe, adapter=replace(adapter, foveal_sigmas=[1.0])), "foveal_sigmas: .* in the adapter, .1.0. in"),
        (replace(recipe, model=replace(model, base_model=f"{BACKBONE}_qwen3_vl")), "base_model_name_or_path: "),
        (replace(recipe, start_from=str(tmp_path / "none")), "start_from: cannot read '.*none', expected a folder or"),
        (stage_1, "stage1.epochs: got 3, expected 0: .*stage 2 .* has LoRA"),
    ):
        for refuses in (plan, lambda recipe: build_model(recipe, torch.device("cpu"))):
            with pytest.raises(ValueError, match=message):
                refuses(changed)
    with pytest.raises(ValueError, match="lora_rank: got 4, expected 8 as in "):
        build_model(replace(recipe, lora_rank=4), torch.device("cpu"))
    with pytest.raises(ValueError, match="is in output_dir, expected another run's adapter"):
        replace(recipe, output_dir=str(adapters[2].parent))
