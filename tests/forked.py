"""
Scripts in processes of their own that import nothing anew: each is forked from one server process, which has imported
torch and the package once. They are real processes: they have their own random state and are killed by real signals.
"""

import contextlib
import multiprocessing
import os
import resource
import runpy
import socket
import sys
import tempfile
from pathlib import Path

import torch
from support import ROOT

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["forked", "gazeqwen.train"])


def _run(command: list[str], output: str, environment: dict[str, str], file_size: int | None) -> None:
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    os.chdir(ROOT)
    torch.set_num_threads(1)
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    sys.argv = command
    runpy.run_path(command[0], run_name="__main__")


class Script:
    """
    `python command` from the root, in a process that runs at once. `file_size`: the most bytes that it may write to a
    file, by the operating system's limit.
    """

    def __init__(self, *command, file_size: int | None = None, **environment: str):
        descriptor, self._output = tempfile.mkstemp(prefix="gazeqwen-tests-", suffix=".txt")
        os.close(descriptor)
        arguments = (list(map(str, command)), self._output, environment, file_size)
        self.process = _SERVER.Process(target=_run, args=arguments)
        self.process.start()

    def is_running(self) -> bool:
        return self.process.is_alive()

    def kill(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def wait(self, timeout: float = 200) -> tuple[str, int]:
        """Return what it printed, on stdout and stderr, and its exit code; -9 if it was killed by signal 9."""
        self.process.join(timeout)
        if self.process.is_alive():
            self.process.kill()
            raise TimeoutError(f"still running after {timeout} s: {Path(self._output).read_text()}")
        text = Path(self._output).read_text()
        os.unlink(self._output)
        return text, self.process.exitcode


def run(*command, expect: int = 0, **options) -> str:
    """Return what a script prints; it has to exit with the code `expect`."""
    text, code = Script(*command, **options).wait()
    assert code == expect, text
    return text


def run_together(processes: int, *command, expect: int = 0, **environment: str) -> list[str]:
    """Return what `processes` of one run print (gloo, on the CPU), started as torchrun and `accelerate launch` do."""
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true", **environment}
    scripts = [Script(*command, RANK=str(rank), LOCAL_RANK=str(rank), **world) for rank in range(processes)]
    outcomes = [script.wait() for script in scripts]
    assert all(code == expect for _, code in outcomes), "\n".join(text for text, _ in outcomes)
    return [text for text, _ in outcomes]
