"""Write files and folders so that a reader sees the old one or the whole new one."""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the whole new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text as UTF-8, so that a reader sees the old file or the whole new one."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike, value) -> None:
    """Write a value as indented JSON, so that a reader sees the old file or the whole new one."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def atomic_folder(path: str | os.PathLike):
    """Yield a temporary folder that takes the place of `path` when the block ends well."""
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
