"""The V-JEPA 2.1 encoder: parity with the official one, transformers behaviour, and its converter."""

import math
import os
import subprocess
from pathlib import Path

import pytest
import torch
from forked import LIBRARIES_PYTHON
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from gazeqwen.convert import VJEPA21_PRESETS, convert_vjepa2_1, main, vjepa2_1_config
from gazeqwen.modeling_vjepa2_1 import VJEPA21Config, VJEPA21Model, rotary_table, rotate

FIXTURES = Path(__file__).parent / "fixtures"
CHECKPOINT = FIXTURES / "vjepa2_1_tiny_official.pt"
IO = load_file(FIXTURES / "vjepa2_1_tiny_io.safetensors")
CASES = ("video_square", "video_wide", "image")


def pixels(case: str) -> torch.Tensor:
    return IO[f"input.{case}"].transpose(1, 2)  # (B, C, F, H, W) -> (B, F, C, H, W)


def encode(model: VJEPA21Model, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(x).last_hidden_state


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("vjepa2_1")
    convert_vjepa2_1(CHECKPOINT, out, num_attention_heads=2, image_size=64)
    return out


@pytest.fixture
def official(converted) -> VJEPA21Model:
    return VJEPA21Model.from_pretrained(converted)


def small_model(head_size: int = 16) -> VJEPA21Model:
    """Two layers, heads with an unrotated rest, every parameter away from its initial value."""
    torch.manual_seed(0)
    config = VJEPA21Config(
        hidden_size=2 * head_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        patch_size=4,
        image_size=16,
    )
    model = VJEPA21Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


SMALL = small_model()


# Parity with the official encoder


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("case", CASES)
def test_parity_with_the_official_encoder(converted, case, attention):
    model = VJEPA21Model.from_pretrained(converted, attn_implementation=attention)
    torch.testing.assert_close(encode(model, pixels(case)), IO[f"output.{case}"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("video_square", lambda model: model.video_mod_embed.mul_(0.9)),
        ("image", lambda model: model.img_mod_embed.mul_(0.9)),
        ("video_square", lambda model: model.norms_block[-1].bias.add_(0.01)),
        ("video_wide", lambda model: setattr(model.config, "pretrain_grid_size", 4)),
        ("image", lambda model: setattr(model.config, "pretrain_grid_size", 4)),
    ],
)
def test_parity_needs_every_part(official, case, change):
    """Positive control: the parity test sees the modality embeddings, the output norm and the position rescaling."""
    with torch.no_grad():
        change(official)
    assert (encode(official, pixels(case)) - IO[f"output.{case}"]).abs().max() > 1e-3


def test_only_the_last_output_norm_counts(official):
    with torch.no_grad():
        official.norms_block[0].weight.zero_()
    torch.testing.assert_close(encode(official, pixels("image")), IO["output.image"], atol=1e-5, rtol=0)


def test_token_order_is_time_height_width():
    """A change in one patch of one tubelet moves that token's embedding and no other."""
    x = torch.randn(1, 4, 3, 8, 12)
    changed = x.clone()
    changed[:, 2:, :, 4:, 8:] += 1
    with torch.no_grad():
        moved = (
            SMALL(x, output_hidden_states=True).hidden_states[0]
            != SMALL(changed, output_hidden_states=True).hidden_states[0]
        )
    assert SMALL.token_grid(4, 8, 12) == (2, 2, 3)
    assert moved.any(-1).nonzero().tolist() == [[0, 1 * 6 + 1 * 3 + 2]]


@settings(max_examples=30, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    head_size=st.integers(3, 36).map(lambda n: 2 * n),
    pretrain=st.integers(1, 18),
)
def test_rotation_equals_the_definition(grid, head_size, pretrain):
    """The table and `rotate` against complex multiplication in plain Python, one token and pair at a time."""
    generator = torch.Generator().manual_seed(head_size)
    x = torch.randn(math.prod(grid), head_size, generator=generator)
    got = rotate(x, *rotary_table(grid, head_size, pretrain)).tolist()
    pairs = head_size // 3 // 2
    t, h, w = grid
    for token in range(t * h * w):
        row, column = token // w % h, token % w
        axes = (
            token // (h * w),
            row * (pretrain - 1) / (h - 1) if h > 1 else 0,
            column * (pretrain - 1) / (w - 1) if w > 1 else 0,
        )
        for pair in range(head_size // 2):
            axis, index = divmod(pair, pairs)
            angle = axes[axis] * 10000 ** (-index / pairs) if axis < 3 else 0.0
            want = complex(*x[token, 2 * pair : 2 * pair + 2].tolist()) * complex(math.cos(angle), math.sin(angle))
            assert abs(complex(*got[token][2 * pair : 2 * pair + 2]) - want) < 1e-4


# Behaves like a transformers model


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    frames=st.sampled_from([1, 2, 4, 6]),
    height=st.integers(1, 4),
    width=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_batch_equals_single(batch, frames, height, width, seed):
    x = torch.randn(batch, frames, 3, 4 * height, 4 * width, generator=torch.Generator().manual_seed(seed))
    together = encode(SMALL, x)
    t, h, w = SMALL.token_grid(frames, 4 * height, 4 * width)
    assert (t, h, w) == (max(frames // 2, 1), height, width)
    assert together.shape == (batch, t * h * w, 32) and together.isfinite().all()
    torch.testing.assert_close(together, torch.cat([encode(SMALL, row[None]) for row in x]), atol=1e-5, rtol=0)


def test_an_image_is_not_a_still_video():
    x = torch.randn(1, 1, 3, 16, 16)
    assert (encode(SMALL, x) - encode(SMALL, x.repeat(1, 2, 1, 1, 1))).abs().max() > 1e-3


def test_save_and_load_give_equal_outputs(tmp_path):
    x = torch.randn(2, 4, 3, 8, 12)
    before = encode(SMALL, x)
    SMALL.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "model.safetensors", "modeling_vjepa2_1.py"}

    torch.manual_seed(1)  # so that weights that were never loaded could not match by chance
    loaded, info = VJEPA21Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(encode(loaded, x), before)
    torch.manual_seed(1)
    assert (encode(VJEPA21Model(SMALL.config).eval(), x) - before).abs().max() > 1e-3


def test_weights_absent_from_a_file_are_initialised(tmp_path):
    """Loading runs on the meta device: what `_init_weights` forgets is uninitialised memory."""
    SMALL.save_pretrained(tmp_path)
    save_file({"norms_block.0.bias": torch.ones(32)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    for name, parameter in VJEPA21Model.from_pretrained(tmp_path).named_parameters():
        if name == "norms_block.0.bias":
            assert (parameter == 1).all()
        elif name.endswith("_mod_embed"):
            assert 0 < parameter.abs().max() < 1e-5, name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        else:
            assert 0.01 < parameter.std() < 0.03, name


def test_automodel_loads_the_folder_in_a_fresh_process(converted, tmp_path):
    """The folder is self-contained: remote code alone, with the package out of reach."""
    code = f"""
import sys, torch
sys.modules["gazeqwen"] = None
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel
assert AutoConfig.from_pretrained({str(converted)!r}, trust_remote_code=True).model_type == "vjepa2_1"
model = AutoModel.from_pretrained({str(converted)!r}, trust_remote_code=True)
assert type(model).__module__.startswith("transformers_modules."), type(model)
io = load_file({str(FIXTURES / "vjepa2_1_tiny_io.safetensors")!r})
with torch.no_grad():
    output = model(io["input.video_wide"].transpose(1, 2)).last_hidden_state
print((output - io["output.video_wide"]).abs().max().item())
model.save_pretrained({str(tmp_path / "again")!r})
"""
    result = subprocess.run([LIBRARIES_PYTHON, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 1e-5
    assert (tmp_path / "again" / "modeling_vjepa2_1.py").exists()


def test_bfloat16(converted):
    model = VJEPA21Model.from_pretrained(converted, dtype=torch.bfloat16)
    output = encode(model, pixels("video_square"))
    assert output.dtype == torch.bfloat16
    assert (output.float() - IO["output.video_square"]).abs().mean() < 0.05


def test_autocast_to_bfloat16(official):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = encode(official, pixels("video_square"))
    assert (output.float() - IO["output.video_square"]).abs().mean() < 0.05


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_gives_the_same_gradients(official, case, reentrant):
    def gradients():
        official.zero_grad()
        official(pixels(case)).last_hidden_state.pow(2).sum().backward()
        return {name: p.grad.clone() for name, p in official.named_parameters() if p.grad is not None}

    official.train()
    plain = gradients()
    calls = []
    # The newer name where there is one: the older goes with transformers 6.
    name = "activation_checkpointing_enable"
    getattr(official, name if hasattr(official, name) else "gradient_checkpointing_enable")(
        {"use_reentrant": reentrant}
    )
    official.blocks[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    checkpointed = gradients()
    assert len(calls) == 2  # control: the block ran again in backward
    torch.testing.assert_close(checkpointed, plain, atol=1e-5, rtol=1e-5)

    unused = {"patch_embed", "video_mod_embed"} if case == "image" else {"patch_embed_img", "img_mod_embed"}
    unused |= {"norms_block.0", "norms_block.1", "norms_block.2"}
    used = {n for n, _ in official.named_parameters() if not any(n.startswith(f"{u}.") or n == u for u in unused)}
    assert plain.keys() == used
    assert all(gradient.abs().max() > 0 for gradient in plain.values())


def test_hidden_states_and_tuple_output():
    x = torch.randn(1, 2, 3, 8, 8)
    with torch.no_grad():
        output = SMALL(x, output_hidden_states=True)
        as_tuple = SMALL(x, return_dict=False)
    assert len(output.hidden_states) == 3
    assert torch.equal(SMALL.norms_block[-1](output.hidden_states[-1]), output.last_hidden_state)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == 1 and torch.equal(as_tuple[0], output.last_hidden_state)


# Bad input


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 2, 4, 8, 8), "channels.*got 4, expected 3"),
        ((2, 3, 8, 8), r"got 4 dimensions \(2, 3, 8, 8\), expected 5"),
        ((1, 3, 3, 8, 8), "frames: got 3, expected 1 .* multiple of 2"),
        ((1, 0, 3, 8, 8), "frames: got 0"),
        ((1, 2, 3, 10, 8), "height: got 10 pixels, expected a multiple of the patch size 4"),
        ((1, 2, 3, 8, 10), "width: got 10 pixels, expected a multiple of the patch size 4"),
        ((1, 2, 3, 8, 0), "width: got 0 pixels"),
    ],
)
def test_bad_shapes_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        SMALL(torch.zeros(shape))


def test_integer_pixels_are_refused():
    with pytest.raises(ValueError, match="uint8, expected normalised floats"):
        SMALL(torch.zeros(1, 2, 3, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_hidden_layers": 0}, "num_hidden_layers: got 0, expected a positive integer"),
        ({"patch_size": 16.0}, "patch_size: got 16.0, expected a positive integer"),
        ({"num_attention_heads": 7}, "hidden_size: got 768, expected a multiple of num_attention_heads 7"),
        ({"num_attention_heads": 256}, "got 3 .*, expected an even number of at least 6"),
        ({"num_attention_heads": 192}, "got 4 .*, expected an even number of at least 6"),
        ({"image_size": 100}, "image_size: got 100, expected a multiple of patch_size 16"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps: got 0.0, expected a positive number"),
    ],
)
def test_bad_config_values_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        VJEPA21Config(**values)


# The converter


def write_changed(tmp_path: Path, change) -> Path:
    checkpoint = torch.load(CHECKPOINT, weights_only=True)
    change(checkpoint["ema_encoder"])
    torch.save(checkpoint, tmp_path / "changed.pt")
    return tmp_path / "changed.pt"


def test_every_official_tensor_is_in_the_saved_file(converted):
    saved = load_file(converted / "model.safetensors")
    original = torch.load(CHECKPOINT, weights_only=True)["ema_encoder"]
    assert {f"module.backbone.{name}" for name in saved} == original.keys()
    assert all(torch.equal(saved[name.removeprefix("module.backbone.")], original[name]) for name in original)


def test_sizes_are_read_from_the_tensors(converted):
    config = VJEPA21Config.from_pretrained(converted)
    expected = {
        "hidden_size": 48,
        "num_hidden_layers": 12,
        "num_attention_heads": 2,
        "intermediate_size": 192,
        "num_channels": 3,
        "patch_size": 16,
        "tubelet_size": 2,
        "pretrain_grid_size": 16,
        "image_size": 64,
    }
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("sizes", "mlp", "heads", "parameters"),
    [
        ((768, 12), 3072, 12, 86.8e6),
        ((1024, 24), 4096, 16, 304.7e6),
        ((1408, 40), 6144, 22, 1013.6e6),
        ((1664, 48), 8192, 26, 1844.5e6),
    ],
)
def test_released_sizes_are_recognised(sizes, mlp, heads, parameters):
    """Shapes alone, on the meta device: width, depth and MLP as in the official code, heads from the table."""
    hidden_size, layers = sizes
    with torch.device("meta"):
        model = VJEPA21Model(
            VJEPA21Config(
                hidden_size=hidden_size, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=mlp
            )
        )
    config = vjepa2_1_config(model.state_dict())
    assert VJEPA21_PRESETS[sizes][1] == config.num_attention_heads == heads
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (hidden_size, layers, mlp)
    assert config.image_size == 384
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=0.01)


def test_other_sizes_need_the_number_of_heads(tmp_path):
    with pytest.raises(ValueError, match=r"got hidden size 48 and 12 layers.*--num_attention_heads"):
        convert_vjepa2_1(CHECKPOINT, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["target_encoder", "encoder"])
def test_other_checkpoint_keys_and_prefixes(tmp_path, key):
    entries = torch.load(CHECKPOINT, weights_only=True)["ema_encoder"]
    content = {key: {name.removeprefix("module."): t for name, t in entries.items()}, "predictor": {}, "epoch": 3}
    torch.save(content, tmp_path / "other.pt", _use_new_zipfile_serialization=key == "encoder")
    model = convert_vjepa2_1(tmp_path / "other.pt", tmp_path / "out", num_attention_heads=2)
    torch.testing.assert_close(encode(model.eval(), pixels("image")), IO["output.image"], atol=1e-5, rtol=0)


def test_dtype_of_the_checkpoint_is_kept(tmp_path):
    path = write_changed(tmp_path, lambda s: s.update({name: t.bfloat16() for name, t in s.items()}))
    convert_vjepa2_1(path, tmp_path / "out", num_attention_heads=2)
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert VJEPA21Config.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


PREFIX = "module.backbone."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(PREFIX + "norms_block.3.bias"), r"missing: norms_block.3.bias \(48,\)"),
        (lambda s: s.pop(PREFIX + "blocks.3.attn.qkv.bias"), r"missing: blocks.3.attn.qkv.bias \(144,\)"),
        (lambda s: s.update({PREFIX + "pos_embed": torch.zeros(1, 9)}), r"unknown: pos_embed \(1, 9\)"),
        (
            lambda s: s.update({PREFIX + "blocks.0.mlp.fc1.weight": torch.zeros(9, 48)}),
            r"misshapen: blocks.0.mlp.fc1.weight got \(9, 48\), expected \(192, 48\)$",
        ),
        (lambda s: s.pop(PREFIX + "patch_embed.proj.weight"), "not a V-JEPA 2.1 encoder: expected patch_embed"),
        (lambda s: s.update({PREFIX + "patch_embed.proj.weight": torch.zeros(48, 3)}), r"got shape \(48, 3\)"),
        (lambda s: s.update({PREFIX + "norms_block.0.bias": torch.zeros(48).half()}), "dtypes: got .*float16"),
        (lambda s: s.update({"norms_block.0.bias": torch.zeros(48)}), "159 tensors, 158 names"),
        (lambda s: s.update({"step": 3}), r"entries that are no tensors: \['step'\]"),
    ],
)
def test_tensors_that_do_not_fit_are_listed(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        convert_vjepa2_1(write_changed(tmp_path, change), tmp_path / "out", num_attention_heads=2)
    assert not (tmp_path / "out").exists()


def test_all_problems_are_listed_at_once(tmp_path):
    def change(state):
        del state[PREFIX + "img_mod_embed"], state[PREFIX + "video_mod_embed"]
        state[PREFIX + "cls_token"] = torch.zeros(1)

    with pytest.raises(ValueError) as error:
        convert_vjepa2_1(write_changed(tmp_path, change), tmp_path / "out", num_attention_heads=2)
    assert all(name in str(error.value) for name in ("img_mod_embed", "video_mod_embed", "cls_token"))


class Bomb:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused(tmp_path, zipped):
    marker = tmp_path / "ran"
    content = torch.load(CHECKPOINT, weights_only=True) | {"optimizer": Bomb(marker)}
    torch.save(content, tmp_path / "bomb.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="refused") as error:
        convert_vjepa2_1(tmp_path / "bomb.pt", tmp_path / "out", num_attention_heads=2)
    assert not marker.exists() and "weights_only=False" not in str(error.value)
    torch.load(tmp_path / "bomb.pt", weights_only=False)  # control: it is a working bomb
    assert marker.exists()


def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    torch.save({"model": {}}, tmp_path / "keys.pt")
    with pytest.raises(ValueError, match=r"got keys \['model'\], expected one of"):
        convert_vjepa2_1(tmp_path / "keys.pt", tmp_path / "out")
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="got a list, expected a dict"):
        convert_vjepa2_1(tmp_path / "list.pt", tmp_path / "out")
    (tmp_path / "cut.pt").write_bytes(CHECKPOINT.read_bytes()[:1000])
    with pytest.raises(ValueError, match="refused"):
        convert_vjepa2_1(tmp_path / "cut.pt", tmp_path / "out")
    (tmp_path / "empty.pt").touch()
    with pytest.raises(ValueError, match="refused"):
        convert_vjepa2_1(tmp_path / "empty.pt", tmp_path / "out")


def test_command_line(tmp_path, capsys):
    main(["vjepa2_1", str(CHECKPOINT), str(tmp_path / "out"), "--num_attention_heads", "2", "--image_size", "64"])
    assert "48 wide, 12 layers, 2 heads, 450,432 parameters" in capsys.readouterr().out
    assert VJEPA21Config.from_pretrained(tmp_path / "out").image_size == 64
    for arguments in (["vjepa2_1", str(CHECKPOINT), str(tmp_path)], ["vjepa2_1", "nowhere.pt", str(tmp_path)]):
        with pytest.raises(SystemExit) as error:
            main(arguments)
        assert error.value.code == 1
    assert "nowhere.pt" in capsys.readouterr().err
