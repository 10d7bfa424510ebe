"""
What the documentation's site (mkdocs.yml) needs beyond the pages here: the README is its first page, notebooks are
pages, files of the repository that pages link to are in it below repository/, and the package is found whatever its
folder's name is.
"""

import base64
import json
import re
import tempfile
from pathlib import Path

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.utils import get_relative_url

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"(?<=\]\()(?!https?:|#|mailto:)([^)\s#]+)(#[^)\s]*)?(?=\))")


@event_priority(100)  # before mkdocstrings takes its settings
def on_config(config):
    """Let the reference's docstrings be read from this checkout, named as the package."""
    parent = Path(tempfile.mkdtemp(prefix="gazeqwen-docs-"))
    package = parent / "gazeqwen"
    package.mkdir()
    for path in ROOT.iterdir():
        if path.suffix == ".py" or (path / "__init__.py").exists():
            (package / path.name).symlink_to(path)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(parent)]
    return config


def on_files(files: Files, config) -> Files:
    """Add the README as the first page, and what pages link to outside docs/, and these pages' own links likewise."""
    files.append(File.generated(config, "index.md", content=_as_first_page((ROOT / "README.md").read_text())))
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text, pictures = _notebook_page(notebook)
        files.append(File.generated(config, _uri_of(notebook), content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    waiting = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    for path in (ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"):
        _add(files, config, path)
    while waiting:
        page = waiting.pop()
        for target, _ in LINK.findall(page.read_text()):
            path = (page.parent / target).resolve()
            is_outside = path.is_file() and ROOT in path.parents and ROOT / "docs" not in path.parents
            if is_outside and path != ROOT / "README.md" and _add(files, config, path) and path.suffix == ".md":
                waiting.append(path)
    return files


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Point links at where the site has what they name."""
    if page.file.src_uri == "index.md":
        return markdown
    source = _source_of(page.file.src_uri)

    def moved(match: re.Match) -> str:
        path = (source.parent / match[1]).resolve()
        uri = _uri_of(path)
        if uri is None or not path.is_file():  # a notebook's picture is beside its page already
            return match[0]
        return get_relative_url(uri, page.file.src_uri) + (match[2] or "")

    return LINK.sub(moved, markdown)


def _as_first_page(text: str) -> str:
    def moved(match: re.Match) -> str:
        uri = _uri_of((ROOT / match[1]).resolve())
        return match[0] if uri is None else uri + (match[2] or "")

    return LINK.sub(moved, text)


def _notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return a notebook as a page, and its pictures by name: its text, its code, and under it what that gave."""
    parts, pictures = [], {}
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            if output["output_type"] == "stream":
                parts.append(f"```text\n{''.join(output['text'])}```")
            else:
                name = f"{path.stem}-{len(pictures)}.png"
                pictures[name] = base64.b64decode("".join(output["data"]["image/png"]))
                parts.append(f"![What the code above shows]({name})")
    return "\n\n".join(parts), pictures


def _source_of(uri: str) -> Path:
    if uri.startswith("notebooks/"):
        return (ROOT / uri).with_suffix(".ipynb")
    if uri.startswith("repository/"):
        return ROOT / uri.removeprefix("repository/")
    return ROOT / "docs" / uri


def _uri_of(path: Path) -> str | None:
    if path == ROOT / "README.md":
        return "index.md"
    if ROOT / "docs" in path.parents:
        return path.relative_to(ROOT / "docs").as_posix()
    if path.suffix == ".ipynb" and path.parent == ROOT / "notebooks":
        return f"notebooks/{path.stem}.md"
    if ROOT in path.parents:
        return f"repository/{path.relative_to(ROOT).as_posix()}"
    return None


def _add(files: Files, config, path: Path) -> bool:
    uri = _uri_of(path)
    if files.get_file_from_path(uri) is not None:
        return False
    files.append(File.generated(config, uri, content=path.read_bytes()))
    return True
