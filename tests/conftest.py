"""What pytest asks before it imports tests."""

import gc
import os
import sys

import pytest
from fork_server import leave_in_memory, name_configs_alone
from forked import SESSION, WORKER_PYTHON

# Before datasets is imported: what tests load is cached where it goes away.
os.environ["HF_DATASETS_CACHE"] = str(SESSION / "datasets")
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


def pytest_collection_modifyitems(items):
    names = [f"test_{name}.py" for name in LONGEST]
    items.sort(key=lambda item: names.index(item.path.name) if item.path.name in names else len(names))


def pytest_collection_finish():
    """What has been imported stays: a garbage collection, which ends each training stage, need not look through it."""
    gc.collect()
    gc.freeze()
