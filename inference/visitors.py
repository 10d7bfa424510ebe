"""Keep a page that many people use from keeping their files, and from being blocked by one of them."""

import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from gazeqwen.utils.locks import lock

MAX_UPLOAD_BYTES = 1 << 30  # of one file
MAX_TABLE_BYTES = 20 << 20  # half a million fixations
MAX_TEXT = 2000  # characters of a question, of all its options together, and of all instructions
MAX_CLIP_S = 600.0
MAX_WAITING = 20  # questions

_PREFIX = "gazeqwen-uploads-"


@contextmanager
def uploads_folder() -> Iterator[Path]:
    """
    Make Gradio keep uploads in a folder of this process alone while the block runs, and delete it then. What processes
    left that could not is deleted before: another instance would serve it.
    """
    parent = Path(os.environ.get("GRADIO_TEMP_DIR") or tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"{_PREFIX}*"):
        _delete_unless_used(left)
    before = os.environ.get("GRADIO_TEMP_DIR")
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    with lock(folder):
        os.environ["GRADIO_TEMP_DIR"] = str(folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


def _delete_unless_used(folder: Path) -> None:
    """Delete a folder of uploads that this user owns and no process has."""
    status = folder.lstat()
    if folder.is_symlink() or not folder.is_dir() or status.st_uid != os.getuid():
        return
    try:
        with lock(folder):
            shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:  # an instance that runs
        pass


def end_on_signals() -> None:
    """Make SIGTERM and SIGHUP end this process as Ctrl+C does: blocks that clean up do. `nohup` stays in force."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda received, _: sys.exit(128 + received))


class Turns:
    """One at a time, in the order of asking."""

    def __init__(self):
        self._changed = threading.Condition()
        self._waiting: list[object] = []  # the first one has its turn

    @contextmanager
    def take(self, tell: Callable[[int], None] = lambda before: None) -> Iterator[None]:
        """
        Wait for a turn, and have it while the block runs. `tell` is called with how many are before this one, whenever
        that changes. Raises ValueError if too many wait already.
        """
        ticket = object()
        with self._changed:
            if len(self._waiting) > MAX_WAITING:
                raise ValueError(f"{MAX_WAITING} questions wait already: ask again in a minute.")
            self._waiting.append(ticket)
        try:
            before = self._before(ticket, None)
            while before:
                tell(before)
                before = self._before(ticket, before)
            yield
        finally:
            with self._changed:
                self._waiting.remove(ticket)
                self._changed.notify_all()

    def _before(self, ticket: object, known: int | None) -> int:
        """Return how many are before a ticket, as soon as that is not what is known already."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting.index(ticket) != known)
            return self._waiting.index(ticket)


class SameOrigin:
    """An ASGI application that takes nothing but reading from pages of other origins: a browser says where it was."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
            origin = headers.get(b"origin")
            own = {headers.get(b"host"), headers.get(b"x-forwarded-host")}
            if origin is not None and urlsplit(origin).netloc not in own:
                text = b"refused: sent by a page of another origin"
                await send(
                    {"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]}
                )
                await send({"type": "http.response.body", "body": text})
                return
        await self.app(scope, receive, send)


def checked_size(table: str | os.PathLike | None) -> None:
    """Raise ValueError for a fixation table that is too large to be read while others wait."""
    size = 0 if table is None else Path(table).stat().st_size
    if size > MAX_TABLE_BYTES:
        raise ValueError(
            f"{table}: {size / 1e6:.0f} MB, expected a fixation table of at most {MAX_TABLE_BYTES / 1e6:.0f}"
        )


def checked_texts(question: str, options: str) -> tuple[str, list[str]]:
    """
    Return a question and its options, of which there is one to a line. Raises ValueError for an empty question, a
    single option, and texts too long to be answered while others wait.
    """
    if not question.strip():
        raise ValueError("There is no question yet: type one.")
    for name, text in (("question", question), ("options", options)):
        check_length(name, text)
    lines = [line.strip() for line in options.splitlines() if line.strip()]
    if len(lines) == 1:
        raise ValueError(f"There is only one option, {lines[0]!r}: give two or more, or none.")
    return question.strip(), lines


def check_length(name: str, text: str) -> None:
    """Raise ValueError for a text too long to be answered while others wait."""
    if len(text) > MAX_TEXT:
        raise ValueError(f"{name}: {len(text):,} characters, expected at most {MAX_TEXT:,}")
