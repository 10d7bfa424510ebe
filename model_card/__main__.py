"""The command, see the package."""

import argparse
from pathlib import Path

from gazeqwen.model_card import card
from gazeqwen.utils.command_line import one_line_errors
from gazeqwen.utils.files import write_text
from gazeqwen.utils.hub import publish_card


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="gazeqwen card",
        description=card.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", help="an adapter, such as runs/x/best, or a dataset that gazeqwen build wrote")
    parser.add_argument("--results", nargs="+", default=[], help="result files of the adapter (eval.py --output)")
    parser.add_argument("-o", "--output", help="default: README.md in the folder, which is published with it")
    parser.add_argument("--push", metavar="REPO", help="put the card into this repository on the Hub, too")
    arguments = parser.parse_args()
    rendered = card.render_card(arguments.folder, arguments.results, arguments.push)
    if arguments.push:
        print(f"published: {publish_card(rendered, arguments.push)}")
    output = Path(arguments.output or Path(arguments.folder) / "README.md")
    write_text(output, str(rendered))
    print(f"written to {output}")


if __name__ == "__main__":
    with one_line_errors():
        main()
