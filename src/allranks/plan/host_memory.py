"""What a node's ranks need of its own memory: to load, to keep what is offloaded, and to write checkpoints."""

from __future__ import annotations

from allranks.plan.counted import largest_tensor, num_parameters
from allranks.plan.workload import Workload

_PROCESS_BYTES = 1.5e9
"""Of one rank: Python, torch and transformers; with CUDA's libraries."""
_FLOAT32_COPIES = 8


def host_memory(workload: Workload) -> float:
    """Bytes, of all ranks of a node together.

    Weights are read tensor by tensor, straight into their place, so that a rank holds one of them besides. A checkpoint
    that is written behind the training is copied aside first: what a rank trains, and its optimizer's state.
    """
    element, ranks, trained = workload.element, workload.ranks_per_node, workload.num_trained
    total = num_parameters(workload.shape)
    shards = {"fsdp": workload.layout.num_shards, "zero": workload.num_ranks, "ddp": workload.num_ranks}
    part = ranks / shards[workload.layout.kind]
    largest = largest_tensor(workload.shape) * element.compute
    weight = max(element.master, element.trained)
    copied = trained * (weight + element.state) * min(1.0, part)
    offloaded = 0.0
    if workload.offloads_optimizer:
        # DeepSpeed steps on float32 copies of weights and gradients, whatever the GPU computes in
        # (https://deepspeed.readthedocs.io/en/latest/memory.html: 16 bytes a parameter); FSDP2 on its own.
        copies = _FLOAT32_COPIES if workload.layout.kind == "zero" else element.master + element.trained
        offloaded += trained * (copies + element.state) * part
    if workload.offloads_parameters:
        offloaded += total * element.trained * part
    if workload.offloads_activations:
        inputs = workload.tokens * workload.micro_batch_size * workload.shape.hidden * element.compute
        offloaded += ranks * workload.shape.num_layers * inputs
    return ranks * (_PROCESS_BYTES + largest) + copied + offloaded
