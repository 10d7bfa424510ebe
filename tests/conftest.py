"""What pytest asks before it imports tests."""

import os
import sys

import pytest
from fork_server import (
    collect_garbage_rarely,
    draw_no_values_on_meta,
    leave_in_memory,
    name_configs_alone,
    read_yaml_in_c,
)
from forked import SESSION, WORKER_PYTHON

# Before datasets is imported: what tests load is cached where it goes away.
os.environ["HF_DATASETS_CACHE"] = str(SESSION / "datasets")
# Threads that load a tiny model's tensors wait for each other most of the time.
os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
leave_in_memory()


def pytest_configure(config):
    """
    The process that only hands out tests to others need not import what they use; the others are forked from one that
    has imported it once.
    """
    if hasattr(config, "workerinput"):
        sys.executable = config.workerinput["executable"]
    elif getattr(config.option, "numprocesses", None):
        config.option.tx = [f"popen//python={WORKER_PYTHON}" for _ in config.option.tx]
        return
    config.pluginmanager.import_plugin("shared_fixtures")
    name_configs_alone()
    draw_no_values_on_meta()
    read_yaml_in_c()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    node.workerinput["executable"] = sys.executable


# The files that take longest begin, so that the workers of `make test` end together.
LONGEST = (
    *("hub", "training_options", "stream", "readme", "evaluation", "resume", "kitchen", "toyworld", "evidence"),
    *("fairness", "training", "planning", "malformed", "controls", "report", "model_uses", "model_transformers"),
    *("toy_backbone", "stream_memory", "adapters", "app", "package", "toy_adapter", "statistics", "model"),
    *("power_cut", "model_card", "vjepa2_1", "explorer", "streaming_play", "notebooks", "trainer_guide"),
)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """
    Where assertions have to be rewritten first, each worker does half of the files, and then reads the other's: one
    begins at the end.
    """
    report = yield
    if os.environ.get("PYTEST_XDIST_WORKER") == "gw1" and isinstance(collector, pytest.Dir):
        report.result.reverse()
    return report


def pytest_collection_modifyitems(items):
    names = [f"test_{name}.py" for name in LONGEST]

    def place(item) -> tuple:
        return names.index(item.path.name) if item.path.name in names else len(names), item.path

    items.sort(key=place)


def pytest_collection_finish():
    collect_garbage_rarely()
