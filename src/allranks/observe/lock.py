"""One launch at a time in a node's part of a run directory: two would overwrite each other's checkpoints.

The lock is the kernel's (`flock`): it ends with the process that holds it, however that ends, and a file that is left
holds nothing. NFS hands it to its server (`man 2 flock`, since Linux 2.6.12), which gives up that of a lost machine
when its lease has ended. Where a mount keeps locks to each machine (NFS's local_lock, Lustre's localflock), starts on
two machines do not see each other.
"""

import contextlib
import errno
import fcntl
import os
import re
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from allranks.errors import UsageError
from allranks.exit_codes import REFUSED
from allranks.observe.enduring import say
from allranks.observe.refused_starts import leave_word
from allranks.observe.rundir import lock_of

_WAIT_SECONDS = 45.0
"""torchrun's agent gives its ranks 30 s to end after its launcher was killed."""
_LEASE_SECONDS = 120.0
"""For a machine that was lost: a server of NFS keeps its locks for 90 s (Linux, fs/nfsd/nfsctl.c, nfsd4_lease)."""
_GLANCE_SECONDS = 0.5
"""Ranks that look who holds the lock take it for an instant."""
_HOLDER = re.compile(r"pid (?P<pid>\d+) on (?P<host>[^\s,]+)(?:, since (?P<since>[^,]+))?(?:, ranks of (?P<ranks>.+))?")


class InUse(UsageError):
    """Another run, or another node of this one, has the lock: what is refused where nodes meet."""

    exit_code = REFUSED


@dataclass(frozen=True)
class Twice:
    """What to do about a lock that another process holds, and what that one is told: `word` follows on who came."""

    remedy: Callable[[str], str]
    """Of the host that holds it."""
    word: str


@dataclass(frozen=True)
class Holder:
    """Who took a lock last, as its file says; all empty where it does not. `ranks`: where they meet."""

    pid: int = 0
    host: str = ""
    since: str = ""
    ranks: str = ""

    def __str__(self) -> str:
        since = f", since {self.since}" if self.since else ""
        ranks = f", ranks of {self.ranks}" if self.ranks else ""
        return f"pid {self.pid} on {self.host}{since}{ranks}" if self.host else "process unknown"

    @property
    def is_here(self) -> bool:
        return self.host == socket.gethostname()

    @property
    def has_ended(self) -> bool:
        """Whether it is known to have ended. Of another host that cannot be known."""
        return self.is_here and not psutil.pid_exists(self.pid)


_TWO_RUNS = Twice(lambda host: "stop that one, or choose another --output-dir", "")


def lock_node(
    logs: Path,
    *,
    is_again: bool = False,
    say: Callable[[str], None] = say,
    twice: Twice = _TWO_RUNS,
    ranks: str = "",
    tells_of_no_locks: bool = False,
) -> int:
    """Take the lock of a node's log folder; returns the open descriptor, which holds it until all copies are closed.

    Where the launcher that took it is dead and only its ranks are still ending, this waits for them; so it does for
    those of an attempt of this launcher before, which were killed a moment ago: `is_again`, or another of the same
    `ranks`. Raises InUse naming the process that holds it, which is told by its lock. File systems without locks are
    let through, with a warning where `tells_of_no_locks`.
    """
    path = lock_of(logs)
    fd = _open(path)
    begun, told = time.monotonic(), False
    while (taken := _try_lock(fd, fcntl.LOCK_EX)) is False or not _is_at(path, fd):
        if not _is_at(path, fd):  # a run that was refused has taken its lock away
            os.close(fd)
            fd = _open(path)
            continue
        holder = _holder(path)
        waits = _seconds_to_wait(holder, is_again=is_again or bool(ranks and ranks == holder.ranks))
        if time.monotonic() - begun >= waits:
            os.close(fd)
            if twice.word:
                leave_word(path, f"{socket.gethostname()} (pid {os.getpid()}) {twice.word}")
            raise InUse(in_use(path, holder, twice.remedy))
        if not told and (holder.has_ended or waits == _LEASE_SECONDS):
            told = True
            say(
                "waiting for the ranks of the run before, whose launcher was killed, to end"
                if holder.has_ended
                else f"waiting for {holder} to end, or for its lock, should that machine be lost: {waits:.0f} s at most"
            )
        time.sleep(0.2)
    if taken is None and tells_of_no_locks:
        say(
            f"warning: output_dir: the file system of {logs.parent.parent} has no locks: another start into it would "
            "not be noticed, and both would train there (Lustre has them with the mount option flock)"
        )
    os.ftruncate(fd, 0)
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    os.pwrite(fd, f"{Holder(os.getpid(), socket.gethostname(), since, ranks)}\n".encode(), 0)
    return fd


def holder_of_other_ranks(logs: Path, ranks: str) -> Holder | None:
    """Who holds the lock of a node's log folder for others than `ranks`; None where nobody does, or it is not known.

    Takes nothing: who wants the lock at this moment finds it taken for an instant.
    """
    try:
        fd = os.open(lock_of(logs), os.O_RDONLY)
    except OSError:
        return None
    try:
        holder = _holder(lock_of(logs))
        return None if holder.ranks == ranks or _try_lock(fd, fcntl.LOCK_SH) is not False else holder
    finally:
        os.close(fd)


def in_use(lock: Path, holder: Holder, remedy: Callable[[str], str]) -> str:
    """Says who holds the lock, and what to do about it."""
    gone = f"; should {holder.host} be lost, remove {lock}" if holder.host and not holder.is_here else ""
    return (
        f"output_dir: {lock.parents[2]} is in use by a run that has not ended ({holder}): {remedy(holder.host)}{gone}"
    )


def forget_lock(logs: Path, locks: Sequence[int]) -> None:
    """Of a run that was refused before its ranks started: take away the lock, and folders that hold nothing."""
    if not locks:
        return
    with contextlib.suppress(OSError):
        (lock_of(logs)).unlink()
        for folder in (logs, logs.parent, logs.parent.parent):  # node-0, logs, the run's
            folder.rmdir()


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)


def _is_at(path: Path, fd: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(fd))
    return False


def _try_lock(fd: int, kind: int) -> bool | None:
    """Whether it was taken; None where this file system has no locks."""
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True


def _seconds_to_wait(holder: Holder, *, is_again: bool) -> float:
    if is_again:
        return _WAIT_SECONDS if holder.is_here else _LEASE_SECONDS
    return _WAIT_SECONDS if holder.has_ended else _GLANCE_SECONDS


def _holder(path: Path) -> Holder:
    with contextlib.suppress(OSError):
        found = _HOLDER.match(path.read_bytes().partition(b"\n")[0].decode(errors="replace"))
        if found:
            return Holder(int(found["pid"]), found["host"], found["since"] or "", (found["ranks"] or "").strip())
    return Holder()
