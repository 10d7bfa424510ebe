"""
The server behind tests/forked.py: imports modules once, and forks a process for each connection, which then is
`python ...` as the client was called.

    python fork_server.py SOCKET EXECUTABLE PID MODULE ...

Ends when the process PID, whose test session it serves, is gone.
"""

import ast
import atexit
import contextlib
import gc
import importlib
import os
import random
import resource
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
import weakref


def leave_in_memory() -> None:
    """
    Let nothing wait for the disk: what tests write need not outlast a power cut, and forcing each file to the disk
    takes longer than making it. `os.fsync.forced` still does it.
    """

    def fsync(descriptor) -> None:
        os.fstat(descriptor)

    fsync.forced = getattr(os.fsync, "forced", os.fsync)
    os.fsync = fsync


def name_configs_alone() -> None:
    """Let no config be written out in full for a log that nobody reads: transformers does so at each load."""
    if transformers := sys.modules.get("transformers"):
        transformers.PreTrainedConfig.__repr__ = object.__repr__


def draw_no_values_on_meta() -> None:
    """Let nothing be drawn for weights without values: a model is built with such before its files are read."""
    if init := sys.modules.get("torch.nn.init"):
        for name in ("uniform_", "normal_", "kaiming_uniform_"):
            draw = getattr(init, name)

            def unless_on_meta(tensor, *args, draw=draw, **kwargs):
                return tensor if tensor.is_meta else draw(tensor, *args, **kwargs)

            setattr(init, name, unless_on_meta)


def read_yaml_in_c() -> None:
    """Let libyaml read what `yaml.safe_load` reads in Python, ten times as long: cards above all."""
    if yaml := sys.modules.get("yaml"):
        yaml.SafeLoader = yaml.CSafeLoader


def collect_garbage_rarely() -> None:
    """
    Let what has been imported stay: garbage collections, one of which ends each training stage, need not look through
    it, nor so often through what is made meanwhile.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def become(arguments: list[str], folder: str, environment: dict[str, str], limit, executable: str) -> int:
    """Run what stands after `python`: a script, `-m module` or `-c code`. Return the exit code."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    sys.executable = executable
    paths = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    if arguments[0] == "-u":
        arguments = arguments[1:]
        sys.stdout.reconfigure(write_through=True)
    kind, *rest = arguments
    if kind in ("-c", "-m"):
        name, sys.argv = rest[0], ["-c" if kind == "-c" else rest[0], *rest[1:]]
        sys.path[:0] = ["" if kind == "-c" else folder, *paths]
    else:
        name, sys.argv = kind, arguments
        sys.path[:0] = [os.path.dirname(os.path.abspath(kind)), *paths]
    try:
        if kind == "-c":
            exec(compile(name, "<string>", "exec"), sys.modules["__main__"].__dict__)
        elif kind == "-m":
            sys.modules.pop(name, None)  # it runs anew, as the main module
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(name, run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def child(sockets: list[socket.socket], files: list[int], request: tuple, executable: str) -> None:
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, descriptor in enumerate(files):
            os.dup2(descriptor, number)
            os.close(descriptor)
        for each in sockets:
            each.close()
        code = become(*request, executable)
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code & 0xFF)


def receive(connection: socket.socket) -> tuple[list[int], tuple]:
    length, files, *_ = socket.recv_fds(connection, 8, 3)
    size, parts = int.from_bytes(length, "big"), b""
    while len(parts) < size:
        if not (part := connection.recv(size - len(parts))):
            break
        parts += part
    if not files or len(parts) < size:  # the client was killed meanwhile
        for descriptor in files:
            os.close(descriptor)
        raise EOFError
    return files, ast.literal_eval(parts.decode())


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def main(address: str, executable: str, owner: str, *modules: str) -> None:
    del sys.path[0]  # the folder of this file
    leave_in_memory()
    own = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    for module in modules:
        importlib.import_module(module)
    sys.path[:] = [path for path in sys.path if path not in own]
    if conversions := sys.modules.get("transformers.conversion_mapping"):
        conversions.get_checkpoint_conversion_mapping("qwen2_5_vl")  # hundreds of patterns, compiled at the first use
    main_module = type(sys)("__main__")  # of the processes: not this file
    main_module.__builtins__ = __builtins__
    sys.modules["__main__"] = main_module
    name_configs_alone()
    draw_no_values_on_meta()
    read_yaml_in_c()
    for end in list(weakref.finalize._registry):
        end.atexit = False  # torch would take hundreds of operators from its tables as each process ends
    collect_garbage_rarely()
    listener = socket.socket(socket.AF_UNIX)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(address)  # of a server that was killed
    listener.bind(address)
    listener.listen(64)
    connections: dict[int, socket.socket] = {}  # by process
    ended, wakes = socket.socketpair()  # readable when a process has ended
    wakes.setblocking(False)
    signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while is_alive(int(owner)):
        ready, _, _ = select.select([listener, ended, *connections.values()], [], [], 1.0)
        if ended in ready:
            ended.recv(4096)
        for process, connection in list(connections.items()):
            if connection in ready:
                try:
                    number = connection.recv(1)
                except OSError:  # the client was killed
                    number = b""
                os.kill(process, number[0] if number else signal.SIGKILL)
                if not number:
                    connections.pop(process).close()
        if listener in ready:
            connection, _ = listener.accept()
            try:
                files, request = receive(connection)
            except (EOFError, OSError):
                connection.close()
                continue
            process = os.fork()
            if process == 0:
                child([listener, ended, wakes, connection, *connections.values()], files, request, executable)
            for descriptor in files:
                os.close(descriptor)
            connections[process] = connection
        while True:
            try:
                process, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if process == 0:
                break
            if process in connections:
                code = os.waitstatus_to_exitcode(status)
                with connections.pop(process) as connection:
                    try:
                        connection.sendall(code.to_bytes(8, "big", signed=True))
                    except OSError:  # the client was killed meanwhile
                        continue
    for process in connections:
        os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
