"""The adapter that comes with the package, asked again: whatever breaks between a file and a letter shows here."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from gazeqwen.evaluation.predictions import Prediction, predict
from gazeqwen.inference.answering import load_model, load_processor
from gazeqwen.pipeline.clip_cache import ClipCache
from gazeqwen.questions.dataset import load_questions
from gazeqwen.questions.release import build
from gazeqwen.questions.tasks import TASKS
from gazeqwen.toyworld.generate import generate
from gazeqwen.toyworld.questions import SCENE_TASKS
from gazeqwen.toyworld.trained import ADAPTER_DIR

WORLD_SEED = 41  # no world that anything was trained or chosen on
GAZE_TASKS = sorted(task for task in TASKS if task not in SCENE_TASKS and TASKS[task].group != "proactive")


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, list[Prediction]]:
    """The shipped adapter's predictions by condition, on questions of a new world that nothing but gaze answers."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    generate(folder / "world", train=0, val=0, test=24, seed=WORLD_SEED, per_task=1, progress=False)
    build(folder / "world", folder / "data", progress=False)
    questions = load_questions(folder / "data", "test", GAZE_TASKS)
    model, processor, accelerator = load_model(ADAPTER_DIR), load_processor(ADAPTER_DIR), Accelerator()
    cache = ClipCache.of(model, processor, "embeddings", folder / "cache")
    cache.fill(accelerator, model, questions, 64)
    return {
        condition: predict(accelerator, model, cache, questions, condition, 64)
        for condition in ("gaze", "shuffled", "none")
    }


def accuracy(predictions: list[Prediction]) -> float:
    return float(np.mean([np.argmax(prediction.logits) == prediction.answer for prediction in predictions]))


def test_the_shipped_adapter_answers_by_gaze_and_by_nothing_else(answers):
    """The committed results say 95 % with gaze and 24 % without; each bound is four standard deviations off."""
    count = len(answers["gaze"])
    assert count >= 70 and {prediction.task for prediction in answers["gaze"]} == set(GAZE_TASKS)
    deviation = (0.25 * 0.75 / count) ** 0.5
    assert accuracy(answers["gaze"]) >= 0.85
    for condition in ("shuffled", "none"):
        assert abs(accuracy(answers[condition]) - 0.25) <= 4 * deviation, condition


def test_shuffled_gaze_was_given_and_read(answers):
    """So that the control is one: gaze of another video reaches the model and changes its logits."""
    for own, shuffled, none in zip(*answers.values(), strict=True):
        assert own.scanpath_of == own.video_name != shuffled.scanpath_of and none.scanpath_of is None
        assert abs(np.subtract(shuffled.logits, none.logits)).max() > 1e-3
