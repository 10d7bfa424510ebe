"""Record what ran where: part of every result file."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch


def provenance() -> dict:
    """Return versions, git hash of the code, and device: part of every result file."""
    packages = ("torch", "transformers", "peft", "accelerate", "av", "numpy")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores"
    return {
        "gazeqwen": metadata.version("gazeqwen"),
        "git": _git_hash(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in packages},
        "device": device,
    }


def _git_hash() -> str | None:
    """
    Return the commit that this package's files come from, with `+changes` if they differ from it; None outside a
    checkout. Changed results do not count: one command may write several.
    """
    folder = Path(__file__).parent.parent

    def git(*arguments: str) -> str | None:
        try:
            result = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return result.stdout.strip()

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    changes = git("status", "--porcelain", "--", ".", ":(exclude)results")
    return f"{commit}+changes" if changes else commit


def describe_trained_parameters(model) -> str:
    """Return in words how many parameters of the adapter are trained."""
    counts = {name: value.numel() for name, value in model.trained_parameters().items()}
    lora = sum(count for name, count in counts.items() if "lora_" in name)
    return f"{sum(counts.values()) - lora:,} resampler and {lora:,} LoRA parameters"
