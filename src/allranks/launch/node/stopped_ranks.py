"""Watches whether this node's ranks run: one that is stopped keeps all ranks waiting, and says nothing itself."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil

from allranks.doctor.stopped import TRACED, WAITING
from allranks.findings import Finding

_STATES = {psutil.STATUS_STOPPED: "T", psutil.STATUS_TRACING_STOP: TRACED, psutil.STATUS_DISK_SLEEP: WAITING}
# Profilers hold a process for a moment, and reads of a slow disk sleep so for seconds, now and then using some CPU.
_PATIENCE_SECONDS = {"T": 2.0, TRACED: 5.0, WAITING: 30.0}

Describe = Callable[[int, int, str, float], Finding]
"""Makes the finding of a rank: its number, its pid, its state, and for how many seconds it has been in that."""


@dataclass
class _Still:
    state: str
    since: float
    cpu_seconds: float
    finding: Finding | None = None


class StoppedRanks:
    """`standing` tells which ranks do not run, as of the last look; `findings` also those that were let go on."""

    def __init__(self, describe: Describe) -> None:
        self._describe = describe
        self._still: dict[int, _Still] = {}  # by pid
        self._numbers: dict[int, int] = {}
        self._woken: dict[int, Finding] = {}  # that we let go on ourselves

    @property
    def standing(self) -> tuple[Finding, ...]:
        return tuple(still.finding for still in self._still.values() if still.finding is not None)

    @property
    def findings(self) -> tuple[Finding, ...]:
        found = {pid: still.finding for pid, still in self._still.items() if still.finding is not None}
        return tuple((self._woken | found).values())

    def look(self, ranks: Sequence[psutil.Process], *, at_the_end: bool = False) -> None:
        """Look at all `ranks`; at the end, what is stopped counts however short a time it has been."""
        now = time.monotonic()
        seen = {}
        for rank in ranks:
            with contextlib.suppress(psutil.Error, OSError):
                if still := self._look_at(rank, now, at_the_end):
                    seen[rank.pid] = still
        self._still = seen

    def wake(self) -> None:
        """Let ranks that a signal stopped go on, for they have to hear that the run ends."""
        for pid, still in list(self._still.items()):
            if still.state == "T":
                with contextlib.suppress(psutil.Error):
                    psutil.Process(pid).send_signal(signal.SIGCONT)
                    if still.finding is not None:
                        self._woken[pid] = still.finding

    def _look_at(self, rank: psutil.Process, now: float, at_the_end: bool) -> _Still | None:
        state = _STATES.get(rank.status())
        if state is None:
            return None
        cpu = sum(rank.cpu_times()[:2])
        still = self._still.get(rank.pid)
        if still is None or still.state != state or still.cpu_seconds != cpu:
            still = _Still(state, now, cpu)
        seconds = now - still.since
        if still.finding is None and (seconds >= _PATIENCE_SECONDS[state] or (at_the_end and state == "T")):
            still.finding = self._describe(rank_number(rank, self._numbers), rank.pid, state, seconds)
        return still


def rank_number(rank: psutil.Process, known: dict[int, int]) -> int:
    """A process's rank by its environment; `known` remembers it by pid. Raises psutil.Error if it has gone.

    So it does of one that has just become another program: its environment is empty for a moment (execve(2)).
    """
    if rank.pid not in known:
        env = rank.environ()
        if not env:
            raise psutil.NoSuchProcess(rank.pid)
        known[rank.pid] = int(env.get("RANK") or env.get("LOCAL_RANK") or 0)
    return known[rank.pid]
