"""Many people on one page: their files go, they wait in turn, and none of them can block the others."""

import signal
import subprocess
import sys
import threading
import time

import pytest
from support import write_fixations

from gazeqwen.inference.explorer import read_gaze
from gazeqwen.inference.visitors import MAX_WAITING, Turns
from gazeqwen.scanpath_gazeqwen import Scanpath

# What the page's command does, but for model and page.
INSTANCE = """
import signal, sys
from gazeqwen.inference.visitors import end_on_signals, uploads_folder
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and nohup's that this one is
end_on_signals()
with uploads_folder() as folder:
    (folder / "private.mp4").write_text("a video")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start an instance in a process of its own; return it and the folder of its uploads."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    running = []

    def start_one():
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        running.append(subprocess.Popen([sys.executable, "-c", INSTANCE], **pipes))
        return running[-1], tmp_path / running[-1].stdout.readline().strip()

    yield start_one
    for process in running:
        process.stdin.close()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_uploads_go_when_the_page_is_ended(start, tmp_path, number):
    process, folder = start()
    assert (folder / "private.mp4").is_file() and folder.stat().st_mode & 0o077 == 0
    process.send_signal(number)
    process.wait(timeout=60)
    assert list(tmp_path.iterdir()) == []


def test_uploads_of_a_killed_instance_go_when_the_next_one_starts(start, tmp_path):
    killed, left = start()
    _, in_use = start()
    killed.kill()
    killed.wait()
    (tmp_path / "gazeqwen-uploads-link").symlink_to(tmp_path)  # is not followed
    assert (left / "private.mp4").is_file()
    start()
    assert not left.exists() and (in_use / "private.mp4").is_file() and in_use.parent == tmp_path


def test_turns_come_in_order_and_tell_how_many_are_before(monkeypatch):
    turns, told, order = Turns(), {}, []

    def wait(number):
        told[number] = []
        with turns.take(told[number].append):
            order.append(number)

    threads = [threading.Thread(target=wait, args=(number,)) for number in range(3)]
    with turns.take():
        for number, thread in enumerate(threads):
            thread.start()
            while told.get(number) != [number + 1]:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2] and all(numbers == sorted(set(numbers), reverse=True) for numbers in told.values())
    with pytest.raises(RuntimeError, match="a bug"), turns.take():
        raise RuntimeError("a bug")
    with turns.take():  # the turn of the one that failed is over
        pass


def test_too_many_do_not_wait():
    turns, ends = Turns(), threading.Event()

    def wait():
        with turns.take():
            ends.wait()

    threads = [threading.Thread(target=wait) for _ in range(MAX_WAITING + 1)]
    for thread in threads:
        thread.start()
    while len(turns._waiting) < len(threads):
        time.sleep(0.001)
    with pytest.raises(ValueError, match=f"{MAX_WAITING} questions wait already"), turns.take():
        pass
    ends.set()
    for thread in threads:
        thread.join()


def test_a_large_table_does_not_keep_others_from_reading_theirs(tmp_path):
    large = write_fixations(tmp_path / "large.csv", [(k, k + 0.5, 0.5, 0.5) for k in range(40_000)])
    small = write_fixations(tmp_path / "small.csv", [(2, 3, 0.5, 0.5), (0, 1, 0.5, 0.5)])
    reading = threading.Thread(target=read_gaze, args=(large, None))
    reading.start()
    time.sleep(0.05)
    _, doubts = read_gaze(small, None)
    assert reading.is_alive() and doubts == ("small.csv: 2 of 2 fixations are out of order, sorted by time",)
    reading.join()


def test_a_header_of_many_columns_is_refused_at_once(tmp_path):
    table = tmp_path / "wide.csv"
    table.write_text(",".join(f"c{number}" for number in range(60_000)) + "\n")
    began_s = time.process_time()
    with pytest.raises(ValueError, match="wide.csv: 60000 columns, expected at most 1000"):
        Scanpath.from_csv(table)
    assert time.process_time() - began_s < 2  # it took 47 s
