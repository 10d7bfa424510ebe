"""
A disk that loses its power: what a power cut may leave of a folder, by what was forced to the disk until then.

A file system may write names (of new files, of renames) to the disk long before the content of files, or long after.
So two images are kept of each moment before and after a rename or a sync: in both a file holds what it held when it
was forced to the disk, and nothing if it never was; `names_kept` has all names of that moment, the other image only
those of folders that were themselves forced to the disk.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR


@dataclass(frozen=True)
class Image:
    """Hold what a power cut leaves: {path below the folder: content}, after the rename or sync `event`."""

    event: str
    names_kept: bool
    files: dict[str, bytes]

    def write(self, folder: Path) -> Path:
        """Write the image into a new folder, and return it."""
        folder.mkdir(parents=True)
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder


class VolatileDisk:
    """Record in `images` what power cuts would leave of a folder while the block runs. Linux alone."""

    def __init__(self, folder: Path, monkeypatch):
        self.folder, self.images = folder, []
        self._contents: dict[int, bytes] = {}  # of a file, by inode, as it was forced to the disk
        self._names: dict[int, list[os.DirEntry]] = {}  # of a folder
        self._open: list[int] = []  # no inode that is on the disk may be given to another file
        for name in ("fsync", "rename", "replace"):
            monkeypatch.setattr(os, name, self._recording(name, getattr(os, name)))

    def _recording(self, name: str, call: Callable) -> Callable:
        def record(target, *arguments, **options):
            path = Path(f"/proc/self/fd/{target}").readlink() if name == "fsync" else Path(target)
            inside = path.absolute().is_relative_to(self.folder)
            if inside and name != "fsync":
                self._cut_power(f"before {name} of {path.name}")
            result = call(target, *arguments, **options)
            if inside:
                if name == "fsync":
                    self._force(target, path)
                self._cut_power(f"after {name} of {path.name}")
            return result

        return record

    def _force(self, descriptor: int, path: Path) -> None:
        self._open.append(os.dup(descriptor))
        inode = os.fstat(descriptor)
        if S_ISDIR(inode.st_mode):
            self._names[inode.st_ino] = list(os.scandir(path))
        else:
            self._contents[inode.st_ino] = path.read_bytes()

    def _cut_power(self, event: str) -> None:
        now = {str(path.relative_to(self.folder)): path.stat().st_ino for path in self._files()}
        forced, waiting = {}, [("", self.folder.stat().st_ino)]
        while waiting:
            prefix, folder = waiting.pop()
            for entry in self._names.get(folder, ()):
                if entry.is_dir():
                    waiting.append((f"{prefix}{entry.name}/", entry.inode()))
                else:
                    forced[prefix + entry.name] = entry.inode()
        for names_kept, names in ((True, now), (False, forced)):
            files = {name: self._contents.get(inode, b"") for name, inode in names.items()}
            self.images.append(Image(event, names_kept, files))

    def _files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file()]
