"""LoRA on the base model's attention (paper, stage 2): added, saved, loaded and merged through PEFT."""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedConfig

try:
    from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer
except ImportError:  # only models with LoRA need it
    LoraConfig = None

LORA_FOLDER = "lora"
LORA_FILES = (f"{LORA_FOLDER}/adapter_config.json", f"{LORA_FOLDER}/adapter_model.safetensors")
_TARGETS = r".*language_model\.layers\.\d+\.self_attn\.(q_proj|v_proj)"
_ADAPTER = "default"  # the only one, by PEFT's name
# Settings of a LoRA's file that its modules do not follow from, or that are read by themselves.
_WITHOUT_EFFECT = {"auto_mapping", "base_model_name_or_path", "revision", "peft_version", "task_type"}
_WITHOUT_EFFECT |= {"inference_mode", "r", "lora_alpha", "lora_dropout"}
_PREFIX = "base_model.model."  # of every name in a file of PEFT's


class LoraMixin:
    """
    What a model does with LoRA on its `backbone`. Its `attach_gaze` registers hooks on `lora_outputs`, which switch
    LoRA off for samples without gaze; `detach_gaze` removes them, and LoRA with them.
    """

    backbone: nn.Module
    config: PreTrainedConfig
    attach_gaze: Callable[[], None]
    detach_gaze: Callable[[], None]
    _lora_merged = False

    @property
    def has_lora(self) -> bool:
        """Whether LoRA was added, and not merged since."""
        return getattr(self.backbone, "_hf_peft_config_loaded", False)

    def add_lora(self, rank: int = 8, alpha: float = 16, dropout: float = 0.0) -> None:
        """
        Give the language model's query and value projections a new LoRA (PEFT), trainable, zero at first. Raises
        ImportError without PEFT, ValueError where there is one already.
        """
        if LoraConfig is None:
            raise ImportError("LoRA needs PEFT: pip install peft")
        if self.has_lora:
            raise ValueError("this model has LoRA already")
        self._inject_lora(_new_lora(rank, alpha, dropout))

    def _inject_lora(self, config) -> None:
        for name, module in self.backbone.named_modules():
            if re.fullmatch(_TARGETS, name) and getattr(getattr(module, "_hf_hook", None), "offload", False):
                raise ValueError(f"{name} is offloaded, expected it on a device: LoRA's weights must be where its are")
        self.detach_gaze()
        self.backbone.add_adapter(config)
        for name, value in self.backbone.named_parameters():
            if "lora_" in name:
                value.data = value.data.float()  # what is trained is float32: a half loses small steps
        self.attach_gaze()

    def _refuse_adapter(self, *args, **kwargs):
        """Raise NotImplementedError: transformers' adapters are modules that would neither be gated nor saved."""
        raise NotImplementedError("this model has one LoRA, its own: see add_lora, merge_lora and detach_gaze")

    add_adapter = load_adapter = set_adapter = delete_adapter = enable_peft_hotswap = _refuse_adapter
    enable_adapters = disable_adapters = _refuse_adapter

    def lora_outputs(self) -> Iterator[nn.Module]:
        """Iterate over the modules whose output LoRA adds to the base model's."""
        if self.has_lora:
            for module in self.backbone.modules():
                if isinstance(module, BaseTunerLayer):
                    yield module.lora_B[_ADAPTER]

    def lora_state(self) -> dict[str, torch.Tensor]:
        """Return LoRA's tensors by PEFT's names."""
        # Embeddings are not trained; PEFT would ask the Hub for the base model's vocabulary to find that out.
        return get_peft_model_state_dict(self.backbone, adapter_name=_ADAPTER, save_embedding_layers=False)

    def _lora_file(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return LoRA's tensors by their names in its file; those that this model's `tensors` hold, from there."""
        state = {}
        for name, value in self.lora_state().items():
            module, _, kind = name.rpartition(".")
            state[f"{_PREFIX}{name}"] = tensors.get(f"backbone.{module}.{_ADAPTER}.{kind}", value)
        return state

    def _save_lora_config(self, folder: Path) -> None:
        config = self.backbone.peft_config[_ADAPTER]
        config.base_model_name_or_path = self.config.base_model_name_or_path
        config.revision = self.config.base_model_revision
        config.save_pretrained(folder)

    def _add_stored_lora(self, stored: "StoredLora") -> None:
        """Add a LoRA from its files. Raises ValueError naming the file whose tensors do not fit this model."""
        self._inject_lora(stored.config)
        check_tensors(str(stored.file), self.lora_state(), stored.weights)
        set_peft_model_state_dict(self.backbone, stored.weights, adapter_name=_ADAPTER)

    def merge_lora(self) -> None:
        """
        Add LoRA to the base weights and remove its modules: no cost per token, but the base model is then changed, so
        that answers without gaze are no longer the base model's, and the model can no longer be saved. Raises
        ValueError where there is no LoRA.
        """
        if not self.has_lora:
            raise ValueError("this model has no LoRA to merge")
        self.detach_gaze()
        self.backbone.enable_adapters()
        for name, module in list(self.backbone.named_modules()):
            if isinstance(module, BaseTunerLayer):
                module.merge(safe_merge=True)
                parent, _, child = name.rpartition(".")
                setattr(self.backbone.get_submodule(parent), child, module.get_base_layer())
        del self.backbone.peft_config
        self.backbone._hf_peft_config_loaded = False
        self._lora_merged = True
        self.attach_gaze()


@dataclass(frozen=True, eq=False)
class StoredLora:
    """Hold what an adapter's files say of its LoRA: PEFT's `config`, and the tensors of `file` by PEFT's names."""

    config: "LoraConfig"
    weights: dict[str, torch.Tensor]
    file: Path


def read_lora(config_file: Path, weights_file: Path, base_model: str | None) -> StoredLora:
    """
    Return the LoRA in an adapter's files. `base_model`: what it has to be trained on, None: not known. Raises
    ImportError without PEFT, ValueError naming the file for another base model or another kind of LoRA.
    """
    if LoraConfig is None:
        raise ImportError(f"{config_file}: this adapter has LoRA, which needs PEFT: pip install peft")
    values = read_json(config_file)
    trained_on = values.get("base_model_name_or_path")
    if isinstance(trained_on, str) and trained_on.startswith("."):  # from the adapter's folder, as in its config
        trained_on = str((config_file.parent.parent / trained_on).resolve())
    if base_model is not None and trained_on not in (None, base_model):
        raise ValueError(
            f"{config_file}: base_model_name_or_path: got {trained_on!r}, expected {base_model!r} as in the adapter's "
            "config: LoRA fits the base model that it was trained on alone; if it is the same, write it there"
        )
    weights = {name.removeprefix(_PREFIX): value for name, value in read_tensors(weights_file).items()}
    return StoredLora(_lora_config(values, str(config_file)), weights, weights_file)


def _lora_config(values: dict, source: str):
    """
    Return the configuration of a LoRA as `add_lora` makes it, of the rank and strength that a file's `values` say.
    Raises ValueError naming `source` and a setting of any other: it may change the base model, or code that is slow.
    """
    for name, is_legal, expected in (
        ("r", lambda value: isinstance(value, int) and 0 < value <= 1000, "a whole number, 1 to 1,000"),
        ("lora_alpha", lambda value: 0 < value < float("inf"), "a positive number"),
        ("lora_dropout", lambda value: 0 <= value < 1, "0 or more, and less than 1"),
    ):
        value = values.get(name)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not is_legal(value):
            raise ValueError(f"{source}: {name}: got {value!r}, expected {expected}")
    config = _new_lora(values["r"], values["lora_alpha"], values["lora_dropout"])
    expected = config.to_dict()
    for name in sorted(values.keys() & expected.keys() - _WITHOUT_EFFECT):
        if (values[name] or None) != (expected[name] or None):
            raise ValueError(f"{source}: {name}: got {values[name]!r}, expected {expected[name]!r} as of add_lora")
    return config


def _new_lora(rank: int, alpha: float, dropout: float):
    return LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=_TARGETS, bias="none")


