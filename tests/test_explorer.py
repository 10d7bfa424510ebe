"""What the app shows, without the page: recordings, questions, and the words, pictures and HTML of an answer."""

import re
import shutil
from html import escape

import numpy as np
import pytest
from support import BACKBONE, VIDEO_ENCODER, another_backbone, frame_index, index_frames, write_fixations, write_video

from gazeqwen.inference.answering import Comparison
from gazeqwen.inference.explorer import (
    Explorer,
    GazeRecording,
    answer_html,
    player_html,
    read_gaze,
    snap_html,
    step_frames,
    steps_html,
    table_html,
    verdict,
    with_file_names,
)
from gazeqwen.modeling_gazeqwen import GazeQwenForConditionalGeneration
from gazeqwen.pipeline.answers import Answer
from gazeqwen.toyworld.examples import TITLES, toy_examples
from gazeqwen.toyworld.trained import ADAPTER_DIR, is_toy
from gazeqwen.video_gazeqwen import Clip


@pytest.fixture(scope="module")
def explorer():
    return Explorer(ADAPTER_DIR)


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    return toy_examples(tmp_path_factory.mktemp("examples"))


def ask_about(explorer, example, with_gaze=True, **changes):
    recording = GazeRecording.open(example.video, example.table if with_gaze else None)
    settings = {"options": "\n".join(example.options), "time_s": example.time_s, "start_s": example.start_s}
    return explorer.ask(recording, example.question, **settings | {"snap_s": example.snap_s} | changes)


# ---------------------------------------------------------------- examples
def test_gaze_changes_the_answer_of_each_example_but_of_the_last(explorer, examples):
    assert [example.title for example in examples] == list(TITLES.values())
    for example in examples:
        comparison = ask_about(explorer, example)
        right = {name: answer.text[3:] == example.answer for name, answer in comparison.answers.items()}
        assert right == {"with gaze": True, "without gaze": example is examples[-1]}
        said = verdict(comparison)
        assert said.startswith("Gaze did not change" if example is examples[-1] else "Gaze changed the answer: ")


def test_an_example_knows_its_question(examples):
    example = examples[0]
    asked = {"question": example.question, "options": "\n\n".join(example.options), "time_s": example.time_s}
    assert example.is_asked(**asked)
    for changes in ({"question": "What?"}, {"options": example.options[0]}, {"time_s": example.time_s + 0.1}):
        assert not example.is_asked(**asked | changes)


# ---------------------------------------------------------------- recordings
@pytest.fixture
def video(tmp_path):
    return write_video(tmp_path / "my clip.mp4", index_frames(60, 120, 160))


def test_a_recording_says_what_it_holds(video, tmp_path):
    assert str(GazeRecording.open(video)).startswith("Video: 6.0 s, 160 x 120 pixels. No gaze: ")
    table = write_fixations(tmp_path / "fixations.csv", [(3, 4, 0.5, 0.5), (1, 2, 0.1, 0.2)])
    said = str(GazeRecording.open(video, table))
    assert "2 fixations, from 1.0 to 4.0 s" in said
    assert "fixations.csv: 2 of 2 fixations are out of order" in said and str(tmp_path) not in said
    late = write_fixations(tmp_path / "late.csv", [(6, 7, 0.5, 0.5)])
    assert str(GazeRecording.open(video, late)).endswith(
        "all begin after the video's end. Is it the table of this video?"
    )
    longer = write_fixations(tmp_path / "longer.csv", [(1, 2, 0.5, 0.5), (7, 12, 0.5, 0.5)])
    assert GazeRecording.open(video, longer).notes == (
        "The fixations last until 12.0 s, the video until 6.0 s: 1 of 2 begin after the video's end. Is it the table "
        "of this video?",
    )
    assert str(GazeRecording.open(video, write_fixations(tmp_path / "none.csv", []))).endswith(
        "Gaze: 0 fixations. The table has no fixation, so that gaze says nothing"
    )


def test_raw_gaze_becomes_fixations_and_its_source_is_said(video, tmp_path):
    """Half a second in the middle, half a second at the right, of a camera that outlasts the tracker."""
    rows = [f"{time},1,{0.5 if time < 2.5 else 0.9},0.25" for time in np.arange(2, 3, 0.02)]
    raw = tmp_path / "raw.csv"
    raw.write_text("\n".join(["canonical_timestamp_s,confidence,norm_pos_x,norm_pos_y", *rows]))
    recording = GazeRecording.open(video, raw)
    np.testing.assert_allclose(recording.scanpath.table[:, :2], [[0.5, 0.75], [0.9, 0.75]], atol=1e-6)
    assert "Gaze: 2 fixations, from 2.0 to 3.0 s. Raw gaze of the source ego4d, guessed from the columns" in str(
        recording
    )
    scanpath, (note,) = read_gaze(raw, None)  # its video is not there yet
    assert scanpath is None and note.startswith("Raw gaze of the source ego4d")


