"""
Publish the page of app.py as a Space on the Hub.

    gazeqwen space user/space                           # with the toy world's adapter
    gazeqwen space user/space --model user/gazeqwen     # with any adapter on the Hub

A Space installs its requirements.txt before its own files are there, so that this package cannot stand in it: it lies
beside the Space's app.py as the folder gazeqwen/. A private adapter needs the Space's secret HF_TOKEN.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from gazeqwen.utils.command_line import one_line_errors
from gazeqwen.utils.files import atomic_folder
from gazeqwen.utils.hub import open_repository, publish

_ROOT = Path(__file__).parent.parent


def write_space(folder: str | Path, model: str | None = None) -> None:
    """Write the files of a Space: card, requirements, this package, and an app.py that runs it with `model`."""
    with atomic_folder(folder) as files:
        card = (_ROOT / "model_card" / "space.md").read_text(encoding="utf-8")
        (files / "README.md").write_text(card.replace("models: []", f"models: [{model or ''}]"), encoding="utf-8")
        shutil.copy(_ROOT / "requirements.txt", files)
        arguments = ["--model", model] if model else []
        (files / "app.py").write_text(f"from gazeqwen.app import main\n\nmain({arguments!r})\n")
        package = files / "gazeqwen"
        package.mkdir()
        for module in _ROOT.glob("*.py"):
            shutil.copy(module, package)
        ignored = shutil.ignore_patterns("__pycache__", ".*")
        for room in _ROOT.glob("*/__init__.py"):
            shutil.copytree(room.parent, package / room.parent.name, ignore=ignored)
        for unasked in ("kitchen/backbone", "backbone_streams"):  # by the page
            shutil.rmtree(package / "toyworld" / unasked, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("space", help="id of the Space on the Hub, made if it is not there")
    parser.add_argument("--model", help="id of an adapter on the Hub (default: the toy world's)")
    arguments = parser.parse_args()
    open_repository(arguments.space, "space")  # before the work: the token may be wrong
    with tempfile.TemporaryDirectory() as folder:
        write_space(Path(folder) / "space", arguments.model)
        print(f"published: {publish(Path(folder) / 'space', arguments.space, 'space')}")


if __name__ == "__main__":
    with one_line_errors():
        main()
