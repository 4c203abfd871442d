"""Are the GPUs that the ranks will have whole, and as fast as the others?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from allranks.cluster.node_report import Gpu, NodeReport
from allranks.listing import printable
from allranks.preflight.check import Answer, Check, Subject, found, unknown
from allranks.preflight.gpus_of_ranks import each_nodes_gpus, gpu_name

_SLOW = frozenset(["hw_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown", "sw_thermal_slowdown"])
# Faults of the hardware, by NVIDIA's XID catalogue; the others, such as 13, 31, 43 and 45, a program can cause.
_HARDWARE_XIDS = frozenset([48, 62, 64, 74, 79, 92, 95, 110, 119, 120, 121, 136, 140, 143])
_XID = re.compile(r"Xid \(PCI:(?P<pci>[0-9a-fA-F:.]+)\): (?P<number>\d+)")


def _ecc(subject: Subject) -> list[Answer]:
    def look(node: str, report: NodeReport, gpus: Sequence[Gpu]) -> Iterator[Answer]:
        for gpu in gpus:
            waits = gpu.remapped_pending or gpu.retired_pages_pending
            if gpu.remapped_failed:
                yield found(node, f"GPU {gpu_name(gpu)}: a broken row of its memory could not be replaced")
            elif gpu.ecc_uncorrected and waits:
                text = f"GPU {gpu_name(gpu)}: {gpu.ecc_uncorrected} uncorrectable memory errors, and rows to replace"
                yield found(node, text)
            elif gpu.ecc_uncorrected:
                text = (
                    f"GPU {gpu_name(gpu)}: {gpu.ecc_uncorrected} uncorrectable memory errors since the driver's start"
                )
                yield found(node, text, severity="warning")
            elif waits:
                yield found(node, f"GPU {gpu_name(gpu)}: rows of its memory wait to be replaced", severity="warning")

    return each_nodes_gpus(subject, look)


def _throttled(subject: Subject) -> list[Answer]:
    def look(node: str, report: NodeReport, gpus: Sequence[Gpu]) -> Iterator[Answer]:
        for gpu in gpus:
            if reasons := sorted(_SLOW & set(gpu.throttled or ())):
                hot = f" at {gpu.temperature:.0f} °C" if gpu.temperature is not None else ""
                yield found(node, f"GPU {gpu_name(gpu)}: slowed down{hot} ({', '.join(reasons)})")

    return each_nodes_gpus(subject, look, "throttled")


def _pcie(subject: Subject) -> list[Answer]:
    usual = _usual(subject, lambda gpu: gpu.pcie_width)

    def look(node: str, report: NodeReport, gpus: Sequence[Gpu]) -> Iterator[Answer]:
        for gpu in gpus:
            width, most = gpu.pcie_width, gpu.pcie_width_max
            if width and most and width < most and width < usual.get(gpu.model, 0):
                yield found(node, f"GPU {gpu_name(gpu)}: {width} of {most} PCIe lanes are in use")

    return each_nodes_gpus(subject, look, "pcie_width")


def _nvlink(subject: Subject) -> list[Answer]:
    usual = _usual(subject, lambda gpu: gpu.nvlinks_active)

    def look(node: str, report: NodeReport, gpus: Sequence[Gpu]) -> Iterator[Answer]:
        for gpu in gpus:
            links, most = gpu.nvlinks_active, usual.get(gpu.model, 0)
            if links is not None and links < most:
                text = f"GPU {gpu_name(gpu)}: {links} NVLinks are active, where others of its model have {most}"
                yield found(node, text)

    return each_nodes_gpus(subject, look)


def _usual(subject: Subject, value: Callable[[Gpu], int | None]) -> Mapping[str | None, int]:
    """What most GPUs of each model have, over all nodes; the greatest, where several are as frequent."""
    counts: dict[str | None, Counter[int]] = {}
    for _, report in subject.reported:
        for gpu in report.gpus or ():
            if (number := value(gpu)) is not None:
                counts.setdefault(gpu.model, Counter())[number] += 1
    return {model: max(of, key=lambda number: (of[number], number)) for model, of in counts.items()}


def _fabric_manager(subject: Subject) -> list[Answer]:
    def look(node: str, report: NodeReport, gpus: Sequence[Gpu]) -> Iterator[Answer]:
        state = report.gpu_system.fabric_manager
        joined = [gpu.fabric for gpu in gpus if gpu.fabric]
        if state is None or (joined and all(each == "Completed" for each in joined)):
            return
        if state != "active":
            yield found(node, f"its GPUs are joined by NVSwitches, and their fabric manager is {printable(state)}")
        elif joined:
            waiting = [gpu for gpu in gpus if gpu.fabric and gpu.fabric != "Completed"]
            text = f"the fabric manager has not set up GPU {', '.join(map(gpu_name, waiting))}"
            yield found(node, f"{text} ({printable(str(waiting[0].fabric))})")

    return each_nodes_gpus(subject, look)


def _xid(subject: Subject) -> list[Answer]:
    def look(node: str, report: NodeReport, gpus: Sequence[Gpu]) -> Iterator[Answer]:
        if report.gpu_system.xids is None:
            yield unknown(node, "the kernel's log could not be read")
        if others := [line for line in report.gpu_system.xids or () if "Xid" not in line]:
            text = "its driver has reported faults of GPUs since the last boot"
            yield found(node, text, evidence=[printable(others[-1], 300)], severity="warning")
        of: dict[tuple[str, int], list[str]] = {}
        for line in report.gpu_system.xids or ():
            if (match := _XID.search(line)) and int(match["number"]) in _HARDWARE_XIDS:
                of.setdefault((_place(match["pci"]), int(match["number"])), []).append(line)
        seen = {_place(gpu.pci) for gpu in report.gpus or () if gpu.pci}
        for (pci, number), lines in of.items():
            is_gone = bool(seen) and pci not in seen
            yield found(
                node,
                f"its driver has reported Xid {number} of the GPU at {printable(pci)} since the last boot"
                + (", and does not show it any more" if is_gone else ""),
                evidence=[printable(lines[-1], 300)],
                severity="error" if is_gone else "warning",
            )

    return each_nodes_gpus(subject, look)


def _place(pci: str) -> str:
    """Bus and device: domains have four or eight digits, and the log leaves the function out."""
    return ":".join(pci.lower().partition(".")[0].split(":")[-2:])


CHECKS = (
    Check(
        "gpus.ecc",
        "Memory errors of GPUs that could not be corrected",
        "They end a rank at any moment (Xid 48, 94, 95), or the rows concerned wait for a reset to be replaced.",
        "Reset the GPU (`nvidia-smi --gpu-reset`) or restart the node; if they come back, have it replaced",
        "error",
        "An error takes two sources: an uncorrectable error since the driver was loaded, and a row that waits to be "
        "replaced; or a row that could not be. One of them alone warns; counts of the GPU's whole life are not read.",
        _ecc,
        recorded=True,
    ),
    Check(
        "gpus.throttled",
        "GPUs that are slowed down by heat or power",
        "All ranks wait for the slowest in every step.",
        "Look at `nvidia-smi -q -d PERFORMANCE,TEMPERATURE` on that node, its fans and its power supplies",
        "warning",
        "Only what heat or the hardware demands. The power cap of a busy GPU and clocks that somebody set are none.",
        _throttled,
        recorded=True,
    ),
    Check(
        "gpus.pcie",
        "PCIe lanes of GPUs",
        "At half its lanes a GPU copies half as fast to the host, and to adapters.",
        "Reseat the GPU or its riser, or have the slot looked at",
        "warning",
        "Fewer than it could have and fewer than most GPUs of its model in this run: slots may have fewer everywhere. "
        "The generation is not looked at: an idle GPU lowers it.",
        _pcie,
        recorded=True,
    ),
    Check(
        "gpus.nvlink",
        "NVLinks that are active",
        "Without them its traffic takes PCIe, which is ten times slower.",
        "Look at `nvidia-smi nvlink --status` on that node; restart it, or have its bridges looked at",
        "warning",
        "Fewer than most GPUs of its model in this run: many have links that no bridge uses.",
        _nvlink,
        recorded=True,
    ),
    Check(
        "gpus.fabric-manager",
        "The fabric manager of GPUs that NVSwitches join",
        "Until it has set them up CUDA does not start: `system not yet initialized` (error 802).",
        "systemctl restart nvidia-fabricmanager, of the driver's own version",
        "error",
        "Only where there are NVSwitches and the service's state is known; GPUs that say themselves that all is set up "
        "count more than the service.",
        _fabric_manager,
        recorded=True,
    ),
    Check(
        "gpus.xid",
        "Faults of the hardware that the driver has reported",
        "A GPU that had one is likely to have it again.",
        "Reset the GPU or restart the node; NVIDIA's XID catalogue tells what it is, and when to have it replaced",
        "error",
        "Only numbers that no program causes. They count since the last boot, so one whose GPU is there again warns.",
        _xid,
        recorded=True,
    ),
)
