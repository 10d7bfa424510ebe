"""The package as others get it: a wheel that imports alone, files that stay apart."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support import ROOT

HUB_FILES = sorted([*ROOT.glob("*_gazeqwen.py"), ROOT / "modeling_vjepa2_1.py"])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".git", ".venv", "runs", "__pycache__", "*.egg-info", "build")
    shutil.copytree(ROOT, folder / "source", ignore=ignored)
    command = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder), str(folder / "source")]
    subprocess.run([sys.executable, "-m", "pip", *command], check=True, capture_output=True, text=True)
    (found,) = folder.glob("gazeqwen-*.whl")
    return found


def test_the_wheel_holds_the_package_and_the_tiny_models(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        *("gazeqwen/modeling_gazeqwen.py", "gazeqwen/train.py", "gazeqwen/recipes/demo.yaml"),
        *("gazeqwen/model_card/template.md", "gazeqwen/model_card/dataset_template.md"),
        *("gazeqwen/benchmarks/results/model_tiny_cpu.json", "gazeqwen/model_card/__main__.py"),
        *("gazeqwen/toyworld/generate.py", "gazeqwen/toyworld/backbone/model.safetensors"),
        *("gazeqwen/app.py", "gazeqwen/requirements.txt", "gazeqwen/model_card/space.md"),
    ):
        assert name in names
    assert not [name for name in names if name.startswith("gazeqwen/tests") or name.startswith("tests")]


def test_the_wheel_works_where_there_is_no_checkout(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        "import gazeqwen.training.trainer, gazeqwen.ask, gazeqwen.app, gazeqwen.convert;"
        "import gazeqwen.toyworld.pretrain as p;"
        "from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration as G;"
        "from pathlib import Path; here = Path(p.__file__).parent;"
        "model = G.from_base(str(here / 'backbone'), str(here / 'video_encoder'), latent_dim=16);"
        "print(here)"
    )
    isolated = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); {code}"]
    result = subprocess.run(isolated, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(tmp_path / "site" / "gazeqwen" / "toyworld")


def test_hub_files_import_only_what_the_hub_can_resolve():
    """Flat siblings and declared packages: `trust_remote_code` refuses anything else at load."""
    assert len(HUB_FILES) == 9
    siblings, allowed = {path.stem for path in HUB_FILES}, {"torch", "transformers", "safetensors", "numpy"}
    for path in HUB_FILES:
        required = re.sub(r"^try:\n(    .*\n)+except ImportError", "", path.read_text(), flags=re.MULTILINE)
        for line in re.findall(r"^\s*(?:import|from) .*$", required, flags=re.MULTILINE):
            module = line.split()[1]
            if module.startswith("."):
                assert module[1:] in siblings, f"{path.name}: {line}"
            else:
                assert module.split(".")[0] in allowed | set(sys.stdlib_module_names), f"{path.name}: {line}"


def test_no_pickle_is_loaded_outside_the_converter():
    for path in ROOT.glob("**/*.py"):
        if ".venv" in path.parts or path.parent.name == "tests" or path.name == "convert.py":
            continue
        assert not re.search(r"torch\.load\(|pickle\.load|weights_only=False", path.read_text()), path
