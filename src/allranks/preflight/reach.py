"""Do the interfaces that the ranks will use lead to the other nodes, and are they as fast as they should be?"""

from __future__ import annotations

from allranks.cluster.interfaces import is_loopback
from allranks.cluster.node_report import NodeReport
from allranks.listing import few, printable
from allranks.preflight.check import Answer, Check, Subject, found, skipped, unknown
from allranks.preflight.effective import is_one_machine, why_no_infiniband
from allranks.preflight.looking import below, drift, each_node
from allranks.preflight.ranks_interface import (
    address_for_others,
    chosen_interfaces,
    first_interface,
    is_lo,
    is_management,
    is_running,
    is_virtual,
    shown_interface,
)

_SLOW_MBITS, _FASTER = 1000, 10
_FAR_LESS = 0.25
_SHOWN = 4


def _interface(subject: Subject) -> list[Answer]:
    def look(node: str, report: NodeReport) -> Answer | None:
        by = chosen_interfaces(subject)[node]
        if by is None:
            return unknown(node, "which interface its ranks will use is not known")
        if any(address_for_others(one) for one in by[1]):
            return None
        has = (
            few([shown_interface(one) for one in report.interfaces or () if one.addresses], 8) or "none with an address"
        )
        what = f"only {few(map(shown_interface, by[1]), _SHOWN)}" if by[1] else "no running interface"
        return found(node, f"{printable(by[0], 256)} selects {what}; it has {has}")

    return each_node(subject, look)


def _kind(subject: Subject) -> list[Answer]:
    def look(node: str, report: NodeReport) -> Answer | None:
        if len(subject.nodes) == 1:
            return skipped(node, "there is no other node")
        by, one = chosen_interfaces(subject)[node], first_interface(subject, node, report)
        if by is None or one is None:
            return unknown(node, "which interface its ranks will use is not known")
        others = [
            each
            for each in report.interfaces or ()
            if each is not one and is_running(each) and address_for_others(each)
        ]
        name, address = one.name or "", address_for_others(one) or ""
        if (is_loopback(address) or one.kind == "loopback") and not is_one_machine(subject, subject.nodes):
            return found(node, f"{printable(by[0], 256)} takes {shown_interface(one)}, which reaches no other node")
        real = [each for each in others if not is_virtual(each) and not is_management(each) and not is_lo(each)]
        if not real:
            return None
        instead = f", and not {few(map(shown_interface, real), _SHOWN)}"
        if is_virtual(one) or is_management(one):
            what = "a card of the management controller" if is_management(one) else "a network of this host alone"
            return found(node, f"{printable(by[0], 256)} takes {name}, {what}{instead}", severity="warning")
        return None

    return each_node(subject, look)


def _slow(subject: Subject) -> list[Answer]:
    def look(node: str, report: NodeReport) -> Answer | None:
        if len(subject.nodes) == 1:
            return skipped(node, "there is no other node")
        if subject.wanted.uses_nccl and why_no_infiniband(subject, node, report) is None:
            return skipped(node, "its data goes over InfiniBand or RoCE")
        one = first_interface(subject, node, report)
        if one is None or one.speed_mbits is None:
            return unknown(node, "how fast its interface is is not known")
        faster = [
            each
            for each in report.interfaces or ()
            if each is not one
            and is_running(each)
            and address_for_others(each)
            and (each.speed_mbits or 0) >= _FASTER * one.speed_mbits
        ]
        if one.speed_mbits > _SLOW_MBITS or not faster:
            return None
        names = few([f"{shown_interface(each)} with {_gbits(each.speed_mbits or 0)}" for each in faster], _SHOWN)
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
    first = {node: first_interface(subject, node, report) for node, report in uses.items()}
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
    first = {node: first_interface(subject, node, report) for node, report in subject.reported}
    return drift(
        subject,
        "the MTU of the interface of its ranks",
        {node: None if one is None or one.mtu is None or is_lo(one) else str(one.mtu) for node, one in first.items()},
        not_known="which MTU its interface has is not known",
    )


def _twice(subject: Subject) -> list[Answer]:
    nodes_at: dict[str, list[str]] = {}
    for node, report in subject.reported:
        one = first_interface(subject, node, report)
        if (
            one is not None
            and not is_virtual(one)
            and (address := address_for_others(one))
            and not is_loopback(address)
        ):
            nodes_at.setdefault(address, []).append(node)

    def look(node: str, report: NodeReport) -> Answer | None:
        one = first_interface(subject, node, report)
        if one is None:
            return unknown(node, "which interface its ranks will use is not known")
        address = address_for_others(one) or ""
        same = nodes_at.get(address, [node])
        is_fault = len(same) > 1 and not is_one_machine(subject, same)
        return found(same, f"all have the address {address}") if is_fault else None

    return each_node(subject, look)


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
)
