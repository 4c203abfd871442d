"""Do the nodes reach each other, on the interfaces and ports that their ranks will use?"""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Callable, Iterator, Sequence

from allranks.cluster.interfaces import Interface, is_link_local, is_loopback, select
from allranks.cluster.node_report import NetworkInterface, NodeReport
from allranks.cluster.pairs import MESSAGE_BYTES, Unreached
from allranks.cluster.rank_addresses import NCCL_TRIES
from allranks.doctor.pairs import at, remedies
from allranks.listing import few, printable
from allranks.preflight.check import Answer, Check, Pairs, Subject, found, kept, ok, skipped, unknown
from allranks.preflight.effective import is_one_machine, setting, why_no_infiniband
from allranks.preflight.folding import fold
from allranks.preflight.looking import NO_REPORT, below, drift, each_node

_VIRTUAL = ("docker", "br-", "virbr", "cni", "flannel", "cali", "podman", "lxc", "lxd", "vmnet", "vboxnet")
_MANAGEMENT = ("cdc_ether", "cdc_ncm", "rndis_host", "cdc_subset")  # a network over USB: to a management controller
_SLOW_MBITS, _FASTER = 1000, 10
_FAR_LESS = 0.25
_SHOWN = 4


@kept
def _chosen(subject: Subject) -> dict[str, tuple[str, list[NetworkInterface]] | None]:
    return {node: _choice(subject, node, report) for node, report in subject.reported}


def _choice(subject: Subject, node: str, report: NodeReport) -> tuple[str, list[NetworkInterface]] | None:
    """What chooses the interface of a node's ranks, and those that it chooses; None where that is not known."""
    if report.interfaces is None:
        return None
    nics = {one.name or "": one for one in report.interfaces}
    found_there = [
        Interface(name, tuple(a.address for a in one.addresses or () if a.address), _is_running(one))
        for name, one in nics.items()
        if one.addresses
    ]
    library = "NCCL" if subject.wanted.uses_nccl else "GLOO"
    variable = f"{library}_SOCKET_IFNAME"
    pattern = setting(subject, node, variable) or subject.wanted.interface
    if pattern and library == "GLOO" and pattern != subject.wanted.interface:
        pattern = f"={pattern.partition(',')[0]}"  # gloo takes exact names, and ranks use the first
    if pattern:
        return f"{variable}={pattern}", [nics[one.name] for one in select(pattern, found_there)]
    if library == "NCCL":
        for tried in NCCL_TRIES:
            if names := select(tried, found_there):
                return "NCCL's own choice", [nics[one.name] for one in names]
        return "NCCL's own choice", []
    if facing := [
        one for one in report.interfaces if _is_running(one) and _faces(one, subject.wanted.master_addr, report)
    ]:
        return "the address at which the nodes meet", facing
    by_default = [one for one in report.interfaces if one.default_route and _is_running(one) and one.addresses]
    return ("the default route", by_default) if by_default else None


def _faces(one: NetworkInterface, master: str | None, report: NodeReport) -> bool:
    """Whether the address at which the nodes meet is in a network of this interface's; gloo is told that interface."""
    targets = (report.names or {}).get(master or "") or ([master] if master else [])
    for own in one.addresses or ():
        if own.address and own.prefix is not None and not is_loopback(own.address):
            for target in targets:
                with contextlib.suppress(ValueError):  # a name that nobody resolved
                    network = ipaddress.ip_network(f"{own.address.partition('%')[0]}/{own.prefix}", strict=False)
                    if ipaddress.ip_address(target.partition("%")[0]) in network:
                        return True
    return False


def _is_running(one: NetworkInterface) -> bool:
    return one.state != "down" and one.carrier is not False


def _first(subject: Subject, node: str, report: NodeReport) -> NetworkInterface | None:
    """The one that the node's ranks will use."""
    by = _chosen(subject)[node]
    usable = [one for one in by[1] if _address(one)] if by else []
    return usable[0] if usable else None


