"""What every run needs: recipes with overrides, atomic writes, and a record of what ran where."""

import dataclasses
import difflib
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import types
import typing
import uuid
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file


# ------------------------------------------------------------------ recipes: YAML + `section.key=value` -> dataclass
def read_recipe(cls: type, path: str | os.PathLike, overrides: list[str] = ()):
    """
    A `cls` (a dataclass of dataclasses) from a YAML file and overrides such as `stage1.epochs=2`.
    Raises ValueError naming the file or override, the key, and the nearest key that exists.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not YAML ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: got {values!r}, expected keys {[field.name for field in dataclasses.fields(cls)]}")
    for override in overrides:
        keys, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"override {override!r}, expected section.key=value")
        *sections, key = keys.split(".")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise ValueError(f"override {override!r}: {section} is a value, not a section")
        try:
            target[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"override {override!r}: the value is not YAML ({error})") from None
    return _build(cls, values, str(path))


def _build(cls: type, values: dict, where: str):
    if not isinstance(values, dict):
        raise ValueError(f"{where}: got {values!r}, expected keys {[field.name for field in dataclasses.fields(cls)]}")
    hints, built = typing.get_type_hints(cls), {}
    for key, value in values.items():
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            hint = f", did you mean {near[0]!r}?" if near else f", expected one of {sorted(hints)}"
            raise ValueError(f"{where}: unknown key {key!r}{hint}")
        if dataclasses.is_dataclass(hints[key]):
            built[key] = _build(hints[key], value, f"{where}: {key}")
        else:
            built[key] = _checked(value, hints[key], f"{where}: {key}")
    try:
        return cls(**built)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from error


def _checked(value, hint, where: str):
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    plain = tuple(typing.get_origin(kind) or kind for kind in kinds)
    if float in plain and isinstance(value, (int, str)) and not isinstance(value, bool):
        with suppress(ValueError):
            value = float(value)  # YAML reads 3e-4 as text
    if not isinstance(value, plain) or (isinstance(value, bool) and bool not in plain):
        raise ValueError(f"{where}: got {value!r}, expected {hint}")
    return value


# ------------------------------------------------------------------ settings
def flat(values: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} as {"a.b": 1}."""
    found = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) and value else {f"{prefix}{name}": value}
    return found


def differences(before: dict, now: dict, free: typing.Collection[str] = ()) -> list[str]:
    """What differs between two sets of settings, in words, but for those that are `free` to change."""
    before, now = flat(before), flat(now)
    return [
        f"{name}: {before.get(name, 'not there')!r} before, {now.get(name, 'not there')!r} now"
        for name in sorted(before.keys() | now.keys())
        if name not in free and before.get(name) != now.get(name)
    ]


# ------------------------------------------------------------------ atomic writes
def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a file so that a reader sees the old one or the whole new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_json(path: str | os.PathLike, value) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_tensors(path: str | os.PathLike, tensors: dict[str, torch.Tensor]) -> None:
    """A safetensors file, whole or not at all; OSError where it cannot be written, such as on a full disk."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary)
        temporary.replace(path)
    except (SafetensorError, OSError) as error:
        raise OSError(f"{path}: cannot be written ({error})") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | os.PathLike):
    """Yields a temporary folder that takes the place of `path` when the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    finally:
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)


# ------------------------------------------------------------------ scripts
@contextmanager
def clear_errors():
    """Around a script's main: what the user can mend ends in one line on stderr, not in a traceback."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as error:
        raise SystemExit(f"{Path(sys.argv[0]).name}: {error}") from None


# ------------------------------------------------------------------ data, and the Hub
def loader_of(data: torch.utils.data.Dataset, **arguments) -> torch.utils.data.DataLoader:
    """A data loader that leaves torch's own random state alone: a run that goes on repeats one that never stopped."""
    return torch.utils.data.DataLoader(data, generator=torch.Generator().manual_seed(0), **arguments)


# The trained weights of an adapter: always, and where it has LoRA.
ADAPTER_WEIGHTS = ("model.safetensors", "lora/adapter_model.safetensors")


def digest_of_adapter(source: str | os.PathLike, revision: str | None = None, has_lora: bool | None = False) -> str:
    """Which adapter it is, wherever it lies: 16 hex digits of its weights' hash. `source`: folder or id on the Hub."""
    from transformers.utils import cached_file

    digest = hashlib.sha256()
    for name in ADAPTER_WEIGHTS[: 1 + bool(has_lora)]:
        digest.update(Path(cached_file(str(source), name, revision=revision or "main")).read_bytes())
    return digest.hexdigest()[:16]


# What an earlier upload to the same repository may have left there that does not belong to this one.
_REPLACED = {"model": ["lora/*"], "dataset": ["videos/*", "*.parquet"], "space": ["gazeqwen/*"]}


@contextmanager
def _writing_to(repository: str):
    from huggingface_hub.utils import httpx

    try:
        yield
    except httpx.HTTPError as error:  # a refusal, or no answer
        said = str(error).splitlines() or [type(error).__name__]
        why = ": ".join(dict.fromkeys((said[0], said[-1])))
        raise OSError(f"{repository}: cannot be written to on the Hub ({why}); to log in: hf auth login") from error


def open_repository(repository: str, repo_type: str = "model", private: bool = False) -> None:
    """Make a repository on the Hub, perhaps a private one, if it is not there; OSError where that cannot be done."""
    from huggingface_hub import create_repo

    sdk = {"space_sdk": "gradio"} if repo_type == "space" else {}
    with _writing_to(repository):
        create_repo(repository, repo_type=repo_type, private=private, exist_ok=True, **sdk)


def publish(folder: str | os.PathLike, repository: str, repo_type: str = "model") -> str:
    """Upload a folder to a repository on the Hub, made if it is not there. Returns its address."""
    from huggingface_hub import upload_folder

    open_repository(repository, repo_type)
    replaced = _REPLACED[repo_type]
    with _writing_to(repository):
        commit = upload_folder(repo_id=repository, repo_type=repo_type, folder_path=folder, delete_patterns=replaced)
    return str(commit)


def publish_card(card, repository: str) -> str:
    """
    Put a card (of `gazeqwen.model_card`) into its repository on the Hub, once the Hub finds it valid. Returns the
    address; ValueError with what the Hub says of its metadata, OSError where it cannot be written to.
    """
    with _writing_to(repository):
        return str(card.push_to_hub(repository))


# ------------------------------------------------------------------ what ran where
def provenance() -> dict:
    """Versions, git hash of the code, and device: part of every result file."""
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
    The commit this package's files come from, `+changes` if they differ from it; None outside a checkout. Results do
    not count: one command may write several.
    """
    here = Path(__file__).parent.parent

    def git(*arguments: str) -> str | None:
        try:
            result = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return result.stdout.strip()

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    return commit + ("+changes" if git("status", "--porcelain", "--", ".", ":(exclude)results") else "")
