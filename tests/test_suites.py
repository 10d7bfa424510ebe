"""Other people's suites: GazeQwen as a model of lmms-eval and of StreamGaze's harness, with this package's answers."""

import importlib
import json
import sys
import tomllib
from types import ModuleType, SimpleNamespace

import pytest
import yaml
from accelerate import Accelerator
from support import BACKBONE, ROOT, index_frames, write_fixations, write_video

from gazeqwen.evaluation.predictions import predict
from gazeqwen.evaluation.scoring import score
from gazeqwen.pipeline.clip_cache import ClipCache
from gazeqwen.questions.dataset import load_questions
from gazeqwen.questions.tasks import TASKS
from gazeqwen.suites.asking import response_of
from gazeqwen.suites.documents import load_documents, question_of
from gazeqwen.suites.lmms import DocumentModel, DocumentTask
from gazeqwen.suites.streamgaze import GazeQwen
from gazeqwen.toyworld.trained import ADAPTER_DIR
from gazeqwen.utils.adapters import load_model, load_processor

FOLDER = ROOT / "suites" / "lmms_tasks" / "streamgaze"
ASKED = ["OTP", "OI-H", "GTA"]  # one task of each group
MODEL_ARGUMENTS = {"pretrained": str(ADAPTER_DIR), "cache": "none", "num_workers": 0, "batch_size": "16"}


@pytest.fixture(scope="module")
def predictions(toy_data) -> dict[str, list]:
    """What `gazeqwen eval` predicts for these tasks' test questions, by condition."""
    questions, accelerator = load_questions(toy_data, "test", ASKED), Accelerator()
    model, processor = load_model(ADAPTER_DIR, accelerator.device), load_processor(ADAPTER_DIR)
    cache = ClipCache.from_model(model, processor, "none")
    conditions = ("gaze", "shuffled")
    return {name: predict(accelerator, model, cache, questions, name, batch_size=16) for name in conditions}


def responses(predictions: list) -> list[str]:
    return [response_of(prediction.task, prediction.choice) for prediction in predictions]


# ---------------------------------------------------------------- lmms-eval, whose part is played here
class SuiteTask:
    """What lmms-eval's ConfigurableTask does on the way to its documents."""

    def __init__(self, config: dict):
        self.config = SimpleNamespace(**config)
        self.download(self.config.dataset_kwargs)


class Task(DocumentTask, SuiteTask):
    pass


def make_task(data, **config) -> Task:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(yaml.FullLoader, "yaml_constructors", dict(yaml.FullLoader.yaml_constructors))
        yaml.add_constructor("!function", lambda loader, node: loader.construct_scalar(node), yaml.FullLoader)
        settings = yaml.full_load((FOLDER / "streamgaze.yaml").read_text())
    return Task(settings | {"dataset_path": str(data)} | config)


@pytest.fixture(scope="module")
def task(toy_data) -> Task:
    return make_task(toy_data, dataset_kwargs={"tasks": ASKED})


def requests_of(task: Task) -> list[SimpleNamespace]:
    documents = enumerate(task.dataset["test"])
    return [
        SimpleNamespace(args=(task.doc_to_text(doc), {}, task.doc_to_visual, number, "streamgaze", "test"))
        for number, doc in documents
    ]


def results_of(task: Task, answers: list[str]) -> dict[str, float]:
    """Score answers as lmms-eval does: each metric's items, then its aggregation."""
    items = {}
    for document, answer in zip(task.dataset["test"], answers, strict=True):
        for name, item in task.process_results(document, [f" {answer}\n"]).items():
            items.setdefault(name, []).append(item)
    assert set(items) == set(task.higher_is_better())
    return {name: task.aggregation()[name](values) for name, values in items.items()}


def test_a_document_holds_the_whole_question(toy_data):
    questions = load_questions(toy_data, "test")
    documents = load_documents(str(toy_data), "test")
    assert len(documents) == len(questions) > 20
    for question, document in zip(questions, documents, strict=True):
        back = question_of(document)
        assert (back.key, back.answer, back.source) == (question.key, question.answer, question.source)
        assert (back.video, back.start_s, back.end_s) == (question.video, question.start_s, question.end_s)
        assert (back.scanpath.table == question.scanpath.table).all() and len(back.scanpath)
        assert (back.scanpath.ids == question.scanpath.ids).all()
    (few,) = {document["task"] for document in load_documents(str(toy_data), "test", tasks=["OTP"])}
    assert few == "past_object_transition_prediction"


