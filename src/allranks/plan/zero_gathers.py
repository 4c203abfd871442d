"""How DeepSpeed's stage 3 gathers a model: in how many collectives, how much of it a third time, how much in copies.

What it does was counted in its 0.19.8 (`benchmarks/zero_gathers.py`).
"""

from __future__ import annotations

import math
from functools import lru_cache

from allranks.plan.counted import alike, elements_below, elements_of_layers
from allranks.plan.moved import Moved
from allranks.plan.workload import ModelShape, Workload


def gathers(workload: Workload) -> bool:
    """Whether ranks gather what others hold of the weights, by DeepSpeed."""
    return workload.layout.kind == "zero" and workload.layout.stage == 3 and workload.num_ranks > 1


def gathered_again(workload: Workload) -> int:
    """Elements that come a third time in each micro-batch: a frozen weight of a layer that is computed again is let go
    of once the layer has been, and has to come back for the layer's gradients
    (runtime/zero/partitioned_param_coordinator.py, `update_recompute_parameters`)."""
    if not gathers(workload) or not workload.recomputes or workload.method == "full":
        return 0
    return _of_layers(workload.shape, workload.persistent_below)


def collectives_of_pass(workload: Workload, *, backward: bool) -> float:
    """That a rank starts: weights come ahead, as many together as `prefetch_elements` hold, those of a third time one
    by one."""
    if not gathers(workload):
        return 0.0
    ahead, again = _gathered(workload.shape, workload.persistent_below, workload.prefetch_elements)
    return ahead + (again if backward and gathered_again(workload) else 0)


def copied(workload: Workload) -> Moved:
    """Of a pass: what came together is put together again, tensor by tensor (runtime/zero/partition_parameters.py,
    `AllGatherCoalescedHandle`); with an adapter each weight comes with small matrices."""
    if not gathers(workload):
        return Moved(0.0, 0.0)
    shape, size = workload.shape, workload.element.compute
    largest = workload.prefetch_elements if workload.method == "full" else math.inf
    elements = elements_below(shape, largest) - elements_below(shape, workload.persistent_below)
    return Moved(workload.prefetch_elements * size, 2.0 * size * max(0, elements))


@lru_cache(maxsize=32)
def _of_layers(shape: ModelShape, persistent_below: int) -> int:
    return elements_of_layers(alike(shape), persistent_below)


@lru_cache(maxsize=32)
def _gathered(shape: ModelShape, persistent_below: int, together: int) -> tuple[float, int]:
    """Collectives of all weights, and weights of layers. Experts of a layer are one tensor, whatever their files."""
    tensors: dict[str, int] = {}
    for (name, size), number in alike(shape).items():
        module = name.partition(".experts.")[0]
        tensors[module] = tensors.get(module, 0) + number * math.prod(size)
    sizes = [size for size in tensors.values() if size >= persistent_below]
    ends = shape.vocabulary * shape.hidden
    return sum(min(1.0, size / max(1, together)) for size in sizes), sum(size != ends for size in sizes)
