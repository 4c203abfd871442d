"""How a node measures over its InfiniBand and RoCE adapters: each port with that of the same name on other nodes."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from allranks.cluster.infiniband import data_rate
from allranks.cluster.measure.children import number as measured_number
from allranks.cluster.measure.perftest import (
    RAIL_SECONDS,
    Adapter,
    Tool,
    answering,
    find_tool,
    measure_adapter,
    why_not_at,
)
from allranks.cluster.measure.tcp import Measured
from allranks.cluster.nccl_variables import number, settings
from allranks.cluster.node_report import InfinibandPort, NodeReport
from allranks.cluster.rank_addresses import RankAddress
from allranks.launch.preflight.measuring_links import items
from allranks.listing import printable
from allranks.preflight.effective import active, port_name
from allranks.preflight.roce import is_routable

MOST_RAILS = 8
"""Adapters of a node that are measured: as many as nodes with eight GPUs have for them."""
_IPV4_MAPPED = "0000:0000:0000:0000:0000:ffff:"
NO_PORT = "it has no active InfiniBand or RoCE port"


@dataclass
class OwnRails:
    """What this node has of it: ports of adapters by name, each with the TCP port at which its end is to be met.

    `why_not` says why nothing is measured here. Sockets keep the TCP ports until the program takes them.
    """

    why_not: str = ""
    tool: Tool | None = None
    address: str = ""
    adapters: dict[str, tuple[Adapter, int]] = field(default_factory=dict)
    ports: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The link layer of each, and the rate of data that it can carry."""
    kept: list[socket.socket] = field(default_factory=list)

    @property
    def offered(self) -> dict[str, Any]:
        at = [{**self.ports[name], "name": name, "port": port} for name, (_, port) in self.adapters.items()]
        return {"why_not": self.why_not, "address": self.address, "at": at}

    def close(self) -> None:
        for one in self.kept:
            one.close()


def own_rails(report: NodeReport | None, own: Sequence[RankAddress], variables: Mapping[str, str]) -> OwnRails:
    """The active ports that NCCL will use on this node, if `ib_write_bw` is there; `variables` are those of its
    ranks, beside the environment."""
    told = settings({**os.environ, **variables})
    ports = active(report) if report is not None else []
    if not ports:
        return OwnRails(NO_PORT)
    if number(told.get("NCCL_IB_DISABLE", "0")):
        return OwnRails("InfiniBand is switched off (NCCL_IB_DISABLE)")
    if not own:
        return OwnRails("its ranks have no address at which the two ends could meet")
    address = own[0].address
    tool = find_tool()
    why_not = tool if isinstance(tool, str) else why_not_at(tool, address)
    if isinstance(tool, str) or why_not:
        return OwnRails(why_not)
    rails = OwnRails(tool=tool, address=address)
    for port in ports[:MOST_RAILS]:
        if port.device is None or port.port is None:
            continue
        try:
            kept, at = _kept_port(address)
        except OSError as error:
            rails.close()
            return OwnRails(f"it cannot listen at {address}: {error.strerror}")
        rails.kept.append(kept)
        rails.adapters[port_name(port)] = Adapter(port.device, port.port, _gid_index(port, told)), at
        rate = data_rate(port.rate_gbits, port.link_layer) if port.rate_gbits else 0.0
        rails.ports[port_name(port)] = {"layer": port.link_layer or "", "rate": rate}
    return rails


class AdapterTransport:
    """Over the adapters of one name, on all nodes that have one."""

    kind: Literal["tcp", "rdma"] = "rdma"
    seconds, slow_below = RAIL_SECONDS, 0.8

    def __init__(self, name: str, at: Mapping[int, tuple[str, int]], own: OwnRails, expected: float = 0.0) -> None:
        self.name, self.expected = name, expected
        self.nodes: Sequence[int] = sorted(at)
        self._at, self._own = at, own
        self._failed: dict[int, str] = {}

    def measure(self, node: int) -> list[tuple[str, Measured]]:
        assert self._own.tool is not None
        adapter, _ = self._own.adapters[self.name]
        address, port = self._at[node]
        return [(self.name, measure_adapter(self._own.tool, adapter, self._own.address, address, port))]

    def answering(self, node: int) -> contextlib.AbstractContextManager[object]:
        assert self._own.tool is not None
        adapters, failed = [self._own.adapters[self.name]], partial(self._failed.__setitem__, node)
        return answering(self._own.tool, adapters, self._own.address, failed)

    def failed_to_answer(self) -> Mapping[int, str]:
        return self._failed


def shared_rails(offers: Sequence[Any], own: OwnRails) -> list[AdapterTransport]:
    """The same on all nodes, from what all have offered, which comes from the wire: nonsense is left out."""
    at: dict[tuple[str, str], dict[int, tuple[str, int]]] = {}
    slowest: dict[str, float] = {}
    for node, offer in enumerate(offers):
        rails = offer.get("rails")
        rails = rails if isinstance(rails, dict) else {}
        for one in items(rails.get("at"))[:MOST_RAILS]:
            with contextlib.suppress(KeyError, TypeError, ValueError):
                address, port = str(ipaddress.ip_address(rails["address"])), int(one["port"])
                if 0 < port < 2**16:
                    key = printable(one["name"], 64), printable(one["layer"], 64)
                    at.setdefault(key, {})[node] = address, port
                    rate = measured_number(one.get("rate")) or 0.0
                    slowest[key[0]] = min(rate, slowest.get(key[0], rate))
    shared = {key: nodes for key, nodes in at.items() if len(nodes) > 1}
    names = [name for name, _ in shared]
    # InfiniBand here and RoCE there under one name: none of it is a rail.
    chosen = [(name, nodes) for (name, _), nodes in sorted(shared.items()) if names.count(name) == 1]
    return [AdapterTransport(name, nodes, own, slowest[name]) for name, nodes in chosen[:MOST_RAILS]]


def why_without(names: Sequence[str], offers: Sequence[Any]) -> dict[str, str]:
    """Nodes that have nothing to measure, and why."""
    reasons = {}
    for name, offer in zip(names, offers, strict=True):
        rails = offer.get("rails")
        if isinstance(rails, dict) and (why := rails.get("why_not")):
            reasons[name] = printable(why, 200)
    return reasons


def _gid_index(port: InfinibandPort, told: Mapping[str, str]) -> int | None:
    """As NCCL 2.21 and newer choose it: the first of RoCE v2 that a router takes, IPv4 before IPv6."""
    if port.link_layer != "Ethernet":
        return None
    if (chosen := number(told.get("NCCL_IB_GID_INDEX", "-1"))) >= 0:
        return chosen
    usable = [gid for gid in port.gids or () if gid.index is not None and is_routable(gid)]
    mapped = [gid for gid in usable if (gid.gid or "").startswith(_IPV4_MAPPED)]
    return next((gid.index for gid in [*mapped, *usable]), None)


def _kept_port(address: str) -> tuple[socket.socket, int]:
    """A TCP port of this address that the kernel gives to nobody else as long as the socket is open: it does not
    listen, and lets one that does bind it too (SO_REUSEADDR on both, socket(7))."""
    opened = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((address, 0))
    except OSError:
        opened.close()
        raise
    return opened, opened.getsockname()[1]