@pytest.mark.parametrize("gaze", ["gaze", "shuffled"])
def test_answers_and_scores_in_lmms_eval_are_those_of_eval(task, predictions, gaze):
    model = DocumentModel(gaze=gaze, **MODEL_ARGUMENTS)
    model.task_dict = {"streamgaze": task.dataset}
    requests = requests_of(task)
    answers = model.generate_until([*requests[::-1], requests[3]])  # in any order, and some twice
    assert answers.pop() == answers[-4]
    answers.reverse()
    assert answers == responses(predictions[gaze])
    assert answers != responses(predictions["shuffled" if gaze == "gaze" else "gaze"])
    expected, results = score(predictions[gaze]), results_of(task, answers)
    assert {name: results.pop(name) for name in ("macro", "micro")} == {n: expected[n] for n in ("macro", "micro")}
    assert {name: results.pop(name) for name in expected["groups"]} == pytest.approx(expected["groups"])
    for name, values in expected["tasks"].items():
        assert results.pop(TASKS[name].abbreviation) == values["accuracy"]
        if "balanced_accuracy" in values:
            assert results.pop(f"{TASKS[name].abbreviation}_balanced") == values["balanced_accuracy"]
    assert not results


def test_the_scorer_is_that_of_the_yaml(toy_data):
    lenient = make_task(toy_data, metadata={"scorer": "streamgaze"}, dataset_kwargs={"tasks": ["FAP"]})
    strict = make_task(toy_data, dataset_kwargs={"tasks": ["FAP"]})
    answers = [f"It is A or {response_of(d['task'], d['answer'])}" for d in strict.dataset["test"]]
    assert results_of(strict, answers)["macro"] == 0
    assert (
        results_of(lenient, answers)["macro"]
        == score(
            [
                {"key": str(n), "video_name": "v", "response": answer}
                | {k: d[k] for k in ("task", "answer", "options")}
                for n, (d, answer) in enumerate(zip(strict.dataset["test"], answers, strict=True))
            ],
            "streamgaze",
        )["macro"]
    )


def test_an_unknown_scorer_is_refused_before_anything_is_answered(toy_data):
    with pytest.raises(ValueError, match=r"scorer is 'lenient', expected one of \('strict', 'streamgaze'\)"):
        make_task(toy_data, metadata={"scorer": "lenient"})
    assert make_task(toy_data, metadata=None).scorer == "strict"


def test_what_would_be_another_question_is_refused(task):
    model = DocumentModel(**MODEL_ARGUMENTS)
    model.task_dict = {"streamgaze": task.dataset, "other": {"test": [{"question": "?", "video": "v.mp4"}]}}
    request = requests_of(task)[0]
    prompt, *others = request.args
    with pytest.raises(ValueError, match="document 0: the prompt is .Be brief.*expected the document's own"):
        model.generate_until([SimpleNamespace(args=(f"Be brief. {prompt}", *others))])
    with pytest.raises(ValueError, match="a document without video_name, scanpath.* expected a question"):
        model.generate_until([SimpleNamespace(args=("?", {}, None, 0, "other", "test"))])
    with pytest.raises(ValueError, match="for --model gazeqwen"):
        task.doc_to_visual(task.dataset["test"][0])
    with pytest.raises(NotImplementedError, match="generate_until"):
        model.loglikelihood([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gazed": "none"}, r"got \['gazed'\], expected some of gaze, .*snap_s"),
        ({"split": "test"}, r"got \['split'\]"),
        ({"gaze": "shufled"}, "unknown words .*shufled"),
        ({"gaze": "none", "dtype": "half"}, "dtype: got 'half'"),
        ({"batch_size": "auto"}, "batch_size: got 'auto'"),
        ({"device": "meta"}, "device: got 'meta', accelerate has cpu"),
        ({"pretrained": str(BACKBONE)}, "is no GazeQwen adapter and takes no scanpath; choose among none"),
    ],
)
def test_arguments_of_the_model_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        DocumentModel(**MODEL_ARGUMENTS | change)