def test_raw_gaze_that_cannot_be_read_names_the_converter(video, tmp_path):
    raw = tmp_path / "gaze.csv"
    raw.write_text("timestamp,x,y\n1,0.5,0.5\n")
    with pytest.raises(ValueError, match="no column for start.*; of raw gaze, `gazeqwen gaze`"):
        GazeRecording.open(video, raw)
    raw.write_text("canonical_timestamp_s,confidence,norm_pos_x,norm_pos_y\n1,1,here,0.5\n")
    with pytest.raises(ValueError, match="line 2: norm_pos_x is 'here'.*read as the source ego4d; `gazeqwen gaze`"):
        GazeRecording.open(video, raw)


def test_a_moment_is_a_picture_and_says_what_is_looked_at(video, tmp_path):
    table = write_fixations(tmp_path / "fixations.csv", [(1, 2, 0.25, 0.5), (3, 4, 0.75, 0.5)])
    picture, said = GazeRecording.open(video, table).moment(3.5)
    assert said == "At 3.5 s: fixation 1, from 3.0 to 4.0 s"
    plain, at = GazeRecording.open(video).moment(3.5)
    assert at == "At 3.5 s" and picture.shape == plain.shape == (495, 660, 3)
    red, y, x = (picture.astype(int) - plain)[..., 0] > 60, *np.indices(picture.shape[:2])
    assert red[:, 330:].any() and x[red & (x > 450)].mean() == pytest.approx(0.75 * 660, abs=15)
    assert y[red & (x > 450)].mean() == pytest.approx(0.5 * 495, abs=15)
    assert GazeRecording.open(video, table).moment(2.5)[1] == "At 2.5 s: no fixation"
    assert GazeRecording.open(video).moment(99.0)[1] == "At 6.0 s"


def test_what_is_no_recording_is_said(video, tmp_path):
    with pytest.raises(ValueError, match="There is no video yet"):
        GazeRecording.open(None)
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match="not a readable video"):
        GazeRecording.open(tmp_path / "text.mp4")
    bad = write_fixations(tmp_path / "bad.csv", [(1, 2, 1.5, 0.5)])
    with pytest.raises(ValueError, match=r"bad.csv, line 2: x is 1.5, expected 0 to 1") as error:
        GazeRecording.open(video, bad)
    assert with_file_names(error.value, video, bad, None).startswith("bad.csv, line 2: x is 1.5")


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
        explorer.ask(GazeRecording.open(video), question, **{"options": "", "time_s": 5.0} | changes)


def test_the_clip_begins_a_minute_before_the_question(explorer, examples, tmp_path):
    long = write_video(tmp_path / "long.mp4", index_frames(90), fps=1)
    comparison = explorer.ask(GazeRecording.open(long), "What?", "a\nb", 80.0)
    assert (comparison.clip.start_s, comparison.clip.end_s) == (20.0, 80.0)
    assert explorer.ask(GazeRecording.open(long), "What?", "a\nb", 30.0).clip.start_s == 0.0


def test_without_a_table_there_is_the_base_models_answer_alone(explorer, examples):
    comparison = ask_about(explorer, examples[0], with_gaze=False)
    assert verdict(comparison).startswith("No gaze was given. The base model says: ")
    assert comparison.attention is None and table_html(comparison).count("<tr>") == 1
    assert steps_html(comparison, comparison.clip.frames[1::2]).count("no fixation") == 2 * len(
        comparison.step_spans_s
    )
    assert "No gaze was given" in answer_html("With gaze", comparison.answers.get("with gaze"))


def test_without_options_the_model_answers_freely(explorer, examples):
    comparison = ask_about(explorer, examples[0], options="")
    assert set(comparison.answers) == {"with gaze", "without gaze"}
    assert not any(answer.probabilities for answer in comparison.answers.values())
    assert "<table>" not in answer_html("With gaze", comparison.answers["with gaze"])


@pytest.mark.parametrize("resampler_type", ["heatmap_vector", "none"])
def test_a_model_without_latents_is_asked_all_the_same(resampler_type, toy_processor, examples, tmp_path):
    parts = (another_backbone(tmp_path / "mine"), str(VIDEO_ENCODER))
    GazeQwenForConditionalGeneration.from_base(*parts, resampler_type=resampler_type).save_pretrained(tmp_path / "a")
    toy_processor.save_pretrained(tmp_path / "a")
    explorer = Explorer(str(tmp_path / "a"))
    assert not explorer.has_attention and not is_toy(explorer.model) and explorer.name == str(tmp_path / "a")
    comparison = ask_about(explorer, examples[0])
    assert set(comparison.answers) == {"with gaze", "without gaze"} and comparison.attention is None


def test_the_toy_model_is_known_wherever_its_base_model_lies(explorer, toy_processor, tmp_path):
    assert is_toy(explorer.model) and explorer.has_attention and explorer.name == str(ADAPTER_DIR)
    moved = str(shutil.copytree(BACKBONE, tmp_path / "mine"))
    assert is_toy(GazeQwenForConditionalGeneration.from_base(moved, resampler_type="none"))


