"""What the nodes tell each other of their ranks once a collective has aborted one: which of them entered another shows
only where all are known, and nodes need not see each other's logs."""

from __future__ import annotations

import time
from dataclasses import replace

from allranks.doctor import causes
from allranks.doctor.attempt import Started
from allranks.doctor.collective_abort import DIFFERS, is_an_abort
from allranks.doctor.last_entered import last_entered
from allranks.doctor.of_rank import OfRank, from_message, of_ranks, to_message
from allranks.doctor.told_in_logs import told_in_logs
from allranks.doctor.training_end import last_events
from allranks.findings import Finding
from allranks.rendezvous import Rendezvous

_TOPIC = "ranks at the end"
# Others end their ranks, and read their logs, once they have heard of the failure; node 0 then waits for the slowest.
_GATHER_SECONDS, _ANSWER_SECONDS = 6.0, 9.0
_POLL_SECONDS = 0.1


def tell_of_ranks(rendezvous: Rendezvous | None, started: Started, reason: Finding | None) -> None:
    """On every node but node 0, whose ranks have failed for `reason`: tell node 0 of them."""
    if rendezvous is None or reason is None or not rendezvous.own.has_rank or rendezvous.own.node_rank == 0:
        return
    knows = reason.code in (causes.PEER_GONE, causes.RANK_ABORTED)
    rendezvous.tell(_TOPIC, to_message(_here(started)) if knows else [])


def with_others(rendezvous: Rendezvous | None, started: Started, reason: Finding | None) -> Started:
    """`started` with what the other nodes tell of their ranks, where `reason`, why the run has failed, needs it: it is
    of an abort in a collective, and not all ranks' logs lie here. Waits for them, some seconds at most."""
    if rendezvous is None or reason is None or not rendezvous.own.has_rank:
        return started
    if not is_an_abort(reason) or _sees_all(started):
        return started
    if rendezvous.own.node_rank == 0:
        told = [] if DIFFERS in reason.what else _gathered(rendezvous)
        rendezvous.ask_all(_TOPIC, to_message([*_here(started), *told]))  # the others wait for it
    else:
        told = [] if DIFFERS in reason.what else _answered(rendezvous)
    return replace(started, others=tuple(told)) if told else started


def _gathered(rendezvous: Rendezvous) -> list[OfRank]:
    missing = {node.node_rank for node in rendezvous.nodes} - {0}
    told: list[OfRank] = []
    deadline = time.monotonic() + _GATHER_SECONDS
    while missing and time.monotonic() < deadline:
        for node, message in rendezvous.take(_TOPIC):
            missing.discard(node)
            told += [one for one in from_message(message) if one.node == node]
        time.sleep(_POLL_SECONDS)
    return told


def _answered(rendezvous: Rendezvous) -> list[OfRank]:
    deadline = time.monotonic() + _ANSWER_SECONDS
    while time.monotonic() < deadline:
        is_over = rendezvous.gone is not None or rendezvous.parting  # before the last word is looked for
        for message in rendezvous.asked(_TOPIC):
            return list(from_message(message))
        if is_over:
            break
        time.sleep(_POLL_SECONDS)
    return []


def _here(started: Started) -> tuple[OfRank, ...]:
    """Of the ranks of this node, as far as it is known which they are."""
    events = last_events(started.run, started.run_id) if started.is_ours else told_in_logs(started)
    own = started.ranks if started.ranks is not None else range(0)
    entered = {rank: told for rank, told in last_entered(started).items() if rank in own}
    return of_ranks(int(started.node), (event for event in events if event.rank in own), entered)


def _sees_all(started: Started) -> bool:
    logs = started.run.path.glob("logs/node-*/rank-*.log")
    return sum(started.has_written(log) for log in logs) >= started.world_size
