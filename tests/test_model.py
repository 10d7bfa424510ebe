"""The model: identity where it must be, effect where it should be, and what is trained, saved, loaded, refused."""

import subprocess
import warnings
from pathlib import Path

import pytest
import torch
from forked import LIBRARIES_PYTHON
from safetensors.torch import load_file, save_file
from support import BACKBONE, VIDEO_ENCODER, perturb, tiny_config, tiny_model, video_inputs, with_positions
from transformers.modeling_layers import GradientCheckpointingLayer

from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration

LOOK = [[0.2, 0.3, 1.0, 1.0], [0.8, 0.6, 1.6, 0.5]]
GRIDS = [(2, 2, 2), (3, 2, 3), (2, 3, 2)]


def logits(model, inputs) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def without_gaze(inputs: dict) -> dict:
    gaze = ("scanpaths", "scanpath_mask", "has_scanpath", "video_encoder_pixel_values", "step_spans_s")
    return {name: value for name, value in inputs.items() if name not in gaze}


# ---------------------------------------------------------------- identity and effect
def test_a_new_adapter_leaves_every_bit_and_a_perturbed_one_does_not():
    model = tiny_model(perturbed=False)
    inputs = video_inputs(GRIDS[:1], [LOOK])
    base = model.backbone(**with_positions(model, without_gaze(inputs))).logits
    assert torch.equal(logits(model, inputs), base)
    assert not torch.allclose(logits(perturb(model), inputs), base, atol=1e-3)


@pytest.mark.parametrize("lora", [False, True])
def test_without_gaze_every_bit_is_the_base_models(lora):
    model = tiny_model(perturbed=False)
    inputs = video_inputs(GRIDS[:2], [LOOK, LOOK])
    base = logits(model, without_gaze(inputs))
    if lora:
        model.add_lora(rank=2)
    perturb(model)
    assert torch.equal(logits(model, without_gaze(inputs)), base)
    with model.gaze_disabled():
        assert torch.equal(logits(model, inputs), base)
    assert not torch.allclose(logits(model, inputs), base, atol=1e-3)
    model.detach_gaze()
    assert torch.equal(logits(model, inputs), base)
    assert torch.equal(model.backbone(**with_positions(model, without_gaze(inputs))).logits, base)
    model.attach_gaze()
    assert not torch.allclose(logits(model, inputs), base, atol=1e-3)


def test_lora_alone_has_an_effect():
    model = tiny_model(lora=True)
    inputs = video_inputs(GRIDS[:1], [LOOK])
    with_lora = logits(model, inputs)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.zeros_(parameter)
    assert not torch.allclose(logits(model, inputs), with_lora, atol=1e-3)


def test_leaving_the_context_restores_gaze():
    model, inputs = tiny_model(), video_inputs(GRIDS[:1], [LOOK])
    before = logits(model, inputs)
    with pytest.raises(RuntimeError, match="stop"), model.gaze_disabled():
        raise RuntimeError("stop")
    assert torch.equal(logits(model, inputs), before)


def test_an_empty_scanpath_is_not_the_absence_of_gaze():
    model = tiny_model()
    base = logits(model, video_inputs(GRIDS[:1], [None]))
    assert not torch.allclose(logits(model, video_inputs(GRIDS[:1], [[]])), base, atol=1e-3)


def test_no_state_outlives_a_call():
    model = tiny_model(lora=True)
    logits(model, video_inputs(GRIDS[:2], [LOOK, None]))
    with pytest.raises(ValueError, match="video tokens"):
        model(**{**video_inputs(GRIDS[:1], [LOOK]), "video_grid_thw": torch.tensor([[9, 4, 4]])})
    assert model._hooks.state.injection is None and model._hooks.state.lora_gate is None


