"""One question about one clip, and the trained adapter that comes with the package."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from support import ROOT

from gazeqwen.inference.answering import Comparison, Snap, ask
from gazeqwen.pipeline.answers import build_prompt
from gazeqwen.questions.dataset import load_questions
from gazeqwen.questions.release import build
from gazeqwen.resampler_gazeqwen import fixation_weights
from gazeqwen.scanpath_gazeqwen import Scanpath
from gazeqwen.toyworld.generate import generate
from gazeqwen.toyworld.trained import ADAPTER_DIR, keep
from gazeqwen.utils.adapters import load_model, load_processor
from gazeqwen.video_gazeqwen import Clip

NOW = "Which object is the user currently gazing at?"


def imports_of(module: str) -> set[str]:
    """Modules of the package that `module` imports at its top level, and all that these import."""
    file = ROOT / Path(*module.split(".")[1:])
    file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
    imported = {module}
    for name in re.findall(r"^(?:from|import) (\S+)", file.read_text(), flags=re.MULTILINE):
        if name.startswith("."):
            name = (module if file.name == "__init__.py" else module.rpartition(".")[0]) + name
        name = name.rstrip(".")  # `from . import module`
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


def compare(trained, question, scanpath, snap_s=1.0, **settings):
    model, processor = trained
    assert processor.snap_s == 1.0
    clip = processor.read_clip(question.video, question.start_s, question.end_s)
    prompt, answers = build_prompt(question.question, list(question.options), processor.prompt_style)
    return ask(model, processor, clip, scanpath, prompt, answers, snap_s, **settings)


def test_the_trained_adapter_answers_by_gaze(trained, questions):
    right = {"with gaze": [], "without gaze": []}
    for question in questions:
        for name, answer in compare(trained, question, question.scanpath).answers.items():
            right[name].append(answer.text[3:] == question.options[question.answer])
            assert sum(answer.probabilities.values()) == pytest.approx(1)
    assert len(questions) >= 20
    assert np.mean(right["with gaze"]) >= 0.8 and np.mean(right["without gaze"]) <= 0.6


def test_foveal_attention_is_where_the_fixation_is(trained, question):
    comparison = compare(trained, question, question.scanpath, explain=True)
    steps, height, width = comparison.attention.shape
    assert (steps, height, width) == (6, 4, 4)
    # The rest of the attention is on the latents themselves.
    assert (comparison.attention.sum((1, 2)) <= 1 + 1e-5).all() and comparison.attention[-1].sum() > 0.9
    last = int(comparison.weights[-1].argmax())  # the fixation asked about fills the last step
    x, y = comparison.scanpath.table[last, :2]
    assert comparison.attention[-1].argmax() == int(y * height) * width + int(x * width)
    assert (
        comparison.residuals.shape == (steps, height, width)
        and comparison.residuals[-1].argmax() == comparison.attention[-1].argmax()
    )
    assert comparison.steps()[-1].shares == {int(comparison.scanpath.ids[last]): pytest.approx(1)}


def test_without_a_scanpath_it_is_the_base_model(trained, question):
    comparison = compare(trained, question, None)
    both = compare(trained, question, question.scanpath)
    assert comparison.answers == {"without gaze": both.answers["without gaze"]}
    assert comparison.scanpath is comparison.weights is comparison.attention is comparison.residuals is None
    assert comparison.steps() == []


def test_a_scanpath_beside_the_clip_leaves_every_step_without_fixation(trained, question):
    late = Scanpath.from_array([[0.5, 0.5, question.end_s + 50, 1.0]])
    assert [step.shares for step in compare(trained, question, late).steps()] == [{}] * 6


# ---------------------------------------------------------------- snapping
def looking(end_s, *spans):
    """A scanpath of fixations from and to so many seconds after the question, numbered from 7 on."""
    rows = [[0.2 + 0.1 * i, 0.5, end_s + (begin + end) / 2, end - begin] for i, (begin, end) in enumerate(spans)]
    return Scanpath.from_array(rows, ids=range(7, 7 + len(rows)))


def test_a_snapped_fixation_is_told_with_what_is_true(trained, question):
    """The wearer looks at 7 when asked; 8 begins 0.091 s later, and is what the model is told of."""
    scanpath = looking(question.end_s, (-1.5, 0.031), (0.091, 1.2))
    comparison = compare(trained, question, scanpath)
    begin_s = question.end_s + 0.091
    assert comparison.snap.fixation == 8 and comparison.snap.looked_at == 7
    assert (comparison.snap.begin_s, comparison.snap.query_s) == (pytest.approx(begin_s), question.end_s)
    told = f"snapped by 0.09 s: fixation 8 begins at {begin_s:.2f} s, after the question"
    assert str(comparison.snap).startswith(told) and str(comparison.snap).endswith("the wearer looks at fixation 7")
    *others, last = comparison.steps()
    assert str(last) == "fixation 8: 100 % (snapped)" and not any("snapped" in str(step) for step in others)
    assert comparison.moments_s()[-1] == question.end_s  # the frame of the question, not one after it

    true = compare(trained, question, scanpath, snap_s=0.0)
    assert true.snap is None and list(true.steps()[-1].shares) == [7]


def test_what_snapping_does_not_change_is_not_called_snapped(trained, question):
    comparison = compare(trained, question, looking(question.end_s, (-1.5, 2.0)))
    assert comparison.snap is None and list(comparison.steps()[-1].shares) == [7]
    steps_s = float(np.diff(comparison.step_spans_s[-1])[0])
    whole = looking(question.end_s, (-steps_s - 0.1, 1.0))
    assert compare(trained, question, whole, snap_s=steps_s + 1.0).snap is None


def test_a_fixation_that_began_before_the_question_is_snapped_too_where_it_is_stretched(trained, question):
    comparison = compare(trained, question, looking(question.end_s, (-0.5, -0.3)))
    assert "before the question" in str(comparison.snap) and "there is no fixation" in str(comparison.snap)
    assert comparison.moments_s()[-1] == pytest.approx(question.end_s - 0.4)


# ---------------------------------------------------------------- moments
def test_each_step_is_shown_at_the_middle_of_its_main_fixation():
    clip = Clip(np.zeros((6, 8, 8, 3), np.uint8), [2.0, 8.0, 12.0, 18.0, 22.0, 28.0], 0.0, 30.0)
    spans = clip.step_spans_s()
    assert spans.tolist() == [[0, 10], [10, 20], [20, 30]]
    scanpath = Scanpath.from_array([[0.1, 0.5, 1.5, 1.0], [0.5, 0.5, 6.5, 5.0], [0.9, 0.5, 27.0, 6.0]])
    weights = fixation_weights("share", torch.tensor(scanpath.table), torch.tensor(spans)).numpy()
    comparison = Comparison(clip, spans, {}, scanpath, weights)
    assert comparison.moments_s().tolist() == [6.5, 15.0, 27.0]  # in the second step there is no fixation
    snapped = Comparison(clip, spans, {}, scanpath, weights, snap=Snap(2, 30.4, 31.0, 30.0, None))
    assert snapped.moments_s().tolist() == [6.5, 15.0, 30.0]
    across = Scanpath.from_array([[0.5, 0.5, 11.0, 6.0]])  # from 8 to 14 s: of each step the part that lies in it
    weights = fixation_weights("share", torch.tensor(across.table), torch.tensor(spans)).numpy()
    assert Comparison(clip, spans, {}, across, weights).moments_s().tolist() == [9.0, 12.0, 25.0]


# ---------------------------------------------------------------- the shipped adapter
def test_options_are_lettered_and_their_number_is_checked():
    prompt, answers = build_prompt(NOW, ["box", "box"], "reference")
    assert answers == {"A": "A. box", "B": "B. box"} and "B. box" in prompt
    assert build_prompt("What is this?", [], "reference") == ("What is this?", {})
    with pytest.raises(ValueError, match="got 1 options"):
        build_prompt(NOW, ["box"], "reference")


def test_the_kept_adapter_holds_no_code_and_no_path(tmp_path, trained):
    model, processor = trained
    model.save_pretrained(tmp_path / "best")
    processor.save_pretrained(tmp_path / "best")
    assert list((tmp_path / "best").glob("*.py")) and str(ROOT) in (tmp_path / "best" / "config.json").read_text()
    beside = {"../backbone", "../video_encoder"}  # the frozen models, beside the kept adapter
    keep(tmp_path / "best", tmp_path / "kept")
    for folder in (tmp_path / "kept", ADAPTER_DIR):
        assert not list(folder.rglob("*.py")) and (folder / "lora" / "adapter_config.json").exists()
        for file in folder.rglob("*.json"):
            if file.name != "tokenizer.json":
                text = json.dumps(json.loads(file.read_text())).replace("</", "")
                assert all(part in beside for part in re.findall(r'[^" ]*/[^" ]*', text)), file
    assert (tmp_path / "kept" / "model.safetensors").read_bytes() == (ADAPTER_DIR / "model.safetensors").read_bytes()


def test_asking_imports_no_trainer_no_scorer_and_the_product_no_toy_world():
    unwanted = ("gazeqwen.training", "gazeqwen.evaluation", "gazeqwen.plots", "accelerate", "datasets", "matplotlib")
    parts = ("ask", "inference.answering", "pipeline.answers", "utils.adapters", "utils.provenance")  # late ones too
    imported = set().union(*(imports_of(f"gazeqwen.{part}") for part in parts))
    assert {"gazeqwen.modeling_gazeqwen", "torch"} <= imported
    assert not [name for name in imported if name.startswith(unwanted)]
    for module in ("answering", "explorer"):
        imported = imports_of(f"gazeqwen.inference.{module}")
        assert not [name for name in imported if name.startswith("gazeqwen.toyworld")]
