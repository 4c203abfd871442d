"""Have the RoCE ports that NCCL will use an address that reaches the others?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from allranks.cluster.nccl_variables import number
from allranks.cluster.node_report import Gid, InfinibandPort, NodeReport
from allranks.listing import few, printable
from allranks.preflight.check import Answer, Check, Subject, found, skipped, unknown
from allranks.preflight.effective import active, port_name, setting
from allranks.preflight.looking_at_fabric import each_nodes_fabric

_SHOWN_GIDS = 6
_V2 = "RoCE v2"


def _gid(subject: Subject) -> list[Answer]:
    def look(node: str, report: NodeReport) -> Iterator[Answer]:
        ports = [port for port in active(report) if port.link_layer == "Ethernet"]
        if not ports:
            yield skipped(node, "it has no active RoCE port")
        chosen = setting(subject, node, "NCCL_IB_GID_INDEX")
        index = number(chosen) if chosen is not None else -1
        for port in ports:
            if port.gids is None or (port.gids and all(gid.type is None for gid in port.gids)):
                yield unknown(node, f"the types of {port_name(port)}'s GIDs are not known")
            elif index < 0:
                if not any(is_routable(gid) for gid in port.gids):
                    yield found(node, f"{port_name(port)} has no GID of type {_V2} with an address: {_gids(port.gids)}")
            else:
                yield from _at_index(node, port, index)

    return each_nodes_fabric(subject, look)


def _at_index(node: str, port: InfinibandPort, index: int) -> Iterator[Answer]:
    gid = next((gid for gid in port.gids or () if gid.index == index), None)
    if gid is None:
        yield found(node, f"{port_name(port)} has no GID {index} (NCCL_IB_GID_INDEX), but {_gids(port.gids or ())}")
    elif gid.type is not None and gid.type != _V2:
        yield found(node, f"GID {index} of {port_name(port)} is of type {printable(gid.type)}, not {_V2}")
    elif not is_routable(gid):
        text = f"GID {index} of {port_name(port)} is a link-local address, which no router takes"
        yield found(node, text, severity="warning")


def is_routable(gid: Gid) -> bool:
    return gid.type == _V2 and not (gid.gid or "fe80").startswith("fe80")


def _gids(gids: Sequence[Gid]) -> str:
    return few([f"{gid.index} ({printable(gid.type or 'type not known')})" for gid in gids], _SHOWN_GIDS) or "none"


CHECKS = (
    Check(
        "fabric.gid",
        "The address (GID) by which RoCE ports speak",
        "An index that a port does not have, or one of RoCE v1 on a routed network, ends NCCL's connection with a "
        "timeout: `ibv_modify_qp … Connection timed out`.",
        "Unset `network.gid_index` (NCCL_IB_GID_INDEX), which NCCL 2.21 and newer choose themselves, or take the index "
        "of type RoCE v2 with an IPv4 address on every node (`show_gids`)",
        "error",
        "Only Ethernet ports that are active and selected. A link-local address of the right type warns.",
        _gid,
        recorded=True,
    ),
)
