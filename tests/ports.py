"""Ports of this machine for tests that run beside each other.

A port that the kernel gave out is, once it is closed, as good as any other for the next program that asks: between that
and its use lie the seconds in which a launcher starts. These are below those that the kernel gives out, and each
process of pytest has its own.
"""

import contextlib
import itertools
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

_OF_A_PROCESS, _PROCESSES = 500, 20
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
# Where it is set lower, or not told, some of these may be the kernel's, too.
_FIRST_OF_THE_KERNEL = max(int(_RANGE.read_text().split()[0]), 12_000) if _RANGE.exists() else 32_768


def _ports() -> Iterator[int]:
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _PROCESSES
    first = _FIRST_OF_THE_KERNEL - _OF_A_PROCESS * (process + 1)
    # Another pytest may run on this machine, which begins elsewhere.
    begin = random.SystemRandom().randrange(_OF_A_PROCESS)
    return (first + (begin + number) % _OF_A_PROCESS for number in itertools.count())


_next = _ports()


def free_port() -> int:
    """A port at which nobody listens now, and which no other test and no program that asks the kernel takes."""
    for port in _next:
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("", port))
            return port
    raise AssertionError("there is always another")
