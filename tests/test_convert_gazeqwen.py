"""The reference implementation's checkpoints: converted, loaded and equal to its golden numbers, or refused."""

import pytest
import torch
from safetensors.torch import load_file
from support import FIXTURES, video_inputs

from gazeqwen.convert import convert_gazeqwen, main
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration

CHECKPOINT = FIXTURES / "gazeqwen_tiny_original.pt"


def test_a_converted_checkpoint_gives_the_golden_residuals(reference_parts, tmp_path, capsys):
    base, encoder = reference_parts
    main(["gazeqwen", str(CHECKPOINT), str(tmp_path), "--base_model", base, "--video_encoder", encoder])
    assert "56 LoRA modules" in capsys.readouterr().out
    model = GazeQwenForConditionalGeneration.from_pretrained(tmp_path)
    assert model.config.gaze_encoding == "coord_pe" and model.config.injection_layers == [6, 13, 20, 27]
    golden = load_file(FIXTURES / "resampler_tiny_io.safetensors")
    spans = golden["frame_times"][:, None] + torch.tensor([-0.3, 0.3])
    with torch.no_grad():
        residuals = model.resampler(golden["features"], golden["scanpath"], spans, grid=(4, 6))
    for residual, layer in zip(residuals, (6, 13, 20, 27), strict=True):
        torch.testing.assert_close(residual, golden[f"residual.layer{layer}"], atol=1e-5, rtol=0)
    assert "resampler.latents" in load_file(tmp_path / "model.safetensors")


def test_lora_is_applied_as_the_reference_applies_it(reference_parts, tmp_path):
    base, encoder = reference_parts
    convert_gazeqwen(CHECKPOINT, tmp_path, base, encoder)
    model = GazeQwenForConditionalGeneration.from_pretrained(tmp_path)
    state = torch.load(CHECKPOINT, weights_only=True)["lora_state_dict"]
    layer = model.backbone.model.language_model.layers[13].self_attn
    x = torch.randn(1, 3, 64)
    for name in ("q_proj", "v_proj"):
        projection, prefix = getattr(layer, name), f"model.layers.13.self_attn.{name}.lora_"
        expected = projection.base_layer(x) + 2.0 * x @ state[prefix + "A"].T @ state[prefix + "B"].T  # alpha / rank
        torch.testing.assert_close(projection(x), expected, atol=1e-5, rtol=1e-5)
    inputs = video_inputs([(2, 2, 2)], [[[0.2, 0.3, 1.0, 1.0]]])
    with torch.no_grad():
        base_logits = model(**{name: value for name, value in inputs.items() if name != "scanpaths"}).logits
        assert (model(**inputs).logits - base_logits).abs().max() > 1e-3


def test_both_name_styles_convert_alike(reference_parts, tmp_path):
    content = torch.load(CHECKPOINT, weights_only=True)
    renamed = {
        name.replace("model.layers", "model.language_model.layers"): value
        for name, value in content["lora_state_dict"].items()
    }
    torch.save({**content, "lora_state_dict": renamed}, tmp_path / "renamed.pt")
    convert_gazeqwen(CHECKPOINT, tmp_path / "a", *reference_parts)
    convert_gazeqwen(tmp_path / "renamed.pt", tmp_path / "b", *reference_parts)
    a, b = (load_file(tmp_path / name / "lora" / "adapter_model.safetensors") for name in "ab")
    assert set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def change(content: dict, what: str) -> dict:
    state, lora = dict(content["state_dict"]), dict(content["lora_state_dict"])
    if what == "missing tensor":
        del state["q_projs.2.1.weight"]
    elif what == "unknown tensor":
        state["extra"] = torch.zeros(1)
    elif what == "misshapen tensor":
        state |= {f"latents.{layer}": torch.zeros(5, 16) for layer in range(4)}
    elif what == "missing LoRA":
        del lora["model.layers.3.self_attn.v_proj.lora_B"]
    elif what == "unknown LoRA":
        lora["model.layers.3.mlp.up_proj.lora_A"] = torch.zeros(8, 64)
    elif what == "too many LoRA layers":
        lora["model.layers.28.self_attn.q_proj.lora_A"] = torch.zeros(8, 64)
    elif what == "other width":
        return {**content, "config": {**content["config"], "d_llm": 3584}}
    elif what == "no config":
        return {"state_dict": state}
    return {**content, "state_dict": state, "lora_state_dict": lora}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing tensor", r"missing \['q_projs.2.1.weight'\]"),
        ("unknown tensor", r"unknown \['extra'\]"),
        ("misshapen tensor", r"misshapen: latents got \(4, 5, 16\), expected \(4, 4, 16\)"),
        ("missing LoRA", "missing: model.language_model.layers.3.self_attn.v_proj.lora_B.weight"),
        ("unknown LoRA", "unknown LoRA tensors.*up_proj"),
        ("too many LoRA layers", "unknown: model.language_model.layers.28.self_attn.q_proj.lora_A.weight"),
        ("other width", "base model's width is 64, the checkpoint was trained with 3584"),
        ("no config", "expected .*config"),
    ],
)
def test_what_does_not_fit_is_refused_and_listed(reference_parts, tmp_path, what, message):
    torch.save(change(torch.load(CHECKPOINT, weights_only=True), what), tmp_path / "changed.pt")
    with pytest.raises(ValueError, match=message):
        convert_gazeqwen(tmp_path / "changed.pt", tmp_path / "out", *reference_parts)
    assert not (tmp_path / "out").exists()
