"""Write files and folders so that a reader sees the old one or the whole new one, also after a power cut."""

import errno
import functools
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

_BLOCKS, _BLOCK_BYTES = 16, 1 << 16


def sync(path: str | os.PathLike) -> None:
    """Force a file's content, or a folder's names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: str | os.PathLike) -> None:
    """Force a folder with all files and folders below it to the disk."""
    for path in (*Path(folder).rglob("*"), folder):
        sync(path)


def make_folder(path: str | os.PathLike) -> None:
    """Make a folder and those above it, unless they are there, and force their names to the disk."""
    path = Path(path)
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


@contextmanager
def errors_with_path(path: str | os.PathLike):
    """Give OSError of a block, such as a full disk's, the path where it has none."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextmanager
def atomic_file(path: str | os.PathLike):
    """Yield where to write a file: a reader of `path` sees the old one or, after the block, the whole new one."""
    path = Path(path)
    make_folder(path.parent)
    temporary = _beside(path, "tmp")
    try:
        yield temporary
        with errors_with_path(path):
            sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the whole new one."""
    with atomic_file(path) as temporary, errors_with_path(path):
        temporary.write_bytes(content)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text as UTF-8, so that a reader sees the old file or the whole new one."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike, value) -> None:
    """Write a value as indented JSON, so that a reader sees the old file or the whole new one."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def atomic_folder(path: str | os.PathLike):
    """
    Yield a temporary folder that takes the place of `path` when the block ends well; no other process may write there
    (`utils.locks`). Where one dies between the two renames, the next, or `remove_leftovers`, brings the old folder
    back.
    """
    path = Path(path)
    make_folder(path.parent)
    remove_leftovers(path.parent, path.name)
    temporary, old = _beside(path, "tmp"), _beside(path, "old")
    temporary.mkdir()
    try:
        yield temporary
        sync_tree(temporary)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        sync(path.parent)
    finally:
        remove_leftovers(path.parent, path.name)


def remove_leftovers(folder: str | os.PathLike, name: str | None = None) -> None:
    """
    Remove from a folder what killed processes left of files or folders of this name, None for any, which no process
    may be writing now. An old folder whose place is empty is put back there.
    """
    temporary = re.compile(rf"\.({'.+' if name is None else re.escape(name)})\.[0-9a-f]+\.(tmp|old)")
    matches = [(path, temporary.fullmatch(path.name)) for path in sorted(Path(folder).glob(".*"))]
    for path, match in matches:
        if match and match[2] == "old" and not path.with_name(match[1]).exists():
            path.rename(path.with_name(match[1]))
        elif match and path.is_dir():
            shutil.rmtree(path)
        elif match:
            path.unlink(missing_ok=True)


def check_replaceable(folder: str | os.PathLike, written: Iterable[str]) -> None:
    """
    Raise FileExistsError naming what a folder holds beside names (or patterns) that are `written` anew when it is
    replaced: that is nobody's to delete.
    """
    folder, written = Path(folder), list(written)
    if not folder.is_dir():
        raise FileExistsError(f"{folder}: a file, expected a folder")
    foreign = [path.name for path in folder.iterdir() if not any(fnmatch(path.name, name) for name in written)]
    if foreign:
        shown = ", ".join(sorted(foreign)[:5])
        raise FileExistsError(
            f"{folder}: replacing it would delete {len(foreign)} files or folders that are none of its own, such as "
            f"{shown}: choose another folder, or move them"
        )


def digest_of_file(path: str | os.PathLike) -> str:
    """
    Return a digest of a file's size and of 16 blocks of 64 KiB spread over it, read once per process: videos are too
    large to read whole. Another content of the same size is not noticed where it differs between the blocks alone.
    """
    stat = os.stat(path)
    return _digest_of_blocks(str(path), stat.st_size, stat.st_mtime_ns)


@functools.cache
def _digest_of_blocks(path: str, size: int, modified_ns: int) -> str:
    digest = hashlib.sha256(str(size).encode())
    with open(path, "rb") as file:
        for offset in np.linspace(0, max(size - _BLOCK_BYTES, 0), _BLOCKS).astype(int):
            file.seek(int(offset))
            digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()


def _beside(path: Path, kind: str) -> Path:
    """Return a name beside a path that no other writer has, whatever its process id is."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:16]}.{kind}")