def test_the_hooks_do_what_a_forward_written_out_does():
    """Layer by layer: hidden states of the video tokens plus amplitude * R, and nothing else."""
    model, inputs = tiny_model(injection_layers=[0, 2]), video_inputs(GRIDS[:1], [LOOK])
    steps, height, width = GRIDS[0]
    features = model.encode_video(inputs["video_encoder_pixel_values"], inputs["video_grid_thw"])[0]
    residual = model.resampler(features, inputs["scanpaths"][0], inputs["step_spans_s"][0], (height, width))
    residual = residual.reshape(2, steps * height * width, -1)
    decoder, seen = model.backbone.model.language_model, {}

    def record(_, args, kwargs):
        seen.update(kwargs)

    handle = decoder.register_forward_pre_hook(record, with_kwargs=True)
    expected = logits(model, inputs)
    handle.remove()
    hidden, positions = seen["inputs_embeds"], seen["position_ids"][-3:]
    rotary = decoder.rotary_emb(hidden, positions)
    is_video = inputs["input_ids"][0] == model.backbone.config.video_token_id
    for index, layer in enumerate(decoder.layers):
        hidden = layer(hidden, attention_mask=None, position_embeddings=rotary)
        if index in (0, 2):
            hidden = hidden.clone()
            hidden[0, is_video] += residual[index // 2]
    written_out = model.backbone.lm_head(decoder.norm(hidden))
    torch.testing.assert_close(written_out, expected, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- batches
@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("lora", [False, True])
def test_a_batch_equals_its_samples(padding_side, lora):
    """Different grids and lengths; one sample without gaze, one with an empty scanpath."""
    model, scanpaths = tiny_model(lora=lora), [LOOK, None, []]
    batch = video_inputs(GRIDS, scanpaths, padding_side=padding_side)
    together = logits(model, batch)
    for index, (grid, scanpath) in enumerate(zip(GRIDS, scanpaths, strict=True)):
        alone = logits(model, video_inputs([grid], [scanpath], seed=index, text_lengths=[4 + index]))[0]
        rows = batch["attention_mask"][index].bool()
        torch.testing.assert_close(together[index, rows], alone, atol=1e-5, rtol=1e-4)


def test_generation_takes_gaze_into_account_with_and_without_cache():
    model, inputs = tiny_model(lora=True), video_inputs(GRIDS[:2], [LOOK, LOOK])
    settings = {"max_new_tokens": 6, "do_sample": False}
    cached = model.generate(**inputs, **settings)
    assert torch.equal(cached, model.generate(**inputs, **settings, use_cache=False))
    assert not torch.equal(cached, model.generate(**without_gaze(inputs), **settings))
    by_hand = inputs["input_ids"]
    for grown_by in range(6):  # greedy decoding through forward
        grown = {
            **inputs,
            "input_ids": by_hand,
            "attention_mask": torch.nn.functional.pad(inputs["attention_mask"], (0, grown_by), value=1),
            "mm_token_type_ids": 2 * (by_hand == model.backbone.config.video_token_id).int(),
        }
        by_hand = torch.cat([by_hand, logits(model, grown)[:, -1:].argmax(-1)], dim=1)
    length = min(cached.shape[1], by_hand.shape[1])
    assert torch.equal(cached[:, :length], by_hand[:, :length])


def test_beams_and_several_sequences():
    model, inputs = tiny_model(), video_inputs(GRIDS[:2], [LOOK, None])
    settings = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 4, "do_sample": False}
    beams = model.generate(**inputs, **settings)
    assert beams.shape[0] == 4
    plain = model.generate(**without_gaze(inputs), **settings)
    assert torch.equal(beams[2:, : plain.shape[1]], plain[2:, : beams.shape[1]])  # the sample without gaze
    assert not torch.equal(beams[:2], plain[:2])


# ---------------------------------------------------------------- training
@pytest.mark.parametrize("lora", [False, True])
def test_only_what_is_trained_gets_gradients_and_all_of_it_does(lora):
    model = tiny_model(lora=lora, injection_layers=[0, 1, 2])
    model.train()
    model(**video_inputs(GRIDS[:2], [LOOK, LOOK])).logits[:, -1].square().sum().backward()
    trained = model.trained_parameters()
    assert all(name.startswith("resampler.") or "lora_" in name for name in trained)
    assert any("lora_" in name for name in trained) == lora
    for name, parameter in model.named_parameters():
        if name not in trained:
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_a_residual_after_the_last_layer_gets_no_gradient():
    model = tiny_model(injection_layers=[0, 3])
    model(**video_inputs(GRIDS[:1], [LOOK])).logits[:, -1].sum().backward()
    gradient = model.resampler.proj_out.weight.grad
    assert gradient[0].abs().max() > 0 and not gradient[1].any()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant):
    model, inputs = tiny_model(lora=True), video_inputs(GRIDS[:2], [LOOK, None])
    model.train()
    model.backbone.config.use_cache = False

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(**inputs, use_cache=False).logits[:, -1].square().sum().backward()
        return {name: value.grad.clone() for name, value in model.trained_parameters().items()}

    expected, recomputed = gradients(), []
    handle = model.backbone.model.language_model.layers[1].mlp.register_forward_pre_hook(
        lambda *_: recomputed.append(1)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the name that transformers 5.17 and later share
        if use_reentrant and "__call__" in vars(GradientCheckpointingLayer):  # transformers 5.17
            with pytest.raises(ValueError, match="use_reentrant is True, expected False, or a newer transformers"):
                model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            return
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    found = gradients()
    handle.remove()
    assert len(recomputed) == 2  # once forward, once in backward
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-5)
    assert max(gradient.abs().max() for gradient in expected.values()) > 0


