"""Ask a model a suite's questions as `gazeqwen eval` asks a dataset's."""

from dataclasses import fields

from accelerate import Accelerator

from gazeqwen.evaluation.evaluators import check_conditions, evaluator_class
from gazeqwen.evaluation.scoring import YES_NO
from gazeqwen.evaluation.settings import EvaluationSettings
from gazeqwen.pipeline.conditions import Condition
from gazeqwen.questions.prompts import OPTION_LETTERS
from gazeqwen.questions.question import Question
from gazeqwen.questions.tasks import task_info
from gazeqwen.utils.settings import read_recipe

# Settings of an evaluation that are a suite's to say.
_OF_THE_SUITE = {
    *("model", "data", "config", "split", "tasks", "without_gaze", "gaze", "permute_options", "scorer", "name"),
    *("output", "restart", "compare"),
}
ARGUMENTS = tuple(field.name for field in fields(EvaluationSettings) if field.name not in _OF_THE_SUITE)


class Asker:
    """
    Load a model and ask it questions under one condition.

    Args:
        model: folder or Hub id of an adapter, or of any video-text model that `gazeqwen eval` takes.
        gaze: the condition, such as `none` or `shuffled` (`Condition`).
        settings: any of ARGUMENTS, as in `EvaluationSettings`.

    Raises ValueError naming the argument.
    """

    def __init__(self, model: str, gaze: str = "gaze", **settings):
        if unknown := sorted(set(settings) - set(ARGUMENTS)):
            raise ValueError(f"got {unknown}, expected some of gaze, {', '.join(ARGUMENTS)}")
        values = {"model": str(model), "data": "of a suite", "gaze": [gaze]} | settings
        self.settings = read_recipe(EvaluationSettings, None, (), values)
        kind = evaluator_class(self.settings)
        kind.check_condition(self.settings, Condition.parse(gaze))  # before the weights are loaded
        self.evaluator = kind(self.settings, Accelerator())

    def responses(self, questions: list[Question]) -> list[str]:
        """Return what the model says to each question that has options, see `response_of`."""
        (condition,) = check_conditions(type(self.evaluator), self.settings, self.settings.gaze, questions)
        self.evaluator.prepare([condition], questions)
        predictions = self.evaluator.predict(questions, condition, None)
        return [p.response if p.logits is None else response_of(p.task, p.choice) for p in predictions]


def response_of(task: str, choice: int) -> str:
    """Return what a model says that chooses an option of a task: its letter, of proactive tasks Yes or No."""
    return (YES_NO if task_info(task).group == "proactive" else OPTION_LETTERS)[choice]