def test_snapping_is_as_trained_unless_told_otherwise_and_is_marked_everywhere(explorer, video, tmp_path):
    table = write_fixations(tmp_path / "fixations.csv", [(1.5, 4.03, 0.25, 0.5), (4.09, 5.5, 0.75, 0.5)])
    recording = GazeRecording.open(video, table)
    comparison = explorer.ask(recording, "What?", "a\nb", 4.0)
    told = "snapped by 0.09 s: fixation 1 begins at 4.09 s, after the question"
    assert told in snap_html(comparison) and "the wearer looks at fixation 0" in snap_html(comparison)
    assert table_html(comparison).count("(snapped)") == 1 and "fixation 1: 100 % (snapped)" in table_html(comparison)
    html = steps_html(comparison, step_frames(recording, comparison))
    assert html.count("#1: 100 % (snapped)") == 2  # caption, and words for who does not see the picture
    true = explorer.ask(recording, "What?", "a\nb", 4.0, snap_s=0.0)
    assert snap_html(true) == "" and "snapped" not in table_html(true)


def test_a_step_shows_the_frame_of_its_main_fixation_and_none_after_the_question(explorer, tmp_path):
    """The video's frames tell their number: 10 a second, asked at 6 s of 9 s."""
    video = write_video(tmp_path / "v.mp4", index_frames(90))
    table = write_fixations(tmp_path / "f.csv", [(0.0, 0.6, 0.2, 0.2), (5.0, 5.4, 0.5, 0.5), (6.05, 7.0, 0.8, 0.8)])
    recording = GazeRecording.open(video, table)
    frames = step_frames(recording, explorer.ask(recording, "What?", "a\nb", 6.0, snap_s=0.0))
    assert [frame_index(frame) for frame in frames] == [3, 14, 24, 34, 44, 52]
    snapped = step_frames(recording, explorer.ask(recording, "What?", "a\nb", 6.0, snap_s=1.0))
    assert frame_index(snapped[-1]) == 60


# ---------------------------------------------------------------- words, pictures, HTML
def comparison_of(with_gaze: Answer | None, without: Answer) -> Comparison:
    clip = Clip(np.zeros((2, 8, 8, 3), np.uint8), [0.5, 1.5], 0.0, 2.0)
    named_answers = {"with gaze": with_gaze, "without gaze": without}
    return Comparison(clip, clip.step_spans_s(), {name: answer for name, answer in named_answers.items() if answer})


def test_the_verdict_says_whether_gaze_changed_the_answer():
    box, knife = Answer("A. box", {"A. box": 0.75, "B. knife": 0.25}), Answer("B. knife", {"B. knife": 0.5})
    surer = Answer("A. box", {"A. box": 0.9, "B. knife": 0.1})
    assert (
        verdict(comparison_of(box, knife)) == "Gaze changed the answer: A. box (75.0 %) instead of B. knife (50.0 %)"
    )
    said = "Gaze did not change the answer, A. box. Its probability: 75.0 % without gaze, 90.0 % with it"
    assert verdict(comparison_of(surer, box)) == said
    assert verdict(comparison_of(Answer("A box.", {}), Answer("A box.", {}))) == "Gaze did not change the answer"
    assert verdict(comparison_of(Answer("A box.", {}), Answer("Two.", {}))).endswith(": A box. instead of Two.")
    long = Answer("A box. " * 50, {})
    assert verdict(comparison_of(long, Answer("Two.", {}))) == "Gaze changed the answer"
    assert verdict(comparison_of(None, long)) == "No gaze was given. The base model's answer is below"


def test_the_player_quotes_the_files_name():
    assert 'src="gradio_api/file=/tmp/a%20%22b%22.mp4"' in player_html('/tmp/a "b".mp4') and player_html(None) == ""


def test_an_answer_shows_all_options_in_their_order_and_runs_no_html():
    option = "A. <b onclick='x'>box</b>"
    html = answer_html("With gaze", Answer("B. knife", {option: 0.251, "B. knife": 0.749}))
    assert escape(option) in html and "<b" not in html
    assert re.findall(r"([\d.]+) %<", html) == ["25.1", "74.9"]
    assert html.count('class="best"') == 1 and '<tr class="best"><th scope="row">B. knife' in html


def test_steps_are_pictures_with_words_and_the_table_has_every_share(explorer, examples):
    comparison = ask_about(explorer, examples[2])
    frames = step_frames(GazeRecording.open(examples[2].video), comparison)
    plain, dark = steps_html(comparison, frames), steps_html(comparison, frames, comparison.attention)
    alts = re.findall(r'alt="(.+?)"', plain)
    assert len(alts) == len(comparison.steps()) == 6 and all(alt.startswith("Fixations from 0:") for alt in alts)
    assert plain != dark and dark.count("Where the latents look") == 6
    assert plain == steps_html(ask_about(explorer, examples[2]), frames)
    table = table_html(comparison)
    for step in comparison.steps():
        assert f"{step.begin_s:.2f} to {step.end_s:.2f} s" in table
        for fixation, share in step.shares.items():
            assert f"fixation {fixation}: {100 * share:.0f} %" in table
