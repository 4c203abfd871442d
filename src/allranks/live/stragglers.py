"""Ranks that need longer for their own part of each step than the others, who wait for them."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

from allranks.findings import Finding, Who, printed
from allranks.live.state import LiveTable, NodeState, RankState
from allranks.observe.events import StragglerEvent

STRAGGLER = "straggler"
# Ranks differ by some tens of per cent: lengths of documents, cores that share caches.
_TIMES = 1.7
# Who is slow by itself is so in nearly every step; one that is only held up now and then, beside other programs on the
# same CPUs, also has steps like those of the others.
_TIMES_EACH = 1.4
# Of the step, before it is worth a line.
_PART = 0.2
# Steps over which all looks agree: other work of a moment passes, and a burst of slow steps leaves the median. A rank's
# own work is known by its last ten steps, of which eight are slow before it counts: with these it is named within 20.
_AGREEING_STEPS = 9
# Where other programs leave nothing of a node's cores idle, the kernel makes a rank share its core with some of them
# for a while, and then another rank. That was 6 s at most with two busy programs beside two ranks on two cores, and
# more than 10 s at a load of 17 (2,000 steps of 50 to 100 ms, tests/cluster/test_healthy_run.py).
_BESIDE_OTHERS_SECONDS = 60.0
_IDLE_CORES, _OTHERS_CORES = 0.5, 0.3
# Looks at the states of processes, one each second, and those in which a rank that makes steps was stopped.
_LOOKS, _STOPPED_LOOKS, _STOPPED = 10, 3, ("T", "t")


@dataclass(frozen=True)
class _Stretch:
    """All looks since that step, at the time `t`, have found a rank slow; in one of them others kept its node busy."""

    step: int
    t: float
    beside_others: bool = False


class Stragglers:
    """Reads the table each second; `found` are those that have been so over some steps."""

    def __init__(self) -> None:
        self.found: tuple[Finding, ...] = ()
        self._slow_since: dict[int, _Stretch] = {}  # by rank
        self._fine_since: dict[int, int] = {}  # of those that are found: from which on none has
        self._step: int | None = None
        self._stopped: dict[int, deque[bool]] = {}  # by rank: in which of the newest looks it was stopped

    def read(self, table: LiveTable) -> list[StragglerEvent]:
        """Take in a table; what is new: each event's `message` is to be told."""
        for rank in table.ranks:
            self._stopped.setdefault(rank.rank, deque(maxlen=_LOOKS)).append(rank.process_state in _STOPPED)
        step = table.step
        if step is None or step == self._step:
            return []
        if self._step is not None and step < self._step:  # all ranks were started again
            self._slow_since, self._fine_since = {}, {}
        self._step = step
        stopped = self._often_stopped(table)
        slow = {**stopped, **slow_ranks(table)}
        beside_others = _beside_others(table)
        stretches = {rank: self._slow_since.get(rank, _Stretch(step, table.t)) for rank in slow}
        self._slow_since = {
            rank: replace(one, beside_others=one.beside_others or rank in beside_others)
            for rank, one in stretches.items()
        }
        before = {one.who.rank: one for one in self.found if one.who.rank is not None}
        self._fine_since = {rank: self._fine_since.get(rank, step) for rank in before if rank not in slow}
        now = {
            rank: slow.get(rank, one)
            for rank, one in before.items()
            if step - self._fine_since.get(rank, step) < _AGREEING_STEPS
        }
        new = [
            rank
            for rank, since in self._slow_since.items()
            if rank not in before
            and step - since.step >= _AGREEING_STEPS
            and (rank in stopped or not since.beside_others or table.t - since.t >= _BESIDE_OTHERS_SECONDS)
        ]
        self.found = (*now.values(), *[slow[rank] for rank in new])
        again = sorted(before.keys() - now.keys())
        return [_event(slow[rank].who, table, printed(slow[rank])) for rank in new] + [
            _event(before[rank].who, table, f"rank {rank} keeps up with the others again", is_slow=False)
            for rank in again
        ]

    def _often_stopped(self, table: LiveTable) -> dict[int, Finding]:
        """Ranks that are stopped and let go on, as cpulimit or a batch system's suspending does: neither works then."""
        found = {}
        for node in table.nodes:
            for rank in node.ranks:
                looks = self._stopped.get(rank.rank, ())
                if sum(looks) >= _STOPPED_LOOKS and not all(looks):
                    what = (
                        f"{_named(node, rank)} is slow by itself: it was stopped (state T) in {sum(looks)} of the last "
                        f"{len(looks)} looks, a second apart, and let go on each time"
                    )
                    remedy = "all others wait for it in every step: look there for who stops it (cpulimit, a debugger)"
                    found[rank.rank] = _straggler(node, rank, what, remedy)
        return found


def _beside_others(table: LiveTable) -> set[int]:
    """Ranks of nodes whose cores other programs keep busy, too."""
    return {
        rank.rank
        for node in table.nodes
        if node.idle_cpu is not None and node.other_cpu_use is not None
        if node.idle_cpu < _IDLE_CORES and node.other_cpu_use > _OTHERS_CORES
        for rank in node.ranks
    }


def _event(who: Who, table: LiveTable, message: str, *, is_slow: bool = True) -> StragglerEvent:
    assert who.rank is not None
    return StragglerEvent(
        of_rank=who.rank, is_slow=is_slow, node=who.node, host=who.host, step=table.step, message=message
    )


def slow_ranks(table: LiveTable) -> Mapping[int, Finding]:
    """By rank: who works longer at its own part of a step than the others, by the medians of the newest steps."""
    known = [
        (node, rank, rank.median_compute_seconds)
        for node in table.nodes
        for rank in node.ranks
        if rank.median_compute_seconds is not None and rank.exit_code is None
    ]
    found = {}
    for node, rank, seconds in known:
        others = [other for _, one, other in known if one.rank != rank.rank]
        if not others or not rank.median_step_seconds:
            continue
        usual = statistics.median(others)
        low = seconds if rank.low_compute_seconds is None else rank.low_compute_seconds
        is_slow = seconds > _TIMES * usual and low > _TIMES_EACH * usual
        if is_slow and seconds - usual > _PART * rank.median_step_seconds:
            found[rank.rank] = _finding(node, rank, seconds, usual, len(others))
    return found


def _finding(node: NodeState, rank: RankState, seconds: float, usual: float, num_others: int) -> Finding:
    others = "the median of the others" if num_others > 1 else "the other one"
    # The usual step is of more steps than the newest work, which may have become longer since.
    step_seconds = max(seconds, rank.step_seconds or 0.0, rank.median_step_seconds or 0.0)
    what = (
        f"{_named(node, rank)} is slow by itself: it works {seconds:.3g} s at its own part of a step of "
        f"{step_seconds:.3g} s, and {others} {usual:.3g} s"
    )
    remedy = "all others wait for it in every step: look there for other programs, limits of CPUs, a hot or slow CPU"
    return _straggler(node, rank, what, remedy)


def _straggler(node: NodeState, rank: RankState, what: str, remedy: str) -> Finding:
    who = Who(node.node, rank.rank, node.host or None)
    return Finding(STRAGGLER, what, severity="warning", who=who, remedy=remedy)


def _named(node: NodeState, rank: RankState) -> str:
    return f"rank {rank.rank} (node {node.node}{f', {node.host}' if node.host else ''})"