def _address(one: NetworkInterface) -> str | None:
    """One that means something to other nodes."""
    addresses = [a.address for a in one.addresses or () if a.address and not is_link_local(a.address)]
    return addresses[0] if addresses else None


def _shown(one: NetworkInterface) -> str:
    details = [_address(one) or "no address for others", "" if _is_running(one) else "down"]
    return printable(f"{one.name} ({', '.join(filter(None, details))})", 256)


def _interface(subject: Subject) -> list[Answer]:
    def look(node: str, report: NodeReport) -> Answer | None:
        by = _chosen(subject)[node]
        if by is None:
            return unknown(node, "which interface its ranks will use is not known")
        if any(_address(one) for one in by[1]):
            return None
        has = few([_shown(one) for one in report.interfaces or () if one.addresses], 8) or "none with an address"
        what = f"only {few(map(_shown, by[1]), _SHOWN)}" if by[1] else "no running interface"
        return found(node, f"{printable(by[0], 256)} selects {what}; it has {has}")

    return each_node(subject, look)


def _kind(subject: Subject) -> list[Answer]:
    def look(node: str, report: NodeReport) -> Answer | None:
        if len(subject.nodes) == 1:
            return skipped(node, "there is no other node")
        by, one = _chosen(subject)[node], _first(subject, node, report)
        if by is None or one is None:
            return unknown(node, "which interface its ranks will use is not known")
        others = [each for each in report.interfaces or () if each is not one and _is_running(each) and _address(each)]
        name, address = one.name or "", _address(one) or ""
        if (is_loopback(address) or one.kind == "loopback") and not is_one_machine(subject, subject.nodes):
            return found(node, f"{printable(by[0], 256)} takes {_shown(one)}, which reaches no other node")
        real = [each for each in others if not _is_virtual(each) and not _is_management(each) and not _is_lo(each)]
        if not real:
            return None
        instead = f", and not {few(map(_shown, real), _SHOWN)}"
        if _is_virtual(one) or _is_management(one):
            what = "a card of the management controller" if _is_management(one) else "a network of this host alone"
            return found(node, f"{printable(by[0], 256)} takes {name}, {what}{instead}", severity="warning")
        return None

    return each_node(subject, look)


def _is_lo(one: NetworkInterface) -> bool:
    return one.kind == "loopback" or is_loopback(_address(one) or "")


def _is_virtual(one: NetworkInterface) -> bool:
    return (one.name or "").startswith(_VIRTUAL)


def _is_management(one: NetworkInterface) -> bool:
    return one.driver in _MANAGEMENT or (one.name or "").startswith(("idrac", "ilo", "bmc", "usb"))


def _slow(subject: Subject) -> list[Answer]:
    def look(node: str, report: NodeReport) -> Answer | None:
        if len(subject.nodes) == 1:
            return skipped(node, "there is no other node")
        if subject.wanted.uses_nccl and why_no_infiniband(subject, node, report) is None:
            return skipped(node, "its data goes over InfiniBand or RoCE")
        one = _first(subject, node, report)
        if one is None or one.speed_mbits is None:
            return unknown(node, "how fast its interface is is not known")
        faster = [
            each
            for each in report.interfaces or ()
            if each is not one
            and _is_running(each)
            and _address(each)
            and (each.speed_mbits or 0) >= _FASTER * one.speed_mbits
        ]
        if one.speed_mbits > _SLOW_MBITS or not faster:
            return None
        names = few([f"{_shown(each)} with {_gbits(each.speed_mbits or 0)}" for each in faster], _SHOWN)
        return found(node, f"its ranks will use {one.name} with {_gbits(one.speed_mbits)}, and not {printable(names)}")

    return each_node(subject, look)


