"""Memory of a GPU that no tensor of the run holds."""

from __future__ import annotations

from allranks.plan.hardware import Device
from allranks.plan.workload import Workload

_CONTEXT_BYTES = 0.6e9
"""CUDA's context with PyTorch's and cuBLAS' kernels and workspaces."""
_NCCL_BYTES = 0.4e9
"""NCCL's channels and buffers of one communicator within a node and one between nodes."""
_FRAGMENTED = 0.04
"""Of what is allocated: blocks that PyTorch's caching allocator holds and cannot give to another size."""


def reserve(workload: Workload, allocated: float, device: Device | None = None) -> float:
    """Bytes of the driver, the communication library and the allocator's remainders beside `allocated` ones."""
    if workload.on_cpu:
        return 0.0
    library = _NCCL_BYTES if workload.num_ranks > 1 else 0.0
    return _CONTEXT_BYTES + library + _FRAGMENTED * allocated
