"""
The page in the browser: a video with its fixations to scrub through, and a question answered with gaze and without;
and the same video played as if it arrived live, with alerts, and questions at any moment.
"""

import logging
import math
from contextlib import contextmanager
from html import escape
from typing import NamedTuple

import gradio as gr
from starlette.middleware import Middleware

from gazeqwen.backbones_gazeqwen import family_of
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
    truth_html,
    verdict,
    with_file_names,
)
from gazeqwen.inference.live import LiveRecording, live_answer_html
from gazeqwen.inference.visitors import (
    MAX_UPLOAD_BYTES,
    MAX_WAITING,
    SameOrigin,
    Turns,
    checked_size,
)
from gazeqwen.toyworld.examples import Example
from gazeqwen.toyworld.trained import TOY_NOTE, is_toy

STEPS_NOTE = (
    "For each temporal step the frame in the middle of the fixation that covers most of it, and the share of the step "
    "that each fixation covers. Disc: the fixation of that frame. Rings: the other fixations, from other moments. "
    "Dashed: snapped."
)
LIVE_NOTE = (
    "Plays the recording that is chosen under *Ask* as if it arrived now: each moment enters the model once, with the "
    "gaze known by then. Instructions are asked at each temporal step and light up while they hold."
)
PRIVACY = (
    "Files stay on the machine that runs this page, in a folder of its own. They are deleted an hour after their "
    "upload, and when the page is stopped. Nothing is sent elsewhere, kept or counted."
)
TOY_INSTRUCTION = "Monitor my gaze and alert me when I gaze on the <jar>."
ERROR_S = 30  # how long a message stays, unless closed
_READERS = 8  # files that are read at once, each in a thread
GAZE_FILES = [".csv", ".tsv", ".txt", ".gz", ".npy"]
CHECK_S, KEEP_S = 600, 3600  # how often uploads are checked, and how old they become

# Fonts of the reader's machine: none is downloaded.
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
THEME = gr.themes.Default(primary_hue="rose", **FONTS).set(body_text_color_subdued="*neutral_500")

CSS = """
.html-container { padding: 0 !important; }
.verdict { font-size: 1.2em; font-weight: 600; margin: 0; }
.verdict, .answer p { overflow-wrap: anywhere; white-space: pre-line; }
.note { margin: 4px 0 0; }
.upload .icon-wrap { display: none; }
.player video { width: 100%; height: 300px; }
.answer { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 12px 16px; }
.answer h3 { color: var(--body-text-color-subdued); font-weight: 400; margin: 0 !important; }
.answer p { font-size: 1.25em; font-weight: 600; margin: 4px 0 8px; }
.answer table { width: 100%; border-collapse: collapse; }
.answer table th, .answer table td { border: 0; padding: 3px 0; text-align: left; font-weight: 400; }
.answer table, .answer tr { border: 0 !important; }
.answer table th { width: 45%; padding-right: 8px; overflow-wrap: anywhere; }
.answer table td:last-child { width: 4.5em; text-align: right; white-space: nowrap; }
.answer td div { height: 10px; border-radius: 5px; background: var(--neutral-300); }
.answer table .best th, .answer table .best td { font-weight: 600; }
.answer .best td div { background: var(--primary-500); }
.alerts { list-style: none; padding: 0; margin: 0; }
.alerts li { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 8px 12px; margin: 4px 0; }
.alerts li span { display: block; font-size: 0.85em; }
.alerts li.raised { background: var(--primary-500); color: white; font-weight: 600; }
.steps { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 12px; }
.steps figure { margin: 0; max-width: 260px; }
.steps img { width: 100%; border-radius: 6px; display: block; }
.steps figcaption { font-size: 0.85em; line-height: 1.35; padding-top: 4px; }
.shares { width: 100%; border-collapse: collapse; border: 0 !important; }
.shares tr { border: solid var(--border-color-primary) !important; border-width: 0 0 1px !important; }
.shares th, .shares td { text-align: left; padding: 4px 8px; border: 0 !important; }
"""