def _speed(subject: Subject) -> list[Answer]:
    uses = {
        node: report
        for node, report in subject.reported
        if not subject.wanted.uses_nccl or why_no_infiniband(subject, node, report) is not None
    }
    if not uses and subject.reported:
        return [skipped(subject.nodes, "the data of all nodes goes over InfiniBand or RoCE")]
    first = {node: _first(subject, node, report) for node, report in uses.items()}
    return below(
        subject,
        "the interface of its ranks has",
        {node: None if one is None else one.speed_mbits for node, one in first.items()},
        _gbits,
        errors_below=_FAR_LESS,
        not_known="how fast its interface is is not known",
    )


def _gbits(mbits: float) -> str:
    return f"{mbits / 1000:g} Gbit/s"


def _mtu(subject: Subject) -> list[Answer]:
    first = {node: _first(subject, node, report) for node, report in subject.reported}
    return drift(
        subject,
        "the MTU of the interface of its ranks",
        {node: None if one is None or one.mtu is None or _is_lo(one) else str(one.mtu) for node, one in first.items()},
        not_known="which MTU its interface has is not known",
    )


def _twice(subject: Subject) -> list[Answer]:
    nodes_at: dict[str, list[str]] = {}
    for node, report in subject.reported:
        one = _first(subject, node, report)
        if one is not None and not _is_virtual(one) and (address := _address(one)) and not is_loopback(address):
            nodes_at.setdefault(address, []).append(node)

    def look(node: str, report: NodeReport) -> Answer | None:
        one = _first(subject, node, report)
        if one is None:
            return unknown(node, "which interface its ranks will use is not known")
        address = _address(one) or ""
        same = nodes_at.get(address, [node])
        is_fault = len(same) > 1 and not is_one_machine(subject, same)
        return found(same, f"all have the address {address}") if is_fault else None

    return each_node(subject, look)


def _pairs(stages: Sequence[str]) -> Callable[[Subject], Iterator[Answer]]:
    def look(subject: Subject) -> Iterator[Answer]:
        if len(subject.nodes) == 1:
            yield skipped(subject.nodes, "there is no other node")
            return
        if subject.pairs is None:
            yield unknown(subject.silent, NO_REPORT)
            yield skipped([node for node, _ in subject.reported], "connections between nodes were not tried")
            return
        pairs = subject.pairs
        names = [place.name for place in pairs.places]
        failed = [
            (source, one)
            for source, one in pairs.unreached
            if one.stage in stages and 0 <= source < len(names) and 0 <= one.node < len(names)
        ]
        blamed = to_blame({(source, one.node) for source, one in failed})
        for place in sorted(blamed):
            yield _unreached(pairs, place, failed)
        left = {name for place, name in enumerate(names) if place not in blamed}
        yield ok(*(node for node in subject.nodes if node in left))
        yield unknown([node for node in subject.nodes if node not in names], "connections to it were not tried")

    return look


def to_blame(failed: set[tuple[int, int]]) -> set[int]:
    """The nodes that explain who does not reach whom: those in most failures, then of the rest again.

    Both ends, where nothing says which of them it is.
    """
    left, blamed = set(failed), set()
    while left:
        count: dict[int, int] = {}
        for pair in left:
            for place in pair:
                count[place] = count.get(place, 0) + 1
        most = max(count.values())
        worst = {place for place, number in count.items() if number == most}
        blamed |= worst
        left = {pair for pair in left if not worst & set(pair)}
    return blamed


