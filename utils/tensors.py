"""Write tensors to disk, whole or not at all."""

import os
import uuid
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file


def write_tensors(path: str | os.PathLike, tensors: dict[str, torch.Tensor]) -> None:
    """Write a safetensors file, whole or not at all. Raise OSError if it cannot be written, as on a full disk."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary)
        temporary.replace(path)
    except (SafetensorError, OSError) as error:
        raise OSError(f"{path}: cannot be written ({error})") from error
    finally:
        temporary.unlink(missing_ok=True)
