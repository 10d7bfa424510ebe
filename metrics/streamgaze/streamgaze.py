"""StreamGaze's accuracies as an `evaluate` metric: `evaluate.load("metrics/streamgaze")`. See evaluation/scoring."""

import json

import datasets
import evaluate

from gazeqwen.evaluation.scoring import score

_DESCRIPTION = """
Accuracies of StreamGaze's tasks (arXiv 2512.01707): per task, macro, micro and by group, and of proactive tasks class
balance, majority baseline, balanced accuracy, precision, recall and F1.
"""

_INPUTS = """
predictions: generated responses, "" where generation failed, None where a question was not answered; or for each
    question the logits of the offered options.
references: for each question that was expected to be answered {"key", "video_name", "task", "answer", "options"}:
    what tells it from the others, StreamGaze's file stem as the task, index of the right option (0 is Yes, 1 is No of
    proactive tasks), texts of the options.
scorer: "strict" (default), or "streamgaze", which counts as StreamGaze does.
Returns what `gazeqwen.evaluation.scoring.score` returns.
"""

_CITATION = "arXiv 2512.01707"


class StreamGaze(evaluate.Metric):
    def _info(self):
        question = {
            "key": datasets.Value("string"),
            "video_name": datasets.Value("string"),
            "task": datasets.Value("string"),
            "answer": datasets.Value("int64"),
            "options": datasets.Sequence(datasets.Value("string")),
        }
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": datasets.Value("string"), "references": question}),
        )

    # Responses, logits and None travel as JSON: evaluate knows no feature that may be any of them. It adds the inputs'
    # description to these docstrings, so that they need one.
    def add_batch(self, *, predictions=None, references=None, **others):
        """Add questions with their answers."""
        predictions = [_as_json(answer) for answer in predictions]
        super().add_batch(predictions=predictions, references=references, **others)

    def add(self, *, prediction=None, reference=None, **others):
        """Add one question with its answer."""
        super().add(prediction=_as_json(prediction), reference=reference, **others)

    def _compute(self, predictions, references, scorer="strict"):
        answers = map(json.loads, predictions)
        fields = [{"logits" if isinstance(answer, list) else "response": answer} for answer in answers]
        return score([question | field for question, field in zip(references, fields, strict=True)], scorer)


def _as_json(answer) -> str:
    """Of arrays and tensors too."""
    return json.dumps(answer.tolist() if hasattr(answer, "tolist") else answer)
