"""What the app shows, without the page: recordings, questions, and the words, pictures and HTML of an answer."""

import json
import re
import shutil
from html import escape

import numpy as np
import pytest
from support import BACKBONE, VIDEO_ENCODER, index_frames, write_fixations, write_video

from gazeqwen.inference.answering import Answer, Asked
from gazeqwen.inference.explorer import Explorer, Recording, answer_html, named, steps_html, table_html, verdict
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.toyworld.examples import TITLES, toy_examples
from gazeqwen.toyworld.trained import ADAPTER_DIR
from gazeqwen.video_gazeqwen import Clip


@pytest.fixture(scope="module")
def explorer():
    return Explorer(ADAPTER_DIR)


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    return toy_examples(tmp_path_factory.mktemp("examples"))


def ask_about(explorer, example, with_gaze=True, **changes):
    recording = Recording.open(example.video, example.table if with_gaze else None)
    settings = {"options": "\n".join(example.options), "time_s": example.time_s, "start_s": example.start_s}
    return explorer.ask(recording, example.question, **settings | {"snap_s": example.snap_s} | changes)


# ---------------------------------------------------------------- examples
def test_gaze_changes_the_answer_of_each_example_but_of_the_last(explorer, examples):
    assert [example.title for example in examples] == list(TITLES.values())
    for example in examples:
        asked = ask_about(explorer, example)
        right = {name: answer.text[3:] == example.answer for name, answer in asked.answers.items()}
        assert right == {"with gaze": True, "without gaze": example is examples[-1]}
        said = verdict(asked)
        assert said.startswith("Gaze did not change" if example is examples[-1] else "Gaze changed the answer: ")


# ---------------------------------------------------------------- recordings
@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / "my clip.mp4", index_frames(60, 120, 160))


def test_a_recording_says_what_it_holds(video, tmp_path):
    assert str(Recording.open(video)).startswith("Video: 6.0 s, 160 x 120 pixels. No fixation table")
    table = write_fixations(tmp_path / "fixations.csv", [(3, 4, 0.5, 0.5), (1, 2, 0.1, 0.2)])
    said = str(Recording.open(video, table))
    assert "2 fixations, from 1.0 to 4.0 s" in said
    assert "fixations.csv: 2 of 2 fixations are out of order" in said and str(tmp_path) not in said
    late = write_fixations(tmp_path / "late.csv", [(6, 7, 0.5, 0.5)])
    assert str(Recording.open(video, late)).endswith("Is it the table of this video?")
    assert str(Recording.open(video, write_fixations(tmp_path / "none.csv", []))).endswith("Table: 0 fixations")


def test_a_moment_is_a_picture_and_says_what_is_looked_at(video, tmp_path):
    table = write_fixations(tmp_path / "fixations.csv", [(1, 2, 0.25, 0.5), (3, 4, 0.75, 0.5)])
    picture, said = Recording.open(video, table).moment(3.5)
    assert said == "At 3.5 s: fixation 1, from 3.0 to 4.0 s"
    plain, at = Recording.open(video).moment(3.5)
    assert at == "At 3.5 s" and picture.shape == plain.shape == (495, 660, 3)
    red, y, x = (picture.astype(int) - plain)[..., 0] > 60, *np.indices(picture.shape[:2])
    assert red[:, 330:].any() and x[red & (x > 450)].mean() == pytest.approx(0.75 * 660, abs=15)
    assert y[red & (x > 450)].mean() == pytest.approx(0.5 * 495, abs=15)
    assert Recording.open(video, table).moment(2.5)[1] == "At 2.5 s: no fixation"
    assert Recording.open(video).moment(99.0)[1] == "At 6.0 s"


def test_what_is_no_recording_is_said(video, tmp_path):
    with pytest.raises(ValueError, match="There is no video yet"):
        Recording.open(None)
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match="not a readable video"):
        Recording.open(tmp_path / "text.mp4")
    bad = write_fixations(tmp_path / "bad.csv", [(1, 2, 1.5, 0.5)])
    with pytest.raises(ValueError, match=r"bad.csv, line 2: x is 1.5, expected 0 to 1") as error:
        Recording.open(video, bad)
    assert named(error.value, video, bad, None).startswith("bad.csv, line 2: x is 1.5")


# ---------------------------------------------------------------- questions
@pytest.mark.parametrize(
    ("question", "changes", "message"),
    [
        (" ", {}, "There is no question yet"),
        ("What?", {"options": "box\n\n"}, "only one option, 'box'"),
        ("What?", {"options": "\n".join("abcdefghi")}, "got 9 options"),
        ("What?", {"time_s": 99.0}, "query time 99.0 s lies beyond the video"),
        ("What?", {"time_s": 2.0, "start_s": 3.0}, "clip from 3.0 to 2.0 s, expected a positive length"),
        ("What?", {"start_s": -1.0}, "clip starts at -1.0 s"),
    ],
)
def test_what_cannot_be_asked_is_said(explorer, video, question, changes, message):
    with pytest.raises(ValueError, match=message):
        explorer.ask(Recording.open(video), question, **{"options": "", "time_s": 5.0} | changes)


