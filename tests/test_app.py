"""The page: its wiring, a question over HTTP through Gradio's own client, messages, and what it leaves behind."""

import re
import threading
import time
from pathlib import Path

import gradio
import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from support import VIDEO_ENCODER, another_backbone, index_frames, write_fixations, write_video

from gazeqwen.inference.explorer import Explorer
from gazeqwen.inference.visitors import MAX_UPLOAD_BYTES
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.page.page import build, plain_errors, serve
from gazeqwen.toyworld.examples import toy_examples
from gazeqwen.toyworld.trained import ADAPTER_DIR
from gazeqwen.video_gazeqwen import read_frames


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    return toy_examples(tmp_path_factory.mktemp("examples"))


@pytest.fixture(scope="module")
def uploads(tmp_path_factory):
    """Where uploads lie while the page is open."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("uploads")
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def page(examples, uploads):
    return build(Explorer(ADAPTER_DIR), examples, own_pace=False)


def page_client(address: str, downloads: Path) -> Client:
    """It would read the certificates of all authorities for each of its requests, none of which is encrypted."""
    return Client(address, verbose=False, download_files=downloads, ssl_verify=False)


@pytest.fixture(scope="module")
def client(page, tmp_path_factory):
    address = serve(page, "127.0.0.1", wait=False)
    client = page_client(address, tmp_path_factory.mktemp("downloads"))
    yield client
    client.close()
    page.close()


def ask(client, example, **changes):
    question = {
        "video": handle_file(example.video),
        "table": handle_file(example.table),
        "question": example.question,
        "options": "\n".join(example.options),
        "time_s": example.time_s,
        "start_s": example.start_s,
        "snap_s": example.snap_s,
    }
    return client.predict(**question | changes, api_name="/ask")


def test_a_question_is_answered_over_http(client, examples):
    said, with_gaze, without_gaze, steps, attention, table = ask(client, examples[0], title=examples[0].title)
    assert "Gaze changed the answer" in said
    assert f"The right answer of this example: <b>{examples[0].answer}</b>" in said
    assert f". {examples[0].answer}</p>" in with_gaze and f". {examples[0].answer}</p>" not in without_gaze
    for html in (with_gaze, without_gaze):
        assert sum(map(float, re.findall(r"([\d.]+) %<", html))) == pytest.approx(100, abs=0.3)
    assert steps.count("<img") == attention.count("<img") == table.count("<tr>") - 1 == 6


def test_an_answer_goes_when_anything_of_its_question_changes(page):
    """As wired; tests/browser sees it."""
    (ask,) = (f for f in page.fns.values() if f.api_name == "ask")
    (cancel,) = (f for f in page.fns.values() if ask._id in f.cancels)
    (clear,) = (f for f in page.fns.values() if f.outputs == ask.outputs[:2])
    *asked, _ = ask.inputs  # but for the example's title
    assert set(clear.targets) == set(cancel.targets) == {(block._id, "change") for block in asked}


def test_a_moment_is_a_picture_in_words_too(client, examples):
    files = {"video": handle_file(examples[0].video), "table": handle_file(examples[0].table)}
    picture, said = client.predict(**files, time_s=examples[0].time_s, api_name="/moment")
    assert picture["alt_text"] in said and "fixation 9" in said and picture["value"].endswith(".webp")


def test_a_recording_plays_and_is_asked_about_as_far_as_it_was_seen(client, examples, tmp_path):
    """The first 20 s of an example, at 2 frames per second: the wearer looks at the cucumber from 16 to 19 s."""
    with pytest.raises(AppError, match="Nothing has been seen yet"):
        client.predict("What?", "", api_name="/ask_live")
    frames, _ = read_frames(examples[0].video, np.arange(0, 20.5, 0.5))
    video = handle_file(write_video(tmp_path / "begin.mp4", frames, fps=2))
    files = {"video": video, "table": handle_file(examples[0].table)}
    instructions = "Monitor my gaze and alert me when I gaze on the <cucumber>.\nAlert me when <nothing> appears."
    job = client.submit(**files, instructions=instructions, api_name="/play")
    job.result()
    shown = [outputs for outputs in job.outputs() if "alt_text" in outputs[0]]
    assert len(shown) == 41 and all(picture["alt_text"] in said for picture, said, _ in shown)
    assert "At 12.0 s: fixation 9" in shown[24][1] and "not trained on streams" in shown[24][1]
    assert 'class="raised"' not in shown[20][2] and '<li class="raised">Monitor' in shown[-1][2]
    assert "&lt;nothing&gt;" in shown[-1][2]
    said = client.predict("Which object is the user currently gazing at?", "jar\nsponge", api_name="/ask_live")
    assert "At 20.0 s: Which object" in said and re.search(r"[AB]\. (jar|sponge) \([\d.]+ %\)", said)
    with pytest.raises(AppError, match="only one option"):
        client.predict("What?", "box", api_name="/ask_live")
    with pytest.raises(AppError, match="There is no video yet"):
        client.submit(**files | {"video": None}, instructions="", api_name="/play").result()


def test_without_a_table_the_base_model_answers(client, examples):
    changes = {"title": examples[0].title, "question": "Which object is it?", "table": None}
    said, with_gaze, without_gaze, _, attention, _ = ask(client, examples[0], **changes)
    assert "No gaze was given" in said and "right answer" not in said
    assert "No gaze was given" in with_gaze and not attention
    assert "<table>" in without_gaze


def test_messages_name_files_as_they_were_uploaded(client, examples, uploads, tmp_path):
    def message(**changes) -> str:
        with pytest.raises(AppError) as error:
            ask(client, examples[0], **changes)
        assert str(uploads) not in str(error.value) and "Traceback" not in str(error.value)
        return str(error.value)

    table = write_fixations(tmp_path / "my table (1).csv", [(0, 1, 0.5, 0.5), (1, 2, 7, 0.5)])
    assert re.match(r"my table 1?\(?1\)?\.csv, line 3: x is 7.0, expected 0 to 1", message(table=handle_file(table)))
    (tmp_path / "notes.mp4").write_text("no video")
    said = message(video=handle_file(tmp_path / "notes.mp4"))
    assert said.startswith("notes.mp4: not a readable video")
    assert "only one option" in message(options="box")
    assert "no question yet" in message(question="")
    assert "There is no video yet" in message(video=None)
    assert "query time 99.0 s lies beyond the video, which ends at" in message(time_s=99.0)
    assert "snap_s" not in message(snap_s=-1.0)


def test_what_nobody_foresaw_shows_no_traceback(caplog):
    with pytest.raises(gradio.Error, match="Something failed that should not have") as error, plain_errors():
        raise RuntimeError("a secret")
    assert "a secret" in caplog.text and "a secret" not in error.value.message
    with pytest.raises(gradio.Error, match="&lt;b&gt;"), plain_errors():
        raise ValueError("<b>")


def test_one_question_at_a_time_and_nothing_is_counted_or_kept(page):
    functions = {function.api_name: function for function in page.fns.values()}
    assert functions["ask"].concurrency_limit > 1  # the model is asked in turn
    assert page.analytics_enabled is False and page.delete_cache == (600, 3600)
    assert not page.share
    public = {function.api_name for function in page.fns.values() if function.api_visibility == "public"}
    assert public == {"ask", "moment", "play", "ask_live"}


def test_pages_of_other_origins_can_not_upload(client, uploads, tmp_path):
    (tmp_path / "foreign.csv").write_text("x")
    address = f"{client.src}gradio_api/upload"

    def status(**headers):
        return httpx.post(address, files={"files": (tmp_path / "foreign.csv").open("rb")}, headers=headers).status_code

    assert status(Origin="https://evil.example") == status(Origin="null") == 403
    assert not list(uploads.rglob("foreign.csv"))
    assert status(Origin=client.src.rstrip("/")) == status() == 200
    assert list(uploads.rglob("foreign.csv"))
    assert httpx.get(client.src, headers={"Origin": "https://evil.example"}).status_code == 200


def test_nobody_blocks_the_page_with_what_is_too_large(client, page, examples, tmp_path):
    def message(**changes) -> str:
        with pytest.raises(AppError) as error:
            ask(client, examples[0], **changes)
        return str(error.value)

    assert page.max_file_size == MAX_UPLOAD_BYTES
    with (tmp_path / "huge.csv").open("w") as table:
        table.truncate(21 << 20)
    assert "huge.csv: 22 MB, expected a fixation table of at most 21" in message(
        table=handle_file(tmp_path / "huge.csv")
    )
    assert "question: 40,000 characters, expected at most 2,000" in message(question="a" * 40_000)
    assert "options: 4,002 characters, expected at most 2,000" in message(options="a" * 2000 + "\n" + "b" * 2001)
    frames = np.zeros((4, 48, 64, 3), np.uint8)
    long = write_video(tmp_path / "long.mkv", frames, times_s=[0, 300, 600, 900])
    changes = {"video": handle_file(long), "start_s": 1.0, "time_s": 890.0}
    assert "The clip is 889 s long, expected at most 600 s" in message(**changes)
    with pytest.raises(AppError, match="instructions: 3,000 characters, expected at most 2,000"):
        files = {"video": handle_file(examples[0].video), "table": None}
        client.submit(**files, instructions="a" * 3000, api_name="/play").result()


def test_while_one_question_is_answered_others_read_their_files_and_are_told_that_they_wait(page, examples):
    """The page's own handlers, with the turn taken by the test."""
    (handlers,) = {f.fn.__self__ for f in page.fns.values() if hasattr(f.fn, "__self__")}
    example, told, answers = examples[0], [], []
    files, texts = (example.video, example.table), (example.question, "\n".join(example.options))

    def answer():
        progress = lambda _, text: told.append(text)  # noqa: E731
        seconds = example.time_s, example.start_s, example.snap_s
        answers.append(handlers.answer(*files, *texts, *seconds, progress=progress))

    asking = threading.Thread(target=answer)
    with handlers.turns.take():
        asking.start()
        while not told or told[-1] != "1 question before this one":
            time.sleep(0.01)
        assert "fixation" in handlers.moment(*files, example.time_s)[1] and not answers
    asking.join()
    assert "Gaze changed the answer" in answers[0][0]