# ---------------------------------------------------------------- saving and loading
CODE = [
    "adapter_files_gazeqwen.py",
    "backbones_gazeqwen.py",
    "configuration_gazeqwen.py",
    "injection_gazeqwen.py",
    "lora_gazeqwen.py",
    "modeling_gazeqwen.py",
    "modeling_vjepa2_1.py",
    "positions_gazeqwen.py",
    "processing_gazeqwen.py",
    "resampler_gazeqwen.py",
    "scanpath_gazeqwen.py",
    "token_selection_gazeqwen.py",
    "video_encoders_gazeqwen.py",
    "video_gazeqwen.py",
]
PROCESSOR = ["chat_template.jinja", "processor_config.json", "tokenizer.json", "tokenizer_config.json"]
ADAPTER = ["config.json", "generation_config.json", "model.safetensors"]
LORA = ["lora/adapter_config.json", "lora/adapter_model.safetensors"]


@pytest.fixture
def trained() -> GazeQwenForConditionalGeneration:
    torch.manual_seed(0)
    model = GazeQwenForConditionalGeneration.from_base(str(BACKBONE), str(VIDEO_ENCODER), latent_dim=16, num_latents=8)
    model.add_lora()
    return perturb(model)


def toy_inputs(processor, clip_of) -> dict:
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Which object?"}]}],
        add_generation_prompt=True,
    )
    return dict(processor(text=text, videos=[clip_of], scanpaths=[[[0.3, 0.4, 1.0, 1.5]]]))


@pytest.fixture
def clip(toy_world, toy_processor):
    return toy_processor.read_clip(sorted((toy_world / "videos" / "original_video").glob("*.mp4"))[0])


def test_the_saved_folder_holds_what_was_trained_and_no_base_weights(trained, toy_processor, tmp_path):
    trained.save_pretrained(tmp_path)
    toy_processor.save_pretrained(tmp_path)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert files == sorted(CODE + PROCESSOR + ADAPTER + LORA)
    own = load_file(tmp_path / "model.safetensors")
    assert all(name.startswith("resampler.") for name in own)
    assert sum(value.numel() for value in own.values()) == sum(p.numel() for p in trained.resampler.parameters())
    lora = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert len(lora) == 2 * 2 * 6 and all(".self_attn." in name for name in lora)  # A and B, q and v, 6 layers
    trained_bytes = 4 * sum(value.numel() for value in [*own.values(), *lora.values()])
    stored = sum((tmp_path / name).stat().st_size for name in ("model.safetensors", LORA[1]))
    assert trained_bytes < stored < trained_bytes + 20_000
    assert str(BACKBONE) in (tmp_path / "lora" / "adapter_config.json").read_text()


