"""The documentation's site."""

import re
import subprocess
import sys

from PIL import Image
from support import ROOT

from gazeqwen.streaming.stream import GazeStream


def test_it_builds_without_a_warning(tmp_path):
    """
    Strict: a link, an anchor or a docstring that leads nowhere ends it. (Not `--quiet`: what is not printed does not
    count as a warning.)
    """
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = {"NO_MKDOCS_2_WARNING": "1", "PATH": "/usr/bin:/bin"}
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert result.returncode == 0 and "WARNING" not in result.stderr, result.stderr
    pages = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*.html")}
    assert {"index.html", "guides/recording/index.html", "repository/toyworld/index.html"} <= set(pages)
    assert "Try it" in pages["index.html"] and "evidence/" in pages["index.html"]
    assert (tmp_path / "images" / "effect.png").exists()
    assert "D. onion" in pages["notebooks/my_recording/index.html"]
    pictures = re.findall(r'<img[^>]*src="([^"]+)"', pages["notebooks/my_recording/index.html"])
    assert len(pictures) == 3
    for picture in pictures:
        assert Image.open(tmp_path / "notebooks" / "my_recording" / picture).size[0] > 500
    assert 'href="../../guides/recording/#formats"' in pages["notebooks/my_recording/index.html"]
    assert GazeStream.ask.__doc__.split()[0] in pages["reference/index.html"]
    assert re.search(r"repository/benchmarks/results/\w+.json", pages["streaming/index.html"])


def test_every_page_is_a_documents_and_every_document_a_page():
    """What is in the navigation is there, and nothing is left out of it."""
    listed = set(re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE))
    documents = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    notebooks = {f"notebooks/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {name for name in listed if not name.startswith("repository/")} == documents | notebooks | {"index.md"}
