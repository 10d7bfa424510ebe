"""`eval.py --stream`: all questions of a video in one pass over it, with the answers of asking each anew."""

import json

import numpy as np
import pytest
from accelerate import Accelerator
from support import BACKBONE, VIDEO_ENCODER, perturb, run_here

from gazeqwen.backbones_gazeqwen import decoder_of
from gazeqwen.evaluation.predictions import predict
from gazeqwen.evaluation.report import sampling
from gazeqwen.evaluation.streamed import StreamedData, predict_streamed
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.pipeline.clip_cache import ClipCache
from gazeqwen.pipeline.conditions import Condition
from gazeqwen.processing_gazeqwen import GazeQwenProcessor
from gazeqwen.questions.dataset import load_questions
from gazeqwen.questions.tasks import TASKS, task_info
from gazeqwen.streaming import stream as stream_module


@pytest.fixture(scope="module")
def model():
    parts = (str(BACKBONE), str(VIDEO_ENCODER))
    return perturb(
        GazeQwenForConditionalGeneration.from_base(*parts, latent_dim=16, num_latents=8, video_encoder_window=2)
    ).eval()


@pytest.fixture(scope="module")
def processor():
    settings = {"video_encoder_size": 64, "sampling": "grid", "fps": 1.0, "max_frames": 256, "snap_s": 1.0}
    return GazeQwenProcessor.from_base(str(BACKBONE), **settings)


@pytest.fixture(scope="module")
def questions(toy_data):
    """One question of each task, of the proactive ones all test points of one video."""
    chosen = {}
    for split in ("test", "validation"):
        for question in load_questions(toy_data, split):
            same = chosen.setdefault(question.task, [question])
            if task_info(question.task).group == "proactive" and question.video == same[0].video:
                same.append(question)
    return list({question.key: question for same in chosen.values() for question in same}.values())


def logits(predictions) -> np.ndarray:
    return np.concatenate([prediction.logits for prediction in predictions])


@pytest.mark.parametrize("name", ["gaze", "shuffled"])
def test_the_answers_are_those_of_asking_each_question_anew(model, processor, questions, name):
    """Every task, snapped gaze too."""
    assert {question.task for question in questions} == set(TASKS)
    cache = ClipCache.from_model(model, processor, "none")
    anew = predict(Accelerator(), model, cache, questions, name, batch_size=1)
    streamed = predict_streamed(Accelerator(), model, processor, questions, Condition.parse(name))
    assert [prediction.key for prediction in streamed] == [question.key for question in questions]
    assert [prediction.scanpath_of for prediction in streamed] == [prediction.scanpath_of for prediction in anew]
    np.testing.assert_allclose(logits(streamed), logits(anew), atol=1e-4)
    if name == "gaze":  # the control: what is compared depends on gaze, and on the moment of the question
        without = predict_streamed(Accelerator(), model, processor, questions, Condition.parse("none"))
        assert abs(logits(streamed) - logits(without)).max() > 1e-2
        by_alert = [p.logits for p in streamed if task_info(p.task).group == "proactive"]
        assert len({tuple(row) for row in by_alert}) == len(by_alert)


def test_the_test_points_of_a_video_share_one_stream_and_one_pass(model, processor, questions, monkeypatch):
    alerts = [question for question in questions if task_info(question.task).group == "proactive"]
    opened, init, calls = [], stream_module.GazeStream.__init__, []

    def counted(self, *args, **kwargs):
        init(self, *args, **kwargs)
        opened.append(self)

    monkeypatch.setattr(stream_module.GazeStream, "__init__", counted)
    handle = decoder_of(model.backbone).register_forward_pre_hook(lambda *_: calls.append(1))
    predict_streamed(Accelerator(), model, processor, alerts, Condition.parse("gaze"))
    handle.remove()
    videos = {question.video for question in alerts}
    assert len(opened) == len(videos) < len(alerts)
    whole_steps = sum(int(max(q.end_s for q in alerts if q.video == video) / 2) for video in videos)
    anew = sum(int(question.end_s / 2) for question in alerts)
    assert whole_steps - len(videos) <= sum(stream.report.steps for stream in opened) <= whole_steps
    assert whole_steps < anew
    assert sum(stream.report.questions for stream in opened) == len(alerts)
    # The system prompt; for each question the steps before it, a last one that is cut or snapped, and its text.
    assert len(calls) <= len(videos) + 3 * len(alerts)


def test_data_groups_questions_by_video(questions):
    data = StreamedData(questions, Condition.parse("gaze"), 0, 0.0)
    assert sorted(index for batch in data.batches for index in batch) == list(range(len(questions)))
    assert len(data.batches) == len({question.video for question in questions})


@pytest.fixture(scope="module")
def adapter(model, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_results_say_that_they_were_streamed(adapter, toy_data, tmp_path):
    """Of two tasks; the others' answers are compared above."""
    tasks = ("--tasks", "present_object_identification_easy", "proactive_gaze_triggered_alert")
    command = ["eval.py", "--model", adapter, "--data", toy_data, *tasks, "--conditions", "gaze", "--output"]
    run_here(*command, tmp_path / "streamed.json", "--stream")
    run_here(*command, tmp_path / "anew.json", "--no_cache", "--num_workers", 0, "--max_frames", 256)
    streamed, anew = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("streamed", "anew"))
    assert streamed["settings"]["streamed"] is True and "streamed" not in anew["settings"]
    assert streamed["settings"]["max_frames"] is None
    assert streamed["scores"]["gaze"]["tasks"] == anew["scores"]["gaze"]["tasks"]
    assert sampling(streamed["settings"]) == "1.0 fps on a grid, streamed"
    error = run_here(*command, tmp_path / "streamed.json", expect=1)
    assert "holds predictions of other settings" in error


def test_what_cannot_be_streamed_is_refused(adapter, toy_data, tmp_path):
    def error(*more) -> str:
        return run_here("eval.py", "--model", adapter, "--data", toy_data, "--stream", *more, expect=1)

    assert "condition 'overlay': a stream shows the video as it is" in error("--gaze", "overlay")
    assert "condition 'text': a stream shows" in error("--gaze", "text")
    assert "stream: the adapter's sampling is 'spread', expected 'grid'" in error("--sampling", "spread")