def _unreached(pairs: Pairs, place: int, failed: Sequence[tuple[int, Unreached]]) -> Answer:
    places = pairs.places
    of_it = [(source, one) for source, one in failed if place in (source, one.node)]
    inward = sorted({source for source, one in of_it if one.node == place})
    outward = sorted({one.node for source, one in of_it if source == place})
    parts = []
    if inward:
        parts.append(f"not reached by {fold(places[source].name for source in inward)}")
    if outward:
        parts.append(f"does not reach {fold(places[target].name for target in outward)}")
    reasons: dict[str, None] = {}
    for source, one in of_it:
        size = f", a message of {MESSAGE_BYTES // 1024} KiB" if one.stage == "message" else ""
        reasons[f"{places[source].name} to {at(places, one)}{size}: {printable(one.reason, 256)}"] = None
    shown = few(reasons, _SHOWN, between="\n", rest="\nand {:,} more").splitlines()
    return found(places[place].name, ", and ".join(parts), evidence=shown, remedy="\n".join(remedies(places, of_it)))


CHECKS = (
    Check(
        "reach.interface",
        "Whether the interface that is asked for is there and up",
        "NCCL and gloo find no way to the other ranks, and end or hang while connecting.",
        "Set network.interface in the config to what the node has, or bring the interface up",
        "error",
        "Read as NCCL reads NCCL_SOCKET_IFNAME: prefixes, `=` for whole names, `^` for all but these. A node's "
        "environment counts before the config. One interface with an address for others is enough.",
        _interface,
    ),
    Check(
        "reach.interface-kind",
        "Whether that interface leads to the other nodes at all",
        "Every node has a docker0 and a loopback of its own, and a management card is made for other things.",
        "Set network.interface in the config to the network that joins all nodes",
        "error",
        "Loopback is an error, unless all are one machine. Bridges of containers and management cards only warn, and "
        "only where it has another running interface with an address: a container's only interface is virtual, too.",
        _kind,
    ),
    Check(
        "reach.interface-slow",
        "Whether a node has a much faster interface than the one chosen",
        "All gradients would go through the slow one.",
        "Set network.interface in the config to the fast one, if it joins all nodes",
        "warning",
        "At most 1 Gbit/s where another running interface with an address has ten times that, and the data does not go "
        "over InfiniBand or RoCE.",
        _slow,
    ),
    Check(
        "reach.speed",
        "Interfaces that are slower than on the other nodes",
        "A run is as fast as its slowest link.",
        "Look at the cable, the port of the switch and `ethtool` on the nodes named",
        "error",
        "Less than most nodes have; less than a quarter is an error, else it warns. Where the data goes over "
        "InfiniBand or RoCE, fabric.rate looks instead. Virtual interfaces do not tell their speed: it is not known.",
        _speed,
    ),
    Check(
        "reach.mtu",
        "The MTU of the interfaces chosen",
        "Where it differs, large packets may be lost without a word while small ones pass.",
        "Set the same on all nodes and switches in between (`ip link set dev NAME mtu 9000`)",
        "warning",
        "It only warns: reach.pairs-large tries with real packets whether large ones arrive.",
        _mtu,
    ),
    Check(
        "reach.address-twice",
        "Whether two nodes have the same address",
        "The others reach now one of them, now the other.",
        "Give each node an address of its own, or choose another interface with network.interface",
        "error",
        "Only the address at which the ranks would listen: bridges of containers have the same one everywhere. Nodes "
        "of one machine share theirs.",
        _twice,
    ),
    Check(
        "reach.pairs",
        "Whether each node connects to each other, on a port of the range that the ranks will use",
        "The nodes meet on one open port, and then their ranks wait for each other on closed ones until a deadline "
        "passes.",
        "Open the ports named between the nodes of the run",
        "error",
        "A lost packet is sent again for 15 s before a connection counts as failed. Nodes in most of the "
        "failures are named; both ends, where nothing says which.",
        _pairs(("connect", "greet")),
    ),
    Check(
        "reach.pairs-large",
        "Whether large packets arrive",
        "With a smaller MTU somewhere on the way the nodes connect, and hang at the first gradients.",
        "Set the same MTU on all nodes and switches in between",
        "error",
        f"By {MESSAGE_BYTES // 1024} KiB each way over a connection that stands; lost packets are sent again for 15 s.",
        _pairs(("message",)),
    ),
)
