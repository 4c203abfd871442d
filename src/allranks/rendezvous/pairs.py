"""Before any rank starts: can each node talk to each other on a port that the kernel chose, as the ranks will?

Two rounds: where each listens, and whom each did not reach. Node 0 makes one finding of all that failed, and every node
gets it; or it takes what failed and goes on.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from allranks.cluster.pairs import AT_ONCE, PAIR_SECONDS, Listener, Target, Unreached, unreached
from allranks.cluster.rank_addresses import RankAddress, ephemeral_ports
from allranks.doctor.pairs import Place, unreachable
from allranks.errors import RefusedError
from allranks.findings import Finding, from_message
from allranks.listing import printable
from allranks.rendezvous.rendezvous import Rendezvous

_ROUND_SECONDS = 60.0
"""For what takes milliseconds, on nodes that are busy with something else."""
_MOST_ADDRESSES = 8
_LONGEST = 256


Tried = Callable[[Sequence[Place], Sequence[tuple[int, Unreached]]], Finding | None]
"""Is told the nodes' places, by node rank, and what failed: (the node that connected, what it did not reach)."""


def prove_pairs(
    rendezvous: Rendezvous, own: Sequence[RankAddress], *, skip: bool = False, tried: Tried = unreachable
) -> Finding | None:
    """Connect each node to each other; `own` are the addresses that this node's ranks will give to others.

    Returns what `tried`, which is called on node 0 alone, makes of it, on every node; None where one of the nodes wants
    to `skip` it. Raises RefusedError for a node that does not take part, or is lost meanwhile.
    """
    nonce = secrets.token_hex(16)
    try:
        listener = Listener([] if skip else [one.address for one in own], _secret(rendezvous.terms.token, nonce))
    except OSError as error:
        raise RefusedError(
            f"{rendezvous.own.name} cannot listen at {', '.join(one.address for one in own)}, where its ranks will: "
            f"{error.strerror}"
        ) from None
    try:
        rendezvous.run(listener.start(), "opening a port")
        at = [] if skip else [_message(one, listener.ports) for one in own]
        offer = {"nonce": nonce, "ports": ephemeral_ports(), "at": at, "skip": skip}
        offered = rendezvous.round("where ranks will listen", offer, _ROUND_SECONDS)
        offers = [_Offer(node.name, one) for node, one in zip(rendezvous.nodes, offered, strict=True)]
        if any(one.skip for one in offers):
            return None
        targets = [
            target
            for node, offered in enumerate(offers)
            if node != rendezvous.own.node_rank
            for target in offered.targets(node, rendezvous.terms.token)
        ]
        failed = rendezvous.run(unreached(targets), "trying connections to the other nodes")

        def decide(all_failed: Sequence[Any]) -> object:
            found = tried([one.place for one in offers], list(_told(all_failed, offers)))
            return found.to_message() if found else None

        seconds = _ROUND_SECONDS + PAIR_SECONDS * math.ceil(len(targets) / AT_ONCE)
        told = [[one.node, one.address, one.port, one.stage, one.reason] for one in failed]
        return from_message(rendezvous.round("connections between nodes", told, seconds, decide=decide))
    finally:
        listener.close()


class _Offer:
    """What a node has offered: it comes from the wire."""

    def __init__(self, name: str, offered: Any) -> None:
        try:
            self.ports = [(int(one["port"]), _address(one)) for one in offered["at"][:_MOST_ADDRESSES]]
            self.place = Place(name, [known for _, known in self.ports], printable(offered["ports"], _LONGEST))
            self._nonce = str(offered["nonce"])
            self.skip = offered["skip"] is True
        except (KeyError, TypeError, ValueError) as error:
            raise RefusedError(f"{name} does not say where its ranks will listen: {error!r}") from None

    def targets(self, node: int, token: str) -> list[Target]:
        secret = _secret(token, self._nonce)
        return [Target(node, known.address, port, secret) for port, known in self.ports]


def _message(own: RankAddress, ports: Mapping[str, int]) -> dict[str, Any]:
    return {
        "address": own.address,
        "port": ports[own.address],
        "interface": own.interface,
        "library": own.library,
        "mtu": own.mtu,
    }


def _address(offered: Mapping[str, Any]) -> RankAddress:
    address = str(offered["address"])
    ipaddress.ip_address(address.partition("%")[0])
    mtu = offered["mtu"]
    return RankAddress(
        printable(address, _LONGEST),
        printable(offered["interface"], _LONGEST),
        printable(offered["library"], _LONGEST),
        mtu if isinstance(mtu, int) else None,
    )


def _told(all_failed: Sequence[Any], offers: Sequence[_Offer]) -> list[tuple[int, Unreached]]:
    """Who did not reach whom; of what is told, only what has been offered."""
    known = {(node, one.address, port) for node, offer in enumerate(offers) for port, one in offer.ports}
    found = []
    for source, told in enumerate(all_failed):
        for one in told if isinstance(told, list) else ():
            if not isinstance(one, list) or len(one) != 5:
                continue
            node, address, port, stage, reason = one
            if isinstance(node, int) and isinstance(port, int) and (node, str(address), port) in known:
                cut = (printable(text, _LONGEST) for text in (address, stage, reason))
                address, stage, reason = cut
                found.append((source, Unreached(node, address, port, stage, reason)))
    return found


def _secret(token: str, nonce: str) -> bytes:
    """Known to the nodes only: the nonce goes through their channel, and the token through none."""
    return hmac.new(token.encode(), nonce.encode(), hashlib.sha256).digest()
