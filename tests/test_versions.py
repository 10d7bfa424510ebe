"""The versions of transformers that pyproject.toml admits: the oldest and the newest give the same logits."""

import re

import pytest
import torch
from golden_logits import ANSWER, GOLDEN, golden_base, golden_inputs, logits_of
from packaging.specifiers import SpecifierSet
from safetensors.torch import load_file
from support import ROOT, requirements

from gazeqwen.backbones_gazeqwen import FAMILIES


@pytest.fixture(scope="module")
def golden() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_logits_are_those_of_the_newest(model_type, golden, tmp_path):
    base = golden_base(model_type, tmp_path)
    logits = logits_of(base)
    assert sorted(logits) == sorted(name for name in golden if name.split()[0] == model_type)
    for name, value in logits.items():
        torch.testing.assert_close(value, golden[name], atol=1e-5, rtol=1e-5)
    gaze, plain = (logits[f"{model_type} {name}"] for name in ("with gaze", "without gaze"))
    assert (gaze - plain)[0].abs().max() > 0.1 and torch.equal(gaze[1], plain[1])


def test_with_the_librarys_own_positions_they_are_others(golden, tmp_path):
    base = golden_base("qwen2_5_vl", tmp_path)
    base.model.detach_gaze()
    inputs = golden_inputs(base, gaze=False)
    with torch.no_grad():
        logits = base.model.backbone(**inputs).logits[:, -ANSWER:]
    assert (logits - golden["qwen2_5_vl without gaze"]).abs().max() > 0.01


def test_the_versions_tried_are_the_bounds_of_what_is_asked_for():
    admitted = next(each.specifier for each in requirements() if each.name == "transformers")
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    oldest, newest = re.search(r'transformers: \["(.+)", "(.+)"\]', workflow).groups()
    major, minor = newest.split(".")
    assert admitted == SpecifierSet(f">={oldest},<{major}.{int(minor) + 1}")
    assert re.findall(r"^OLDEST := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE) == [oldest]
