"""Bytes of every kind of file that people hand in are changed: a file is read, or an error of our own names it."""

import random
import zlib

import av
import pytest
from mutations import kinds, mutated, outcome

CHANGES = 12  # of each kind; `python tests/mutations.py --seconds 600` makes more


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return kinds(tmp_path_factory.mktemp("whole files"))


def test_any_change_of_a_file_is_read_or_named(files):
    av.logging.set_level(None)
    outcomes = {}
    for name, kind in files.items():
        whole, draw = kind.file.read_bytes(), random.Random(zlib.crc32(name.encode()))
        assert outcome(kind, whole, kind.file.parent) == "read", name
        outcomes[name] = [outcome(kind, mutated(whole, draw), kind.file.parent) for _ in range(CHANGES)]
        kind.file.write_bytes(whole)
    assert not {
        name: set(texts) - {"read", "named"} for name, texts in outcomes.items() if set(texts) - {"read", "named"}
    }
    assert sum("named" in texts for texts in outcomes.values()) > len(files) / 2
