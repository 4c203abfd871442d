"""A run that was asked to end, and did, with its step saved: no failure, and no unknown one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from allranks.doctor import causes
from allranks.exit_codes import PREEMPTED
from allranks.findings import Evidence, Finding, Who
from allranks.listing import few
from allranks.observe.events import Event, ExitEvent, StepEvent

_BY = "preempted by "
# Of a rank that stops with another one, which had the signal (train/loop.py).
_ANOTHERS = "a signal to another rank"
_NAMED = 4


def preempted(ended: Mapping[str, Any], nodes: object, events: Sequence[Event]) -> Finding | None:
    """That all ranks saved and ended because of a signal, and on which nodes it came; None of any other end.

    `ended` and `nodes` are those of live.json, `events` all ranks' of the last start.
    """
    if ended.get("exit_code") != PREEMPTED:
        return None
    exits = {event.rank: event for event in events if isinstance(event, ExitEvent) and event.code == PREEMPTED}
    signals = {rank: event.reason.removeprefix(_BY) for rank, event in exits.items() if event.reason.startswith(_BY)}
    struck = {rank: name for rank, name in signals.items() if name != _ANOTHERS}
    by = f" by {', '.join(sorted(set(struck.values())))}" if struck else ""
    steps = [event.step for event in events if isinstance(event, StepEvent)]
    after = f" after step {max(steps)}" if steps else ""
    homes = [(node, host) for node, host, ranks in _homes(nodes) if ranks & struck.keys()]
    where = f" on {few([f'node {node} ({host})' if host else f'node {node}' for node, host in homes], _NAMED)}"
    node, host = homes[0] if len(homes) == 1 else (None, None)
    return Finding(
        causes.INTERRUPTED,
        f"preempted{by}{where if homes else ''}{after}: nothing failed, all ranks saved and ended with exit code "
        f"{PREEMPTED}",
        who=Who(node, host=host),
        evidence=tuple(Evidence(f"rank {rank}: {event.reason}") for rank, event in sorted(exits.items())),
        remedy="start the same command again on all nodes, with --auto-resume-from-checkpoints true\nwho sent it: a "
        "launcher passes Ctrl-C on its terminal, SIGHUP and SIGTERM on to its ranks as SIGTERM, and says which it got; "
        "of a job its scheduler tells (Slurm: sacct -j JOB, scontrol show job JOB)",
    )


def _homes(nodes: object) -> list[tuple[int | str, str | None, set[int]]]:
    """Each node, its host and its ranks."""
    found = []
    for node in nodes if isinstance(nodes, list) else []:
        if isinstance(node, Mapping) and isinstance(node.get("node"), int | str):
            name, host, ranks = node["node"], node.get("host"), node.get("ranks")
            of_it = [one.get("rank") for one in ranks if isinstance(one, Mapping)] if isinstance(ranks, list) else []
            numbers = {rank for rank in of_it if isinstance(rank, int)}
            found.append((name, host if isinstance(host, str) else None, numbers))
    return found
