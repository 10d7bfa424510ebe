"""Keep two processes from writing to one place."""

import errno
import fcntl
import json
import os
import socket
import time
from contextlib import contextmanager
from pathlib import Path

_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # of file systems that have none
_held: set[Path] = set()  # by this process: the operating system would let it in twice


@contextmanager
def lock(path: str | os.PathLike, wait: bool = False):
    """
    Keep a file or folder for this process alone while the block runs, by a file `.<name>.lock` beside it that says who
    has it. The operating system lets go of it when the process ends, however it ends, and what a dead process left is
    taken over; where the lock of another host was left, nobody can tell, and it has to be deleted by hand.
    Raises BlockingIOError naming process and host if another one has it; with `wait`, waits until none has.
    """
    path = Path(path).absolute()
    file = path.with_name(f".{path.name}.lock")
    if path in _held:
        raise BlockingIOError(f"{path}: this process is writing there already")
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = _take(file, path, wait)
    _held.add(path)
    try:
        yield
    finally:
        _held.remove(path)
        file.unlink(missing_ok=True)
        os.close(descriptor)


def _take(file: Path, path: Path, wait: bool) -> int:
    """Return the descriptor of a lock file that is locked, and says that this process has it."""
    here, said = _here(), False
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        holder = _read(descriptor)
        taken = _try(descriptor, holder, here)
        if taken and not _is_at(descriptor, file):  # its holder has just deleted it
            os.close(descriptor)
            continue
        # A shared disk may not pass locks on. With `wait`, two writers only do the same work twice.
        elsewhere = {"host", "boot"} <= holder.keys() and all(holder[name] != here[name] for name in ("host", "boot"))
        if taken and (wait or not elsewhere):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(here).encode(), 0)
            return descriptor
        os.close(descriptor)
        who = f"process {holder.get('process', '?')} on {holder.get('host', '?')}, since {holder.get('since', '?')}"
        if not wait:
            remedy = (
                f"if that has ended, delete {file}" if elsewhere else "wait until it has ended, or write elsewhere"
            )
            raise BlockingIOError(f"{path}: {who}, writes there; {remedy}")
        if not said:
            print(f"{path}: waiting for {who}, which writes there")
            said = True
        time.sleep(0.5)


def _here() -> dict:
    """Return what tells this process from all others; two containers of one machine share `boot`."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return {
        "process": os.getpid(),
        "host": socket.gethostname(),
        "boot": boot.read_text().strip() if boot.exists() else "",
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _read(descriptor: int) -> dict:
    """Return what a lock file says of its holder; nothing where it is new, or was cut off."""
    try:
        holder = json.loads(os.pread(descriptor, 1 << 16, 0))
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _try(descriptor: int, holder: dict, here: dict) -> bool:
    """Return whether the lock file could be locked; where there are no locks, whether its holder has ended."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            return False
        if any(holder.get(name) != here[name] for name in ("host", "boot")) or holder["process"] == here["process"]:
            return True
        return not Path(f"/proc/{holder['process']}").exists()
    return True


def _is_at(descriptor: int, file: Path) -> bool:
    """Return whether a name is still that of an open file."""
    try:
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    except FileNotFoundError:
        return False