def test_lmms_eval_finds_the_model(monkeypatch):
    """The entry point, and the classes that it and the YAML name, on classes in place of lmms-eval's."""
    parts = {
        "lmms_eval.api.model": {"lmms": type("lmms", (), {})},
        "lmms_eval.api.task": {"ConfigurableTask": SuiteTask},
        "lmms_eval.models.registry_v2": {"ModelManifest": lambda name, simple_class_path: (name, simple_class_path)},
    }
    for name, content in parts.items():
        for part in (name.rsplit(".", 1)[0], name):
            monkeypatch.setitem(sys.modules, part, ModuleType(part))
        vars(sys.modules[name]).update(content)
    monkeypatch.setitem(sys.modules, "lmms_eval", ModuleType("lmms_eval"))

    def named(path: str):
        module, name = path.rsplit(".", 1)
        return getattr(importlib.import_module(module), name)

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    entry = project["entry-points"]["lmms_eval.models"]["gazeqwen"]
    name, path = named(entry.replace(":", "."))()
    assert name == "gazeqwen" and issubclass(named(path), DocumentModel)
    assert named(path).__mro__[-2].__name__ == "lmms" and named(path).is_simple
    (class_line,) = [line for line in (FOLDER / "streamgaze.yaml").read_text().splitlines() if "!function" in line]
    assert issubclass(named(class_line.split()[-1]), DocumentTask)
    del sys.modules["gazeqwen.suites.lmms_plugin"]


def test_in_lmms_eval_itself(toy_data, task, predictions, tmp_path):
    """Where it is installed; the tests above hold without it. benchmarks/lmms_eval.py runs its command line."""
    pytest.importorskip("lmms_eval")
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    config = {"include": str(FOLDER / "streamgaze.yaml"), "task": "toy", "dataset_path": str(toy_data)}
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(config | {"dataset_kwargs": {"tasks": ASKED}}))
    arguments = ",".join(f"{name}={value}" for name, value in MODEL_ARGUMENTS.items() if name != "batch_size")
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False, model_name="gazeqwen")
    results = simple_evaluate("gazeqwen", arguments, tasks=["toy"], batch_size=16, task_manager=manager)
    answers = [sample["filtered_resps"][0] for sample in results["samples"]["toy"]]
    assert answers == responses(predictions["gaze"])
    assert results["results"]["toy"]["macro,none"] == score(predictions["gaze"])["macro"]


# ---------------------------------------------------------------- StreamGaze's harness, whose part is played here
def seconds(text: str) -> int:
    minutes, second = text.split(":")
    return 60 * int(minutes) + int(second)


def calls(file, task: str, video_root):
    """Yield (video's name, end, arguments of `Run`) of each question of a QA file, as StreamGaze's harness asks."""
    for entry in json.loads(file.read_text()):
        video = str(video_root / entry["video_path"])
        for item in entry["questions"]:
            if "test_info" in item:
                prompt = (
                    f"Monitor.\n<video>\n\nQuestion: {item['question']}\n\nIf seen, answer Yes.\n\nOnly Yes or No.\n"
                )
                for point in item["test_info"]:
                    end = seconds(point["realtime"])
                    yield entry["video_path"], end, (video, prompt, 0, end, 0, False, False, None)
            else:
                lines = "\n".join([*item["options"], "Only the letter (A, B, C, or D)."])
                prompt = f"\nQuestion: {item['question']}\nOptions:\n{lines}\n\nThe best option is:"
                end = seconds(item["time_stamp"])
                begin = max(end - 60, 0) if task.startswith("present") else 0
                yield entry["video_path"], end, (video, prompt, begin, end, end + 0.1, False, False, None)


@pytest.mark.parametrize("task_name", ["present_object_identification_hard", "proactive_gaze_triggered_alert"])
def test_answers_in_streamgazes_harness_are_those_of_eval(toy_world, predictions, task_name):
    file = toy_world / "qa" / f"{task_name}.json"
    model = GazeQwen(str(file), str(ADAPTER_DIR))
    assert model.name() == "GazeQwen"
    expected = {}
    for prediction in predictions["gaze"]:
        if prediction.task == task_name:
            expected.setdefault((prediction.video_name, prediction.time_s), []).append(
                response_of(prediction.task, prediction.choice)
            )
    answers = {}
    for video, end, arguments in calls(file, task_name, toy_world / "videos" / "original_video"):
        if (video, end) in expected:
            response, duration = model.Run(*arguments)
            assert duration > 0
            answers.setdefault((video, end), []).append(response)
    assert answers == expected and len({answer for row in answers.values() for answer in row}) > 1


