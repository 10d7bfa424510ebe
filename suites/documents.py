"""Questions as documents, which suites hand from a task to a model: dicts of plain values, gaze among them."""

from dataclasses import fields
from pathlib import Path

from gazeqwen.evaluation.scoring import score
from gazeqwen.questions.dataset import load_questions
from gazeqwen.questions.question import Question
from gazeqwen.questions.tasks import task_info
from gazeqwen.scanpath_gazeqwen import Scanpath

FIELDS = tuple(field.name for field in fields(Question) if field.name != "order")
PROMPT_STYLE = "streamgaze"  # a document's wording; an adapter is asked in the one it was trained with


def load_documents(data: str, split: str, config: str = "default", tasks=None, without_gaze: str = "error"):
    """
    Return a `datasets.Dataset` with one document for each question that has options; of proactive tasks, for each test
    point. Arguments and errors are those of `load_questions`.
    """
    from datasets import Dataset

    questions = load_questions(data, split, tasks, config, without_gaze)
    documents = [document_of(question) for question in questions if question.answer_text is None]
    if len(documents) < len(questions):
        print(f"left out {len(questions) - len(documents)} open-ended questions: they are not scored")
    if not documents:
        raise ValueError(f"{data}, split {split!r}: no question with options")
    return Dataset.from_list(documents)


def document_of(question: Question) -> dict:
    """Return a question's fields as plain values: the scanpath as its table, the video as its path."""
    scanpath = question.scanpath
    return {name: getattr(question, name) for name in FIELDS} | {
        "video": str(question.video),
        "options": list(question.options),
        "scanpath": None if scanpath is None else scanpath.table.tolist(),
        "fixation_ids": None if scanpath is None else scanpath.ids.tolist(),
    }


def question_of(document: dict) -> Question:
    """Return the question of a document. Raises ValueError for what is none, naming what it lacks."""
    if missing := [name for name in (*FIELDS, "fixation_ids") if name not in document]:
        raise ValueError(f"a document without {', '.join(missing)}: expected a question of `load_documents`")
    values = {name: document[name] for name in FIELDS}
    values |= {"video": Path(values["video"]), "options": tuple(values["options"])}
    if values["scanpath"] is not None:
        source = f"scanpath of {values['video_name']}"
        values["scanpath"] = Scanpath.from_array(values["scanpath"], source, document["fixation_ids"])
    return Question(**values)


def prompt_of(document: dict) -> str:
    """Return the user turn of a document."""
    return question_of(document).prompt(PROMPT_STYLE)[0]


# ------------------------------------------------------------------ scores
def measures_of(document: dict) -> list[str]:
    """Return what a document's answer counts for: all of them, its group, its task, balanced accuracy."""
    info = task_info(document["task"])
    names = ["macro", "micro", info.group, info.abbreviation]
    return [*names, f"{info.abbreviation}_balanced"] if info.group == "proactive" else names


def measure(name: str, answers: list[dict], scorer: str) -> float | None:
    """
    Return one of `measures_of`, from the graded answers that count for it, as dicts. `macro` is the mean over tasks,
    as is a group.
    """
    scores = score(answers, scorer)
    if name.endswith("_balanced"):
        (task,) = scores["tasks"].values()
        return task["balanced_accuracy"]
    return scores["micro" if name == "micro" else "macro"]
