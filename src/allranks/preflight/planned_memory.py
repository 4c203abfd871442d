"""Whether what a rank will hold is predicted to be enough for its device, before anything is loaded."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from allranks.cluster.node_report import NodeReport
from allranks.plan.error_bounds import MEMORY_ERROR
from allranks.plan.fit import Verdict, doubt
from allranks.plan.hardware import Device, find_reported
from allranks.preflight.check import Answer, Check, Severity, Subject, found, skipped, unknown
from allranks.preflight.gpus_of_ranks import visible
from allranks.preflight.looking import each_node

LAUNCHER_BYTES = 0.3e9
"""What the process holds that starts a node's ranks and watches them, as measured with torch 2.13."""
_SEVERITY: dict[Verdict, Severity] = {"cannot": "error", "may not": "warning", "just": "note"}


def _memory(subject: Subject) -> list[Answer]:
    expected = subject.wanted.expected
    if expected is None:
        why = "unless `plan: off` leaves it out, `allranks plan CONFIG` says why"
        return [skipped(subject.nodes, f"what a rank will hold is not predicted: {why}")]

    @cache
    def judged(device: Device | None, there: float) -> tuple[Verdict, str] | None:
        return doubt(expected, device, there)  # most nodes are alike

    def look(node: str, report: NodeReport) -> Answer | None:
        here = _of_cpu(subject, node, report) if expected.workload.on_cpu else _of_gpu(subject, report)
        if here is None:
            return unknown(node, "how much memory a rank has there is not known")
        device, there = here
        doubted = judged(device, there)
        return None if doubted is None else found(node, doubted[1], severity=_SEVERITY[doubted[0]])

    return each_node(subject, look)


def _of_gpu(subject: Subject, report: NodeReport) -> tuple[Device | None, float] | None:
    """The smallest of the ranks' GPUs. Of parts of one (MIG) what is read here tells nothing."""
    gpus = visible(report)[: subject.wanted.nproc_per_node]
    if not gpus or any(not gpu.memory or (gpu.mig or "").lower() == "enabled" for gpu in gpus):
        return None
    smallest = min(gpus, key=lambda gpu: gpu.memory or 0)
    there = float(smallest.memory or 0)
    device = find_reported(smallest.model or "")
    return device and replace(device, memory_bytes=there), there


def _of_cpu(subject: Subject, node: str, report: NodeReport) -> tuple[Device | None, float] | None:
    """Each rank's part of the node's memory, without what the launcher of several ranks takes."""
    limits = [size for size in (report.memory.total, report.memory.cgroup_limit) if size]
    ranks = subject.num_processes.get(node) or subject.wanted.nproc_per_node
    launcher = LAUNCHER_BYTES if ranks and ranks > 1 else 0.0
    return (None, max(0.0, min(limits) - launcher) / ranks) if limits and ranks else None


CHECKS = (
    Check(
        "plan.memory",
        "Whether what a rank will hold is predicted to be enough for its GPU",
        "The run ends out of memory, often only once the longest rows come.",
        "`allranks plan CONFIG` says what would fit: gradient_checkpointing, a smaller micro_batch_size, sharding, an "
        "adapter, more nodes",
        "error",
        f"It refuses only what exceeds the whole GPU by more than the prediction may be wrong by, {MEMORY_ERROR:.0%}; "
        "where rows may be shorter than sequence_len, what does so even with none. What is less certain warns, "
        "and what just fits is a note. On CPUs, beside which there may be swap, it only warns. `plan: off` leaves it "
        "out.",
        _memory,
        recorded=True,
    ),
)
