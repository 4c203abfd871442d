"""What collectives take of a rank's memory: parameters gathered for the moment, and buffers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from allranks.plan.counted import IN_LAYERS, alike, largest_tensor, num_parameters
from allranks.plan.held_memory import held
from allranks.plan.same import sizes_of
from allranks.plan.workload import ModelShape, Workload

# DeepSpeed keeps what it gathered where it comes again within so many elements (stage3_max_reuse_distance): backwards,
# what follows in the forward pass comes twice before it.
_REUSE_ELEMENTS = 1_000_000_000
# DDP sends what rank 0 has to the others in copies of so much, two at a time (torch/nn/parallel/distributed.py,
# broadcast_bucket_size; torch/csrc/distributed/c10d/reducer.cpp, broadcast_coalesced).
BROADCAST_BYTES = 2 * 250 * 2**20


@dataclass(frozen=True)
class Gathered:
    """Bytes beyond what is held, at the moments of `plan.memory`."""

    start: float = 0.0
    gathering: float = 0.0
    middle_forward: float = 0.0
    last_forward: float = 0.0
    before_head: float = 0.0
    at_loss: float = 0.0
    head: float = 0.0
    last_layer: float = 0.0
    last_reduced: float = 0.0
    first_layer: float = 0.0
    first_reduced: float = 0.0
    step: float = 0.0


def gathered(workload: Workload) -> Gathered:
    """Of rank 0."""
    match workload.layout.kind:
        case "fsdp":
            return _of_fsdp(workload)
        case "zero":
            return _of_zero(workload)
    if workload.num_ranks == 1:
        return Gathered()
    # A gradient is made, then copied into its bucket; a shared embedding's is counted where it waits.
    waits = workload.shape.is_tied and workload.trains_embeddings
    largest = 0.0 if waits else _largest_trained(workload) * workload.element.trained
    start = min(held(workload).parameters, BROADCAST_BYTES)
    return Gathered(start=start, head=largest, last_layer=largest, first_layer=largest)


def _of_fsdp(workload: Workload) -> Gathered:
    """A unit is a layer, the embedding or the output layer: one is gathered, and the next one already.

    Of the unit that was gathered last the flat buffer stays, and of the one that was reduced last the copy that is
    reduced (`_fully_shard/_fsdp_param_group.py`, all_gather_result, reduce_scatter_states).
    """
    element, is_tied, shards = workload.element, workload.shape.is_tied, workload.layout.num_shards
    layer, end, rest = _units(workload)
    end_unit, root = (_traveling(workload, size) for size in (end, rest))
    unit = _traveling(workload, layer, workload.num_packed / workload.shape.num_layers)
    trained = layer if workload.method == "full" else workload.num_trained / workload.shape.num_layers
    end = end if workload.trains_embeddings else 0.0
    # A CPU changes the type of what it reduces in a copy.
    casts = element.compute if workload.on_cpu and element.compute < element.gradient else 0
    of_layer, of_end = (size * (element.gradient + casts) for size in (trained, end))
    own_part = element.trained / shards
    following = unit if is_tied else max(unit, end_unit)
    first = root + unit + following
    reducing = of_layer + trained * (element.compute + own_part)
    if workload.layout.keeps_gathered:
        beside = workload.num_trained if workload.method != "full" else 0
        everything = _traveling(workload, num_parameters(workload.shape) + beside, workload.num_packed)
        return Gathered(
            last_forward=everything + unit,
            before_head=everything + end_unit + unit,
            at_loss=everything + (end_unit or unit),
            head=everything + of_end + end * own_part,
            last_layer=everything - end_unit + of_end,
            last_reduced=everything - end_unit + reducing,
            first_layer=first + of_layer,
            first_reduced=first + reducing,
        )
    # gloo gathers into a tensor of its own (ProcessGroupGloo.cpp).
    copies = 1 if workload.on_cpu else 0
    return Gathered(
        gathering=root + max((3 + copies) * unit, 2 * unit + (1 + copies) * end_unit),
        middle_forward=root + 3 * unit,
        last_forward=root + 2 * unit + end_unit,
        before_head=root + 2 * end_unit + unit,
        at_loss=root + (unit if is_tied else 2 * end_unit),
        head=root + (2 * unit if is_tied else end_unit + unit) + of_end + end * own_part,
        last_layer=root + 2 * unit + of_end,
        last_reduced=root + 2 * unit + reducing,
        first_layer=first + of_layer,
        first_reduced=first + reducing,
        # The root holds a shared embedding, and is done last: by then its first layer was gathered ahead.
        step=unit if is_tied else 0.0,
    )


def _units(workload: Workload) -> tuple[float, float, float]:
    """Elements of the largest layer, of the embedding or output layer, and of what goes with the root."""
    layer, others = _layer_and_others(workload.shape)
    end = workload.shape.vocabulary * workload.shape.hidden
    adapter = workload.num_trained / workload.shape.num_layers if workload.method != "full" else 0.0
    largest = layer + adapter
    return (largest, 0.0, others + end) if workload.shape.is_tied else (largest, end, others)


@lru_cache(maxsize=8)
def _layer_and_others(shape: ModelShape) -> tuple[int, int]:
    """Elements of the largest layer, and of what is in none, the ends apart."""
    layers: dict[str, int] = {}
    others = 0
    for (name, size), number in alike(shape).items():
        found = IN_LAYERS.search(name)
        if found:
            layers[found[1]] = layers.get(found[1], 0) + number * math.prod(size)
        elif shape.vocabulary not in size:
            others += number * math.prod(size)
    return max(layers.values(), default=0), others


def _traveling(workload: Workload, elements: float, packed: float = 0.0) -> float:
    """Bytes of gathered parameters, `packed` of which stay as they are held."""
    return packed * workload.element.packed + (elements - packed) * workload.element.compute


def _of_zero(workload: Workload) -> Gathered:
    """DeepSpeed's buckets, and what stage 3 gathers."""
    element, layout = workload.element, workload.layout
    bucket = workload.bucket_elements * element.trained
    largest = _largest_trained(workload) * element.trained
    if layout.stage < 3:
        # Made anew for each backward pass.
        return Gathered(head=bucket, last_layer=bucket, first_layer=bucket + largest)
    total = num_parameters(workload.shape)
    layer, _, _ = _units(workload)
    # The output layer needs one piece, which what layers leave behind is not. An adapter's small matrices before it are
    # gathered ahead together with it, into a buffer of which it becomes a copy (partition_parameters.py,
    # AllGatherCoalescedHandle).
    end = workload.shape.vocabulary * workload.shape.hidden * (1 if workload.method == "full" else 2)
    live = min(total, _REUSE_ELEMENTS / 2 + layer + workload.prefetch_elements + end)
    # On one rank its piece is the parameter.
    packed = workload.num_packed * live / total
    whole = bucket + (_traveling(workload, live, packed) if workload.num_ranks > 1 else 0.0)
    return Gathered(at_loss=whole, head=whole, last_layer=whole, first_layer=whole, step=bucket)


def _largest_trained(workload: Workload) -> int:
    """Elements of the largest tensor that is trained."""
    if workload.method == "full":
        return largest_tensor(workload.shape)
    matrices = (workload.lora_rank * max(sides) for sides in sizes_of(workload.adapted))
    of_parameters = (
        workload.lora_rank * math.prod(shape[:-2]) * max(shape[-2:]) for shape in workload.adapted_parameters.values()
    )
    return max((*matrices, *of_parameters), default=0)
