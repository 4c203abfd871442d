"""Who has not come to the rendezvous, in words."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from allranks.listing import few
from allranks.rendezvous.participant import Participant
from allranks.rendezvous.terms import Terms


def missing(host: Participant, terms: Terms, came: Mapping[int, Participant], rejected: Collection[str]) -> str:
    """Which nodes node 0, `host`, waits for, `came` being the others by rank; and who was turned away."""
    away = [str(rank) for rank in range(1, host.nnodes) if rank not in came]
    shown = f"node {few(away)}" if host.has_rank else f"{len(away)} node(s)"
    here = few([node.name for _, node in sorted(came.items())])
    turned_away = f"; turned away: {'; '.join(sorted(rejected)[:4])}" if rejected else ""
    return (
        f"{len(came) + 1} of {host.nnodes} nodes have come to {terms.endpoint}; missing: "
        f"{shown}{f' (here: {here})' if here else ''}{turned_away}"
    )


def what_to_try(terms: Terms, note: str) -> str:
    """What helps where somebody is missing; `note` is what is odd about node 0's own address, if anything is."""
    alike = "this --rdzv-endpoint" if terms.by_c10d else "its own --node-rank and this --master-addr"
    asked = (
        f"is `allranks` started there with {alike}, and is port {terms.port} of this machine open to it? Try there: nc "
        f"-zv {terms.address} {terms.port}"
    )
    return "".join(f"\n  {line}" for line in (note, asked) if line)
