"""Two processes in one place: the second is told who is there; what dead ones left keeps nobody out."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from forked import PACKAGE_PYTHON
from support import ROOT, run_here

from gazeqwen.pipeline.clip_cache import ClipCache
from gazeqwen.questions.dataset import load_questions
from gazeqwen.utils.files import atomic_folder
from gazeqwen.utils.loading import repeatable_loader
from gazeqwen.utils.locks import lock


@contextmanager
def held_elsewhere(path: Path, seconds: float = 60, before_end=lambda: None):
    """Another process that has a lock for so long; yields its id."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        with lock(path):
            os.write(writer, b"x")
            time.sleep(seconds)
            before_end()
        os._exit(0)
    os.read(reader, 1)
    try:
        yield process
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(reader)
        os.close(writer)


def test_the_second_process_is_told_who_is_there_and_takes_over_when_it_is_killed(tmp_path):
    path = tmp_path / "run"
    with held_elsewhere(path) as process:
        for _ in range(2):
            with (
                pytest.raises(BlockingIOError, match=rf"run: process {process} on \S+, since 2.*, writes there"),
                lock(path),
            ):
                pass
        with lock(tmp_path / "other"):
            pass
    assert (tmp_path / ".run.lock").exists()  # it was killed
    for _ in range(2):
        with lock(path):
            holder = json.loads((tmp_path / ".run.lock").read_text())
            assert holder["process"] == os.getpid()
            with pytest.raises(BlockingIOError, match="this process is writing there already"), lock(path):
                pass
    assert not list(tmp_path.iterdir())


def test_a_constant_process_id_lets_nobody_in(tmp_path, monkeypatch):
    """In containers every run may be process 1."""
    with monkeypatch.context() as constant:
        constant.setattr(os, "getpid", lambda: 1)
        with (
            held_elsewhere(tmp_path / "run"),
            pytest.raises(BlockingIOError, match="process 1 on"),
            lock(tmp_path / "run"),
        ):
            pass
        with lock(tmp_path / "run"):
            pass


@pytest.mark.parametrize(
    "left, taken",
    [
        ({"host": "another", "boot": "another"}, False),
        ({"boot": "another"}, True),  # before this machine was started again
        ({"host": "another"}, True),  # a container of this machine, which would have the lock
        ({}, True),
        ("", True),
        ("[]", True),
    ],
)
def test_what_other_hosts_left_is_refused_and_what_dead_processes_left_is_not(tmp_path, left, taken):
    path, file = tmp_path / "run", tmp_path / ".run.lock"
    with lock(path):
        holder = json.loads(file.read_text())
    file.write_text(left if isinstance(left, str) else json.dumps(holder | left))
    if not taken:
        with (
            pytest.raises(BlockingIOError, match=rf"process \d+ on another, .*if that has ended, delete {file}"),
            lock(path),
        ):
            pass
        file.unlink()
    with lock(path):
        pass
    assert not file.exists()


def test_without_locks_of_the_file_system_the_process_decides(tmp_path, monkeypatch):
    def none(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", none)
    path = tmp_path / "run"
    with held_elsewhere(path) as process, pytest.raises(BlockingIOError, match=f"process {process}"), lock(path):
        pass
    with lock(path):
        pass


def test_a_folder_is_replaced_whatever_dead_processes_of_this_id_left(tmp_path):
    names = [f".best.{process}.{kind}" for process in (os.getpid(), 1) for kind in ("tmp", "old")]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "f").write_text("left")
    other = tmp_path / ".best.json.1.tmp"
    other.write_text("of another file, perhaps being written")
    (tmp_path / "best").mkdir()
    with atomic_folder(tmp_path / "best") as folder:
        (folder / "f").write_text("new")
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "best"]
    assert (tmp_path / "best" / "f").read_text() == "new"


def test_a_second_evaluation_of_one_output_is_refused(tmp_path):
    output = tmp_path / "r.json"
    command = ("eval.py", "--model", "nowhere", "--data", "nowhere", "--output", output)
    with held_elsewhere(output) as process:
        assert f"r.json: process {process} on" in run_here(*command, expect=1)
    assert "nowhere: no such folder" in run_here(*command, expect=1)


def test_what_another_run_fills_into_the_cache_is_waited_for(toy_model, toy_processor, toy_data, tmp_path, capsys):
    questions = load_questions(toy_data, "test")[:1]
    there = ClipCache.from_model(toy_model, toy_processor, "embeddings", tmp_path / "there")
    assert there.fill(Accelerator(), toy_model, questions) == 1
    cache = ClipCache.from_model(toy_model, toy_processor, "embeddings", tmp_path / "here")
    with held_elsewhere(cache.folder, 0.7, lambda: shutil.copytree(there.folder, cache.folder)) as process:
        assert cache.fill(Accelerator(), toy_model, questions) == 0
    assert f"waiting for process {process}" in capsys.readouterr().out
    assert not cache.missing([(question, None) for question in questions])


# ---------------------------------------------------------------- SIGTERM to more than the process itself
class Numbers(torch.utils.data.Dataset):
    """Of each number, the process that read it."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> int:
        return os.getpid()


def test_data_workers_outlive_a_sigterm_to_the_group(tmp_path):
    batches = iter(repeatable_loader(Numbers(), batch_size=1, num_workers=1))
    worker = int(next(batches))
    assert worker != os.getpid()
    os.kill(worker, signal.SIGTERM)
    assert {int(batch) for batch in batches} == {worker}


def test_sigterm_to_accelerate_launch_reaches_the_process_that_it_started(tmp_path):
    """`accelerate launch` of one process ends at once and passes nothing on."""
    script = tmp_path / "script.py"
    script.write_text(
        "import signal, sys, time\n"
        "from pathlib import Path\n"
        "from gazeqwen.utils.command_line import end_with_launcher\n"
        "def save(number, frame):\n"
        "    Path(sys.argv[1]).write_text('saved')\n"
        "    sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "end_with_launcher()\n"
        "Path(sys.argv[1]).write_text('begun')\n"
        "time.sleep(60)\n"
    )
    options = [
        "--cpu",
        "--num_processes",
        "1",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    mark = tmp_path / "mark"
    command = [
        PACKAGE_PYTHON,
        "-m",
        "accelerate.commands.launch",
        *options,
        "--no_python",
        sys.executable,
        script,
        mark,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent)}
    launcher = subprocess.Popen(list(map(str, command)), env=environment)
    try:
        for state in ("begun", "saved"):
            until = time.time() + 200  # the server of forked processes may have to start
            while time.time() < until and not (mark.exists() and mark.read_text() == state):
                time.sleep(0.02)
            assert mark.read_text() == state
            launcher.send_signal(signal.SIGTERM)
    finally:
        launcher.kill()
        launcher.wait()
