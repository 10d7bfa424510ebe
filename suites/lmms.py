"""
What lmms-eval asks of a model and of a task; `lmms_plugin.py` joins it to lmms-eval's own classes.

    lmms-eval --model gazeqwen --model_args pretrained=runs/demo/best,gaze=gaze --batch_size 8 \\
        --tasks streamgaze --include_path suites/lmms_tasks --output_path runs/lmms --log_samples
"""

from functools import partial

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from gazeqwen.evaluation.scoring import SCORERS, as_graded_answer, grade
from gazeqwen.questions.tasks import task_info
from gazeqwen.suites.asking import Asker, response_of
from gazeqwen.suites.documents import load_documents, measure, measures_of, prompt_of, question_of


class DocumentModel:
    """
    Answer lmms-eval's requests about documents of `load_documents`, as `gazeqwen eval` answers the questions they come
    from. lmms-eval sets `task_dict`, {task: {split: documents}}.

    Args:
        pretrained, gaze, settings: see `Asker`.
        batch_size: questions that go through the model together.
        device: None, or the kind of device that accelerate has chosen.

    Raises ValueError naming the argument.
    """

    is_simple = True

    def __init__(
        self, pretrained: str, gaze: str = "gaze", batch_size=1, max_batch_size=None, device=None, **settings
    ):
        super().__init__()
        if not str(batch_size).isdecimal() or max_batch_size is not None:
            raise ValueError(f"batch_size: got {batch_size!r} (max_batch_size {max_batch_size!r}), expected a number")
        self.accelerator = Accelerator()
        self.device = self.accelerator.device
        if device is not None and torch.device(device).type != self.device.type:
            raise ValueError(f"device: got {device!r}, accelerate has {self.device}: set ACCELERATE_USE_CPU=true")
        self.asker = Asker(pretrained, gaze, batch_size=int(batch_size), **settings)

    def generate_until(self, requests) -> list[str]:
        """
        Return the answer to each request. All questions of all processes are asked in one run, in the order of their
        documents: so the answers, also with shuffled gaze, are those of `gazeqwen eval`.

        Raises ValueError for a document that is no question, and for a prompt that is not its own.
        """
        places = []
        for request in requests:
            prompt, _, _, number, task, split = request.args
            places.append((task, split, number))
            if prompt != prompt_of(self.task_dict[task][split][number]):
                raise ValueError(
                    f"{task}, document {number}: the prompt is {prompt!r}, expected the document's own, without "
                    "examples or a system instruction: an adapter is asked as it was trained"
                )
        everywhere = sorted(set(gather_object(places)))  # each process holds some
        questions = [question_of(self.task_dict[task][split][number]) for task, split, number in everywhere]
        responses = dict(zip(everywhere, self.asker.responses(questions), strict=True))
        return [responses[place] for place in places]

    def loglikelihood(self, requests):
        """Raise NotImplementedError: answers are generated."""
        raise NotImplementedError("gazeqwen answers tasks with `output_type: generate_until`")

    generate_until_multi_round = loglikelihood


class DocumentTask:
    """
    Let lmms-eval ask the questions of a dataset that `gazeqwen build` wrote, and score the answers as `gazeqwen eval`
    does. Of the task's YAML, `dataset_path` is the dataset's folder or Hub id, `dataset_name` the split scheme,
    `test_split` the split, `dataset_kwargs` what else `load_documents` takes, and `metadata` names the `scorer`, by
    default `strict`. Raises ValueError for another scorer than `SCORERS`, and as `load_documents` does.
    """

    def __init__(self, config: dict):
        self.scorer = (config.get("metadata") or {}).get("scorer", "strict")
        if self.scorer not in SCORERS:
            raise ValueError(f"metadata: scorer is {self.scorer!r}, expected one of {SCORERS}")
        super().__init__(config={name: value for name, value in config.items() if name != "class"})

    def download(self, dataset_kwargs: dict | None = None) -> None:
        """Load the documents."""
        config = self.config
        documents = load_documents(
            config.dataset_path, config.test_split, config.dataset_name or "default", **dataset_kwargs or {}
        )
        self.dataset = self.dataset_no_image = {config.test_split: documents}

    def doc_to_text(self, doc: dict) -> str:
        """Return the prompt."""
        return prompt_of(doc)

    def doc_to_target(self, doc: dict) -> str:
        """Return the right answer."""
        return response_of(doc["task"], doc["answer"])

    def doc_to_visual(self, doc: dict):
        """Raise ValueError: a file shows what comes after the question, and no gaze."""
        raise ValueError(
            "this task is for --model gazeqwen, which reads clip and gaze from the document; it takes any video-text "
            "model of transformers as pretrained=..., see docs/guides/lmms-eval.md"
        )

    def process_results(self, doc: dict, results: list[str]) -> dict[str, dict]:
        """Return the graded answer under the name of each measure that it counts for."""
        answer = {name: doc[name] for name in ("video_name", "task", "answer", "options", "source")}
        answer |= {"key": question_of(doc).key, "response": results[0].strip()}
        correct = int(grade(as_graded_answer(answer), self.scorer).correct)
        means = ("micro", task_info(doc["task"]).abbreviation)  # lmms-eval takes standard errors of scores
        return {name: answer | {"score": correct} if name in means else answer for name in measures_of(doc)}

    def aggregation(self) -> dict:
        """Return what makes a number of the graded answers, by measure."""
        documents = self.dataset[self.config.test_split]
        names = {name: None for document in documents.select_columns("task") for name in measures_of(document)}
        return {name: partial(measure, name, scorer=self.scorer) for name in names}

    def higher_is_better(self) -> dict[str, bool]:
        """Return for each measure that more is better."""
        return dict.fromkeys(self.aggregation(), True)
