"""Ranks of this node that others have waited for until a collective's time-out, while they still run here, or that
had ended before the others lost them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence

import psutil

from allranks.doctor import causes
from allranks.findings import Finding, Who
from allranks.launch.node.stopped_ranks import rank_number
from allranks.launch.peers import Peers
from allranks.listing import few

_LOOK_SECONDS = 0.3  # those that wait for our word do so for some seconds


Left = Callable[[Finding, Mapping[int, int], frozenset[int]], Finding | None]
"""Makes the finding of ranks that had ended well before others failed as the first argument says, of all ranks of this
node by their process ids, and the ids of those that run; None where none had."""


class WaitedFor:
    """Tells the other nodes, once, when one of theirs has given up waiting: the cause is where nobody has given up.

    `left`: asked where one of theirs has lost a rank, if it is to be looked for those that have ended here.
    """

    def __init__(self, peers: Peers, left: Left | None = None) -> None:
        self._peers, self._left = peers, left
        self._ranks: Sequence[psutil.Process] = ()
        self._numbers: dict[int, int] = {}
        self._has_told = False

    def seen(self, ranks: Sequence[psutil.Process]) -> None:
        """The ranks of this node that are alive now."""
        self._ranks = ranks
        for rank in ranks:
            with contextlib.suppress(psutil.Error, OSError, ValueError):
                rank_number(rank, self._numbers)

    def explained(self, lost: Finding | None) -> Finding | None:
        """`lost`, why the run cannot go on, or what it follows from, where that is a rank of this node."""
        if lost is None or self._has_told or lost.code != causes.PEER_GONE or lost.who.node == self._peers.node.name:
            return lost
        self._has_told = True
        if (found := self._look(lost) if causes.waited_in_vain(lost.what) else self._look_for_ended(lost)) is None:
            return lost
        self._peers.tell_cause(found)
        return found

    def _look(self, lost: Finding) -> Finding | None:
        before = {rank.pid: _cpu_seconds(rank) for rank in self._ranks}
        time.sleep(_LOOK_SECONDS)
        numbers: dict[int, int] = {}
        states = {}
        for rank in self._ranks:
            with contextlib.suppress(psutil.Error, OSError, ValueError):
                number, status = rank_number(rank, numbers), rank.status()
                used, began = _cpu_seconds(rank), before[rank.pid]
                if status != psutil.STATUS_ZOMBIE and used is not None and began is not None:
                    states[number] = f"{status}, {(used - began) / _LOOK_SECONDS:.0%} of a CPU"
        return still_running(lost, states, self._peers.node.name, self._peers.own_host)

    def _look_for_ended(self, lost: Finding) -> Finding | None:
        if self._left is None:
            return None
        time.sleep(_LOOK_SECONDS)  # in which the launcher notices, and writes down, that one has failed
        alive = set()
        for rank in self._ranks:
            with contextlib.suppress(psutil.Error):
                if rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE:
                    alive.add(rank.pid)
        return self._left(lost, self._numbers, frozenset(alive))


def still_running(lost: Finding, states: dict[int, str], node: int | str, host: str) -> Finding | None:
    """The finding of ranks, by number with what they do, that run while another one has waited in vain, as `lost` says.

    None where there are none.
    """
    if not states:
        return None
    ranks = sorted(states)
    waiting = f"rank {lost.who.rank} (node {lost.who.node})" if lost.who.rank is not None else "another node's ranks"
    if len(ranks) == 1:
        who = f"rank {ranks[0]} (node {node}, {host}) did not come to the collective"
        how = f"it ran on ({states[ranks[0]]}) when that gave up"
    else:
        who = f"one of ranks {few(ranks, 12)} (node {node}, {host}) did not come to the collective"
        how = f"these ran on when that gave up: {few([f'{rank} ({states[rank]})' for rank in ranks], 4)}"
    return Finding(
        causes.HANG,
        f"{who} in which {waiting} has waited in vain: {how}",
        who=Who(node, ranks[0] if len(ranks) == 1 else None, host),
        remedy="look at what that rank does at this place: data that one rank prepares alone while the others wait "
        "belongs before the process group is made, or needs a longer timeout of it",
        known_at=node,
    )


def _cpu_seconds(rank: psutil.Process) -> float | None:
    with contextlib.suppress(psutil.Error, OSError):
        return float(sum(rank.cpu_times()[:2]))
    return None
