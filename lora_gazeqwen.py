"""LoRA on the base model's attention (paper, stage 2): added, saved, loaded and merged through PEFT."""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedConfig

try:
    from peft import LoraConfig, PeftConfig, get_peft_model_state_dict, set_peft_model_state_dict
    from peft.tuners.tuners_utils import BaseTunerLayer
except ImportError:  # only models with LoRA need it
    LoraConfig = None

LORA_FOLDER = "lora"
LORA_FILES = (f"{LORA_FOLDER}/adapter_config.json", f"{LORA_FOLDER}/adapter_model.safetensors")
_TARGETS = r".*language_model\.layers\.\d+\.self_attn\.(q_proj|v_proj)"
_ADAPTER = "default"  # the only one, by PEFT's name
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
        config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=_TARGETS, bias="none")
        self._inject_lora(config)

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

    def _load_lora(self, config_file: Path, weights_file: Path) -> None:
        if LoraConfig is None:
            raise ImportError(f"{config_file}: this adapter has LoRA, which needs PEFT: pip install peft")
        config = PeftConfig.from_pretrained(str(config_file.parent))
        config.inference_mode = False
        self._inject_lora(config)
        weights = {name.removeprefix(_PREFIX): value for name, value in load_file(weights_file).items()}
        check_keys(str(weights_file), set(self.lora_state()), set(weights))
        check_finite(str(weights_file), weights.items())
        set_peft_model_state_dict(self.backbone, weights, adapter_name=_ADAPTER)

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


def check_keys(source: str, expected: set[str], stored: set[str]) -> None:
    """Raise ValueError that names `source` and lists every tensor that is missing or unexpected there."""
    if expected != stored:
        missing, unexpected = sorted(expected - stored), sorted(stored - expected)
        raise ValueError(f"{source} does not fit this model: missing {missing}, unexpected {unexpected}")


def check_finite(source: str, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Raise ValueError naming `source` and the first of the tensors, by name, with a value that is NaN or infinite."""
    for name, value in tensors:
        if value.is_meta or not value.is_floating_point() or value.itemsize < 2 or not value.numel():
            continue  # offloaded, or quantized, or nothing
        if not torch.isfinite(torch.stack(torch.aminmax(value.detach()))).all():  # faster than all values' `isfinite`
            raise ValueError(f"{source}: {name} has values that are not finite, expected numbers")


__all__ = ["LORA_FILES", "LORA_FOLDER", "LoraMixin", "check_finite", "check_keys"]
