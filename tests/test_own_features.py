"""A resampler that sees the base model's own embeddings of the video, and so needs no second network."""

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from bases import make_clip, scanpath_of
from support import perturb, tiny_model
from test_training import recipe_text

from gazeqwen.backbones_gazeqwen import FAMILIES
from gazeqwen.evaluation.predictions import predict
from gazeqwen.inference.answering import ask
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.pipeline.answers import build_prompt
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.toyworld.video_encoder_controls import ReplacedFeatures, replacements
from gazeqwen.training.planning import plan
from gazeqwen.training.recipe import Recipe
from gazeqwen.training.trainer import Trainer
from gazeqwen.utils.settings import read_recipe

NO_ENCODER = "model.video_encoder=''"
SIZES = {"latent_dim": 16, "num_latents": 4, "injection_layers": [0, 2], "resampler_features": "base_model"}


@pytest.fixture(scope="module")
def own_model(bases):
    """Return a function from a family to an adapter that sees its embeddings, with that family's `Base`."""
    models = {}

    def get(family: str):
        if family not in models:
            torch.manual_seed(0)
            models[family] = perturb(GazeQwenForConditionalGeneration.from_base(bases(family).folder, **SIZES))
        return models[family], bases(family)

    return get


def batch(base, clips) -> dict:
    inputs = dict(base.inputs(clips, [scanpath_of(clip) for clip in clips]))
    del inputs["video_encoder_pixel_values"]
    return inputs


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_the_resampler_sees_what_the_vision_tower_gives(own_model, family):
    """The tower runs once a forward; its embeddings, given in place of pixels, or as features, are the same."""
    model, base = own_model(family)
    assert model.video_encoder is None
    inputs, runs = batch(base, [make_clip()]), []
    handle = model.backbone.model.visual.register_forward_hook(lambda *_: runs.append(1))
    logits = model(**inputs).logits
    handle.remove()
    assert len(runs) == 1
    pixels, grid = inputs["pixel_values_videos"], inputs["video_grid_thw"]
    embeds = model.embed_video(pixels, grid)
    without = {name: value for name, value in inputs.items() if name != "pixel_values_videos"}
    torch.testing.assert_close(model(**without, video_embeds=embeds).logits, logits, atol=1e-5, rtol=1e-4)
    steps = int(grid[0, 0])
    features = embeds[:, : base.model.config.get_text_config().hidden_size].unflatten(0, (1, steps, -1))
    torch.testing.assert_close(model(**inputs, video_encoder_features=features).logits, logits, atol=1e-5, rtol=1e-4)
    other = model(**inputs, video_encoder_features=features.roll(1, dims=2)).logits
    assert (other - logits).abs().max() > 1e-3  # the resampler looks at them
    no_gaze = model(**{name: inputs[name] for name in inputs if name not in ("scanpaths", "scanpath_mask")}).logits
    assert (no_gaze - logits).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_clips_of_other_lengths_in_one_batch(own_model, family):
    model, base = own_model(family)
    clips = [make_clip(6), make_clip(4, seed=1)]
    logits = model(**batch(base, clips), logits_to_keep=1).logits
    for index, clip in enumerate(clips):
        alone = model(**batch(base, [clip]), logits_to_keep=1).logits
        torch.testing.assert_close(logits[index], alone[0], atol=1e-4, rtol=1e-3)


def test_what_is_generated_and_shown_follows_gaze(own_model):
    model, base = own_model("qwen2_5_vl")
    inputs = batch(base, [make_clip()])
    generated = model.generate(**inputs, max_new_tokens=4, output_logits=True, return_dict_in_generate=True)
    with torch.no_grad():
        torch.testing.assert_close(generated.logits[0], model(**inputs).logits[:, -1], atol=1e-4, rtol=1e-3)
    residuals = model.gaze_residuals(**inputs)
    embeds = {"video_embeds": model.embed_video(inputs["pixel_values_videos"], inputs["video_grid_thw"])}
    gaze = {name: value for name, value in inputs.items() if name != "pixel_values_videos"}
    torch.testing.assert_close(model.gaze_residuals(**gaze, **embeds), residuals)
    assert model.latent_attention(**inputs).shape[:3] == (2, 1, 3) and residuals.abs().max() > 0
    clip = make_clip()
    scanpath = Scanpath.from_array(scanpath_of(clip))
    prompt, options = build_prompt("Which object?", ["box", "knife"], "reference")
    for answers in (options, {}):  # options are compared, else the answer is generated
        told = ask(model, base.processor, clip, scanpath, prompt, answers, explain=True, max_new_tokens=2)
        assert set(told.answers) == {"with gaze", "without gaze"} and told.residuals.shape == (3, 2, 2)


