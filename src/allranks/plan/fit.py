"""Whether what a rank will hold is more than its device has, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from allranks.listing import si_bytes
from allranks.plan.error_bounds import MEMORY_ERROR
from allranks.plan.hardware import Device
from allranks.plan.memory import rank_memory
from allranks.plan.workload import RankMemory, Workload

Verdict = Literal["cannot", "may not", "just"]
"""It cannot fit, whatever the prediction may be wrong by; it probably does not; it fits by less than that."""

CPU_PROCESS_BYTES = (0.4e9, 0.7e9)
"""What a process holds on a CPU beside its tensors, at least and at most: Python and what it has imported, in
runs of torch 2.11 and 2.13. On a GPU it is in the host's memory."""

_SHOWN = ("parameters", "gradients", "optimizer", "activations", "logits", "communication", "reserve")


@dataclass(frozen=True)
class Expected:
    """What a rank will do. Rows have `workload.tokens` at most, and are known to have `least_tokens`: without packing a
    row is as long as its sample."""

    workload: Workload
    least_tokens: int


def doubt(expected: Expected, device: Device | None, there: float) -> tuple[Verdict, str] | None:
    """The verdict on `there` bytes of memory for a rank, and the figures in words; None where it fits for sure.

    Nothing is certain of a CPU's memory, beside which there may be swap.
    """
    workload = expected.workload
    process, most = CPU_PROCESS_BYTES if workload.on_cpu else (0.0, 0.0)
    memory = rank_memory(workload, device)
    least = rank_memory(replace(workload, tokens=expected.least_tokens), device)
    if least.total * (1 - MEMORY_ERROR) > there and not workload.on_cpu:
        return "cannot", _told(least, there)
    beside = f", of which its process takes {si_bytes(process)} to {si_bytes(most)}" if process else ""
    text = f"{_told(memory, there)}{beside}; the prediction may be wrong by {MEMORY_ERROR:.0%}"
    if least.total < memory.total:
        text += f", and rows are taken to be as long as sequence_len, {workload.tokens:,} tokens"
    if memory.total + process > there:
        return "may not", text
    return ("just", text) if memory.total * (1 + MEMORY_ERROR) + most > there else None


def _told(memory: RankMemory, there: float) -> str:
    parts: Mapping[str, float] = {name: getattr(memory, name) for name in _SHOWN}
    told = ", ".join(f"{name} {si_bytes(size)}" for name, size in parts.items() if size >= 0.01 * memory.total)
    return f"a rank will hold {si_bytes(memory.total)}, as predicted ({told}), and has {si_bytes(there)}"