def read_json(path: str | os.PathLike) -> dict:
    """Return the object in a JSON file. Raises ValueError naming the file for anything else."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: got {str(values)[:80]}, expected a JSON object")
    return values


def read_tensors(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file by name. Raises ValueError naming a file that is cut, or none."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from None


def check_tensors(source: str, expected: Mapping[str, torch.Tensor], stored: Mapping[str, torch.Tensor]) -> None:
    """
    Raise ValueError that names `source` and lists every tensor that is missing or unexpected there, or names one of
    another shape, or with a value that is NaN or infinite.
    """
    if expected.keys() != stored.keys():
        missing, unexpected = sorted(expected.keys() - stored.keys()), sorted(stored.keys() - expected.keys())
        raise ValueError(f"{source} does not fit this model: missing {missing}, unexpected {unexpected}")
    for name, value in stored.items():
        if value.shape != expected[name].shape:
            raise ValueError(f"{source}: {name} is {tuple(value.shape)}, expected {tuple(expected[name].shape)}")
    check_finite(source, stored.items())


def check_finite(source: str, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Raise ValueError naming `source` and the first of the tensors, by name, with a value that is NaN or infinite."""
    for name, value in tensors:
        if value.is_meta or not value.is_floating_point() or value.itemsize < 2 or not value.numel():
            continue  # offloaded, or quantized, or nothing
        if not torch.isfinite(torch.stack(torch.aminmax(value.detach()))).all():  # faster than all values' `isfinite`
            raise ValueError(f"{source}: {name} has values that are not finite, expected numbers")


__all__ = [
    "LORA_FILES",
    "LORA_FOLDER",
    "LoraMixin",
    "check_finite",
    "check_tensors",
    "read_json",
    "read_lora",
    "read_tensors",
]
