"""Are the InfiniBand and RoCE ports that NCCL will use up, and alike on all nodes?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

from allranks.cluster.infiniband import select
from allranks.cluster.majority import groups
from allranks.cluster.nccl_variables import number
from allranks.cluster.node_report import InfinibandPort, NodeReport
from allranks.listing import few, printable
from allranks.preflight.check import Answer, Check, Subject, found, skipped, unknown
from allranks.preflight.effective import active, port_name, selected, setting
from allranks.preflight.looking import each_node
from allranks.preflight.looking_at_fabric import NOT_KNOWN, SHOWN_PORTS, drift_of_fabric, each_nodes_fabric, named_ports

# Of the link itself; discards and sequence errors are congestion, which a busy fabric has.
_ERRORS = (
    *("symbol_error", "link_error_recovery", "link_downed", "port_rcv_errors", "local_link_integrity_errors"),
    *("excessive_buffer_overrun_errors", "port_rcv_remote_physical_errors"),
)


def _missing(subject: Subject) -> list[Answer]:
    having = [node for node, report in subject.reported if active(report)]

    def look(node: str, report: NodeReport) -> Answer | None:
        if not subject.wanted.uses_nccl or (number(setting(subject, node, "NCCL_IB_DISABLE") or "0")):
            return skipped(node, "its ranks will not use InfiniBand")
        if report.infiniband is None:
            return unknown(node, NOT_KNOWN)
        if active(report) or (not having and subject.wanted.infiniband != "required"):
            return None
        if not report.infiniband:
            why = "it has no InfiniBand or RoCE adapter"
        elif not selected(report):
            pattern = printable(setting(subject, node, "NCCL_IB_HCA") or "")
            why = f"NCCL_IB_HCA={pattern} selects none of its ports ({named_ports(report.infiniband)})"
        else:
            why = f"none of its ports is active ({named_ports(selected(report))})"
        return found(node, f"{why}, where {len(having)} of {len(subject.nodes)} nodes have one" if having else why)

    return each_node(subject, look)


def _port_state(subject: Subject) -> list[Answer]:
    numbers = groups((node, len(active(report))) for node, report in subject.reported if report.infiniband is not None)
    usual = numbers.majority if numbers.majority is not None else max((count for count, _ in numbers.of), default=0)

    def look(node: str, report: NodeReport) -> Iterator[Answer]:
        down = [port for port in selected(report) if port.state != "ACTIVE"]
        up = {port.device for port in active(report)}
        exact = [port for port in down if _is_meant(setting(subject, node, "NCCL_IB_HCA"), port, up)]
        if exact:
            yield found(node, f"NCCL_IB_HCA names {named_ports(exact)}")
        elif down and 0 < len(active(report)) < usual:
            yield found(node, f"{named_ports(down)}, where other nodes have {usual} active ports", severity="warning")

    return each_nodes_fabric(subject, look)


def _is_meant(pattern: str | None, port: InfinibandPort, up: Collection[str | None]) -> bool:
    """Whether somebody counts on this port: a list of exact names has it, or its adapter, of which no other is up."""
    if pattern is None or port.device is None or not pattern.startswith("="):
        return False
    if port_name(port) in pattern[1:].split(","):
        return True
    return port.device not in up and select(pattern, port.device, port.port if port.port is not None else -1)


def _rate(subject: Subject) -> list[Answer]:
    of = {node: _rates(report) for node, report in subject.reported if active(report)}
    by_rates = groups(of.items())
    usual = by_rates.majority or max((rates for rates, _ in by_rates.of), default=())
    # Ports of other speeds for other purposes are no fault where all nodes have them.
    allowed = Counter(usual)

    def look(node: str, report: NodeReport) -> Iterator[Answer]:
        if node not in of or of[node] >= usual or any(port.rate_gbits is None for port in active(report)):
            return
        slower = [
            port
            for port in active(report)
            if Counter(of[node])[port.rate_gbits or 0] > allowed[port.rate_gbits or 0]
            and (port.rate_gbits or 0) < max(usual)
        ]
        if slower:
            told = few([f"{port_name(port)} at {port.rate_gbits:g} Gb/s" for port in slower], SHOWN_PORTS)
            yield found(node, f"{told}, where others have {max(usual):g} Gb/s")

    return each_nodes_fabric(subject, look)


def _rates(report: NodeReport) -> tuple[float, ...]:
    return tuple(sorted(port.rate_gbits or 0.0 for port in active(report)))


def _link_layer(subject: Subject) -> list[Answer]:
    answers = drift_of_fabric(
        subject, "the link layer of its active ports", _layers, not_known="the link layer of its ports is not known"
    )
    if any(answer.outcome == "found" for answer in answers):
        return answers
    mixed = [node for node, report in subject.reported if " and " in (_layers(report) or "")]
    fine = [answer for answer in answers if not set(answer.nodes) & set(mixed)]
    text = "its active ports are InfiniBand and Ethernet, and NCCL takes both"
    return [*fine, *([found(mixed, text, severity="note")] if mixed else [])]


def _layers(report: NodeReport) -> str | None:
    return " and ".join(sorted({port.link_layer for port in active(report) if port.link_layer})) or None


def _subnet(subject: Subject) -> list[Answer]:
    def of(report: NodeReport) -> str | None:
        return " and ".join(sorted({port.subnet for port in _of_infiniband(report) if port.subnet})) or None

    return drift_of_fabric(
        subject,
        "the subnet of its InfiniBand ports",
        of,
        not_known="the subnet of its ports is not known",
        why_not=lambda report: None if _of_infiniband(report) else "it has no active InfiniBand port",
    )


def _of_infiniband(report: NodeReport) -> list[InfinibandPort]:
    return [port for port in active(report) if port.link_layer == "InfiniBand"]


def _counters(subject: Subject) -> list[Answer]:
    def look(node: str, report: NodeReport) -> Iterator[Answer]:
        earlier = subject.earlier.get(node)
        if earlier is None:
            yield skipped(node, "its counters were read only once")
            return
        before = {(port.device, port.port): port.counters or {} for port in earlier.infiniband or ()}
        for port in active(report):
            then, now = before.get((port.device, port.port), {}), port.counters or {}
            grown = [f"{name} by {now[name] - then[name]}" for name in _ERRORS if then.get(name, 0) < now.get(name, 0)
                     and name in then]  # fmt: skip
            if grown:
                yield found(node, f"errors of {port_name(port)} grew while it was looked at: {', '.join(grown)}")

    return each_nodes_fabric(subject, look)


CHECKS = (
    Check(
        "fabric.missing",
        "An active InfiniBand or RoCE port on every node, if any has one",
        "NCCL takes sockets on that node and InfiniBand on the others, and the first collective hangs.",
        "Look at `ibstat` there; or take sockets everywhere (`network.infiniband: off`)",
        "error",
        "Nothing where no node has one, unless `network.infiniband: required`.",
        _missing,
        recorded=True,
    ),
    Check(
        "fabric.port-state",
        "Ports that are down",
        "NCCL passes over them: the node has less bandwidth than the others, and on a fabric of rails no way to some.",
        "Look at the cable, the switch's port and `ibstat`; or leave the port out of NCCL_IB_HCA on all nodes",
        "error",
        "A port that exact names of NCCL_IB_HCA (`=mlx5_0`) ask for is an error; another warns, if the node has fewer "
        "active ports than others: a second port that is unused everywhere is none.",
        _port_state,
        recorded=True,
    ),
    Check(
        "fabric.rate",
        "The rate of active ports",
        "All ranks wait for the slowest link.",
        "Reseat or exchange the cable; look at the switch's port and the adapter's firmware",
        "warning",
        "Against most nodes, or the best where there is no majority; ports that are slower on all nodes are none.",
        _rate,
        recorded=True,
    ),
    Check(
        "fabric.link-layer",
        "InfiniBand and RoCE are not mixed",
        "A port of one kind cannot speak to one of the other: the first collective fails or hangs.",
        "Name the adapters of one kind with `network.hcas` (NCCL_IB_HCA), on all nodes",
        "error",
        "Nodes that differ are an error. Both kinds on every node is a note: one may be for storage.",
        _link_layer,
        recorded=True,
    ),
    Check(
        "fabric.subnet",
        "One InfiniBand subnet",
        "Ports of different subnets reach each other only through a router, which few fabrics have.",
        "Look whether the nodes are on one fabric, with one subnet manager (`sminfo`)",
        "error",
        "The same set of subnets on every node is right, whatever it is.",
        _subnet,
        recorded=True,
    ),
    Check(
        "fabric.counters",
        "Errors of links that grow while they are looked at",
        "A bad cable or a dirty transceiver: packets are sent again, and all wait.",
        "Clean or exchange the cable; `ibdiagnet` names both ends",
        "warning",
        "Only growth between two readings: counts since the driver was loaded say nothing. Discards and packets out of "
        "sequence are congestion and do not count.",
        _counters,
        recorded=True,
    ),
)
