"""When the ranks of anyone's program are taken to hang: they tell of no steps, and only their output and CPUs show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from allranks.doctor import causes
from allranks.findings import Finding, Who
from allranks.listing import few
from allranks.live.state import LiveTable, NodeState, RankState

_GONE = ("gone", "Z")
_HELD = {"D": "waits in the kernel (state D)", "T": "is stopped (state T)", "t": "is held by a debugger (state t)"}
# Of a core: a process that waits wakes up now and then. A collective of NCCL's spins, and looks like work.
_IDLE = 0.05


_START_SECONDS = 300.0
"""Loading torch and a program's own packages from a network file system that many nodes read takes minutes."""


@dataclass(frozen=True)
class Silence:
    """For how many seconds all ranks may write nothing; before any of them has, it is `start_seconds` at least."""

    seconds: float
    start_seconds: float = _START_SECONDS


def silent(table: LiveTable, limit: Silence) -> list[Finding]:
    """Who hangs: nobody, or one finding, once no rank has written anything for as long as that.

    Only a rank that is held by the kernel, a signal or a debugger, or has ended, is named as the one that is waited
    for: whether one that computes works or waits in a collective, nothing outside of it tells.
    """
    alive = [
        (node, rank)
        for node in table.nodes
        for rank in node.ranks
        if rank.exit_code is None and rank.process_state not in (None, *_GONE)
    ]
    ages = [rank.output_age_seconds for _, rank in alive if rank.output_age_seconds is not None]
    has_begun = any(rank.output_bytes != 0 for _, rank in alive)
    allowed = limit.seconds if has_begun else max(limit.seconds, limit.start_seconds)
    if not ages or len(ages) < len(alive) or min(ages) <= allowed:
        return []
    # A launcher ends the run for one that fails: these ended well, and a collective of NCCL waits on.
    left = [(node, rank) for node in table.nodes for rank in node.ranks if rank.process_state in _GONE]
    held = [one for one in alive if one[1].process_state in _HELD]
    what = f"no rank has written anything for {min(ages):.0f} s, longer than "
    what += (
        f"--hang-timeout allows ({allowed:g} s)" if allowed == limit.seconds else f"a start may take ({allowed:g} s)"
    )
    if held:
        states = [f"{_named([one])} {_HELD[one[1].process_state or '']}" for one in held]
        what += f", and {few(states, 4)}"
    else:
        idle = [one for one in alive if one[1].cpu_use is not None and one[1].cpu_use < _IDLE]
        busy = [one for one in alive if one not in idle]
        if idle and not busy:
            what += "; none of them uses its CPU"
        elif idle:
            what += f"; {_named(busy)} {'uses its' if len(busy) == 1 else 'use their'} CPU, and {_named(idle)} "
            what += "does not" if len(idle) == 1 else "do not"
        else:
            what += "; all of them use their CPUs, so they may only be slow"
    if left:
        what += f"; {_named(left)} {'has' if len(left) == 1 else 'have'} ended before, and the others may wait for that"
    awaited = held[:1] or left or alive
    node, rank = awaited[0]
    who = Who(node.node, rank.rank, node.host or None) if len(awaited) == 1 else Who()
    remedy = "if the program is only silent for long, give it more time: --hang-timeout SECONDS"
    return [Finding(causes.HANG, what, who=who, remedy=remedy, known_at=table.nodes[0].node)]


def _named(seen: Sequence[tuple[NodeState, RankState]]) -> str:
    return few(
        [f"rank {rank.rank} (node {node.node}{f', {node.host}' if node.host else ''})" for node, rank in seen], 4
    )
