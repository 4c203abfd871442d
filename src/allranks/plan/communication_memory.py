"""What collectives take of a rank's memory: parameters gathered for the moment, and buffers."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from allranks.plan.model_shape import num_parameters
from allranks.plan.workload import Workload

# DeepSpeed keeps what it gathered where it comes again within so many elements (stage3_max_reuse_distance): backwards,
# what follows in the forward pass comes twice before it.
_REUSE_ELEMENTS = 1_000_000_000
_IN_LAYERS = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.")


@dataclass(frozen=True)
class Gathered:
    """Bytes beyond what is held: when the loss is made, while the backward pass is in the last layer and in the first,
    and during the optimizer's step."""

    at_loss: float
    backward: float
    backward_end: float
    step: float


def gathered(workload: Workload) -> Gathered:
    """Of rank 0."""
    match workload.layout.kind:
        case "fsdp":
            return _of_fsdp(workload)
        case "zero":
            return _of_zero(workload)
    if workload.num_ranks == 1:
        return Gathered(0.0, 0.0, 0.0, 0.0)
    # A gradient is made, then copied into its bucket.
    largest = max(_trained_sizes(workload), default=0) * workload.element.trained
    return Gathered(0.0, largest, largest, 0.0)


def _of_fsdp(workload: Workload) -> Gathered:
    """Units of one layer: one gathered, the next on its way in one flat buffer; their gradients before and while they
    are reduced."""
    shape = workload.shape
    layer, ends, rest = _units(workload)
    layer_gradient, end_gradient = (_gradients(workload, size) for size in (layer, ends))
    if workload.layout.keeps_gathered:
        everything = _traveling(workload, num_parameters(shape))
        return Gathered(everything, everything + end_gradient, everything + layer_gradient, 0.0)
    unit, end, small = (_traveling(workload, size) for size in (layer, ends, rest))
    at_loss = end + small + (0.0 if shape.is_tied else unit)
    backward = max(end + unit + end_gradient, 2 * unit + layer_gradient) + small
    return Gathered(at_loss, backward, 2 * unit + layer_gradient + small, 0.0)


def _units(workload: Workload) -> tuple[float, float, float]:
    """Elements of the largest layer, of the embedding or output layer, and of what goes with the root."""
    layers: dict[str, int] = {}
    others = 0
    for name, size in workload.shape.tensors.items():
        found = _IN_LAYERS.search(name)
        if found:
            layers[found[1]] = layers.get(found[1], 0) + math.prod(size)
        elif workload.shape.vocabulary not in size:
            others += math.prod(size)
    end = workload.shape.vocabulary * workload.shape.hidden
    adapter = workload.num_trained / workload.shape.num_layers if workload.method != "full" else 0.0
    largest = max(layers.values(), default=0) + adapter
    return (largest, 0.0, others + end) if workload.shape.is_tied else (largest, end, others)


def _traveling(workload: Workload, elements: float) -> float:
    """Bytes of gathered parameters, of which packed ones stay as they are."""
    packed = workload.num_packed / max(1, num_parameters(workload.shape))
    element = workload.element
    return elements * (packed * element.packed + (1 - packed) * element.compute)


def _gradients(workload: Workload, elements: float) -> float:
    """Of one unit: as they are made, and in the buffer that is reduced."""
    if workload.method != "full":
        elements = workload.num_trained / workload.shape.num_layers
    return elements * (workload.element.compute + workload.element.gradient)


def _of_zero(workload: Workload) -> Gathered:
    """DeepSpeed's buckets, and what stage 3 gathers."""
    element, layout = workload.element, workload.layout
    bucket = workload.bucket_elements * element.trained
    if layout.stage < 3:
        # Of the first backward pass of a step, until its end. Stage 2 reduces in buckets that are copies.
        largest = max(_trained_sizes(workload), default=0) * element.trained
        return Gathered(0.0 if workload.num_micro_batches == 1 else bucket, bucket, bucket + largest, 0.0)
    total = num_parameters(workload.shape)
    layer, _, _ = _units(workload)
    live = min(total, _REUSE_ELEMENTS / 2 + layer + workload.prefetch_elements)
    # On one rank its piece is the parameter.
    whole = bucket + (_traveling(workload, live) if workload.num_ranks > 1 else 0.0)
    largest = max(_trained_sizes(workload), default=0) * element.trained
    return Gathered(whole, whole + largest, whole + largest, bucket)


def _trained_sizes(workload: Workload) -> list[int]:
    if workload.method == "full":
        return [math.prod(size) for size in workload.shape.tensors.values()]
    return [workload.lora_rank * max(sides) for sides in workload.adapted.values()]
