"""
Python in new processes that need not import anew what takes seconds: `subprocess.run([PYTHON, ...])` in place of
`[sys.executable, ...]`. Each is forked from a server, which has imported torch (`PYTHON`), or torch, transformers and
other libraries (`LIBRARIES_PYTHON`), or these and the package with all its commands (`PACKAGE_PYTHON`), or what tests
import beside it (`WORKER_PYTHON`, for the workers of `make test` themselves). Libraries read the environment when they
are imported: what sets HF_HOME and the like needs `PYTHON`. They are processes as others: they have their own
environment, modules and random state, are killed by signals, and what they start by `sys.executable` is forked too.

PYTHON is a small program that sends its command line, folder, environment and open files to the server, which starts
with the first of them, serves all workers of a test session, and ends with it. It passes signals on, and SIGUSR2 as
SIGKILL; when it is killed itself, so is the process that it stands for, a moment later. Each server is itself forked
from one that has imported less.
"""

import atexit
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import certifi

ROOT = Path(__file__).parent.parent
CORE = ("torch", "torch._dynamo", "torch.distributed.run", "torchvision", "av", "PIL.Image", "jinja2", "yaml")
LIBRARIES = (
    *CORE,
    *("datasets", "peft", "transformers.models.auto.modeling_auto", "transformers.pipelines"),
    *("scipy.io", "transformers.optimization", "transformers.trainer_pt_utils"),
    *("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl", "transformers.models.qwen2_5_vl.processing_qwen2_5_vl"),
)
PACKAGE = (
    *LIBRARIES,
    *("accelerate.commands.launch", "matplotlib.pyplot", "statsmodels.api", "torch.utils.tensorboard"),
    *("gazeqwen.train", "gazeqwen.eval", "gazeqwen.ask", "gazeqwen.convert", "gazeqwen.evaluation.report"),
    *("gazeqwen.questions.__main__", "gazeqwen.gaze_sources.__main__", "gazeqwen.model_card.__main__"),
    *("gazeqwen.plots.scanpath", "gazeqwen.toyworld.evidence"),
)
PAGE = ("gradio", "gradio_client")
WORKER = ("sklearn.ensemble", "sklearn.model_selection")

_CLIENT = """#!{python} -IS
import os, resource, signal, socket, sys, time

def connect():
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect({socket!r})
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    return connection

connection = connect()
if connection is None:
    import fcntl
    with open({socket!r} + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        connection = connect()
        if connection is None:
            import subprocess
            log = open({socket!r} + ".log", "wb")
            files = dict(stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            server = subprocess.Popen({server!r}, **files, start_new_session=True, env={environment!r})
            while connection is None and server.poll() is None:
                time.sleep(0.05)
                connection = connect()
if connection is None:
    sys.exit("the server of forked Pythons did not start: " + open({socket!r} + ".log").read())
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
limit = resource.getrlimit(resource.RLIMIT_FSIZE)
request = repr((sys.argv[1:], os.getcwd(), dict(os.environ), limit)).encode()
socket.send_fds(connection, [len(request).to_bytes(8, "big")], [0, 1, 2])
connection.sendall(request)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
    signal.signal(number, lambda number, _: connection.send(bytes([number])))

def kill(*_):
    try:
        connection.send(bytes([signal.SIGKILL]))
    except OSError:  # it has ended
        pass

signal.signal(signal.SIGUSR2, kill)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])
code = int.from_bytes(connection.recv(8), "big", signed=True)
if code < 0:
    signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
    os.kill(os.getpid(), -code)
os._exit(code)
"""


def _session() -> Path:
    """Return the folder of this test session's programs and sockets, the same one in all workers."""
    if "GAZEQWEN_TEST_SESSION" in os.environ:
        return Path(os.environ["GAZEQWEN_TEST_SESSION"])
    folder, owner = Path(tempfile.mkdtemp(prefix="gazeqwen-tests-")), os.getpid()
    os.environ["GAZEQWEN_TEST_SESSION"] = str(folder)

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    # Each client of a local server would read the certificates of all authorities: one will do where none is needed.
    first, end, _ = certifi.contents().partition("-----END CERTIFICATE-----\n")
    (folder / "authority.pem").write_text(first + end)
    os.environ["SSL_CERT_FILE"] = str(folder / "authority.pem")
    caches = {"HF_DATASETS_CACHE": str(folder / "datasets"), "HF_MODULES_CACHE": str(folder / "modules")}
    python = sys.executable
    servers = {"core": CORE, "libraries": (*LIBRARIES, *PAGE), "package": PACKAGE, "worker": WORKER}
    for name, modules in servers.items():
        python = write_programs(folder / name, modules, {**os.environ, **caches}, python)
    return folder


def write_programs(
    programs: Path, modules: tuple[str, ...], environment: dict[str, str], python: str | Path | None = None
) -> Path:
    """
    Write `python`, `accelerate` and `gazeqwen` to the folder, forked from a server that imports the modules in this
    environment. Return the first. `python`: what starts the server, by default PYTHON, so that it has torch.
    """
    programs.mkdir()
    server, owner = Path(__file__).with_name("fork_server.py"), os.getpid()
    command = [str(python or PYTHON), str(server), f"{programs}/s", str(programs / "python"), str(owner), *modules]
    settings = {"socket": f"{programs}/s", "server": command, "environment": environment | {"OMP_NUM_THREADS": "1"}}
    (programs / "python").write_text(_CLIENT.format(python=sys.executable, **settings))
    for script in ("accelerate", "gazeqwen"):
        here = Path(sys.executable).with_name(script)
        (programs / script).write_text(f'#!/bin/sh\nexec {programs}/python {here} "$@"\n')
    for path in programs.iterdir():
        path.chmod(0o755)
    return programs / "python"


SESSION = _session()
PYTHON, LIBRARIES_PYTHON, PACKAGE_PYTHON, WORKER_PYTHON = (
    SESSION / name / "python" for name in ("core", "libraries", "package", "worker")
)


class Script:
    """
    `python command` from the root, with the package imported, in a process that runs at once. `file_size`: the most
    kilobytes that it may write to a file, by the operating system's limit.
    """

    def __init__(self, *command, file_size: int | None = None, **environment: str):
        descriptor, self._output = tempfile.mkstemp(prefix="gazeqwen-tests-", suffix=".txt")
        words = [str(PACKAGE_PYTHON), *map(str, command)]
        if file_size is not None:
            words = ["bash", "-c", f'ulimit -S -f {file_size}; exec "$@"', "bash", *words]
        environment = {**os.environ, **environment}
        self.process = subprocess.Popen(words, stdout=descriptor, stderr=descriptor, cwd=ROOT, env=environment)
        os.close(descriptor)

    def is_running(self) -> bool:
        return self.process.poll() is None

    def kill(self, number: int) -> None:
        """Send a signal; SIGKILL so that what the program stands for has ended, too, when `wait` returns."""
        self.process.send_signal(signal.SIGUSR2 if number == signal.SIGKILL else number)

    def wait(self, timeout: float = 200) -> tuple[str, int]:
        """Return what it printed, on stdout and stderr, and its exit code; -9 if it was killed by signal 9."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise TimeoutError(f"still running after {timeout} s: {Path(self._output).read_text()}") from None
        text = Path(self._output).read_text()
        os.unlink(self._output)
        code = self.process.returncode
        return text, -signal.SIGKILL if code == -signal.SIGUSR2 else code  # killed before it had begun


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
