"""How checks look at the GPUs that the ranks will have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from allranks.cluster.node_report import Gpu, NodeReport
from allranks.listing import few, printable
from allranks.preflight.check import Answer, Subject, skipped, unknown
from allranks.preflight.looking import each_node

NO_GPU = "this run uses no GPU"

Look = Callable[[str, NodeReport, Sequence[Gpu]], Iterator[Answer]]


def each_nodes_gpus(subject: Subject, look: Look, *needed: str) -> list[Answer]:
    """What `look` says of each node and the GPUs that its ranks will have; a run without GPUs has no faulty ones.

    A node is not known if it does not tell a field of its GPUs that is `needed`.
    """

    def at(node: str, report: NodeReport) -> Answer | list[Answer]:
        if subject.wanted.device != "cuda":
            return skipped(node, NO_GPU)
        if report.gpus is None:
            return unknown(node, "its GPUs are not known")
        gpus = visible(report)[: subject.wanted.nproc_per_node]
        missing = [gpu for gpu in gpus if any(getattr(gpu, name) is None for name in needed)]
        untold = [unknown(node, f"GPU {few(map(gpu_name, missing))} does not tell it")] if missing else []
        return [*look(node, report, gpus), *untold]

    return each_node(subject, at)


def visible(report: NodeReport) -> Sequence[Gpu]:
    """Those that CUDA_VISIBLE_DEVICES leaves: up to its first entry that is none (CUDA programming guide)."""
    gpus = report.gpus or ()
    variable = report.gpu_system.visible
    if variable is None or "MIG-" in variable:
        return gpus
    # Without the driver's tool they have no numbers: then their order, which is the bus's, has to do.
    by_number = {place if gpu.index is None else gpu.index: gpu for place, gpu in enumerate(gpus)}
    chosen = []
    for entry in (part.strip() for part in variable.split(",")):
        gpu = (
            by_number.get(int(entry)) if entry.isdecimal() else next((gpu for gpu in gpus if _is_of(gpu, entry)), None)
        )
        if gpu is None:
            break
        chosen.append(gpu)
    return chosen


def gpu_name(gpu: Gpu) -> str:
    """As the driver numbers it."""
    return str(gpu.index) if gpu.index is not None else printable(gpu.pci or gpu.uuid or "?")


def _is_of(gpu: Gpu, entry: str) -> bool:
    return bool(gpu.uuid and entry.startswith("GPU-") and gpu.uuid.startswith(entry))