def test_saving_without_lora_leaves_no_lora_of_an_earlier_save(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    assert GazeQwenForConditionalGeneration.from_pretrained(tmp_path).has_lora
    stage1 = GazeQwenForConditionalGeneration.from_base(
        str(BACKBONE), str(VIDEO_ENCODER), latent_dim=16, num_latents=8
    )
    stage1.save_pretrained(tmp_path)
    assert not GazeQwenForConditionalGeneration.from_pretrained(tmp_path).has_lora


LOAD_AND_COMPARE = """
import sys
sys.modules["gazeqwen"] = None  # as on a machine where the package is not installed
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor
folder = sys.argv[1]
saved = load_file(folder + "/io.safetensors")
expected = saved.pop("logits")
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
assert type(processor).__name__ == "GazeQwenProcessor" and processor.num_frames == 8
for auto in (AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM):
    torch.manual_seed(123)
    model = auto.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__name__ == "GazeQwenForConditionalGeneration", type(model)
    with torch.no_grad():
        difference = (model(**saved).logits - expected).abs().max().item()
    assert difference <= 1e-5, difference
model.save_pretrained(folder + "/again")  # from remote code too
print("loaded")
"""


def test_a_fresh_process_without_the_package_loads_it(trained, toy_processor, clip, tmp_path):
    trained.save_pretrained(tmp_path)
    toy_processor.save_pretrained(tmp_path)
    inputs = toy_inputs(toy_processor, clip)
    save_file({**inputs, "logits": logits(trained, inputs)}, tmp_path / "io.safetensors")
    assert not torch.allclose(logits(trained, inputs), logits(trained, without_gaze(inputs)), atol=1e-3)
    result = subprocess.run(
        [LIBRARIES_PYTHON, "-c", LOAD_AND_COMPARE, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith("loaded")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(value, again[name]) for name, value in load_file(tmp_path / "model.safetensors").items())


@pytest.mark.parametrize("file", ["model.safetensors", "lora/adapter_model.safetensors"])
@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_keys_that_do_not_fit_are_refused_and_listed(trained, tmp_path, file, change):
    trained.save_pretrained(tmp_path)
    weights = load_file(tmp_path / file)
    name = sorted(weights)[0]
    value = weights.pop(name)
    if change == "unexpected":
        weights |= {name: value, "stray": value.clone()}
    save_file(weights, tmp_path / file)
    listed = "stray" if change == "unexpected" else name.removeprefix("base_model.model.")
    with pytest.raises(ValueError, match=f"{change}.*{listed}"):
        GazeQwenForConditionalGeneration.from_pretrained(tmp_path)


def test_dtype_and_attention_reach_the_base_model(trained, toy_processor, clip, tmp_path):
    trained.save_pretrained(tmp_path)
    model = GazeQwenForConditionalGeneration.from_pretrained(
        tmp_path, dtype=torch.bfloat16, attn_implementation="eager"
    )
    assert model.dtype == torch.bfloat16 and model.resampler.amplitude.dtype == torch.float32
    assert model.backbone.config._attn_implementation == "eager"
    inputs = toy_inputs(toy_processor, clip)
    both = torch.stack([logits(model, inputs).float().flatten(), logits(trained, inputs).flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.98


def test_every_loading_argument_reaches_the_base_model(trained, tmp_path, monkeypatch):
    """Revisions are stored and honoured; what is not the adapter's own goes to the base model."""
    trained.config.base_model_revision, trained.config.video_encoder_revision = "v1.2", "abc"
    trained.save_pretrained(tmp_path)
    backbone_class, seen = type(trained.backbone), {}
    original = backbone_class.from_pretrained.__func__

    def spy(cls, name, **kwargs):
        seen.update(kwargs)
        return original(cls, name, **{k: v for k, v in kwargs.items() if k != "quantization_config"})

    monkeypatch.setattr(backbone_class, "from_pretrained", classmethod(spy))
    model = GazeQwenForConditionalGeneration.from_pretrained(
        tmp_path, device_map="cpu", quantization_config={"load_in_4bit": True}, local_files_only=True
    )
    assert (seen["revision"], seen["device_map"], seen["local_files_only"]) == ("v1.2", "cpu", True)
    assert seen["quantization_config"] == {"load_in_4bit": True}
    assert model.config.video_encoder_revision == "abc" and model.has_lora
    with pytest.raises(TypeError, match="not_an_argument"):
        GazeQwenForConditionalGeneration.from_pretrained(tmp_path, not_an_argument=1)


@pytest.mark.parametrize(("depth", "layers"), [(28, [0, 7, 14, 21]), (36, [0, 9, 18, 27]), (80, [0, 20, 40, 60])])
def test_default_layers_of_every_released_size(depth, layers):
    config = tiny_config()
    config.backbone_config.text_config.num_hidden_layers = depth
    assert config.resolved_injection_layers() == layers and config.dead_injection_layers() == []


def test_another_family_is_refused_by_name():
    config = tiny_config()
    config.backbone_config.model_type = "llava"
    with pytest.raises(ValueError, match=r"got model_type 'llava', expected one of \['qwen2_5_vl', 'qwen2_vl'"):
        GazeQwenForConditionalGeneration(config)


def test_casting_the_whole_model_is_refused_with_advice():
    model = tiny_model().to(torch.bfloat16)
    with pytest.raises(ValueError, match="resampler's weights are torch.bfloat16, expected float32.*dtype="):
        model(**video_inputs(GRIDS[:1], [LOOK]))


def test_a_random_base_cannot_be_saved(tmp_path):
    with pytest.raises(ValueError, match="base_model_name_or_path is None"):
        tiny_model().save_pretrained(tmp_path)
    assert not list(Path(tmp_path).iterdir())


# ---------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"video_grid_thw": torch.tensor([[9, 4, 4]])}, "8 video tokens.*stands for 36"),
        ({"step_spans_s": None}, "need step_spans_s"),
        ({"video_encoder_pixel_values": None}, "need video_encoder_pixel_values or video_encoder_features"),
        ({"scanpaths": torch.full((1, 2, 4), float("nan"))}, "not finite"),
        ({"scanpaths": torch.rand(2, 2, 4)}, "scanpaths has 2 rows, expected one for each of the 1 videos"),
        ({"video_encoder_pixel_values": torch.rand(1, 6, 3, 32, 32)}, r"\(1, 6, 3, 32, 32\), expected \(videos, 4, 3"),
        ({"step_spans_s": torch.rand(1, 1, 2)}, r"step_spans_s is \(1, 1, 2\), expected \(1, 2, 2\)"),
        ({"step_spans_s": torch.tensor([[[1.0, 2.0], [0.0, 1.0]]])}, r"video 0, step 1 is \[0.0, 1.0\]"),
        ({"step_spans_s": torch.tensor([[[1.0, 0.0], [2.0, 3.0]]])}, r"video 0, step 0 is \[1.0, 0.0\]"),
        ({"scanpaths": torch.rand(1, 2, 3)}, r"scanpaths is \(1, 2, 3\), expected \(1, 'F', 4\)"),
        ({"scanpaths": torch.rand(1, 2, 4).bfloat16()}, "scanpaths is torch.bfloat16, expected float32"),
        ({"video_encoder_features": torch.rand(1, 2, 9, 24)}, r"\(1, 2, 9, 24\), expected \(1, 2, 4, 24\)"),
        ({"video_encoder_features": torch.rand(1, 2, 4, 32)}, r"\(1, 2, 4, 32\), expected \(1, 2, 4, 24\)"),
        ({"input_ids": None}, "need input_ids"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(change, message):
    inputs = {**video_inputs(GRIDS[:1], [LOOK]), **change}
    with pytest.raises(ValueError, match=message):
        tiny_model()(**inputs)
