"""
GazeQwen in the browser: a video with its fixations to scrub through, and a question answered with gaze and without;
and the same video played as if it arrived live, with alerts, and questions at any moment.

    gazeqwen app                            # the toy world's adapter, which comes with the package: offline
    gazeqwen app --model user/gazeqwen      # any adapter, a folder or an id on the Hub

Nothing is shared or uploaded elsewhere. `gazeqwen space` publishes the page as a Space.
"""

import argparse
import tempfile

from gazeqwen.utils.command_line import add_model_flags, one_line_errors


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id of a trained adapter (default: the toy world's)")
    parser.add_argument("--host", help="0.0.0.0: for others in the network (default: this machine alone)")
    parser.add_argument(
        "--port", type=int, choices=range(1, 2**16), metavar="PORT", help="default: the first free one from 7860 on"
    )
    add_model_flags(parser)
    settings = parser.parse_args(arguments)
    # Seconds, which --help and mistakes in the arguments need not wait for.
    from gazeqwen.inference.explorer import Explorer
    from gazeqwen.inference.visitors import end_on_signals, uploads_folder
    from gazeqwen.page.page import build, serve
    from gazeqwen.toyworld.examples import toy_examples
    from gazeqwen.toyworld.trained import ADAPTER_DIR

    end_on_signals()
    source, name = (settings.model, None) if settings.model else (ADAPTER_DIR, "toy adapter")
    loaded = (settings.device, settings.dtype, name, settings.trust_remote_code, settings.load_in_4bit)
    explorer = Explorer(source, *loaded)
    with uploads_folder(), tempfile.TemporaryDirectory(prefix="gazeqwen-examples-") as folder:
        serve(build(explorer, toy_examples(folder)), settings.host, settings.port)


if __name__ == "__main__":
    with one_line_errors():
        main()
