"""Between which ranks the network does not carry what is sent, by the connections of all ranks while they hang."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Sent again so often, each time after twice as long, it is no loss of a moment: three seconds and more.
_FEWEST_RETRANSMITS = 4


@dataclass(frozen=True)
class Undelivered:
    """What `rank` has sent and nobody acknowledges. `to` is the rank at the other end, None where none says so."""

    rank: int
    to: int | None
    peer: str
    num_bytes: int


def undelivered(ranks: Mapping[int, Mapping[str, Any]]) -> list[Undelivered]:
    """By rank; `ranks` are what `ranks_of` returns."""
    told = {rank: _sockets(about) for rank, about in ranks.items()}
    owner = {(one.get("local"), one.get("peer")): rank for rank, sockets in told.items() for one in sockets}
    return [
        Undelivered(rank, owner.get((one["peer"], one.get("local"))), str(one["peer"])[:100], one["send_queue_bytes"])
        for rank, sockets in told.items()
        for one in sockets
        if isinstance(one.get("peer"), str)
        and _number(one.get("send_queue_bytes")) > 0
        and _number(one.get("retransmits")) >= _FEWEST_RETRANSMITS
    ]


def _sockets(about: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    sockets = about.get("sockets")
    return [one for one in sockets if isinstance(one, Mapping)] if isinstance(sockets, list) else []


def _number(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
