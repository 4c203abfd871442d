"""One launch at a time in a node's part of a run directory: two would overwrite each other's checkpoints."""

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from allranks.errors import UsageError
from allranks.exit_codes import REFUSED
from allranks.launch.node.refused_starts import leave_word
from allranks.observe import say

# torchrun's agent gives its ranks 30 s to end after its launcher was killed.
_WAIT_SECONDS = 45.0


class InUse(UsageError):
    """Another run, or another node of this one, has the lock: what is refused where nodes meet."""

    exit_code = REFUSED


@dataclass(frozen=True)
class Twice:
    """What to do about a lock that another process holds, and what that one is told: `word` follows on who came."""

    remedy: Callable[[str], str]
    """Of the host that holds it."""
    word: str


_TWO_RUNS = Twice(lambda host: "stop that one, or choose another --output-dir", "")


def lock_node(logs: Path, *, is_again: bool = False, say: Callable[[str], None] = say, twice: Twice = _TWO_RUNS) -> int:
    """Take the lock of a node's log folder; returns the open descriptor, which holds it until all copies are closed.

    Where the launcher that took it is dead and only its ranks are still ending, this waits for them; so it does for
    those of an attempt of this launcher before (`is_again`), which were killed a moment ago. Raises InUse naming the
    process that holds it, which is told by its lock. File systems without locks are let through.
    """
    path = logs / "lock"
    fd = _open(path)
    deadline = None
    while not _try_lock(fd) or not _is_at(path, fd):
        if not _is_at(path, fd):  # a run that was refused has taken its lock away
            os.close(fd)
            fd = _open(path)
            continue
        holder = path.read_text().partition("\n")[0].strip()
        if deadline is None:
            deadline = time.monotonic() + (_WAIT_SECONDS if is_again or _has_ended(holder) else 0)
            if _has_ended(holder):
                say("waiting for the ranks of the run before, whose launcher was killed, to end")
        if time.monotonic() >= deadline:
            os.close(fd)
            if twice.word:
                leave_word(path, f"{socket.gethostname()} (pid {os.getpid()}) {twice.word}")
            raise InUse(
                f"output_dir: {logs.parent.parent} is in use by a run that has not ended "
                f"({holder or 'process unknown'}): {twice.remedy(holder.rpartition(' on ')[2])}"
            )
        time.sleep(0.2)
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return fd


def forget_lock(logs: Path, locks: Sequence[int]) -> None:
    """Of a run that was refused before its ranks started: take away the lock, and folders that hold nothing."""
    if not locks:
        return
    with contextlib.suppress(OSError):
        (logs / "lock").unlink()
        for folder in (logs, logs.parent, logs.parent.parent):  # node-0, logs, the run's
            folder.rmdir()


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)


def _is_at(path: Path, fd: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(fd))
    return False


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Anything else means that this file system has no locks.
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def _has_ended(holder: str) -> bool:
    """Is the launcher that wrote `holder` known to have ended? Of another host that cannot be known."""
    with contextlib.suppress(ValueError):
        pid, host = holder.removeprefix("pid ").split(" on ")
        return host == socket.gethostname() and not psutil.pid_exists(int(pid))
    return False
