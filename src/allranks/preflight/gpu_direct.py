"""Can adapters reach the GPUs' memory without a detour?"""

from __future__ import annotations

from collections.abc import Iterator

from allranks.cluster.node_report import NodeReport
from allranks.preflight.check import Answer, Check, Subject, found, skipped, unknown
from allranks.preflight.effective import active
from allranks.preflight.looking_at_fabric import drift_of_fabric, each_nodes_fabric


def _peermem(subject: Subject) -> list[Answer]:
    def of(report: NodeReport) -> str | None:
        has = report.gpu_system.nvidia_peermem
        return None if has is None else "loaded" if has else "not loaded"

    return drift_of_fabric(
        subject,
        "nvidia_peermem",
        of,
        not_known="whether nvidia_peermem is loaded is not known",
        why_not=lambda report: (
            None if any(gpu.vendor == "nvidia" for gpu in report.gpus or ()) else "it has no such GPU"
        ),
    )


def _acs(subject: Subject) -> list[Answer]:
    def look(node: str, report: NodeReport) -> Iterator[Answer]:
        if not active(report):
            yield skipped(node, "it has no active InfiniBand or RoCE port")
        elif report.gpu_system.acs is None:
            yield unknown(node, "the registers of its PCI bridges could not be read")
        elif report.gpu_system.acs:
            yield found(node, "PCI bridges send traffic between GPUs and adapters through the processor (ACS)")

    return each_nodes_fabric(subject, look)


CHECKS = (
    Check(
        "fabric.peermem",
        "nvidia_peermem on all nodes, or on none",
        "Without it, or dma-buf in its place, adapters cannot read the GPUs' memory (GPUDirect RDMA): each transfer "
        "takes a detour through the host.",
        "modprobe nvidia_peermem, and have it loaded at the start of the node",
        "warning",
        "Only where nodes differ: kernels from 5.12 on with the open driver need none.",
        _peermem,
        recorded=True,
    ),
    Check(
        "fabric.acs",
        "PCI bridges that redirect traffic between devices",
        "With ACS on, what goes between a GPU and an adapter takes a detour through the processor, at a part of the "
        "speed.",
        "Switch ACS off for PCI bridges (NCCL user guide, Troubleshooting), unless this is a virtual machine's host",
        "note",
        "A note: virtual machines need it. Only root can read it.",
        _acs,
        recorded=True,
    ),
)
