"""Whom did the ranks wait for? A time-out ends those that came to a collective; who did not come says nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from allranks.doctor import causes
from allranks.doctor.stopped import place
from allranks.findings import Finding
from allranks.listing import few
from allranks.observe import RunDir
from allranks.observe.events import ErrorEvent, Event, ExitEvent

_MARK = "did not say that it waited"


def with_absent(finding: Finding, run: RunDir, events: Iterable[Event]) -> Finding:
    """`finding`, and where it is of a time-out, which ranks may be those that did not come, with their logs.

    `events` are of all ranks that this node can read of, in their order. Another node may have named them already.
    """
    if finding.code != causes.PEER_GONE or not causes.waited_in_vain(finding.said) or _MARK in finding.remedy:
        return finding
    of_rank: dict[int, list[Event]] = {}
    for event in events:
        of_rank.setdefault(event.rank, []).append(event)
    absent = {rank: own for rank, own in sorted(of_rank.items()) if rank != finding.who.rank and not _has_ended(own)}
    if not absent:
        return finding
    limits = [limit for _, limit in map(place, of_rank.values()) if limit is not None]
    within = f" {limits[0]} s" if limits else " time"
    who = few([_named(rank, own, run) for rank, own in absent.items()], 4, between="; ")
    told = f"{who}, {_MARK}: it hangs, or took longer than the{within} that a collective may take (ddp_timeout)"
    return replace(finding, remedy="\n".join(filter(None, [told, finding.remedy])))


def _has_ended(events: list[Event]) -> bool:
    return any(isinstance(event, ErrorEvent | ExitEvent) for event in events)


def _named(rank: int, events: list[Event], run: RunDir) -> str:
    where, _ = place(events)
    log = next(iter(sorted(run.path.glob(f"logs/*/rank-{rank:05}.log"))), None)
    return ", ".join(filter(None, [f"rank {rank}", where, f"its log: {log}" if log else ""]))
