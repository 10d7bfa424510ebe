"""
GazeQwen in the browser: a video with its fixations to scrub through, and a question answered with gaze and without.

    gazeqwen app                            # the toy world's adapter, which comes with the package: offline
    gazeqwen app --model user/gazeqwen      # any adapter, a folder or an id on the Hub

Nothing is shared or uploaded elsewhere. `gazeqwen space` publishes the page as a Space.
"""

import argparse
import logging
import math
import tempfile
from contextlib import contextmanager
from html import escape

from gazeqwen.utils.command_line import named_extra, one_line_errors

with named_extra():
    import gradio as gr
    import torch

    from gazeqwen.inference.explorer import (
        Explorer,
        Recording,
        answer_html,
        named,
        read_table,
        steps_html,
        table_html,
        verdict,
    )
    from gazeqwen.toyworld.examples import Example, toy_examples
    from gazeqwen.toyworld.trained import ADAPTER_DIR

TOY_NOTE = (
    "**This is the toy model.** It knows its toy world alone, where kitchen things are coloured shapes (a tomato is a "
    "red circle), so its answers about any other video mean nothing. The scanpath, its alignment and the pictures do."
)
PRIVACY = (
    "Files stay on the machine that runs this page. They are deleted an hour after their upload, and when the page is "
    "stopped. Nothing is sent elsewhere, kept or counted."
)
ERROR_S = 30  # how long a message stays, unless closed
CHECK_S, KEEP_S = 600, 3600  # how often uploads are checked, and how old they become

# Fonts of the reader's machine: none is downloaded.
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
THEME = gr.themes.Default(primary_hue="rose", **FONTS).set(body_text_color_subdued="*neutral_500")

CSS = """
.html-container { padding: 0 !important; }
.verdict { font-size: 1.2em; font-weight: 600; margin: 0; }
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
    """What goes wrong in the block is said on the page in a sentence; `files` are named as they were uploaded."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise gr.Error(escape(named(error, *files)), duration=ERROR_S, print_exception=False) from None
    except Exception:
        logging.exception("unexpected")
        message = "Something failed that should not have. The server's log says what."
        raise gr.Error(message, duration=ERROR_S, print_exception=False) from None


