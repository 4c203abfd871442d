"""InfiniBand and RoCE ports: what NCCL would see of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from allranks.cluster import infiniband
from allranks.cluster.nccl_files import from_files
from allranks.cluster.probe.children import Found, Reporter
from allranks.cluster.probe.node import Node

_NO_GID = "0000:0000:0000:0000:0000:0000:0000:0000"
_COUNTERS = (
    *("symbol_error", "link_error_recovery", "link_downed", "port_rcv_errors", "port_rcv_remote_physical_errors"),
    *(
        "port_rcv_switch_relay_errors",
        "port_xmit_discards",
        "port_rcv_constraint_errors",
        "port_xmit_constraint_errors",
    ),
    *("local_link_integrity_errors", "excessive_buffer_overrun_errors", "VL15_dropped"),
)
_HARDWARE_COUNTERS = (
    *("out_of_sequence", "packet_seq_err", "out_of_buffer", "local_ack_timeout_err", "rnr_nak_retry_err"),
    *("implied_nak_seq_err", "duplicate_request", "req_transport_retries_exceeded", "roce_adp_retrans"),
    *("np_cnp_sent", "rp_cnp_handled", "np_ecn_marked_roce_packets", "rx_icrc_encapsulated"),
)


def look_at_adapters(node: Node, reporter: Reporter, pattern: str | None) -> Iterator[Found]:
    """`pattern` is what the config has for NCCL_IB_HCA: the environment wins over it, and it over NCCL's files."""
    in_files = from_files(node.environment, node.root).get("NCCL_IB_HCA", ("",))[0]
    pattern = node.environment.get("NCCL_IB_HCA") or pattern or in_files
    found: list[dict[str, Any]] = []
    yield {"infiniband": found}
    for device in node.names("/sys/class/infiniband"):
        for port in node.names(f"/sys/class/infiniband/{device}/ports"):
            if port.isdecimal():
                # Its firmware is asked for the counters, and may be past answering.
                reporter.doing(f"{device}:{port}")
                found.append(_port(node, device, int(port), pattern))
                yield {"infiniband": found}
                found[-1]["counters"] = _counters(node, device, int(port))
                yield {"infiniband": found}


def _port(node: Node, device: str, port: int, pattern: str) -> dict[str, Any]:
    top = f"/sys/class/infiniband/{device}"
    folder = f"{top}/ports/{port}"
    rate = re.match(r"[\d.]+", node.text(f"{folder}/rate") or "")  # "400 Gb/sec (4X NDR)"
    gids = list(_gids(node, folder))
    link_layer = node.text(f"{folder}/link_layer")
    netdevs = [gid["netdev"] for gid in gids if gid["netdev"]] or node.names(f"{top}/device/net")
    return {
        "device": device,
        "port": port,
        "state": _word(node.text(f"{folder}/state")),
        "physical_state": _word(node.text(f"{folder}/phys_state")),
        "rate_gbits": float(rate[0]) if rate else None,
        "link_layer": link_layer,
        "firmware": node.text(f"{top}/fw_ver"),
        "model": node.text(f"{top}/board_id") or node.text(f"{top}/hca_type"),
        "netdev": netdevs[0] if netdevs else None,
        "subnet": gids[0]["gid"][:19] if gids and link_layer == "InfiniBand" else None,
        "gids": gids,
        "selected": infiniband.select(pattern, device, port),
    }


def _word(text: str | None) -> str | None:
    """The word of "4: ACTIVE"."""
    return text.partition(":")[2].strip() or text if text else None


def _gids(node: Node, folder: str) -> Iterator[dict[str, Any]]:
    for index in node.names(f"{folder}/gids"):
        gid = node.text(f"{folder}/gids/{index}")
        if gid and gid != _NO_GID:
            kind, netdev = (node.text(f"{folder}/gid_attrs/{name}/{index}") for name in ("types", "ndevs"))
            yield {"index": int(index), "gid": gid, "type": kind, "netdev": netdev}


def _counters(node: Node, device: str, port: int) -> dict[str, int]:
    folder = f"/sys/class/infiniband/{device}/ports/{port}"
    files = [f"counters/{name}" for name in _COUNTERS] + [f"hw_counters/{name}" for name in _HARDWARE_COUNTERS]
    values = {file.rpartition("/")[2]: node.number(f"{folder}/{file}") for file in files}
    return {name: value for name, value in values.items() if value is not None}
