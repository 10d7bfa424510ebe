"""Training with transformers' own Trainer, as the guide has it."""

import json
import re
import subprocess

from forked import PACKAGE_PYTHON
from safetensors.torch import load_file
from support import ROOT

from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration

TRAINED = "{name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}"
GUIDE = (ROOT / "docs" / "guides" / "trainer.md").read_text()


def test_the_guide_trains_an_adapter(toy_data, tmp_path):
    """A few steps: the loss falls, what is saved is an adapter that loads, and its weights have moved."""
    (snippet,) = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)
    changes = {"runs/trainer/data": str(toy_data), "max_steps=20": "max_steps=8", "logging_steps=5": "logging_steps=1"}
    for old, new in changes.items():
        assert old in snippet
        snippet = snippet.replace(old, new)
    snippet = snippet.replace("trainer.train()", f"before = {TRAINED}\ntrainer.train()")
    snippet += f"""
import json
moved = [name for name, value in {TRAINED}.items() if not torch.equal(value, before[name])]
json.dump([trainer.state.log_history, moved, sorted(before)], open("log.json", "w"))
"""
    result = subprocess.run([PACKAGE_PYTHON, "-c", snippet], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    history, moved, trained = json.loads((tmp_path / "log.json").read_text())
    losses = [line["loss"] for line in history if "loss" in line]
    assert len(losses) == 8 and min(losses[4:]) < losses[0]
    folder = tmp_path / "runs" / "trainer" / "adapter"
    assert set(load_file(folder / "model.safetensors")) >= set(trained)
    assert len(moved) > len(trained) / 2 and all(name.startswith("resampler.") for name in trained)
    assert GazeQwenForConditionalGeneration.from_pretrained(folder).config.latent_dim == 48


def test_every_trainer_command_is_one_of_the_package():
    commands = re.findall(r"^(python -m [\w.]+|gazeqwen \w+)", GUIDE, flags=re.MULTILINE)
    assert commands == ["python -m gazeqwen.toyworld.generate", "gazeqwen build"]
