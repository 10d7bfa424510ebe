"""
Cards for the Hub, of what is known and no more: an adapter's from its files and results, a dataset's from its report.

    gazeqwen card runs/x/best --results runs/x/results.json
    gazeqwen card data/streamgaze --push user/name

Every number comes from a file that `eval.py`, `train.py` or a benchmark wrote. A result stands beside its controls (no
gaze, another video's gaze, gaze held in the middle of the frame), or beside the sentence that they were not run.
"""

import argparse
from pathlib import Path

from gazeqwen.utils.command_line import one_line_errors
from gazeqwen.utils.files import write_text


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="gazeqwen card",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", help="an adapter, such as runs/x/best, or a dataset that gazeqwen build wrote")
    parser.add_argument("--results", nargs="+", default=[], help="result files of the adapter (eval.py --output)")
    parser.add_argument("-o", "--output", help="default: README.md in the folder, which is published with it")
    parser.add_argument("--push", metavar="REPO", help="put the card into this repository on the Hub, too")
    arguments = parser.parse_args()

    # Seconds, which --help and mistakes in the arguments need not wait for.
    from gazeqwen.model_card.card import render_card
    from gazeqwen.utils.hub import publish_card

    rendered = render_card(arguments.folder, arguments.results, arguments.push)
    if arguments.push:
        print(f"published: {publish_card(rendered, arguments.push)}")
    output = Path(arguments.output or Path(arguments.folder) / "README.md")
    write_text(output, str(rendered))
    print(f"written to {output}")


if __name__ == "__main__":
    with one_line_errors():
        main()
