"""The page as a Space: what it installs and holds, that it runs, and that it is published whole."""

import os
import re
import shutil
import subprocess
import tomllib
from urllib.request import urlopen

import pytest
import yaml
from forked import LIBRARIES_PYTHON, PYTHON
from local_hub import LocalHub
from packaging.requirements import Requirement
from support import ROOT, requirements

from gazeqwen.model_card import space as space_module
from gazeqwen.model_card.space import write_space

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, PACKAGES = PYPROJECT["project"], PYPROJECT["tool"]["setuptools"]["packages"]


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    folder = tmp_path_factory.mktemp("space") / "space"
    write_space(folder)
    return folder


def header(text: str) -> dict:
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)[1])


def test_requirements_are_those_of_the_package_and_of_its_page():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    assert list(map(Requirement, lines)) == requirements("app")


def test_the_card_asks_for_versions_that_the_package_admits(space):
    said = header((space / "README.md").read_text())
    assert (said["sdk"], said["app_file"], said["license"]) == ("gradio", "app.py", PROJECT["license"].lower())
    (gradio,) = (requirement for requirement in requirements("app") if requirement.name == "gradio")
    assert gradio.specifier.contains(said["sdk_version"])
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(said["python_version"])
    assert said["models"] == []
    assert len(said["short_description"]) <= 60


def test_the_space_holds_the_package_and_nothing_of_this_machine(space):
    files = {path.relative_to(space).as_posix() for path in space.rglob("*") if path.is_file()}
    assert {"README.md", "app.py", "requirements.txt", "gazeqwen/inference/explorer.py"} <= files
    assert (space / "app.py").read_text().endswith("main([])\n")
    assert "gazeqwen/toyworld/adapter/model.safetensors" in files
    package = space / "gazeqwen"
    rooms = {f"gazeqwen.{path.name}" for path in package.iterdir() if path.is_dir()}
    inner = {
        f"gazeqwen.{path.parent.relative_to(package)}".replace("/", ".") for path in package.glob("*/*/__init__.py")
    }
    assert {"gazeqwen", *rooms, *inner} == set(PACKAGES)
    assert sum(path.stat().st_size for path in space.rglob("*")) < 20e6
    left_out = ("__pycache__", "kitchen/backbone", "backbone_streams")
    assert not [name for name in files if any(part in name for part in left_out)]


def test_hidden_files_of_a_room_stay_here(tmp_path, monkeypatch):
    """A copy of the package, so that this writes nothing beside the code that other tests run."""
    shutil.copytree(ROOT / "model_card", tmp_path / "package" / "model_card")
    shutil.copy(ROOT / "requirements.txt", tmp_path / "package")
    (tmp_path / "package" / "model_card" / ".env").write_text("HF_TOKEN=secret")
    monkeypatch.setattr(space_module, "_ROOT", tmp_path / "package")
    write_space(tmp_path / "space")
    assert (tmp_path / "space" / "gazeqwen" / "model_card" / "card.py").is_file()
    assert not (tmp_path / "space" / "gazeqwen" / "model_card" / ".env").exists()


def test_the_space_runs(space, tmp_path):
    """Its app.py, with the package that lies beside it."""
    code = "import runpy, gazeqwen; print(gazeqwen.__file__); runpy.run_path('app.py', run_name='__main__')"
    command, environment = [LIBRARIES_PYTHON, "-u", "-c", code], os.environ | {"GRADIO_TEMP_DIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=space, env=environment, text=True, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout.readline().startswith(str(space))
            address = next(line.split()[1] for line in server.stdout if line.startswith("open "))
            assert "GazeQwen" in urlopen(address).read().decode()
        finally:
            server.terminate()


PUBLISH = """
import sys
from huggingface_hub import create_repo, upload_file
from gazeqwen.model_card.space import main
space = {"repo_id": "user/space", "repo_type": "space"}
create_repo(**space, space_sdk="gradio")
upload_file(**space, path_or_fileobj=b"", path_in_repo="gazeqwen/of_an_earlier_version.py")
sys.argv = ["space", "user/space", "--model", "user/gazeqwen"]
main()
"""


def test_a_space_is_published_and_replaces_an_earlier_version(tmp_path):
    with LocalHub() as hub:
        command, environment = [PYTHON, "-c", PUBLISH], hub.environment(tmp_path / "home")
        result = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert result.returncode == 0, result.stderr
        assert result.stdout.startswith("published: ") and "spaces/user/space" in result.stdout
        uploads = [request for request in hub.requests if request == ("POST", "/api/spaces/user/space/commit/main")]
        assert len(uploads) == 2
        files = hub.files("user/space", kind="spaces")
    assert header(files["README.md"].decode())["models"] == ["user/gazeqwen"]
    assert files["app.py"].decode().endswith("main(['--model', 'user/gazeqwen'])\n")
    here = (ROOT / "toyworld/adapter/model.safetensors").read_bytes()
    assert files["gazeqwen/toyworld/adapter/model.safetensors"] == here
    assert "gazeqwen/of_an_earlier_version.py" not in files
