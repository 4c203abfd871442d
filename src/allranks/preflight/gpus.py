"""Are the GPUs that the ranks will have there, free and alike?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from allranks.cluster.majority import groups
from allranks.cluster.node_report import Gpu, NodeReport
from allranks.listing import few, printable, si_bytes
from allranks.preflight.check import Answer, Check, Subject, found, skipped, unknown
from allranks.preflight.gpus_of_ranks import NO_GPU, each_nodes_gpus, gpu_name, visible
from allranks.preflight.looking import drift

_GIB = 2**30
# A context of the driver, a monitor and a desktop take some hundred MB; a model that somebody trains takes gigabytes.
_USED_BYTES, _USED_PART = 2 * _GIB, 0.1
_SHOWN = 4


def _count(subject: Subject) -> list[Answer]:
    wanted = subject.wanted.nproc_per_node or 0

    def look(node: str, report: NodeReport, gpus: Sequence[Gpu]) -> Iterator[Answer]:
        if len(gpus) < wanted:
            hidden = f" of {len(report.gpus or ())} (CUDA_VISIBLE_DEVICES)" if report.gpu_system.visible else ""
            yield found(node, f"{wanted} ranks want a GPU each, and it has {len(gpus)}{hidden}")

    return each_nodes_gpus(subject, look)


def _lost(subject: Subject) -> list[Answer]:
    numbers = groups((node, len(report.gpus)) for node, report in subject.reported if report.gpus is not None)
    usual = numbers.majority if numbers.majority is not None else max((number for number, _ in numbers.of), default=0)

    def look(node: str, report: NodeReport, gpus: Sequence[Gpu]) -> Iterator[Answer]:
        system, shown = report.gpu_system, report.gpus or ()
        # A container sees the host's whole bus, but only those devices that it was given.
        is_nvidia = any(gpu.vendor == "nvidia" for gpu in shown)
        there = system.num_device_nodes if is_nvidia and system.num_device_nodes else None
        if there is None and report.system.container is None:
            there = system.num_present
        if there is None:
            yield unknown(node, "how many GPUs it should have is not known")
        elif len(shown) < min(there, usual):
            yield found(node, f"{there} GPUs are there, and the driver shows {len(shown)} of them")

    return each_nodes_gpus(subject, look)


def _model(subject: Subject) -> list[Answer]:
    def of(gpus: Sequence[Gpu]) -> str:
        return " and ".join(sorted({gpu.model for gpu in gpus if gpu.model}))

    return _drift(subject, "the model of its GPUs", of)


def _memory(subject: Subject) -> list[Answer]:
    def of(gpus: Sequence[Gpu]) -> str:
        sizes = [gpu.memory for gpu in gpus if gpu.memory]
        # Drivers keep some of it for themselves, each version another amount.
        return f"{round(min(sizes) / _GIB)} GiB" if sizes else ""

    return _drift(subject, "the memory of its smallest GPU", of)


def _drift(subject: Subject, name: str, of: Callable[[Sequence[Gpu]], str]) -> list[Answer]:
    if subject.wanted.device != "cuda":
        return [skipped(subject.nodes, NO_GPU)]
    wanted = subject.wanted.nproc_per_node
    values = {node: of(visible(report)[:wanted]) or None for node, report in subject.reported}
    return drift(subject, name, values, not_known="its GPUs are not known")


def _used(subject: Subject) -> list[Answer]:
    def look(node: str, report: NodeReport, gpus: Sequence[Gpu]) -> Iterator[Answer]:
        for gpu in gpus:
            if gpu.used and gpu.memory and gpu.used > max(_USED_BYTES, _USED_PART * gpu.memory):
                by = few([_told(each.command, each.pid, each.user) for each in gpu.processes or ()], _SHOWN)
                text = f"GPU {gpu_name(gpu)}: {si_bytes(gpu.used)} of {si_bytes(gpu.memory)} are in use"
                yield found(node, text + (f" by {by}" if by else ""))

    return each_nodes_gpus(subject, look, "used", "memory")


def _told(command: str | None, pid: int | None, user: str | None) -> str:
    about = ", ".join(part for part in (f"pid {pid}" if pid else "", f"of {user}" if user else "") if part)
    return printable(f"{command or 'a process'}{f' ({about})' if about else ''}")


def _mig(subject: Subject) -> list[Answer]:
    def look(node: str, report: NodeReport, gpus: Sequence[Gpu]) -> Iterator[Answer]:
        if cut := [gpu for gpu in gpus if (gpu.mig or "").lower() == "enabled"]:
            yield found(node, f"GPU {', '.join(map(gpu_name, cut))}: cut into instances (MIG)")

    return each_nodes_gpus(subject, look)


CHECKS = (
    Check(
        "gpus.count",
        "A GPU for each rank",
        "Ranks without one end at once, or two share one, which NCCL refuses (`Duplicate GPU detected`).",
        "Lower --nproc-per-node, set CUDA_VISIBLE_DEVICES right, or take the node out of the run",
        "error",
        "Those that CUDA_VISIBLE_DEVICES leaves; only where the run uses GPUs.",
        _count,
        recorded=True,
    ),
    Check(
        "gpus.lost",
        "GPUs that are there and that the driver does not show",
        "One has fallen off the bus, or its driver has given it up: ranks get others than they should, or none.",
        "Look for Xid lines in `dmesg` on that node, and restart it",
        "warning",
        "Fewer than the devices in /dev (else: than the PCI bus has, but not in a container, which sees all "
        "of the host's), and fewer than other nodes show: a scheduler may give a job some of them only. Whether too "
        "few are left, gpus.count says.",
        _lost,
        recorded=True,
    ),
    Check(
        "gpus.model",
        "The same model of GPU on all nodes",
        "Each step takes as long as the slowest GPU needs, and another architecture rounds otherwise.",
        "Run on nodes of one kind",
        "warning",
        "Only the GPUs that ranks will have.",
        _model,
        recorded=True,
    ),
    Check(
        "gpus.memory",
        "The same memory of GPUs on all nodes",
        "What fits into the others runs out of memory on the smallest, perhaps at the longest batch only.",
        "Run on nodes of one kind, or plan for the smallest",
        "warning",
        "Rounded to GiB, for drivers keep some for themselves.",
        _memory,
        recorded=True,
    ),
    Check(
        "gpus.used",
        "GPUs that somebody uses already",
        "What an earlier run or another user holds is missing: the run ends with `CUDA out of memory`, or is slow.",
        "End what is named if it is yours (`nvidia-smi` on that node), or take other GPUs (CUDA_VISIBLE_DEVICES)",
        "error",
        "More than 2 GiB and more than a tenth of its memory: contexts and monitors take less. Processes of other "
        "containers have no name here, so it is the memory that counts.",
        _used,
        recorded=True,
    ),
    Check(
        "gpus.mig",
        "GPUs that are cut into instances",
        "A rank gets a part of such a GPU, without NVLink or peer-to-peer between them.",
        "nvidia-smi -mig 0, where the whole GPU is wanted",
        "warning",
        "Only GPUs that ranks will have.",
        _mig,
        recorded=True,
    ),
)
