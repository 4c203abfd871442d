"""Memory of a GPU that no tensor of the run holds."""

from __future__ import annotations

from allranks.plan.hardware import Device
from allranks.plan.workload import Workload

# Fitted on half of the rows that others measured on an A100 (docs/plan-accuracy.md), where memory is all that a process
# has taken of the GPU.
CONTEXT_BYTES = 1.9e9
"""CUDA's context with the kernels of PyTorch, cuBLAS and FlashAttention, and their workspaces."""
FRAGMENTED = 0.06
"""Of what tensors take at their fullest: blocks that PyTorch's caching allocator keeps and cannot give to others."""
_NCCL_BYTES = 0.4e9
"""Channels and buffers of NCCL's communicators within a node and between nodes. Not measured here."""


def reserve(workload: Workload, allocated: float, device: Device | None = None) -> float:
    """Bytes of the driver, the communication library and the allocator beside `allocated` ones in tensors.

    The same on every `device`: what a newer driver takes was not measured here.
    """
    if workload.on_cpu:
        return 0.0
    return CONTEXT_BYTES + (_NCCL_BYTES if workload.num_ranks > 1 else 0.0) + FRAGMENTED * allocated
