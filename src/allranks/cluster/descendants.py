"""All that a process has started, directly or not, and its end: nothing may outlive the job that it belongs to."""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # before any fork: a forked child must not load it
_POLL_SECONDS = 0.05
_KILL_SECONDS = 5.0  # a process in uninterruptible sleep (a dead NFS server) does not even die of SIGKILL


def adopt_orphans() -> None:
    """Descendants whose parents end become children of this process, not of init: so a daemon is found too (Linux)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


async def end_descendants(keep: Collection[int], grace_seconds: float) -> None:
    """Wait `grace_seconds` for the descendants of this process to end, then kill them until none is left.

    `keep` are process ids that are left alone, with all below them.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + grace_seconds
    while descendants(keep) and clock() < deadline:
        await asyncio.sleep(_POLL_SECONDS)
    deadline = clock() + _KILL_SECONDS
    while (left := descendants(keep)) and clock() < deadline:
        send_signal(signal.SIGKILL, left)
        await asyncio.sleep(_POLL_SECONDS)


@contextlib.contextmanager
def ends_what_it_starts() -> Iterator[None]:
    """What this process starts within, directly or not, is killed at the end, whatever ended it."""
    before = descendants()
    try:
        yield
    finally:
        asyncio.run(end_descendants(before, grace_seconds=0.0))


def descendants(keep: Collection[int] = ()) -> list[int]:
    """Process ids of the living descendants of this process, without `keep` and those below them (Linux)."""
    # A child that ends while the kernel lists its siblings may hide one of them (proc(5)): nobody counts as gone for
    # having been missed once.
    return _descendants(keep) or _descendants(keep)


def reap_orphans(keep: Collection[int]) -> None:
    """Collect adopted children that have ended, except `keep`, for whose exit status somebody else waits."""
    for pid in _children_of(os.getpid()):
        if pid not in keep and _is_dead(pid):
            with contextlib.suppress(OSError):
                os.waitpid(pid, os.WNOHANG)


def _descendants(keep: Collection[int]) -> list[int]:
    found: list[int] = []
    waiting = [os.getpid()]
    while waiting:
        below = [pid for pid in _children_of(waiting.pop()) if pid not in keep]
        waiting += below
        found += [pid for pid in below if not _is_dead(pid)]
    return found


def _children_of(pid: int) -> list[int]:
    if not _LISTS_CHILDREN:
        return [child for child in _all_processes() if _parent_and_state(child)[0] == pid]
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):  # each thread has those that it started
        with contextlib.suppress(OSError):  # it has ended since
            found += [int(word) for word in path.read_text().split()]
    return found


# The kernel lists them where it was built with CONFIG_PROC_CHILDREN; all else means to look at every process.
_LISTS_CHILDREN = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists()


def _all_processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def _is_dead(pid: int) -> bool:
    return _parent_and_state(pid)[1] in "ZX"


def _parent_and_state(pid: int) -> tuple[int, str]:
    """Of a process that has ended: (0, "X")."""
    try:
        # proc(5): "pid (name) state ppid …"; a name may hold spaces and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0, "X"
    return int(fields[1]), fields[0]


def send_signal(number: int, pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
