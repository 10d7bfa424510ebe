"""Load adapters with this package's own classes; the code that is stored with them runs only when asked for."""

from argparse import Namespace
from importlib.util import find_spec
from os import PathLike

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel, ProcessorMixin
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from gazeqwen.configuration_gazeqwen import GazeQwenConfig
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.processing_gazeqwen import GazeQwenProcessor


def load_processor(
    source: str | PathLike, revision: str | None = None, trust_remote_code: bool = False
) -> GazeQwenProcessor:
    """
    Return the processor of an adapter, a folder or an id on the Hub. `trust_remote_code`: of the class that is stored
    there, where there is one. Raises ValueError or OSError for what is no adapter.
    """
    revision = revision or "main"
    kind: type[ProcessorMixin] = GazeQwenProcessor
    config = GazeQwenConfig.from_pretrained(source, revision=revision)
    if trust_remote_code:
        settings, _ = ProcessorMixin.get_processor_dict(source, revision=revision)
        kind = _stored_class(source, settings.get("auto_map", {}).get("AutoProcessor"), revision) or kind
    # Given the config, the tokenizer is not looked up by model type, of which transformers would know none.
    return kind.from_pretrained(source, config=config, revision=revision, trust_remote_code=trust_remote_code)


def load_model(
    source: str | PathLike,
    device="cpu",
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    load_in_4bit: bool | None = None,
) -> GazeQwenForConditionalGeneration:
    """
    Return the model of an adapter as `load_processor` does its processor, in evaluation mode, on `device`; None: on
    CUDA where there is one. `load_in_4bit`: its base model; None: as it was trained. Raises ValueError where that
    cannot be.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    revision = revision or "main"
    kind: type[PreTrainedModel] = GazeQwenForConditionalGeneration
    if trust_remote_code:
        settings, _ = GazeQwenConfig.get_config_dict(source, revision=revision)
        kind = _stored_class(source, settings.get("auto_map", {}).get("AutoModel"), revision) or kind
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # before anything large is loaded
        raise ValueError(f"device: got {str(device)!r}, which torch has not: {error}") from None
    if load_in_4bit is None:
        load_in_4bit = GazeQwenConfig.from_pretrained(source, revision=revision).load_in_4bit
    if load_in_4bit:  # which places the model, and may not be moved
        check_4bit(device)
        return kind.from_pretrained(source, dtype=dtype, revision=revision, **four_bit_arguments(device)).eval()
    return kind.from_pretrained(source, dtype=dtype, revision=revision).to(device).eval()


def load_model_by_flags(flags: Namespace) -> GazeQwenForConditionalGeneration:
    """Return the model that a command's `--model` and the flags of `add_model_flags` name."""
    settings = {"trust_remote_code": flags.trust_remote_code, "load_in_4bit": flags.load_in_4bit}
    return load_model(flags.model, flags.device, flags.dtype, **settings)


def four_bit_arguments(device) -> dict:
    """Return the arguments of `from_pretrained` that load a base model in 4 bits (NF4, double) onto a device."""
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return {"quantization_config": quantization, "device_map": {"": device}}


def check_4bit(device) -> None:
    """Raise ValueError where a base model cannot be loaded in 4 bits: without CUDA, or without bitsandbytes."""
    otherwise = "--no-load_in_4bit asks the base model as it was saved, which gives other numbers"
    if torch.device(device).type != "cuda":
        raise ValueError(f"load_in_4bit: got the device {str(device)!r}, expected one of CUDA; {otherwise}")
    if find_spec("bitsandbytes") is None:
        raise ValueError(f"load_in_4bit needs: pip install bitsandbytes; {otherwise}")


def is_in_4bit(model: PreTrainedModel) -> bool:
    """Return whether the base model of an adapter is in 4 bits."""
    return bool(getattr(model.backbone, "is_loaded_in_4bit", False))


def _stored_class(source: str | PathLike, reference: str | None, revision: str) -> type | None:
    """Import the class that an entry of `auto_map` refers to, from the files of the adapter; None without an entry."""
    return get_class_from_dynamic_module(reference, str(source), revision=revision) if reference else None