@contextmanager
def plain_errors(*files):
    """Show what goes wrong in the block on the page, in a sentence that names `files` as they were uploaded."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise gr.Error(escape(with_file_names(error, *files)), duration=ERROR_S, print_exception=False) from None
    except Exception:
        logging.exception("unexpected")
        message = "Something failed that should not have. The server's log says what."
        raise gr.Error(message, duration=ERROR_S, print_exception=False) from None


class Handlers:
    """What the page does when something is chosen, uploaded, moved or asked: values of components in and out."""

    def __init__(self, explorer: Explorer, examples: list[Example], own_pace: bool = True):
        self.explorer, self.own_pace, self.turns = explorer, own_pace, Turns()
        self.examples = {example.title: example for example in examples}

    def choose(self, title: str):
        """Fill the page with an example."""
        example = self.examples[title]
        with plain_errors():
            recording = GazeRecording.open(example.video, example.table)
        files, texts = (str(example.video), str(example.table)), (example.question, "\n".join(example.options))
        return *files, *texts, example.start_s, example.snap_s, *_summary(recording, example.time_s)

    def leave_example(self, title: str | None):
        """Empty what belongs to an example, if one is chosen."""
        return [None, None, "", "", None, self.explorer.processor.snap_s] if title else [gr.skip()] * 6

    def open_video(self, video, table):
        """Show what an uploaded video holds, at its end."""
        with plain_errors(video, table):
            recording = _open(video, table)
            return _summary(recording, math.floor(10 * recording.info.end_s) / 10)

    def open_table(self, video, table):
        """Show what a fixation table holds."""
        with plain_errors(video, table):
            if video is not None:
                return _about(_open(video, table))
            if table is not None:
                checked_size(table)
                _, notes = read_gaze(table, None)
                return f"<p>{escape('. '.join(notes))}</p>"
            return ""

    def moment(self, video, table, time_s):
        """Show the frame at a time with the scanpath so far."""
        if video is None:
            return None, ""
        with plain_errors(video, table):
            picture, caption = _open(video, table).moment(time_s)
            return gr.Image(picture, alt_text=caption), f"<p>{escape(caption)}</p>"

    def answer(
        self,
        video,
        table,
        question,
        options,
        time_s,
        start_s,
        snap_s,
        title=None,
        progress=gr.Progress(),  # noqa: B008
    ):
        """
        Ask with gaze and without; an empty `snap_s` is what the adapter was trained with. `title`: the example that
        was chosen, whose right answer is told where its question was asked.
        """
        with plain_errors(video, table):
            progress(0.1, "Reading the video")
            recording = _open(video, table)
            progress(0.3, "Asking with gaze and without")
            turn = self.turns.take(lambda before: progress(0.3, _waiting_text(before)))
            comparison = self.explorer.ask(recording, question, options, time_s, start_s, snap_s, turn)
            progress(0.8, "Drawing")
            frames = step_frames(recording, comparison)
            answers = (comparison.answers.get(name) for name in ("with gaze", "without gaze"))
            example = self.examples.get(title)
            is_its_question = example is not None and example.is_asked(question, options, time_s)
            truth = truth_html(example.answer) if is_its_question else ""
            return (
                f'<p class="verdict" role="status">{escape(verdict(comparison))}</p>{truth}{snap_html(comparison)}',
                gr.Column(visible=True),
                *map(answer_html, ("With gaze", "Without gaze"), answers),
                steps_html(comparison, frames),
                "" if comparison.attention is None else steps_html(comparison, frames, comparison.attention),
                table_html(comparison),
            )

    def play(self, video, table, instructions):
        """Play a recording as if it arrived now: yield the session, for questions in between, and what is shown."""
        with plain_errors(video, table):
            live = LiveRecording(self.explorer, _open(video, table), instructions, self.own_pace)
            note = f"<p>{escape(live.note)}</p>" if live.note else ""
            yield live, gr.skip(), note, ""
            for moment in live.moments():
                picture = gr.Image(moment.picture, alt_text=moment.caption)
                yield gr.skip(), picture, f"<p>{escape(moment.caption)}</p>{note}", moment.alerts

    def ask_live(self, live: LiveRecording | None, question, options):
        """Ask about what has been played so far."""
        with plain_errors():
            if live is None:
                raise ValueError("Nothing has been seen yet: play a recording first.")
            return live_answer_html(question, live.ask(question, options))


def _open(video, table) -> GazeRecording:
    """Return an uploaded recording. Raises ValueError or OSError for what is none, or too large."""
    checked_size(table)
    return GazeRecording.open(video, table)


def _waiting_text(before: int) -> str:
    """Return in words how many questions are answered before another."""
    return f"{before} question{'s' if before > 1 else ''} before this one"


def _about(recording: GazeRecording) -> str:
    return f"<p>{escape(str(recording))}</p>"


def _summary(recording: GazeRecording, time_s: float):
    """Return what a recording holds, and the slider of its times."""
    return _about(recording), gr.Slider(maximum=math.ceil(10 * recording.info.end_s) / 10, value=time_s)


class Inputs(NamedTuple):
    """The components that a question is made with, in the order in which the page shows them."""

    example: gr.Radio
    video: gr.File
    table: gr.File
    summary: gr.HTML
    picture: gr.Image
    looked_at: gr.HTML
    player: gr.HTML
    time_s: gr.Slider
    question: gr.Textbox
    options: gr.Textbox
    ask: gr.Button
    start_s: gr.Number
    snap_s: gr.Number


class Outputs(NamedTuple):
    """The components that show an answer, in the order in which `Handlers.answer` returns their values."""

    verdict: gr.HTML
    results: gr.Column
    with_gaze: gr.HTML
    without_gaze: gr.HTML
    steps: gr.HTML
    attention: gr.HTML
    shares: gr.HTML


class Live(NamedTuple):
    """The components of the live view."""

    picture: gr.Image
    caption: gr.HTML
    instructions: gr.Textbox
    play: gr.Button
    stop: gr.Button
    alerts: gr.HTML
    question: gr.Textbox
    options: gr.Textbox
    ask: gr.Button
    answer: gr.HTML


def build(explorer: Explorer, examples: list[Example], own_pace: bool = True) -> gr.Blocks:
    """Return the page, wired to a model. `own_pace`: the live view takes as long as a recording did."""
    with gr.Blocks(title="GazeQwen", analytics_enabled=False, delete_cache=(CHECK_S, KEEP_S)) as page:
        family = family_of(explorer.model.backbone.config).name
        gr.Markdown(
            f"# GazeQwen\n{family} that knows where the wearer looked: upload a video from a head camera and the "
            f"wearer's gaze, and ask about it with gaze and without. Model: {explorer.name}."
        )
        if is_toy(explorer.model):
            gr.Markdown(f"**Mind:** {TOY_NOTE}", container=True)
        handlers = Handlers(explorer, examples, own_pace)
        with gr.Tab("Ask"):
            inputs = _build_inputs([example.title for example in examples], explorer.processor.snap_s)
            outputs = _build_outputs(explorer.has_attention)
        with gr.Tab("Live"):
            live = _build_live(TOY_INSTRUCTION if is_toy(explorer.model) else "")
        gr.Markdown(PRIVACY)
        _connect(page, inputs, outputs, handlers)
        _connect_live(inputs, live, handlers)
    return page


def _build_inputs(titles: list[str], snap_s: float) -> Inputs:
    """Lay out the upper half of the page. `snap_s`: how the adapter was trained to be asked."""
    with gr.Row():
        with gr.Column(min_width=300):
            example = gr.Radio(titles, value=titles[0], label="Try an example")
            # Not gr.Video: it complains of files that the browser cannot play, which are read here all the same.
            video = gr.File(label="Video", file_types=["video"], height=110, elem_classes="upload")
            table = gr.File(
                label="Fixation table or raw gaze", file_types=GAZE_FILES, height=110, elem_classes="upload"
            )
            summary = gr.HTML()
        with gr.Column(min_width=300):
            with gr.Tab("Moment"):
                picture = gr.Image(
                    label="The moment of the question", show_label=False, interactive=False, height=300, buttons=[]
                )
                looked_at = gr.HTML()
            with gr.Tab("Video"):
                player = gr.HTML(elem_classes="player")
            time_s = gr.Slider(
                0,
                86400,
                0,
                step=0.1,
                label="Time of the question, seconds",
                info="Nothing after it is seen, unless a fixation is snapped.",
                buttons=[],
            )
        with gr.Column(min_width=300):
            question = gr.Textbox(label="Question", lines=1, max_lines=4, info="Enter asks.")
            options = gr.Textbox(
                label="Options, one to a line", lines=4, info="None: the model answers freely. Shift+Enter asks."
            )
            ask = gr.Button("Ask", variant="primary", elem_id="ask")
            start_s = gr.Number(label="The clip begins at, seconds", info="Empty: 60 s before the question.")
            snap = gr.Number(
                snap_s,
                label="Snapping, seconds",
                minimum=0,
                info="Bring a fixation that begins so near to the question into view, for questions about what is "
                f"looked at now. 0: off, for all others. Empty: as the model was trained, {snap_s:g}.",
            )
    texts, seconds = (question, options), (start_s, snap)
    return Inputs(example, video, table, summary, picture, looked_at, player, time_s, *texts, ask, *seconds)


def _build_outputs(has_attention: bool) -> Outputs:
    """Lay out the lower half of the page, which is hidden until there is an answer."""
    verdict_text = gr.HTML()
    with gr.Column(visible=False) as results:
        with gr.Row():
            with gr.Column(min_width=300):
                with_gaze = gr.HTML()
            with gr.Column(min_width=300):
                without_gaze = gr.HTML()
        with gr.Tab("Scanpath"):
            gr.Markdown(STEPS_NOTE)
            steps = gr.HTML()
        with gr.Tab("Attention", visible=has_attention):
            gr.Markdown("Bright: where the foveal latents of the first injection layer look.")
            attention = gr.HTML()
        with gr.Tab("Table"):
            shares = gr.HTML()
    return Outputs(verdict_text, results, with_gaze, without_gaze, steps, attention, shares)


def _build_live(instruction: str) -> Live:
    """Lay out the live view, with an instruction to begin with."""
    gr.Markdown(LIVE_NOTE)
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            picture = gr.Image(label="Now", interactive=False, height=360, buttons=[])
            caption = gr.HTML()
        with gr.Column(scale=2, min_width=300):
            instructions = gr.Textbox(instruction, label="Watch for, one instruction to a line", lines=3)
            with gr.Row():
                play = gr.Button("Play", variant="primary", elem_id="play")
                stop = gr.Button("Stop")
            alerts = gr.HTML()
    with gr.Row():
        with gr.Column(scale=3, min_width=300):
            question = gr.Textbox(label="Question about what has been played so far", lines=1, info="Enter asks.")
            options = gr.Textbox(label="Its options, one to a line", lines=3, info="None: the model answers freely.")
            ask = gr.Button("Ask now", elem_id="ask_live")
        with gr.Column(scale=2, min_width=300):
            answer = gr.HTML()
    return Live(picture, caption, instructions, play, stop, alerts, question, options, ask, answer)


def _connect_live(inputs: Inputs, live: Live, handlers: Handlers) -> None:
    """Say what happens in the live view. Each visitor has a stream of their own."""
    session = gr.State()
    playing = live.play.click(
        handlers.play,
        [inputs.video, inputs.table, live.instructions],
        [session, live.picture, live.caption, live.alerts],
        api_name="play",
        concurrency_limit=4,
        show_progress="hidden",
    )
    live.stop.click(None, None, None, cancels=[playing], api_visibility="private")
    gr.on(  # what was played is not what is chosen now
        [inputs.video.change, inputs.table.change],
        lambda: (None, None, "", "", ""),
        None,
        [session, live.picture, live.caption, live.alerts, live.answer],
        cancels=[playing],
        trigger_mode="multiple",
        api_visibility="private",
        show_progress="hidden",
    )
    gr.on(
        [live.ask.click, live.question.submit],
        handlers.ask_live,
        [session, live.question, live.options],
        live.answer,
        api_name="ask_live",
        concurrency_limit=1,
    )


def _connect(page: gr.Blocks, inputs: Inputs, outputs: Outputs, handlers: Handlers) -> None:
    """Say what happens when something is chosen, uploaded, moved or asked."""
    files, moments = [inputs.video, inputs.table], [inputs.picture, inputs.looked_at]
    texts, seconds = [inputs.question, inputs.options], [inputs.start_s, inputs.snap_s]
    recording_shown = [inputs.summary, inputs.time_s]
    quiet = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": _READERS}

    def show_moment(event):
        event.success(handlers.moment, [*files, inputs.time_s], moments, **quiet)

    inputs.time_s.input(
        handlers.moment,
        [*files, inputs.time_s],
        moments,
        trigger_mode="always_last",
        show_progress="hidden",
        api_name="moment",
        concurrency_limit=_READERS,
    )
    for event in (page.load, inputs.example.input):
        filled = [*files, *texts, *seconds, *recording_shown]
        show_moment(event(handlers.choose, inputs.example, filled, **quiet))
    emptied = [inputs.example, inputs.table, *texts, *seconds]
    left = inputs.video.upload(handlers.leave_example, inputs.example, emptied, **quiet)
    opened = left.success(handlers.open_video, files, recording_shown, **quiet)
    opened.failure(lambda: None, None, inputs.video, **quiet)
    show_moment(opened)
    for event in (inputs.table.upload, inputs.table.clear, inputs.video.clear):
        opened = event(handlers.open_table, files, inputs.summary, **quiet)
        opened.failure(lambda: None, None, inputs.table, **quiet)
        show_moment(opened)
    inputs.table.upload(lambda: None, None, inputs.example, **quiet)
    inputs.video.change(player_html, inputs.video, inputs.player, **quiet)
    asked = [*files, *texts, inputs.time_s, *seconds]
    asking = gr.on(
        [inputs.ask.click, inputs.question.submit, inputs.options.submit],
        handlers.answer,
        [*asked, inputs.example],
        list(outputs),
        api_name="ask",
        concurrency_limit=MAX_WAITING + 1,  # files are read side by side, the model is asked in turn
        show_progress_on=outputs.verdict,
    )
    gr.on(  # an answer is that of the question which is seen: in the browser alone, at once
        [component.change for component in asked],
        None,
        None,
        [outputs.verdict, outputs.results],
        js="() => ['', {__type__: 'update', visible: false}]",
        cancels=[asking],
        trigger_mode="multiple",
        show_progress="hidden",
    )


def serve(page: gr.Blocks, host: str | None = None, port: int | None = None, wait: bool = True) -> str:
    """Open the page to browsers, for as long as this process runs if it is to `wait`. Returns its address."""
    quiet = {"share": False, "ssr_mode": False, "footer_links": [], "quiet": True}
    guarded = {"max_file_size": MAX_UPLOAD_BYTES, "app_kwargs": {"middleware": [Middleware(SameOrigin)]}}
    _, address, _ = page.launch(
        server_name=host, server_port=port, prevent_thread_lock=True, theme=THEME, css=CSS, **quiet, **guarded
    )
    if wait:
        print(f"open {address} in a browser; Ctrl+C ends it", flush=True)
        try:
            page.block_thread()
        finally:
            page.close(verbose=False)
    return address
