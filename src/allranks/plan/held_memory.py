"""What a rank holds of parameters, gradients and optimizer state, from one step to the next."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from allranks.plan.counted import alike, largest_tensor, num_parameters
from allranks.plan.workload import ModelShape, Workload

_FLOAT = 4
_GROUP_ELEMENTS = 1_000_000_000
"""DeepSpeed's default of `sub_group_size`: stage 3 steps on so many elements at a time."""


@dataclass(frozen=True)
class Held:
    """Bytes. `gradients` are all there are at the step; `gradients_between` those that are there during a forward pass;
    `gradients_of_layers` those that there are when the backward pass reaches the first layer. `step`: what the
    optimizer's step takes for itself."""

    parameters: float
    gradients: float
    gradients_between: float
    gradients_of_layers: float
    optimizer: float
    step: float


def held(workload: Workload) -> Held:
    """Of rank 0, which has no less than any other."""
    layout, element = workload.layout, workload.element
    trained, frozen = workload.num_trained, num_parameters(workload.shape)
    frozen -= trained if workload.method == "full" else 0
    frozen_bytes = workload.num_packed * element.packed + (frozen - workload.num_packed) * element.frozen
    if layout.kind == "zero":
        return _of_zero(workload, trained, frozen_bytes)
    shards = layout.num_shards if layout.kind == "fsdp" else 1
    part = _padding(workload.shape, shards) / shards
    gradients = trained * element.trained * part
    is_held = layout.kind == "ddp" and workload.num_ranks > 1  # in DDP's buckets, from its first step to its last
    accumulates = workload.num_micro_batches > 1
    whole = accumulates and layout.kind == "fsdp" and not layout.reduces_each
    between = trained * max(element.gradient, element.compute) if whole else gradients
    state, first = trained * element.state * part, _first_elements(workload)
    step = trained * element.trained * part * workload.foreach_copies if workload.foreach else 0.0
    if workload.method == "full":
        step = max(step, largest_tensor(workload.shape) * part * workload.each_copy_bytes)
    return Held(
        parameters=0.0 if workload.offloads_parameters else trained * element.trained * part + frozen_bytes * part,
        gradients=0.0 if workload.offloads_parameters else gradients,
        gradients_between=between if is_held or accumulates else 0.0,
        gradients_of_layers=0.0 if workload.offloads_parameters else gradients - first * element.trained * part,
        optimizer=0.0 if workload.offloads_optimizer else state,
        step=step,
    )


def _of_zero(workload: Workload, trained: float, frozen_bytes: float) -> Held:
    """DeepSpeed's: whole parameters below stage 3; pieces of the float32 weights, also where the weights are float32
    (`single_partition_of_fp32_groups`, `fp32_partitioned_groups_flat`), and of their optimizer's state.

    Its step lays gradients end to end, and makes float32 of them: stage 3 of a group at a time. To the optimizer they
    are one tensor.
    """
    layout, element, part = workload.layout, workload.element, 1 / workload.num_ranks
    weights = trained * element.trained
    stepped = trained * part
    if layout.stage == 3:
        stepped = min(stepped, _GROUP_ELEMENTS)
        parameters = (weights + frozen_bytes) * part
        gradients = between = weights * part
    else:
        parameters = weights + frozen_bytes
        gradients = weights * (part if layout.stage == 2 else 1.0)
        between = gradients if workload.num_micro_batches > 1 or layout.stage == 1 else 0.0
    copied = max(workload.each_copy_bytes, _FLOAT * workload.foreach_copies if workload.foreach else 0.0)
    laid = _FLOAT + (element.trained if element.trained < _FLOAT else 0.0)
    # Below stage 3 the gradients are gone by the time the optimizer steps on their float32 form.
    stepping = _FLOAT + copied - (element.trained if layout.stage < 3 else 0.0)
    step = stepped * max(laid, stepping)
    optimizer = trained * (_FLOAT + element.state) * part
    return Held(
        parameters=0.0 if workload.offloads_parameters else parameters,
        gradients=gradients,
        gradients_between=between,
        gradients_of_layers=gradients if layout.stage == 3 else gradients - _first_elements(workload) * part,
        optimizer=0.0 if workload.offloads_optimizer else optimizer,
        step=0.0 if workload.offloads_optimizer else step,
    )


@lru_cache(maxsize=32)
def _padding(shape: ModelShape, shards: int) -> float:
    """How much more rank 0 holds than a part of all: FSDP2 cuts first dimensions, rounded up."""
    if shards == 1:
        return 1.0
    sizes = alike(shape).items()
    own = sum(number * math.ceil(size[0] / shards) * math.prod(size[1:]) for (_, size), number in sizes)
    return own * shards / num_parameters(shape)


def _first_elements(workload: Workload) -> float:
    """Of what has its gradient last: the first layer, and the embedding unless it shares the output layer's. FSDP waits
    with a shared one's until it has both."""
    shape = workload.shape
    if workload.method != "full":
        return workload.num_trained / shape.num_layers
    end = shape.vocabulary * shape.hidden
    layers = num_parameters(shape) - (1 if shape.is_tied else 2) * end
    return layers / shape.num_layers + (0 if shape.is_tied and workload.layout.kind != "fsdp" else end)
