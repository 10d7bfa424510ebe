"""The adapter that comes with the package, asked again: whatever breaks between a file and a letter shows here."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from gazeqwen.evaluation.prediction_file import Prediction
from gazeqwen.evaluation.predictions import predict
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.pipeline.clip_cache import ClipCache
from gazeqwen.questions.dataset import load_questions
from gazeqwen.questions.question import Question
from gazeqwen.questions.release import build
from gazeqwen.questions.tasks import TASKS
from gazeqwen.toyworld.generate import generate
from gazeqwen.toyworld.questions import SCENE_TASKS
from gazeqwen.toyworld.residual_places import Step, distinct_clips, measured, steps_of
from gazeqwen.toyworld.trained import ADAPTER_DIR
from gazeqwen.toyworld.video_encoder_controls import ReplacedFeatures, replacements
from gazeqwen.utils.adapters import load_model, load_processor

WORLD_SEED = 41  # no world that anything was trained or chosen on
GAZE_TASKS = sorted(task for task in TASKS if task not in SCENE_TASKS and TASKS[task].group != "proactive")


@dataclass(frozen=True)
class Shipped:
    """The shipped adapter, and questions of a new world that nothing but gaze answers."""

    model: GazeQwenForConditionalGeneration
    cache: ClipCache
    questions: list[Question]

    def answers(self, condition: str = "gaze", cache=None) -> list[Prediction]:
        return predict(Accelerator(), self.model, cache or self.cache, self.questions, condition, 64)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory) -> Shipped:
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    generate(folder / "world", train=0, val=0, test=16, seed=WORLD_SEED, per_task=1, progress=False)
    build(folder / "world", folder / "data", progress=False)
    questions = load_questions(folder / "data", "test", GAZE_TASKS)
    model = load_model(ADAPTER_DIR)
    cache = ClipCache.from_model(model, load_processor(ADAPTER_DIR), "embeddings", folder / "cache")
    cache.fill(Accelerator(), model, questions, 64)
    return Shipped(model, cache, questions)


@pytest.fixture(scope="module")
def answers(shipped) -> dict[str, list[Prediction]]:
    """The shipped adapter's predictions by condition."""
    return {condition: shipped.answers(condition) for condition in ("gaze", "shuffled", "none")}


def accuracy(predictions: list[Prediction]) -> float:
    return float(np.mean([np.argmax(prediction.logits) == prediction.answer for prediction in predictions]))


def test_the_shipped_adapter_answers_by_gaze_and_by_nothing_else(answers):
    """The committed results say 95 % with gaze and 24 % without; each bound is four standard deviations off."""
    count = len(answers["gaze"])
    assert count >= 45 and {prediction.task for prediction in answers["gaze"]} == set(GAZE_TASKS)
    deviation = (0.25 * 0.75 / count) ** 0.5
    assert accuracy(answers["gaze"]) >= 0.85
    for condition in ("shuffled", "none"):
        assert abs(accuracy(answers[condition]) - 0.25) <= 4 * deviation, condition


def test_shuffled_gaze_was_given_and_read(answers):
    """So that the control is one: gaze of another video reaches the model and changes its logits."""
    for own, shuffled, none in zip(*answers.values(), strict=True):
        assert own.scanpath_of == own.video_name != shuffled.scanpath_of and none.scanpath_of is None
        assert abs(np.subtract(shuffled.logits, none.logits)).max() > 1e-3


def test_the_video_encoders_features_are_replaced_as_the_evidence_says(shipped, answers):
    """Each replacement is what its name says and reaches the model, which answers nearly as well without its own."""
    cache, questions = shipped.cache, shipped.questions
    by_name = replacements(cache, questions, seed=0)
    own = {question.key: cache.read(question)["video_encoder_features"] for question in questions}
    replaced = {
        name: {question.key: replacement(question, own[question.key]) for question in questions}
        for name, replacement in by_name.items()
    }
    assert all(torch.equal(replaced["own"][key], own[key]) and not replaced["zeros"][key].any() for key in own)
    for question in questions:
        donors = [other for other in questions if torch.equal(own[other.key], replaced["other_video"][question.key])]
        assert donors and question.video_name not in {donor.video_name for donor in donors}
    noise, features = (torch.cat([x.flatten(0, 1) for x in by_key.values()]) for by_key in (replaced["noise"], own))
    deviation = features.std(0)
    assert ((noise.mean(0) - features.mean(0)).abs() < 0.1 * deviation).all()
    assert ((noise.std(0) / deviation - 1).abs() < 0.05).all()
    zeros = shipped.answers(cache=ReplacedFeatures(cache, by_name["zeros"]))
    difference = [abs(np.subtract(a.logits, b.logits)).max() for a, b in zip(zeros, answers["gaze"], strict=True)]
    assert max(difference) > 1e-3 and accuracy(zeros) >= 0.85


def test_where_residuals_are_is_measured_from_what_is_added(shipped):
    """A step for each fixation that explains one; this adapter adds most where it is told, beside where it was."""
    steps = list(steps_of(shipped.model, shipped.cache, distinct_clips(shipped.questions)))
    assert len(steps) > 20 and all(step.added.shape == (4, 4) for step in steps)
    far = [step for step in steps if np.linalg.norm(step.told - step.looked) > 1]
    nearer = [np.linalg.norm(step.found - step.told) < np.linalg.norm(step.found - step.looked) for step in far]
    assert far and np.mean(nearer) > 0.8


def test_a_residual_nearer_to_where_was_looked_is_a_gain(shipped):
    """Half a token nearer in each step of two videos; then none."""
    questions = distinct_clips(shipped.questions)
    first, second = questions[0], next(q for q in questions if q.video_name != questions[0].video_name)
    added = np.zeros((3, 4))
    added[1, 2] = 1.0
    assert Step(first, np.zeros(2), np.zeros(2), 0.0, added).found.tolist() == [2.5, 1.5]
    for told, gain in ((1.5, 0.5), (1.0, 0.0)):
        looked = np.array([2.5, 2.5])  # one token below where most is added
        steps = [Step(question, looked, np.add(looked, (0, told)), 1.0, added) for question in (first, first, second)]
        result = measured(steps)
        assert (result["steps"], result["videos"], result["nearer"]) == (3, 2, float(gain > 0))
        assert result["gain"] == pytest.approx(gain) and result["interval"] == [gain, gain]
        assert (result["told"], result["found"]) == (told, 1.0)
