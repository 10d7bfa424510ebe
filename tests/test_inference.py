"""One question about one clip, and the trained adapter that comes with the package."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from support import ROOT

from gazeqwen.inference.answering import ask, load_model, load_processor, offer
from gazeqwen.questions.dataset import load_questions
from gazeqwen.questions.release import build
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.toyworld.generate import generate
from gazeqwen.toyworld.trained import ADAPTER_DIR, keep

NOW = "Which object is the user currently gazing at?"


def imports_of(module: str) -> set[str]:
    """Modules of the package that `module` imports at its top level, and all that these import."""
    file = ROOT / Path(*module.split(".")[1:])
    file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    imported = {module}
    for name in re.findall(r"^(?:from|import) (\S+)", file.read_text(), flags=re.MULTILINE):
        if name.startswith("."):
            name = module.rpartition(".")[0] + name
        if name not in imported:
            imported |= imports_of(name) if name.startswith("gazeqwen.") else {name}
    return imported


@pytest.fixture(scope="module")
def trained():
    return load_model(ADAPTER_DIR), load_processor(ADAPTER_DIR)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """About what is looked at now, in videos that the adapter was not trained on."""
    folder = tmp_path_factory.mktemp("unseen")
    generate(folder / "world", train=0, val=0, test=10, seed=77, per_task=2)
    build(folder / "world", folder / "data", progress=False)
    return [q for q in load_questions(folder / "data", "test") if q.task.startswith("present_object")]


@pytest.fixture(scope="module")
def question(questions):
    return questions[0]


def asked_of(trained, question, scanpath, **settings):
    model, processor = trained
    clip = processor.read_clip(question.video, question.start_s, question.end_s)
    prompt, answers = offer(question.question, list(question.options), processor.prompt_style)
    return ask(model, processor, clip, scanpath, prompt, answers, processor.snap_s, **settings)


def test_the_trained_adapter_answers_by_gaze(trained, questions):
    right = {"with gaze": [], "without gaze": []}
    for question in questions:
        for name, answer in asked_of(trained, question, question.scanpath).answers.items():
            right[name].append(answer.text[3:] == question.options[question.answer])
            assert sum(answer.probabilities.values()) == pytest.approx(1)
    assert len(questions) >= 20
    assert np.mean(right["with gaze"]) >= 0.8 and np.mean(right["without gaze"]) <= 0.6


def test_foveal_attention_is_where_the_fixation_is(trained, question):
    asked = asked_of(trained, question, question.scanpath, explain=True)
    steps, height, width = asked.attention.shape
    assert (steps, height, width) == (6, 4, 4)
    assert (asked.attention.sum((1, 2)) <= 1 + 1e-5).all() and asked.attention[-1].sum() > 0.9  # the rest: on latents
    last = int(asked.weights[-1].argmax())  # the fixation asked about fills the last step
    x, y = asked.scanpath.table[last, :2]
    assert asked.attention[-1].argmax() == int(y * height) * width + int(x * width)
    assert (
        asked.residuals.shape == (steps, height, width)
        and asked.residuals[-1].argmax() == asked.attention[-1].argmax()
    )
    assert asked.counted()[-1][2] == {int(asked.scanpath.ids[last]): pytest.approx(1)}


def test_without_a_scanpath_it_is_the_base_model(trained, question):
    asked = asked_of(trained, question, None)
    assert asked.answers == {"without gaze": asked_of(trained, question, question.scanpath).answers["without gaze"]}
    assert asked.scanpath is asked.weights is asked.attention is asked.residuals is None and asked.counted() == []


def test_a_scanpath_beside_the_clip_leaves_every_step_without_fixation(trained, question):
    late = Scanpath.from_array([[0.5, 0.5, question.end_s + 50, 1.0]])
    assert [shares for *_, shares in asked_of(trained, question, late).counted()] == [{}] * 6


def test_options_are_lettered_and_their_number_is_checked():
    prompt, answers = offer(NOW, ["box", "box"], "reference")
    assert answers == {"A": "A. box", "B": "B. box"} and "B. box" in prompt
    assert offer("What is this?", [], "reference") == ("What is this?", {})
    with pytest.raises(ValueError, match="got 1 options"):
        offer(NOW, ["box"], "reference")


def test_the_kept_adapter_holds_no_code_and_no_path(tmp_path, trained):
    model, processor = trained
    model.save_pretrained(tmp_path / "best")
    processor.save_pretrained(tmp_path / "best")
    assert list((tmp_path / "best").glob("*.py")) and str(ROOT) in (tmp_path / "best" / "config.json").read_text()
    beside = {"../backbone", "../video_encoder"}  # the frozen models, beside the kept adapter
    keep(tmp_path / "best", tmp_path / "kept")
    for folder in (tmp_path / "kept", ADAPTER_DIR):
        assert not list(folder.glob("*.py"))
        for file in folder.glob("*.json"):
            if file.name != "tokenizer.json":
                text = json.dumps(json.loads(file.read_text())).replace("</", "")
                assert all(part in beside for part in re.findall(r'[^" ]*/[^" ]*', text)), file
    assert (tmp_path / "kept" / "model.safetensors").read_bytes() == (ADAPTER_DIR / "model.safetensors").read_bytes()


def test_asking_imports_no_trainer_no_scorer_and_the_product_no_toy_world():
    unwanted = ("gazeqwen.training", "gazeqwen.evaluation", "gazeqwen.plots", "accelerate", "datasets", "matplotlib")
    imported = imports_of("gazeqwen.ask")
    assert {"gazeqwen.modeling_gazeqwen", "torch"} <= imported
    assert not [name for name in imported if name.startswith(unwanted)]
    for module in ("answering", "explorer"):
        imported = imports_of(f"gazeqwen.inference.{module}")
        assert not [name for name in imported if name.startswith("gazeqwen.toyworld")]
