"""Adapters that were cut, misshapen, or made for other ends are refused in one line that names them."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from support import BACKBONE, VIDEO_ENCODER
from test_malformed import table_of

from gazeqwen.toyworld.trained import ADAPTER_DIR
from gazeqwen.utils.adapters import load_model, load_processor


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def with_values(**values):
    """A function that changes values of a JSON file."""
    return lambda content: json.dumps(json.loads(content) | values).encode()


def with_tensors(change):
    """A function that changes the tensors of a safetensors file, {name: tensor}, in place."""

    def changed(content: bytes) -> bytes:
        tensors = load(content)
        change(tensors, sorted(tensors)[0])
        return save(tensors, {"format": "pt"})

    return changed


def remove(tensors, name):
    del tensors[name]


def reshape(tensors, name):
    tensors[name] = torch.zeros(3, 5)


def add(tensors, name):
    tensors["another"] = torch.zeros(1)


CONFIG, LORA, PROCESSOR = "config.json", "lora/adapter_config.json", "processor_config.json"
JSON = {
    "empty": lambda content: b"",
    "cut": cut,
    "a list": lambda content: b"[]",
    "binary": lambda content: bytes(range(256)),
}
TENSORS = {
    "empty": lambda content: b"",
    "cut": cut,
    "a text": lambda content: b"no tensors are here",
    "a tensor less": with_tensors(remove),
    "a tensor more": with_tensors(add),
    "a tensor of another shape": with_tensors(reshape),
}
CONFIGS = {  # {setting: values}
    "resampler_type": ("x", 5, None, {}),
    "foveal_sigmas": (["a"], 3, None, [float("nan")]),
    "injection_layers": (["a"], "abc", [0.5], 3, [100]),
    "heatmap_sigma": ("x", None),
    "gaze_coordinate_scale": ("x", None),
    "normalize_features": ("no", None, 3),
    "share_resampler": ("no", None, 3),
    "num_blocks": (True, 10**9, "2"),
    "latent_dim": (10**9, 2.5),
    "backbone_config": ("x", [], {}, {"model_type": "x"}),
    "video_encoder_config": ("x", [], {}),
    "base_model_name_or_path": (5, [], "./nowhere", None, "no such/id at all"),
    "base_model_revision": (5,),
    "has_lora": ("yes",),
    "position_convention": ("x", 5),
}
LORA_CONFIGS = {
    "init_lora_weights": ("pissa", "pissa_niter_4", "corda", "olora", "eva", "gaussian", False),
    "target_modules": (r"(.*.*)*.*(x+x+)+y", ".*", ["q_proj"], [], None, 5),
    "base_model_name_or_path": ("Qwen/Qwen2.5-VL-7B-Instruct", 5),
    "peft_type": ("IA3", "VERA", None, 5),
    "r": (0, -1, 10**9, "8", 8.5, True, None),
    "lora_alpha": (float("nan"), -1, "x", None),
    "lora_dropout": (1.5, -1, "x", float("nan")),
    "use_dora": (True,),
    "use_rslora": (True,),
    "fan_in_fan_out": (True,),
    "lora_bias": (True,),
    "bias": ("all",),
    "modules_to_save": (["lm_head"],),
    "rank_pattern": ({"q_proj": 3},),
    "alpha_pattern": ({"q_proj": 3},),
    "layers_to_transform": ([0],),
    "layer_replication": ([[0, 2]],),
    "megatron_config": ({"a": 1},),
    "trainable_token_indices": ([0],),
    "loftq_config": ({"loftq_bits": 4},),
    "target_parameters": (["x"],),
}
PROCESSORS = {
    "num_frames": (0, "x", True, -4),
    "fps": (0, "x", float("nan")),
    "max_frames": (0, "x", None),
    "snap_s": (-1, "x", None, float("nan")),
    "video_encoder_size": (0, "x", None, -64, 10**6),
    "prompt_style": (5, None),
    "sampling": (5, "x", None),
    "base_model_type": ("x", None, []),
    "max_pixels_per_frame": (0, "x", 2.5),
    "keep_tokens": ("x", -1),
    "keep_by": ("x", 5),
    "image_processor": ("x", [], {}, None),
    "video_processor": ("x", [], {}, None),
}

PATHS_AND_PARTS = ("image_processor", "video_processor", "base_model_name_or_path")  # libraries say what they please

CASES = {}  # {id: (file, change, what the error says beside the adapter's folder)}
for file in (CONFIG, LORA, PROCESSOR, "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
    CASES |= {f"{file} {name}": (file, change, "") for name, change in JSON.items()}
for file in ("model.safetensors", "lora/adapter_model.safetensors"):
    CASES |= {f"{file} {name}": (file, change, file.split("/")[-1]) for name, change in TENSORS.items()}
for file, table in ((CONFIG, CONFIGS), (LORA, LORA_CONFIGS), (PROCESSOR, PROCESSORS)):
    for setting, values in table.items():
        for value in values:
            part = "" if setting in PATHS_AND_PARTS else setting
            CASES[f"{file} {setting} {value!r}"] = file, with_values(**{setting: value}), part
for file in (CONFIG, "model.safetensors", LORA, "lora/adapter_model.safetensors", "tokenizer.json"):
    CASES[f"without {file}"] = file, None, ""


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    """A copy of the toy world's adapter."""
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    shutil.copytree(ADAPTER_DIR, folder)
    shutil.copytree(BACKBONE, folder.parent / "backbone")
    shutil.copytree(VIDEO_ENCODER, folder.parent / "video_encoder")
    return folder


@table_of(CASES)
def test_damaged_adapters_are_refused(adapter, case):
    name, change, part = case
    file, began = adapter / name, time.monotonic()
    content = file.read_bytes()
    try:
        file.unlink() if change is None else file.write_bytes(change(content))
        with pytest.raises((ValueError, OSError)) as error:
            load_processor(adapter)
            load_model(adapter)
    finally:
        file.write_bytes(content)
    assert str(adapter) in str(error.value) and part in str(error.value)
    assert time.monotonic() - began < 60


def test_the_adapter_itself_is_loaded(adapter):
    load_processor(adapter)
    assert load_model(adapter).has_lora
