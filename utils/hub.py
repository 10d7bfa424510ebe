"""Make repositories on the Hub, write to them, and tell adapters apart."""

import hashlib
import os
from contextlib import contextmanager
from pathlib import Path

# The trained weights of an adapter: always, and where it has LoRA.
ADAPTER_WEIGHTS = ("model.safetensors", "lora/adapter_model.safetensors")


def digest_of_adapter(source: str | os.PathLike, revision: str | None = None, has_lora: bool | None = False) -> str:
    """
    Return 16 hex digits of the hash of an adapter's weights: which adapter it is, wherever it lies. `source`: a folder
    or an id on the Hub.
    """
    from transformers.utils import cached_file

    digest = hashlib.sha256()
    for name in ADAPTER_WEIGHTS if has_lora else ADAPTER_WEIGHTS[:1]:
        digest.update(Path(cached_file(str(source), name, revision=revision or "main")).read_bytes())
    return digest.hexdigest()[:16]


# What an earlier upload to the same repository may have left there that does not belong to this one.
_REPLACED = {"model": ["lora/*"], "dataset": ["videos/*", "*.parquet"], "space": ["gazeqwen/*"]}


@contextmanager
def _errors_name_repository(repository: str):
    """Raise OSError naming the repository, and how to log in, for what the Hub refuses in a block."""
    from huggingface_hub.utils import httpx

    try:
        yield
    except httpx.HTTPError as error:  # a refusal, or no answer
        lines = str(error).splitlines() or [type(error).__name__]
        reason = lines[0] if lines[0] == lines[-1] else f"{lines[0]}: {lines[-1]}"
        raise OSError(f"{repository}: cannot be written to on the Hub ({reason}); to log in: hf auth login") from error


def open_repository(repository: str, repo_type: str = "model", private: bool = False) -> None:
    """Make a repository on the Hub, private if asked, unless it is there. Raise OSError if that cannot be done."""
    from huggingface_hub import create_repo

    sdk = {"space_sdk": "gradio"} if repo_type == "space" else {}
    with _errors_name_repository(repository):
        create_repo(repository, repo_type=repo_type, private=private, exist_ok=True, **sdk)


def publish(folder: str | os.PathLike, repository: str, repo_type: str = "model") -> str:
    """Upload a folder to a repository on the Hub, made if it is not there. Return the commit's address."""
    from huggingface_hub import upload_folder

    open_repository(repository, repo_type)
    replaced = _REPLACED[repo_type]
    with _errors_name_repository(repository):
        commit = upload_folder(repo_id=repository, repo_type=repo_type, folder_path=folder, delete_patterns=replaced)
    return str(commit)


def publish_card(card, repository: str) -> str:
    """
    Put a card (of `gazeqwen.model_card`) into its repository on the Hub, once the Hub finds it valid. Return the
    address. Raise ValueError with what the Hub says of its metadata, or OSError if it cannot be written to.
    """
    from huggingface_hub import upload_file

    content = str(card).encode()
    with _errors_name_repository(repository):
        return str(upload_file(repo_id=repository, path_or_fileobj=content, path_in_repo="README.md"))
