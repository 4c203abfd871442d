"""What ended a launcher, where that was nothing that it could tell."""

from __future__ import annotations

import signal

from allranks.doctor import causes
from allranks.doctor.attempt import Ended, Started
from allranks.doctor.ranks import killed_by
from allranks.findings import Finding, Who

# Launchers pass these on to their ranks, and end in order.
_REQUESTS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def launcher_killed(started: Started, ended: Ended) -> Finding | None:
    """That a signal of somebody else ended this node's launcher; its ranks then end without a word, and those of other
    nodes feel it first."""
    # What holds the launcher tells its end as shells do; where that itself was killed, the kernel does.
    number = -ended.returncode if ended.returncode < 0 else ended.returncode - 128
    if ended.killed or number not in set(signal.Signals) - set(_REQUESTS):
        return None
    memory = ended.memory
    code = causes.OUT_OF_MEMORY if number == signal.SIGKILL and memory else causes.LAUNCHER_KILLED
    who = f"{started.launcher}, the launcher of node {started.node},"
    what = f"{who} was {killed_by(number, '', memory)}; the ranks of the node ended with it"
    return Finding(code, what, who=Who(started.node), known_at=started.node)