def test_the_harness_asks_in_seconds_of_the_release(tmp_path, monkeypatch):
    """EGTEA's are frame numbers at 24 fps; this file of it has 12. Options go by their letters."""
    monkeypatch.setenv("GAZEQWEN_ADAPTER", str(ADAPTER_DIR))
    name, folder = "OP01-R01-Toy.mp4", tmp_path / "videos" / "original_video"
    for path in (folder, tmp_path / "metadata"):
        path.mkdir(parents=True)
    write_video(folder / name, index_frames(48), fps=12)
    write_fixations(tmp_path / "metadata" / "OP01-R01-Toy_fixation_filtered.csv", [(0.25, 0.75, 0.2, 0.4)])
    model, asked = GazeQwen(str(tmp_path / "qa" / "past_scene_recall.json")), []
    model.asker.responses = lambda questions: asked.extend(questions) or ["B"]
    response, _ = model.Run(name, "\nQuestion: Which?\nOptions:\nB. jar\nA. cup\n\nThe best option is:", 0.5, 1.5)
    (question,) = asked
    assert response == "B" and question.options == ("cup", "jar") and question.question == "Which?"
    assert (question.start_s, question.end_s) == pytest.approx((1.0, 3.0))
    assert question.scanpath.table[0] == pytest.approx([0.2, 0.4, 1.0, 1.0])
    assert question.snapped and question.video == folder / name


def test_the_harness_is_told_what_is_missing(toy_world, tmp_path, monkeypatch):
    file = toy_world / "qa" / "past_scene_recall.json"
    monkeypatch.delenv("GAZEQWEN_ADAPTER", raising=False)
    with pytest.raises(ValueError, match="GAZEQWEN_ADAPTER is not set"):
        GazeQwen(str(file))
    monkeypatch.setenv("GAZEQWEN_ADAPTER", str(ADAPTER_DIR))
    with pytest.raises(ValueError, match=r"scenes\.json: no task of StreamGaze, expected one of past_gaze"):
        GazeQwen(str(toy_world / "qa" / "scenes.json"))
    model = GazeQwen(str(file))
    video, prompt = "videos/toy-test-0000.mp4", "\nQuestion: Which?\nOptions:\nA. a\nB. b\n\nThe best option is:"
    with pytest.raises(ValueError, match="leave out --use_gaze_instruction"):
        model.Run(video, f"the green dot is gaze.\n{prompt}", 0, 3)
    with pytest.raises(ValueError, match="expected 'Question: ...'"):
        model.Run(video, "What is this?", 0, 3)
    with pytest.raises(ValueError, match=r"toy-test-0000\.mp4: asked at 6000\.000 s, the video ends at"):
        model.Run(video, prompt, 0, 6000)
    with pytest.raises(ValueError, match=r"other\.mp4: no such video below"):
        model.Run("other.mp4", prompt, 0, 3)
    (tmp_path / "videos").symlink_to(toy_world / "videos")
    (tmp_path / "qa").symlink_to(toy_world / "qa")
    model = GazeQwen(str(tmp_path / "qa" / file.name), raw_gaze="recordings")
    with pytest.raises(ValueError, match=r"toy-test-0000\.mp4: no fixations below .*metadata, nor in .*recordings"):
        model.Run(video, prompt, 0, 3)


# ---------------------------------------------------------------- the record
def test_the_guide_says_what_the_benchmark_recorded():
    record = json.loads((ROOT / "benchmarks" / "results" / "suites_cpu.json").read_text())
    versions, harness = record["versions"], record["streamgaze"]
    suite, rows = f"lmms-eval {versions['lmms_eval']}, its command line", []
    for name, run in record["lmms_eval"].items():
        gaze, processes = name.split(", ")
        gaze = f"`{gaze}`" if processes == "1 process" else f"`{gaze}`, {processes}"
        rows.append(f"| {suite} | {gaze} | {run['equal_answers']} of 70 | {100 * run['scores']['macro']:.1f} |")
        suite = ""
    suite = f"StreamGaze's harness and its scores, commit {versions['StreamGaze'][:7]}"
    mean = sum(harness["accuracy_in_percent"].values()) / 10
    rows.append(f"| {suite} | `gaze` | {harness['equal_answers']} of 70 | {mean:.1f} |")
    guide = (ROOT / "docs" / "guides" / "lmms-eval.md").read_text()
    assert "\n".join(rows).replace("|  |", "| |") in guide
    assert f"pip install --no-deps lmms-eval=={versions['lmms_eval']}\n" in guide