def test_a_scanpath_without_its_video_is_refused(own_model):
    model, base = own_model("qwen2_5_vl")
    inputs = batch(base, [make_clip()])
    del inputs["pixel_values_videos"]
    with pytest.raises(ValueError, match="video_embeds or pixel_values_videos: resampler_features is 'base_model'"):
        model(**inputs)
    with pytest.raises(ValueError, match="no video encoder: .*resampler_features 'base_model'"):
        model.encode_video(torch.zeros(1, 6, 3, 64, 64), inputs["video_grid_thw"])


def test_settings_that_name_a_video_encoder_are_refused(toy_data, tmp_path):
    with pytest.raises(ValueError, match="video_encoder_window: got 2, expected None"):
        tiny_model(resampler_features="base_model", video_encoder_window=2)
    with pytest.raises(ValueError, match="resampler_features: got 'vision'"):
        tiny_model(resampler_features="vision")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(recipe_text(toy_data, tmp_path / "run"))
    with pytest.raises(ValueError, match="model.video_encoder: got .*expected it empty"):
        read_recipe(Recipe, recipe, ["adapter.resampler_features=base_model"])
    assert not read_recipe(Recipe, recipe, ["adapter.resampler_type=heatmap_vector", NO_ENCODER]).model.video_encoder
    with pytest.raises(ValueError, match="model.video_encoder is empty"):
        read_recipe(Recipe, recipe, [NO_ENCODER])


@pytest.mark.parametrize(
    "changes",
    [
        ["adapter.resampler_features=base_model", "adapter.normalize_features=true", NO_ENCODER],
        ["adapter.resampler_type=heatmap_vector"],
    ],
    ids=["own embeddings", "heatmap"],
)
def test_it_is_planned_trained_saved_loaded_and_evaluated(toy_data, tmp_path, changes):
    """Without a video encoder: the heatmap sees no features, whether its recipe names an encoder or not."""
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text(toy_data, tmp_path / "run"))
    recipe = read_recipe(Recipe, path, [*changes, "data.tasks=[present_object_identification_easy]"])
    planned, trainer = plan(recipe), Trainer(recipe)
    assert planned.parameters["video encoder"] == 0 and planned.memory["stage 1"].peak > 0
    trainer.run()
    assert planned.parameters["resampler"] == sum(p.numel() for p in trainer.model.resampler.parameters())
    config = json.loads((trainer.folder / "best" / "config.json").read_text())
    assert config.get("resampler_features", "video_encoder") == recipe.adapter.resampler_features
    assert config.get("normalize_features", False) == recipe.adapter.normalize_features
    assert bool(config.get("video_encoder_name_or_path")) == bool(recipe.model.video_encoder)
    again = GazeQwenForConditionalGeneration.from_pretrained(trainer.folder / "best")
    assert again.video_encoder is None and again.config.sources().keys() == {"base_model_name_or_path"}

    def logits(cache, condition: str) -> list:
        return [p.logits for p in predict(Accelerator(), again, cache, trainer.validation, condition)]

    answers = {name: logits(trainer.cache, name) for name in ("gaze", "zero")}
    saved = [json.loads(line) for line in (trainer.folder / "validation_predictions.jsonl").read_text().splitlines()]
    assert [row["logits"] for row in saved] == [pytest.approx(logits, abs=1e-4) for logits in answers["gaze"]]
    assert answers["gaze"] != answers["zero"]
    assert not any("video_encoder_features" in trainer.cache.read(question) for question in trainer.questions[:2])
    by_name = replacements(trainer.cache, [*trainer.questions, *trainer.validation], seed=0)
    replaced = {name: logits(ReplacedFeatures(trainer.cache, by_name[name]), "gaze") for name in ("own", "zeros")}
    assert replaced["own"] == [pytest.approx(each, abs=1e-5) for each in answers["gaze"]]
    changed = max(abs(np.subtract(*pair)).max() for pair in zip(replaced["zeros"], answers["gaze"], strict=True))
    assert (changed > 1e-4) == (recipe.adapter.resampler_type == "attention")  # a heatmap sees none
