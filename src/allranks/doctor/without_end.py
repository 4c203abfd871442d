"""A run of which nobody wrote how it ended, and whose logs word no failure: what kept its record was killed."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from allranks.doctor import causes
from allranks.findings import Evidence, Finding, Who
from allranks.listing import printable

OLD_SECONDS = 15.0
"""Node 0's launcher writes the table each second; a disk that several nodes share may show that some seconds later."""
_LONG_AGO_SECONDS = 300.0
"""For one on another machine, of whose processes nothing is seen here."""


def is_gone(pid: int | None) -> bool:
    """Whether there is no process of this number on this machine; False of what is no process's number."""
    return pid is not None and pid > 0 and not psutil.pid_exists(pid)


def last_written(path: Path, told: float) -> float:
    """When the table in `path` was written, in seconds since 1970: as it tells, or as its disk does, if that is later:
    the clocks of nodes and of file servers differ."""
    with contextlib.suppress(OSError):
        return max(told, path.stat().st_mtime)
    return told


@dataclass(frozen=True)
class _Silence:
    """`seconds` since a launcher of this process number last wrote, at `written` seconds since 1970."""

    seconds: float
    written: float
    host: str
    pid: int


def without_an_end(live: Mapping[str, Any], path: Path) -> Finding | None:
    """That the launcher which kept the table `live` in `path` is gone; None where it ended it, or may go on.

    On this machine its process is looked for; of another one only how long ago it wrote is seen.
    """
    silence = _silence(live, path)
    if silence is None or silence.seconds < OLD_SECONDS:
        return None
    host, pid, age, written = silence.host, silence.pid, silence.seconds, silence.written
    is_here = host == socket.gethostname()
    if not is_gone(pid) if is_here else age < _LONG_AGO_SECONDS:
        return None
    name = printable(host, 64)
    at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(written))
    gone = f"is gone (pid {pid})" if is_here else f"has written nothing for {age:,.0f} s, or its machine is gone"
    return Finding(
        causes.LAUNCHER_KILLED,
        f"the launcher on {name} {gone}, and told nobody how the run ended\n"
        "Nothing failed before, as far as logs and events tell. What ends a launcher without a word is SIGKILL (a "
        "scheduler whose grace time is over, the kernel for want of memory, somebody's kill -9), or a machine that "
        "went down; its ranks ended with it.",
        who=Who(host=host),
        evidence=(Evidence(f"{path.name}: last written {at}, with no end in it"),),
        remedy="start the same command again: it goes on from the newest complete checkpoint\n"
        f"what ended it: on {name}, dmesg -T | grep -i -E 'oom|killed', last -x reboot; of a job, what its scheduler "
        "says (Slurm: sacct -j JOB --format=State,ExitCode,MaxRSS)",
        is_certain=False,
    )


def goes_on(live: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """A note that nothing has ended, where the table was written just now."""
    silence = _silence(live, path)
    if silence is None or silence.seconds >= OLD_SECONDS:
        return ()
    name = printable(silence.host, 64)
    return (f"the run goes on: its launcher on {name} wrote {max(0.0, silence.seconds):.0f} s ago (allranks status)",)


def _silence(live: Mapping[str, Any], path: Path) -> _Silence | None:
    written, nodes = live.get("t"), live.get("nodes")
    first = nodes[0] if isinstance(nodes, list) and nodes else None
    if live.get("ended") is not None or not isinstance(written, int | float) or not isinstance(first, Mapping):
        return None
    pid, host = first.get("launcher_pid"), first.get("host")
    if not isinstance(pid, int) or not isinstance(host, str):
        return None
    written = last_written(path, written)
    return _Silence(time.time() - written, written, host, pid)
