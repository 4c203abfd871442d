"""What FSDP2 copies in the device's memory, beside sending it."""

from __future__ import annotations

from allranks.plan.counted import num_parameters
from allranks.plan.moved import Moved
from allranks.plan.workload import Workload


def copied(workload: Workload, *, backward: bool) -> Moved:
    """Bytes of a pass, in the mean of a step's micro-batches: what a layer's ranks gathered in one tensor is copied out
    into its parameters', and gradients are copied into one tensor in the type they are reduced in
    (torch/distributed/fsdp/_fully_shard/_fsdp_collectives.py, `split_with_sizes_copy` and `chunk_cat`)."""
    layout, element = workload.layout, workload.element
    if layout.kind != "fsdp" or layout.num_shards < 2:
        return Moved(0.0, 0.0)
    frozen = num_parameters(workload.shape) if workload.method != "full" else 0
    total = frozen + workload.num_trained
    gathered = workload.num_packed * element.packed + (total - workload.num_packed) * element.compute
    num_bytes = 0.0 if backward and layout.keeps_gathered else 2.0 * gathered
    if backward:
        reductions = 1.0 if layout.reduces_each else 1.0 / workload.num_micro_batches
        num_bytes += reductions * workload.num_trained * (element.compute + element.gradient)
    return Moved(gathered / (workload.shape.num_layers + 1), num_bytes)
