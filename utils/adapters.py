"""Load adapters with this package's own classes; the code that is stored with them runs only when asked for."""

from os import PathLike

import torch
from transformers import PreTrainedModel, ProcessorMixin
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
) -> GazeQwenForConditionalGeneration:
    """
    Return the model of an adapter as `load_processor` does its processor, in evaluation mode, on `device`; None: on
    CUDA where there is one.
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
    return kind.from_pretrained(source, dtype=dtype, revision=revision).to(device).eval()


def _stored_class(source: str | PathLike, reference: str | None, revision: str) -> type | None:
    """Import the class that an entry of `auto_map` refers to, from the files of the adapter; None without an entry."""
    return get_class_from_dynamic_module(reference, str(source), revision=revision) if reference else None
