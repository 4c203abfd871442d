"""How a node measures over TCP: at the addresses that ranks use, and over other networks that the nodes share."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from allranks.cluster.measure.tcp import LINK_SECONDS, Measured, Receiver, measure
from allranks.cluster.node_report import NetworkInterface, NodeReport
from allranks.cluster.pairs import Target
from allranks.cluster.rank_addresses import RankAddress
from allranks.errors import RefusedError
from allranks.launch.preflight.measuring_links import MOST_ADDRESSES, items
from allranks.listing import printable
from allranks.preflight.ranks_interface import address_for_others, is_management, is_running, is_virtual

MOST_NETWORKS = 4
"""Beside the one of the ranks; those of most nodes first."""
_AGAIN_BELOW = 0.6
_NOT_BETWEEN_NODES = ("loopback", "bridge")
"""Kinds of interfaces: those of containers, which every node has for itself. A container's own interface is virtual."""


class RanksTransport:
    """Over each interface that the ranks of both ends use for the same."""

    kind: Literal["tcp", "rdma"] = "tcp"
    name = "ranks"
    seconds, slow_below, expected = LINK_SECONDS * MOST_ADDRESSES, _AGAIN_BELOW, 0.0

    def __init__(self, own: Sequence[RankAddress], offers: Sequence[Any], token: str) -> None:
        self.nodes: Sequence[int] = range(len(offers))
        self._own = own
        self._targets = [_targets(node, offer, token) for node, offer in enumerate(offers)]

    def measure(self, node: int) -> list[tuple[str, Measured]]:
        found = []
        for library, target in self._targets[node].items():
            source = next((one for one in self._own if one.library == library), None)
            if source is not None:
                found.append((source.interface, measure(target, source.address)))
        return found

    def answering(self, node: int) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()  # the receiver's threads do, all the time

    def failed_to_answer(self) -> Mapping[int, str]:
        return {}  # who connects hears all that there is to hear


class NetworkTransport:
    """Over one network that nodes share beside the one of the ranks."""

    kind: Literal["tcp", "rdma"] = "tcp"
    seconds, slow_below, expected = LINK_SECONDS, _AGAIN_BELOW, 0.0

    def __init__(self, network: str, at: Mapping[int, Mapping[str, Any]], own: int, secrets: Sequence[bytes]) -> None:
        self.name = network
        self.nodes: Sequence[int] = sorted(at)
        self._own = at.get(own, {})
        self._targets = {
            node: Target(node, str(one["address"]), int(one["port"]), secrets[node]) for node, one in at.items()
        }

    def measure(self, node: int) -> list[tuple[str, Measured]]:
        return [(str(self._own["interface"]), measure(self._targets[node], str(self._own["address"])))]

    def answering(self, node: int) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def failed_to_answer(self) -> Mapping[int, str]:
        return {}  # who connects hears all that there is to hear


def offered_networks(
    report: NodeReport | None, own: Sequence[RankAddress], secret: bytes
) -> tuple[list[dict[str, Any]], list[Receiver]]:
    """What this node offers beside the addresses of its ranks, and who answers there. A network of the ranks is left
    out, though another interface may be in it: there the kernel chooses the interface, whatever address is asked for.
    """
    offered: list[dict[str, Any]] = []
    receivers: list[Receiver] = []
    used = [ipaddress.ip_address(one.address.partition("%")[0]) for one in own]
    for nic in (report.interfaces if report is not None else None) or ():
        address = address_for_others(nic)
        network = None if address is None or not _joins_nodes(nic) else _network(nic, address)
        if network is None or any(one in network for one in used) or len(offered) == 2 * MOST_NETWORKS:
            continue
        with contextlib.suppress(OSError):  # an address that is going: it is not offered
            receiver = Receiver([str(address)], secret)
            receivers.append(receiver)
            port = receiver.ports[str(address)]
            offered.append({"network": str(network), "address": address, "port": port, "interface": nic.name or ""})
    return offered, receivers


def shared_networks(offers: Sequence[Any], own: int, token: str) -> list[NetworkTransport]:
    """The same on all nodes, from what all have offered: networks in which several have an address of their own. They
    come from the wire: nonsense is left out."""
    at: dict[str, dict[int, Mapping[str, Any]]] = {}
    of_ranks = [address for offer in offers for address in _addresses_of_ranks(offer)]
    for node, offer in enumerate(offers):
        for one in items(offer.get("networks"))[: 2 * MOST_NETWORKS]:
            if (network := _readable(one)) is not None and not any(address in network for address in of_ranks):
                told = {**one, "interface": printable(one.get("interface"), 64)}
                at.setdefault(str(network), {}).setdefault(node, told)
    secrets = [secret_of(token, str(offer.get("nonce"))) for offer in offers]
    # A private network of each node by itself, as hypervisors make, has the same addresses on all of them.
    shared = {
        network: nodes
        for network, nodes in at.items()
        if len({one["address"] for one in nodes.values()}) == len(nodes) > 1
    }
    chosen = sorted(shared, key=lambda network: (-len(shared[network]), network))[:MOST_NETWORKS]
    return [NetworkTransport(network, shared[network], own, secrets) for network in chosen]


def secret_of(token: str, nonce: str) -> bytes:
    """Known to the nodes only, as that of the connections that were tried."""
    return hmac.new(token.encode(), b"measure " + nonce.encode(), hashlib.sha256).digest()


def _joins_nodes(nic: NetworkInterface) -> bool:
    if nic.kind in _NOT_BETWEEN_NODES or is_virtual(nic) or is_management(nic):
        return False
    return is_running(nic)


def _network(nic: NetworkInterface, address: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """That of its address; None for a point-to-point one, which nobody shares."""
    prefix = next((one.prefix for one in nic.addresses or () if one.address == address), None)
    if prefix is None:
        return None
    with contextlib.suppress(ValueError):
        network = ipaddress.ip_network(f"{address}/{prefix}", strict=False)
        return network if network.num_addresses > 1 else None
    return None


def _readable(one: Any) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """The network of an offer, if its address is in it and its port is one."""
    with contextlib.suppress(KeyError, TypeError, ValueError):
        network = ipaddress.ip_network(one["network"])
        if ipaddress.ip_address(one["address"]) in network and 0 < int(one["port"]) < 2**16:
            return network
    return None


def _addresses_of_ranks(offer: Any) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    found = []
    for one in items(offer.get("at"))[:MOST_ADDRESSES]:
        with contextlib.suppress(KeyError, TypeError, ValueError):
            found.append(ipaddress.ip_address(str(one["address"]).partition("%")[0]))
    return found


def _targets(node: int, offer: Any, token: str) -> dict[str, Target]:
    """Where to measure to, by what its ranks use that address for: it comes from the wire."""
    targets = {}
    try:
        secret = secret_of(token, str(offer["nonce"]))
        for one in offer["at"][:MOST_ADDRESSES]:
            targets[printable(one["library"], 64)] = Target(node, str(one["address"]), int(one["port"]), secret)
    except (KeyError, TypeError, ValueError) as error:
        raise RefusedError(f"node {node} does not say where it is to be measured: {error!r}") from None
    return targets
