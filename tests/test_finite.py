"""Weights, pixels and logits that are no numbers are refused by name, and spoil nothing beside them."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import BACKBONE, VIDEO_ENCODER, tiny_model, video_inputs
from test_malformed import film, refused  # noqa: F401, a fixture

from gazeqwen.inference.answering import ask
from gazeqwen.pipeline.answers import build_prompt
from gazeqwen.processing_gazeqwen import GazeQwenProcessor
from gazeqwen.toyworld.trained import ADAPTER_DIR
from gazeqwen.utils.adapters import load_model, load_processor
from gazeqwen.video_gazeqwen import read_clip

WEIGHTS = {  # {folder: (file, a part of the tensor's name)}
    "adapter": ("model.safetensors", "resampler."),
    "adapter with LoRA": ("lora/adapter_model.safetensors", "lora_A"),
    "backbone": ("model.safetensors", "visual.merger"),
    "video_encoder": ("model.safetensors", "norm"),
}


@pytest.mark.parametrize("place", WEIGHTS)
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, place):
    for source in (ADAPTER_DIR, BACKBONE, VIDEO_ENCODER):  # which the adapter names by ../
        shutil.copytree(source, tmp_path / source.name)
    name, part = WEIGHTS[place]
    file = tmp_path / place.split()[0] / name
    tensors = load_file(file)
    tensor = next(name for name in sorted(tensors) if part in name)
    tensors[tensor].view(-1)[-1] = torch.inf if place == "backbone" else torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    with refused(file.parent if "LoRA" in place else tmp_path / place, tensor.split(".")[-2], "not finite"):
        load_model(tmp_path / "adapter")


def test_lora_that_is_not_finite_spoils_no_answer_without_gaze():
    """Switched off by a factor of zero it would: zero times NaN."""
    scanpath = [[0.3, 0.4, 1.0, 1.0]]
    inputs, model = video_inputs([(2, 2, 2), (2, 2, 2)], [None, scanpath]), tiny_model(lora=True)
    with torch.no_grad():
        before, (_, gazed) = model(**inputs).logits[0], model(**inputs).logits
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.fill_(torch.nan)
        after = model(**inputs).logits
        with model.gaze_disabled():
            disabled = model(**inputs).logits[0]
    assert torch.equal(after[0], before) and torch.equal(disabled, before)
    assert torch.isfinite(gazed).all() and torch.isnan(after[1]).any()


PIXELS = {  # {id: (setting, value, what the error says)}
    "no deviation": ("image_std", [0.0, 0.0, 0.0], "image_std"),
    "one deviation of zero": ("image_std", [0.2, 0.0, 0.2], "image_std"),
    "negative deviation": ("image_std", [-0.2, 0.2, 0.2], "image_std"),
    "NaN deviation": ("image_std", [float("nan"), 0.2, 0.2], "image_std"),
    "deviation of texts": ("image_std", ["a", "b", "c"], "image_std"),
    "NaN mean": ("image_mean", [0.2, float("nan"), 0.2], "image_mean"),
    "NaN factor": ("rescale_factor", float("nan"), "rescale_factor"),
    "factor of zero": ("rescale_factor", 0.0, "rescale_factor"),
}


@pytest.mark.parametrize("part", ["image_processor", "video_processor"])
@pytest.mark.parametrize("case", PIXELS.values(), ids=PIXELS)
def test_pixels_that_would_not_be_numbers_are_refused(tmp_path, part, case):
    setting, value, message = case
    for load, source in ((load_processor, ADAPTER_DIR), (GazeQwenProcessor.from_base, BACKBONE)):
        folder = tmp_path / source.name
        shutil.copytree(source, folder)
        config = json.loads((folder / "processor_config.json").read_text())
        config[part][setting] = value
        (folder / "processor_config.json").write_text(json.dumps(config))
        with refused(folder, f"{part}: {message}"):
            load(folder)


@pytest.fixture
def model_of_nan():
    """As an overflow in half precision gives them, from weights that are numbers."""
    model = load_model(ADAPTER_DIR)
    model.get_output_embeddings().register_forward_hook(lambda module, args, output: output * torch.nan)
    return model


@pytest.mark.parametrize("options", [["cup", "knife"], []])
def test_an_answer_from_logits_that_are_not_finite_is_refused(model_of_nan, toy_processor, film, options):  # noqa: F811
    prompt, answers = build_prompt("Which object?", options, "reference")
    with refused("not finite"):
        ask(model_of_nan, toy_processor, read_clip(film, num_frames=2), None, prompt, answers, max_new_tokens=2)
