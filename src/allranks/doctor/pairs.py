"""Nodes that have met at the rendezvous, but whose ranks could not talk to each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from allranks.cluster.interfaces import is_link_local, is_loopback
from allranks.cluster.pairs import MESSAGE_BYTES, Unreached
from allranks.cluster.rank_addresses import RankAddress
from allranks.doctor.causes import UNREACHABLE
from allranks.findings import Evidence, Finding, Who
from allranks.listing import few

_SHOWN = 8
_NAMED = 3


@dataclass(frozen=True)
class Place:
    """A node as the others see it: its name, where its ranks would listen, and the ports that its kernel chooses."""

    name: str
    addresses: Sequence[RankAddress]
    ports: str


def unreachable(places: Sequence[Place], found: Sequence[tuple[int, Unreached]]) -> Finding | None:
    """One finding of all connections that failed: (the node that connected, what it did not reach). None if none."""
    if not found:
        return None
    lines = _lines(places, found)
    told = few(lines, _SHOWN, between="\n", rest="\nand {:,} more like these")
    targets = {one.node for _, one in found}
    return Finding(
        UNREACHABLE,
        "the nodes have met, but their ranks could not talk to each other:",
        who=Who(targets.pop()) if len(targets) == 1 else Who(),
        evidence=tuple(Evidence(line) for line in told.splitlines()),
        remedy="\n".join(remedies(places, found)),
        known_at=0,
    )


def _lines(places: Sequence[Place], found: Sequence[tuple[int, Unreached]]) -> list[str]:
    """One for each node that is not reached or, where those are fewer, for each that reaches others not."""
    by_target: dict[Unreached, list[int]] = {}
    by_source: dict[tuple[int, str, str], list[Unreached]] = {}
    for source, one in found:
        by_target.setdefault(one, []).append(source)
        by_source.setdefault((source, one.stage, one.reason), []).append(one)
    if len(by_source) < len(by_target):
        return [
            _told(places[source].name, few([at(places, one) for one in targets], _NAMED), stage, reason)
            for (source, stage, reason), targets in by_source.items()
        ]
    return [
        _told(few([places[source].name for source in sources], _NAMED), at(places, one), one.stage, one.reason)
        for one, sources in by_target.items()
    ]


def _told(source: str, target: str, stage: str, reason: str) -> str:
    if stage == "connect":
        return f"{source} cannot connect to {target}: {reason}"
    if stage == "greet":
        return f"{source} cannot talk to {target}: {reason} before it said who it is"
    return f"{source} connects to {target}, but a message of {MESSAGE_BYTES // 1024} KiB does not get through: {reason}"


def at(places: Sequence[Place], one: Unreached) -> str:
    """`node 1 at 10.0.0.2:4711 (eth0, gloo)`."""
    known = _address(places[one.node], one)
    by = f" ({known.interface}, {known.library})" if known else ""
    address = f"[{one.address}]" if ":" in one.address else one.address
    return f"{places[one.node].name} at {address}:{one.port}{by}"


def _address(place: Place, one: Unreached) -> RankAddress | None:
    return next((known for known in place.addresses if known.address == one.address), None)


def remedies(places: Sequence[Place], found: Sequence[tuple[int, Unreached]]) -> Iterable[str]:
    """What to do, a line or two for each kind of trouble."""
    failed = {one: places[one.node] for _, one in found}
    wrong = {one: why for one in failed if (why := _no_address_for_others(places, one))}
    yield from list(dict.fromkeys(wrong.values()))[:_NAMED]
    rest = {one: place for one, place in failed.items() if one not in wrong}
    stages = {one.stage for one in rest}
    if "message" in stages:
        peer = next(one for one in rest if one.stage == "message").address
        ends = {node for source, one in found if one.stage == "message" for node in (source, one.node)}
        yield f"small packets arrive and large ones do not: the MTU is not the same all the way{_mtus(places, ends)}"
        yield f"compare `ip link` on the nodes, and the switches in between; try: ping -M do -s 8972 {peer}"
    if "greet" in stages:
        yield f"something between the nodes answers in their place, or holds up what they say; {_choose(places)}"
    if "connect" in stages:
        ranges = few(dict.fromkeys(place.ports for place in rest.values()), _NAMED)
        yield f"ranks listen on ports that the kernel chooses: open TCP {ranges} between the nodes of the run"
        yield f"(`sysctl net.ipv4.ip_local_port_range` shows and sets the range), or {_choose(places)}"
    yield "should the ranks of this program need no such connections: --skip-connection-check"


def _no_address_for_others(places: Sequence[Place], one: Unreached) -> str | None:
    """Why nobody else could ever reach it there."""
    place = places[one.node]
    if is_loopback(one.address):
        return f"{one.address} means each node itself, and {place.name} offers it to the others: {_choose(places)}"
    if is_link_local(one.address):
        return f"{one.address} of {place.name} means something on its own link only: {_choose(places)}"
    same = [other.name for other in places if any(known.address == one.address for known in other.addresses)]
    return f"{one.address} is the address of {few(same, _NAMED)}: {_choose(places)}" if len(same) > 1 else None


def _choose(places: Sequence[Place]) -> str:
    uses_nccl = any("NCCL" in known.library for place in places for known in place.addresses)
    variable = "NCCL_SOCKET_IFNAME" if uses_nccl else "GLOO_SOCKET_IFNAME"
    return f"set network.interface in the config (or {variable}) to the network that joins all nodes"


def _mtus(places: Sequence[Place], nodes: Iterable[int]) -> str:
    interfaces = [
        f"{known.interface} of {places[node].name} has {known.mtu}"
        for node in sorted(nodes)
        for known in places[node].addresses
        if known.mtu
    ]
    return f" ({few(interfaces, _NAMED)})" if interfaces else ""