def build(explorer: Explorer, examples: list[Example]) -> gr.Blocks:
    """The page, wired to a model."""
    titles = [example.title for example in examples]

    def about(recording):
        return f"<p>{escape(str(recording))}</p>"

    def timeline(recording, time_s):
        return gr.Slider(maximum=math.ceil(10 * recording.info.end_s) / 10, value=time_s)

    def choose(title):
        example = examples[titles.index(title)]
        with plain_errors():
            recording = Recording.open(example.video, example.table)
        files, texts = (str(example.video), str(example.table)), (example.question, "\n".join(example.options))
        return *files, *texts, example.start_s, example.snap_s, about(recording), timeline(recording, example.time_s)

    def leave_example(title):
        return [None, None, "", "", None, 0.0] if title else [gr.skip()] * 6

    def open_video(video, table):
        with plain_errors(video, table):
            recording = Recording.open(video, table)
            return about(recording), timeline(recording, math.floor(10 * recording.info.end_s) / 10)

    def open_table(video, table):
        with plain_errors(video, table):
            if video is not None:
                return about(Recording.open(video, table))
            if table is not None:
                read_table(table)
            return ""

    def moment(video, table, time_s):
        if video is None:
            return None, ""
        with plain_errors(video, table):
            picture, said = Recording.open(video, table).moment(time_s)
            return gr.Image(picture, alt_text=said), f"<p>{escape(said)}</p>"

    def answer(video, table, question, options, time_s, start_s, snap_s, progress=gr.Progress()):  # noqa: B008
        with plain_errors(video, table):
            progress(0.1, "Reading the video")
            recording = Recording.open(video, table)
            progress(0.3, "Asking with gaze and without")
            asked = explorer.ask(recording, question, options, time_s, start_s, snap_s or 0.0)
            progress(0.8, "Drawing")
            return (
                f'<p class="verdict" role="status">{escape(verdict(asked))}</p>',
                gr.Column(visible=True),
                *(answer_html(name.capitalize(), asked.answers.get(name)) for name in ("with gaze", "without gaze")),
                steps_html(asked),
                "" if asked.attention is None else steps_html(asked, asked.attention),
                table_html(asked),
            )

    with gr.Blocks(title="GazeQwen", analytics_enabled=False, delete_cache=(CHECK_S, KEEP_S)) as page:
        gr.Markdown(
            "# GazeQwen\nQwen2.5-VL that knows where the wearer looked: upload a video from a head camera and the "
            f"wearer's fixations, and ask about it with gaze and without. Model: {explorer.name}."
        )
        if explorer.is_toy:
            gr.Markdown(TOY_NOTE, container=True)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                example = gr.Radio(titles, value=titles[0], label="Try an example")
                # Not gr.Video: it complains of files that the browser cannot play, which are read here all the same.
                video = gr.File(label="Video", file_types=["video"], height=150)
                table = gr.File(label="Fixation table (CSV)", file_types=[".csv"], height=150)
                summary = gr.HTML()
            with gr.Column(scale=3, min_width=300):
                picture = gr.Image(label="The moment of the question", interactive=False, height=360, buttons=[])
                looked_at = gr.HTML()
                time_s = gr.Slider(
                    0,
                    86400,
                    0,
                    step=0.1,
                    label="Time of the question, seconds",
                    info="Nothing after it is seen.",
                    buttons=[],
                )
        with gr.Row():
            with gr.Column(scale=3, min_width=300):
                question = gr.Textbox(label="Question", lines=1, info="Enter asks.")
                options = gr.Textbox(
                    label="Options, one to a line", lines=4, info="None: the model answers freely. Shift+Enter asks."
                )
            with gr.Column(scale=2, min_width=300):
                start_s = gr.Number(label="The clip begins at, seconds", info="Empty: 60 s before the question.")
                snap_s = gr.Number(
                    0,
                    label="Snapping, seconds",
                    minimum=0,
                    info="Bring a fixation that begins so near to the question into view, for questions about what is "
                    "looked at now. 0: off.",
                )
        ask = gr.Button("Ask", variant="primary", elem_id="ask")
        said = gr.HTML()
        with gr.Column(visible=False) as results:
            with gr.Row():
                with gr.Column(min_width=300):
                    with_gaze = gr.HTML()
                with gr.Column(min_width=300):
                    without_gaze = gr.HTML()
            with gr.Tab("Scanpath"):
                gr.Markdown("Each temporal step's last frame, and the share of the step that each fixation covers.")
                steps = gr.HTML()
            with gr.Tab("Attention", visible=explorer.has_attention):
                gr.Markdown("Bright: where the foveal latents of the first injection layer look.")
                attention = gr.HTML()
            with gr.Tab("Table"):
                shares = gr.HTML()
        gr.Markdown(PRIVACY)

        files, moments, timeline_of = [video, table], [picture, looked_at], [summary, time_s]
        quiet = {"api_visibility": "private", "show_progress": "hidden"}

        time_s.input(
            moment, [*files, time_s], moments, trigger_mode="always_last", show_progress="hidden", api_name="moment"
        )

        def show_moment(event):
            event.success(moment, [*files, time_s], moments, **quiet)

        for event in (page.load, example.input):
            outputs = [*files, question, options, start_s, snap_s, *timeline_of]
            show_moment(event(choose, example, outputs, **quiet))
        left = video.upload(leave_example, example, [example, table, question, options, start_s, snap_s], **quiet)
        opened = left.success(open_video, files, timeline_of, **quiet)
        opened.failure(lambda: None, None, video, **quiet)
        show_moment(opened)
        for event in (table.upload, table.clear, video.clear):
            opened = event(open_table, files, summary, **quiet)
            opened.failure(lambda: None, None, table, **quiet)
            show_moment(opened)
        table.upload(lambda: None, None, example, **quiet)
        gr.on(
            [ask.click, question.submit, options.submit],
            answer,
            [*files, question, options, time_s, start_s, snap_s],
            [said, results, with_gaze, without_gaze, steps, attention, shares],
            api_name="ask",
            concurrency_limit=1,
            show_progress_on=said,
        )
    return page


def serve(page: gr.Blocks, host: str | None = None, port: int | None = None, wait: bool = True) -> str:
    """Open the page to browsers, for as long as this process runs if it is to `wait`. Returns its address."""
    quiet = {"share": False, "ssr_mode": False, "footer_links": [], "quiet": True}
    _, address, _ = page.launch(
        server_name=host, server_port=port, prevent_thread_lock=True, theme=THEME, css=CSS, **quiet
    )
    if wait:
        print(f"open {address} in a browser; Ctrl+C ends it", flush=True)
        page.block_thread()
    return address


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id of a trained adapter (default: the toy world's)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--host", help="0.0.0.0: for others in the network (default: this machine alone)")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")
    settings = parser.parse_args(arguments)
    source, name = (settings.model, None) if settings.model else (ADAPTER_DIR, "toy adapter")
    explorer = Explorer(source, settings.device, settings.dtype, name)
    with tempfile.TemporaryDirectory(prefix="gazeqwen-examples-") as folder:
        serve(build(explorer, toy_examples(folder)), settings.host, settings.port)


if __name__ == "__main__":
    with one_line_errors():
        main()
