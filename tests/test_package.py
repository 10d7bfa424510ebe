"""The package as others get it: a wheel that imports alone, files that stay apart."""

import fcntl
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import pytest
from forked import LIBRARIES_PYTHON, PYTHON, SESSION
from support import ROOT, index_frames, write_fixations, write_video

import gazeqwen
from gazeqwen.utils.command_line import COMMANDS, OPTIONAL, main

HUB_FILES = sorted([*ROOT.glob("*_gazeqwen.py"), ROOT / "modeling_vjepa2_1.py"])


@pytest.fixture(scope="module")
def wheel() -> Path:
    """Built once, whichever worker needs it first."""
    folder = SESSION / "wheel"
    with open(SESSION / "wheel.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            ignored = shutil.ignore_patterns(".git", ".venv*", "runs", "__pycache__", "*.egg-info", "build")
            source = shutil.copytree(ROOT, SESSION / "source", ignore=ignored)
            command = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)]
            subprocess.run([sys.executable, "-m", "pip", *command], check=True, capture_output=True, text=True)
    (found,) = folder.glob("gazeqwen-*.whl")
    return found


def test_the_wheel_holds_the_package_and_the_tiny_models(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        *("gazeqwen/py.typed", "gazeqwen/modeling_gazeqwen.py", "gazeqwen/train.py", "gazeqwen/recipes/demo.yaml"),
        *("gazeqwen/model_card/template.md", "gazeqwen/model_card/dataset_template.md"),
        *("gazeqwen/benchmarks/results/model_tiny_cpu.json", "gazeqwen/model_card/__main__.py"),
        *("gazeqwen/toyworld/generate.py", "gazeqwen/toyworld/backbone/model.safetensors"),
        "gazeqwen/toyworld/backbone_qwen3_vl/model.safetensors",
        "gazeqwen/suites/lmms_tasks/streamgaze/streamgaze.yaml",
        *("gazeqwen/app.py", "gazeqwen/requirements.txt", "gazeqwen/model_card/space.md"),
    ):
        assert name in names
    left_out = ("gazeqwen/tests", "tests", "gazeqwen/toyworld/kitchen/backbone", "gazeqwen/toyworld/backbone_streams")
    assert not [name for name in names if name.startswith(left_out)]


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
    isolated = [LIBRARIES_PYTHON, "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); {code}"]
    result = subprocess.run(isolated, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(tmp_path / "site" / "gazeqwen" / "toyworld")


HIDING = """
import sys

class Without:  # a finder of modules that does not find the hidden ones, as if they were not installed
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {hidden!r} else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Without, sys.meta_path)
"""


def run_without(hidden: set[str], code: str, *arguments: str, python: str | Path = PYTHON):
    """Run code in a process in which these packages cannot be imported, and `python` has not imported them."""
    command = [python, "-c", HIDING.format(hidden=hidden) + code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_asking_needs_no_extra(tmp_path):
    """A whole question of the toy world without any package that an extra installs, and then a picture of it."""
    video = write_video(tmp_path / "v.mp4", index_frames(20, 112, 112), fps=2)
    scanpath = write_fixations(tmp_path / "f.csv", [(0.5, 2.5, 0.25, 0.75), (6.0, 9.5, 0.8, 0.2)])
    question = ["--question", "Which object is the user currently gazing at?", "--options", "lemon", "cheese"]
    asked = ["ask", "--video", str(video), "--scanpath", str(scanpath), "--time", "8", *question]
    code = "from gazeqwen.utils.command_line import main; main(); sys.argv = {!r}; main()"
    drawn = ["gazeqwen", *asked, "--plot", str(tmp_path / "p.png")]
    result = run_without(OPTIONAL - {"accelerate"}, code.format(drawn), *asked)  # PEFT, which is no extra, brings it
    assert re.search(r"^with gaze: .*^without gaze: ", result.stdout, flags=re.MULTILINE | re.DOTALL), result.stderr
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "gazeqwen ask needs: pip install gazeqwen[plot]"


def test_a_command_names_the_extra_that_it_needs():
    """All in one process, since each would import torch anew; a script of the root says the same."""
    code = """
import runpy
from gazeqwen.utils.command_line import main

for name in {named!r}:
    sys.argv = ["gazeqwen", name, *{some!r}.get(name, ["--help"])]
    try:
        main()
    except SystemExit as end:
        print(end.code)
for script in ("train.py", "eval.py", "app.py"):
    sys.argv = [script] if script == "app.py" else [script, "recipes/demo.yaml"]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        print(end.code)
"""
    named = {"app": "app", "build": "data", "train": "train", "eval": "eval", "report": "eval", "card": "eval"}
    some = {"app": [], "train": ["demo"], "card": ["runs/x/best"]}  # arguments of those that need nothing for --help
    result = run_without(OPTIONAL, code.format(named=list(named), some=some))
    expected = [f"gazeqwen {name} needs: pip install gazeqwen[{extra}]" for name, extra in named.items()]
    expected += [f"{name}.py needs: pip install gazeqwen[{name}]" for name in ("train", "eval", "app")]
    assert result.stdout.splitlines() == expected, result.stderr


def test_help_does_not_wait_for_torch():
    code = """
import sys
from gazeqwen.utils.command_line import main

for name in ("example", "ask", "app", "stream", "gaze", "train", "space", "card"):
    sys.argv = ["gazeqwen", name, "--help"]
    try:
        main()
    except SystemExit as end:
        assert not end.code, name
print([name for name in ("torch", "transformers", "accelerate", "gradio") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[]", result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_shows_an_example(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gazeqwen", command, "--help"])
    with pytest.raises(SystemExit) as end:
        main()
    usage, *description = capsys.readouterr().out.split("\n\n")
    assert end.value.code == 0
    assert usage.startswith(f"usage: gazeqwen {command} ")
    assert re.search(rf"^ *gazeqwen {command}\b", "\n".join(description), flags=re.MULTILINE)


def test_the_command_imports_nothing_heavy_before_it_knows_what_to_run():
    code = "from gazeqwen.utils.command_line import main; sys.argv = ['gazeqwen', '--help']; main()"
    result = run_without({"torch", "transformers", "numpy", *OPTIONAL}, code, python=sys.executable)
    assert result.returncode == 0, result.stderr
    assert all(f"  {name} " in result.stdout for name in COMMANDS)


def test_hub_files_import_only_what_the_hub_can_resolve():
    """Flat siblings and declared packages: `trust_remote_code` refuses anything else at load."""
    assert len(HUB_FILES) == 14
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
    folders = [folder for folder in ROOT.iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    for path in chain(ROOT.glob("*.py"), *(folder.rglob("*.py") for folder in folders)):
        if path.parent.name == "tests" or path.name == "convert.py":
            continue
        assert not re.search(r"torch\.load\(|pickle\.load|weights_only=False", path.read_text()), path


def test_the_version_is_that_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert gazeqwen.__version__ == project["version"]
