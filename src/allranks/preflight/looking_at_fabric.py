"""How checks look at the InfiniBand and RoCE ports that NCCL will use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from allranks.cluster.node_report import InfinibandPort, NodeReport
from allranks.listing import few
from allranks.preflight.check import Answer, Subject, skipped, unknown
from allranks.preflight.effective import active, port_name, why_no_infiniband
from allranks.preflight.looking import drift, each_node

NOT_KNOWN = "its InfiniBand adapters are not known"
SHOWN_PORTS = 6


def each_nodes_fabric(subject: Subject, look: Callable[[str, NodeReport], Iterator[Answer]]) -> list[Answer]:
    """What `look` says of each node whose ranks will use InfiniBand or RoCE."""

    def at(node: str, report: NodeReport) -> Answer | list[Answer]:
        if reason := why_no_infiniband(subject, node, report):
            return skipped(node, reason)
        if report.infiniband is None:
            return unknown(node, NOT_KNOWN)
        return list(look(node, report))

    return each_node(subject, at)


def drift_of_fabric(
    subject: Subject,
    name: str,
    value: Callable[[NodeReport], str | None],
    *,
    not_known: str,
    why_not: Callable[[NodeReport], str | None] = lambda report: None,
) -> list[Answer]:
    """Who deviates from most in what `value` says of a node's active ports, None being not known.

    `why_not` tells why it does not apply to a node, which is then skipped, as one is that will not use InfiniBand.
    """
    left_out: dict[str, str] = {}
    values: dict[str, str | None] = {}
    for node, report in subject.reported:
        reason = why_no_infiniband(subject, node, report)
        if reason is None and report.infiniband is not None:
            reason = why_not(report) if active(report) else "it has no active InfiniBand or RoCE port"
        if reason is None:
            values[node] = value(report)
        else:
            left_out[node] = reason
    answers = [
        replace(answer, nodes=nodes)
        for answer in drift(subject, name, values, not_known=not_known)
        if (nodes := tuple(node for node in answer.nodes if node not in left_out))
    ]
    return answers + [skipped(node, reason) for node, reason in left_out.items()]


def named_ports(ports: Sequence[InfinibandPort]) -> str:
    """`mlx5_3:1 (DOWN, Disabled)`."""
    return few(
        [
            f"{port_name(port)} ({', '.join(part for part in (port.state, port.physical_state) if part)})"
            for port in ports
        ],
        SHOWN_PORTS,
    )
