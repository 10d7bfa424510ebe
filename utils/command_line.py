"""Run the command `gazeqwen`, and end what every command may fail at in one line."""

import argparse
import ctypes
import os
import signal
import sys
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

# Name: (module with the `main` that is run, the extra of pyproject.toml that it needs, if any, what it does).
COMMANDS = {
    "example": (
        "gazeqwen.toyworld.example_recording",
        "plot",
        "write a short recording, to try things with",
    ),
    "ask": ("gazeqwen.ask", "plot", "ask about a video and a fixation table, with gaze and without"),
    "app": ("gazeqwen.app", "app", "the same in the browser"),
    "stream": ("gazeqwen.streaming.__main__", None, "watch a video and gaze as they arrive: alerts and answers"),
    "gaze": ("gazeqwen.gaze_sources.__main__", "plot", "raw eye-tracking recording -> fixation table"),
    "build": ("gazeqwen.questions.__main__", "data", "StreamGaze's release or own questions -> dataset"),
    "train": ("gazeqwen.train", "train", "train an adapter from a recipe"),
    "eval": ("gazeqwen.eval", "eval", "answer a split of a dataset, with controls"),
    "report": ("gazeqwen.evaluation.report", "eval", "result files -> tables and figures"),
    "card": ("gazeqwen.model_card.__main__", "eval", "the card of an adapter or a dataset"),
    "space": ("gazeqwen.model_card.space", None, "publish the page as a Space"),
    "convert": ("gazeqwen.convert", None, "checkpoints of others -> this package's formats"),
}
# What the extras of pyproject.toml install.
_PR_SET_PDEATHSIG = 1  # of Linux's prctl
OPTIONAL = {"accelerate", "datasets", "evaluate", "gradio", "matplotlib", "scipy", "statsmodels", "tensorboard"}

# What flags of several commands say.
LOAD_IN_4BIT_HELP = "the base model in 4 bits, which needs bitsandbytes and CUDA (default: as the adapter was trained)"
TRUST_REMOTE_CODE_HELP = (
    "run the Python files stored with the model, an adapter's in place of this package's (default: never)"
)


@contextmanager
def named_extra():
    """Name in one line the extra of this package that is not installed. For use around the imports of a script."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in OPTIONAL:
            raise
        command = Path(sys.argv[0])
        name = command.stem.removeprefix("gazeqwen ")
        extra = COMMANDS[name][1] if name in COMMANDS else "all"
        raise SystemExit(f"{command.name} needs: pip install gazeqwen[{extra}]") from None


@contextmanager
def one_line_errors():
    """End what the user can mend in one line on stderr, not in a traceback. For use around a command's `main`."""
    with named_extra():
        try:
            yield
        except (ValueError, OSError, FloatingPointError) as error:
            raise SystemExit(f"{Path(sys.argv[0]).name}: {error}") from None


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Add what every command takes that loads an adapter to ask it, see `utils.adapters.load_model`."""
    parser.add_argument("--device", help="such as cuda:1 or cpu (default: cuda where there is one)")
    parser.add_argument("--dtype", default="auto", help="of the base model (default: as it was saved)")
    parser.add_argument("--load_in_4bit", action=argparse.BooleanOptionalAction, help=LOAD_IN_4BIT_HELP)
    parser.add_argument("--trust_remote_code", action="store_true", help=TRUST_REMOTE_CODE_HELP)


def end_with_launcher() -> None:
    """
    Have the operating system send SIGTERM to this process when `accelerate launch`, if that started it, ends: to one
    process it passes no signal on. Linux alone.
    """
    if "ACCELERATE_MIXED_PRECISION" in os.environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def main() -> None:
    """Run `gazeqwen COMMAND ...`. Nothing but the command's own module is imported."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name not in COMMANDS:
        width = max(map(len, COMMANDS))
        lines = [f"  {command:{width}}  {what}" for command, (_, _, what) in COMMANDS.items()]
        usage = "\n".join(["usage: gazeqwen COMMAND ...", "", *lines, "", "gazeqwen COMMAND --help says more."])
        if name in ("-h", "--help"):
            print(usage)
            return
        raise SystemExit(f"gazeqwen: unknown command {name!r}\n\n{usage}")
    sys.argv = [f"gazeqwen {name}", *arguments]
    with one_line_errors():
        import_module(COMMANDS[name][0]).main()