def test_uploads_are_deleted_when_the_page_stops(examples, uploads, tmp_path):
    page = build(Explorer(ADAPTER_DIR), examples)
    client = page_client(serve(page, "127.0.0.1", wait=False), tmp_path)
    video = write_video(tmp_path / "private.mp4", index_frames(30))
    ask(client, examples[0], video=handle_file(video), table=None, time_s=2.0, start_s=None)
    assert list(uploads.rglob("private.mp4"))
    client.close()
    page.close()
    assert not list(uploads.rglob("private.mp4"))


@pytest.mark.parametrize("resampler_type", ["attention", "none"])
def test_the_page_shows_what_the_model_has(resampler_type, examples, toy_processor, tmp_path):
    parts = (another_backbone(tmp_path / "mine"), str(VIDEO_ENCODER))
    GazeQwenForConditionalGeneration.from_base(*parts, resampler_type=resampler_type).save_pretrained(tmp_path / "a")
    toy_processor.save_pretrained(tmp_path / "a")
    page = build(Explorer(str(tmp_path / "a")), examples)
    tabs = {block.label: block.visible for block in page.blocks.values() if isinstance(block, gradio.Tab)}
    assert tabs == {
        "Ask": True,
        "Live": True,
        "Moment": True,
        "Video": True,
        "Scanpath": True,
        "Attention": resampler_type == "attention",
        "Table": True,
    }
    assert not [block for block in page.blocks.values() if "toy model" in str(getattr(block, "value", ""))]


def test_the_toy_model_is_said_to_be_one(page):
    assert [block for block in page.blocks.values() if "toy model" in str(getattr(block, "value", ""))]
