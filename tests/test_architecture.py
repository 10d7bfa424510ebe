"""The house: which module may import which, read from the source."""

import ast
import re
import sys
from functools import cache
from graphlib import TopologicalSorter

import pytest
from support import ROOT, requirements

from gazeqwen.utils.command_line import COMMANDS as COMMAND_MODULES
from gazeqwen.utils.command_line import OPTIONAL

# Room: the rooms that its modules may import. The Hub's files at the root are open to all.
ROOMS = {
    "utils": "",
    "gaze_sources": "utils",
    "questions": "utils gaze_sources",
    "pipeline": "utils questions",
    "streaming": "utils gaze_sources questions pipeline",
    "plots": "utils questions gaze_sources",
    "evaluation": "utils questions pipeline plots streaming",
    "training": "utils questions pipeline plots evaluation",
    "inference": "utils gaze_sources questions pipeline plots streaming",
    "page": "utils inference toyworld",
    "model_card": "utils questions evaluation",
    "suites": "utils questions pipeline evaluation",
    "toyworld": "utils gaze_sources questions pipeline plots streaming evaluation training inference",
    "metrics": "evaluation",
}
# Modules that are run, not imported: what they may import beside their own room.
COMMANDS = {
    "gaze_sources.__main__": "utils plots",
    "streaming.__main__": "utils gaze_sources toyworld",
    "ask": "utils questions pipeline plots inference toyworld",
    "app": "utils inference page toyworld",
    "convert": "utils",
    "train": "utils training model_card",
    "eval": "utils questions pipeline evaluation",
}
# Where a package is imported by another name than it is installed by; what comes with transformers.
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "huggingface_hub": "huggingface-hub", "tokenizers": "transformers"}
DISTRIBUTIONS |= {"starlette": "gradio"}
# What is reached and not run, or names itself: readers of Neon's recordings and of LSL, a report's tests in training.
NOT_NEEDED = {"lmms_eval", "onnx", "projectaria_tools", "pupil_labs", "pylsl"}
NOT_RUN = {"train": {"scipy", "statsmodels"}}
PATHS = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for room in ("", *ROOMS)
    for path in (ROOT / room).glob("**/*.py" if room else "*.py")
}
HUB_FILES = [name for name in PATHS if name.endswith("_gazeqwen") or name == "modeling_vjepa2_1"]


@cache
def imports(module: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the modules of this package and the foreign packages that a module imports, also within functions."""
    path, own, foreign = PATHS[module], set(), set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            foreign |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                source = ".".join(filter(None, (package, source)))
            elif source.split(".")[0] == "gazeqwen":
                source = source.removeprefix("gazeqwen").removeprefix(".")
            else:
                foreign.add(source.split(".")[0])
                continue
            names = {".".join(filter(None, (source, alias.name))) for alias in node.names}
            own |= {name if name in PATHS else source for name in names} & PATHS.keys()
    assert "gazeqwen" not in foreign, f"{path}: write `from gazeqwen.room import ...`"
    return frozenset(own - {module}), frozenset(foreign - sys.stdlib_module_names)


def room_of(module: str) -> str:
    """Return the room that a module stands in, empty for the root."""
    return module.split(".")[0] if module.split(".")[0] in ROOMS else ""


def reached(*modules: str) -> set[str]:
    """Return every module that is imported with these ones, among them the rooms' __init__.py."""
    seen, waiting = set(), list(modules)
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += imports(module)[0]
            waiting += {room_of(module)} & PATHS.keys()
    return seen


def foreign_packages(modules: set[str]) -> set[str]:
    """Return the foreign packages that any of these modules imports."""
    return set().union(*(imports(module)[1] for module in modules))


def test_each_room_imports_only_the_rooms_below_it():
    for module in PATHS:
        room = room_of(module)
        if module in HUB_FILES or module == "__init__":
            allowed = {""}
        else:
            allowed = {"", room, *COMMANDS.get(module, ROOMS.get(room, "")).split()}
        for imported in imports(module)[0]:
            assert room_of(imported) in allowed, f"{module} imports {imported}"
            assert imported not in COMMANDS, f"{module} imports {imported}, which is a command"


def test_no_module_imports_itself_in_a_circle():
    TopologicalSorter({module: imports(module)[0] for module in PATHS}).prepare()  # CycleError names the circle


def test_the_hub_files_import_siblings_alone():
    """A regex of transformers collects what remote code needs; it knows `from .sibling import` and nothing else."""
    for module in HUB_FILES:
        assert imports(module)[0] <= set(HUB_FILES), module
        for node in ast.walk(ast.parse(PATHS[module].read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in HUB_FILES:
                assert node.level == 1, f"{module}: from {node.module}"


def test_what_commands_do_without():
    ask = reached("ask")
    assert not {room_of(module) for module in ask} & {"training", "evaluation", "model_card"}
    assert "accelerate" not in foreign_packages(ask)
    questions = reached(*(module for module in PATHS if room_of(module) == "questions"))
    assert "matplotlib" not in foreign_packages(questions)
    assert {"accelerate", "matplotlib"} <= foreign_packages(reached("train"))  # the test sees what is there


def packages_of(*extras: str) -> set[str]:
    """Return the names of the packages that `pip install gazeqwen[extras]` asks for."""
    return {requirement.name for requirement in requirements(*extras)}


@pytest.mark.parametrize("command", COMMAND_MODULES)
def test_a_command_imports_what_its_extra_installs(command):
    module, extra, _ = COMMAND_MODULES[command]
    packages = foreign_packages(reached(module.removeprefix("gazeqwen."))) - NOT_NEEDED - NOT_RUN.get(command, set())
    installed = packages_of(*filter(None, [extra]))
    assert not {DISTRIBUTIONS.get(name, name) for name in packages} - installed


def test_only_packages_of_extras_are_called_optional():
    assert packages_of("all") - packages_of() == OPTIONAL


def test_the_root_and_the_model_stay_small():
    assert len(list(ROOT.glob("*.py"))) <= 20
    assert len((ROOT / "modeling_gazeqwen.py").read_text().splitlines()) <= 500


def test_the_documents_draw_the_real_house():
    design = (ROOT / "docs" / "design.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", design, flags=re.MULTILINE)
    drawn = {room: set(re.findall(r"`(\w+)`", what.split(";")[0])) for room, what in rows}
    assert drawn["toyworld"] == set() and "metrics" not in drawn
    rooms = {room: set(allowed.split()) for room, allowed in ROOMS.items() if room not in ("toyworld", "metrics")}
    assert {room: drawn[room] for room in rooms} == rooms
    readme = (ROOT / "README.md").read_text().split("## Where things are")[1]
    assert {name for name in re.findall(r"`(\w+)/`", readme) if name in ROOMS} == set(ROOMS)
    for document in (readme, (ROOT / "CONTRIBUTING.md").read_text()):
        for name in re.findall(r"`([a-z][\w./]*(?:/|\.py|\.md))`", document):
            assert (ROOT / name).exists(), name
