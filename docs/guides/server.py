"""
A small server to start from: questions about recordings in a folder, asked over HTTP, several at once.

    python docs/guides/server.py --model toyworld/adapter --folder recordings
    curl localhost:8000 -d '{"video": "a.mp4", "scanpath": "a.csv", "time_s": 8, "question": "What is it?"}'

A request is a JSON object: `video` and, if there is gaze, `scanpath`, names in the folder or rows of a scanpath;
`time_s`, [`start_s`], `question`, [`options`, or else `max_new_tokens`], [`snap_s`]. The answer is one too: with gaze
and without, `text` and `probabilities`; or status 400 and an `error`.
"""

import argparse
import json
import threading
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from gazeqwen.inference.answering import ask
from gazeqwen.pipeline.answers import build_prompt
from gazeqwen.questions.tasks import window_start_s
from gazeqwen.scanpath_gazeqwen import as_scanpath
from gazeqwen.utils.adapters import load_model, load_processor

MAX_REQUEST_BYTES, MAX_NEW_TOKENS = 1 << 20, 128
AT_ONCE = 4  # clips in memory


class Server(ThreadingHTTPServer):
    """Answer each request in a thread of its own; `AT_ONCE` of them hold a clip."""

    daemon_threads = True
    request_queue_size = 256  # clients that wait to be let in

    def __init__(self, address: tuple[str, int], model, processor, folder: str | Path):
        super().__init__(address, Handler)
        self.model, self.processor, self.folder = model, processor, Path(folder)
        self.places = threading.BoundedSemaphore(AT_ONCE)

    def answer(self, request: dict) -> dict:
        """Return the answers to a request, with gaze and without. Raises ValueError, OSError and the like."""
        scanpath, options = request.get("scanpath"), request.get("options") or []
        if isinstance(scanpath, str):
            scanpath = self._file(scanpath)
        prompt, answers = build_prompt(request["question"], options, self.processor.prompt_style)
        end_s = float(request["time_s"])
        start_s = float(request.get("start_s", window_start_s(end_s)))
        snap_s = float(request.get("snap_s", self.processor.snap_s))
        most = min(int(request.get("max_new_tokens", MAX_NEW_TOKENS)), MAX_NEW_TOKENS)
        with self.places:
            clip = self.processor.read_clip(self._file(request["video"]), start_s, end_s)
            gaze = as_scanpath(scanpath)
            comparison = ask(self.model, self.processor, clip, gaze, prompt, answers, snap_s, max_new_tokens=most)
        return {name: asdict(answer) for name, answer in comparison.answers.items()}

    def _file(self, name: str) -> Path:
        """Return a file of the folder. Raises ValueError for any other."""
        path = (self.folder / name).resolve()
        if not path.is_relative_to(self.folder.resolve()):
            raise ValueError(f"{name!r} is no name of a file in the folder")
        return path


class Handler(BaseHTTPRequestHandler):
    """Read a request, and write what the server answers."""

    server: Server

    def do_POST(self) -> None:
        try:
            length = int(self.headers.get("Content-Length", 0))
            if length > MAX_REQUEST_BYTES:
                raise ValueError(f"the request holds {length} bytes, expected at most {MAX_REQUEST_BYTES}")
            status, answer = 200, self.server.answer(json.loads(self.rfile.read(length)))
        except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
            status, answer = 400, {"error": f"{type(error).__name__}: {error}"}
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        """Keep no record of who asked."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder or Hub id of a trained adapter")
    parser.add_argument("--folder", required=True, help="where videos and fixation tables lie")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--port", type=int, default=8000)
    settings = parser.parse_args()
    model, processor = load_model(settings.model, settings.device), load_processor(settings.model)
    Server(("127.0.0.1", settings.port), model, processor, settings.folder).serve_forever()


if __name__ == "__main__":
    main()