def test_the_clip_begins_a_minute_before_the_question(explorer, examples, tmp_path):
    long = write_video(tmp_path / "long.mp4", index_frames(90), fps=1)
    asked = explorer.ask(Recording.open(long), "What?", "a\nb", 80.0)
    assert (asked.clip.start_s, asked.clip.end_s) == (20.0, 80.0)
    assert explorer.ask(Recording.open(long), "What?", "a\nb", 30.0).clip.start_s == 0.0


def test_without_a_table_there_is_the_base_models_answer_alone(explorer, examples):
    asked = ask_about(explorer, examples[0], with_gaze=False)
    assert verdict(asked).startswith("No gaze was given. The base model says: ")
    assert asked.attention is None and table_html(asked).count("<tr>") == 1
    assert steps_html(asked).count("no fixation") == 2 * len(asked.step_spans_s)
    assert "No fixation table" in answer_html("With gaze", asked.answers.get("with gaze"))


def test_without_options_the_model_answers_freely(explorer, examples):
    asked = ask_about(explorer, examples[0], options="")
    assert set(asked.answers) == {"with gaze", "without gaze"}
    assert not any(answer.probabilities for answer in asked.answers.values())
    assert "<table>" not in answer_html("With gaze", asked.answers["with gaze"])


@pytest.mark.parametrize("resampler_type", ["heatmap_vector", "none"])
def test_a_model_without_latents_is_asked_all_the_same(resampler_type, toy_processor, examples, tmp_path):
    base = shutil.copytree(BACKBONE, tmp_path / "mine")
    config = json.loads((base / "config.json").read_text())
    if resampler_type == "none":  # it is the configuration that says so, not what the folder is called
        del config["trained_on"]
        (base / "config.json").write_text(json.dumps(config))
    parts = (str(base), str(VIDEO_ENCODER))
    GazeQwenForConditionalGeneration.from_base(*parts, resampler_type=resampler_type).save_pretrained(tmp_path / "a")
    toy_processor.save_pretrained(tmp_path / "a")
    explorer = Explorer(str(tmp_path / "a"))
    assert explorer.is_toy == (resampler_type != "none")
    assert not explorer.has_attention and explorer.name == str(tmp_path / "a")
    asked = ask_about(explorer, examples[0])
    assert set(asked.answers) == {"with gaze", "without gaze"} and asked.attention is None


def test_the_toy_model_says_that_it_is_one(explorer):
    assert explorer.is_toy and explorer.has_attention and explorer.name == str(ADAPTER_DIR)


# ---------------------------------------------------------------- words, pictures, HTML
def asked_with(with_gaze: Answer | None, without: Answer) -> Asked:
    clip = Clip(np.zeros((2, 8, 8, 3), np.uint8), [0.5, 1.5], 0.0, 2.0)
    named_answers = {"with gaze": with_gaze, "without gaze": without}
    return Asked(clip, clip.step_spans_s(), {name: answer for name, answer in named_answers.items() if answer})


def test_the_verdict_says_whether_gaze_changed_the_answer():
    box, knife = Answer("A. box", {"A. box": 0.75, "B. knife": 0.25}), Answer("B. knife", {"B. knife": 0.5})
    surer = Answer("A. box", {"A. box": 0.9, "B. knife": 0.1})
    assert verdict(asked_with(box, knife)) == "Gaze changed the answer: A. box (75.0 %) instead of B. knife (50.0 %)"
    said = "Gaze did not change the answer, A. box. Its probability: 75.0 % without gaze, 90.0 % with it"
    assert verdict(asked_with(surer, box)) == said
    assert verdict(asked_with(Answer("A box.", {}), Answer("A box.", {}))) == "Gaze did not change the answer"
    assert verdict(asked_with(Answer("A box.", {}), Answer("Two.", {}))).endswith(": A box. instead of Two.")


def test_an_answer_shows_all_options_in_their_order_and_runs_no_html():
    option = "A. <b onclick='x'>box</b>"
    html = answer_html("With gaze", Answer("B. knife", {option: 0.251, "B. knife": 0.749}))
    assert escape(option) in html and "<b" not in html
    assert re.findall(r"([\d.]+) %<", html) == ["25.1", "74.9"]
    assert html.count('class="best"') == 1 and '<tr class="best"><th scope="row">B. knife' in html


def test_steps_are_pictures_with_words_and_the_table_has_every_share(explorer, examples):
    asked = ask_about(explorer, examples[2])
    plain, dark = steps_html(asked), steps_html(asked, asked.attention)
    alts = re.findall(r'alt="(.+?)"', plain)
    assert len(alts) == len(asked.counted()) == 6 and all(alt.startswith("Fixations from 0:") for alt in alts)
    assert plain != dark and dark.count("Where the latents look") == 6
    assert plain == steps_html(ask_about(explorer, examples[2]))
    table = table_html(asked)
    for begin, end, shares in asked.counted():
        assert f"{begin:.2f} to {end:.2f} s" in table
        for fixation, share in shares.items():
            assert f"fixation {fixation}: {100 * share:.0f} %" in table
