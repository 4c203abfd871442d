"""What making the loss takes: logits, and the gradients that are made with them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from allranks.plan.workload import Workload

_FLOAT = 4
# Numbers of a chunk, and chunks at most.
_CHUNK_NUMBERS, _MOST_CHUNKS = 2**24, 20


@dataclass(frozen=True)
class LossMemory:
    """Bytes: `making`, at its fullest; `leaving`, when the backward pass is in the output layer; `kept` of them in the
    last layer; `joining`, where the embedding has the same weight, when its gradient comes."""

    making: float
    leaving: float
    kept: float
    joining: float = 0.0


def loss_memory(workload: Workload) -> LossMemory:
    """Of one micro-batch."""
    return _in_chunks(workload) if workload.chunks_logits else _in_full(workload)


def rows_of_a_chunk(labels: float, vocabulary: int) -> float:
    """Labels whose logits are there together, as model.chunked has them."""
    return min(labels, max(1, _CHUNK_NUMBERS // vocabulary, math.ceil(labels / _MOST_CHUNKS)))


def _in_chunks(workload: Workload) -> LossMemory:
    """The engine's own: logits of labels only, a chunk at a time, whose gradients are made at once."""
    shape, element = workload.shape, workload.element
    labels = workload.tokens * workload.micro_batch_size * workload.labelled
    rows = rows_of_a_chunk(labels, shape.vocabulary)
    is_rounded = element.compute < _FLOAT
    # In 16 bits the product and its float32 copy are there together, later the gradient and its rounded copy.
    chunk = rows * shape.vocabulary * (_FLOAT + (element.compute if is_rounded else 0))
    head = shape.vocabulary * shape.hidden
    of_weight = head * _FLOAT if workload.trains_embeddings else 0.0
    autocasts = workload.layout.kind == "ddp" and element.compute != element.trained
    cast = head * element.compute if autocasts and workload.method == "full" else 0.0
    # A chunk's part of the weight's gradient; a CPU adds it by way of a float32 copy.
    product = head * (element.compute + (_FLOAT if workload.on_cpu else 0)) if is_rounded and of_weight else 0.0
    # Hidden states of labels, and their gradient; torch's own function, which makes it in float32, has one more.
    chosen = labels * shape.hidden * element.compute
    copies = 3 if of_weight and not is_rounded else 2
    making = max(chunk, product) + of_weight + cast + copies * chosen
    leaving = of_weight + chosen
    if of_weight and is_rounded and not autocasts:
        leaving += head * element.compute  # in the type of a gathered weight
    # It has been reduced by then, or lies in a bucket, unless there is one process or the embedding's is waited for.
    in_buckets = workload.layout.kind == "ddp" and workload.num_ranks > 1
    is_kept = shape.is_tied or (workload.layout.kind == "ddp" and not in_buckets)
    kept = leaving - (of_weight if in_buckets else 0.0) if is_kept else 0.0
    return LossMemory(making, leaving, kept, joining=of_weight if shape.is_tied else 0.0)


def _in_full(workload: Workload) -> LossMemory:
    """As PyTorch makes it: logits, their float32 copy and the softmax's logarithm, from which the gradients come back.

    Other trainers make them of every position, and shift labels by a copy of the logits.
    """
    element, shape = workload.element, workload.shape
    tokens = workload.tokens * workload.micro_batch_size
    positions = tokens if workload.shifts_logits else tokens * workload.labelled
    upcasts = workload.upcasts_logits and element.compute < _FLOAT
    made = element.compute * (2 if workload.shifts_logits else 1)
    of_softmax = _FLOAT if workload.upcasts_logits else element.compute
    forward = made + of_softmax * (2 if upcasts else 1)
    backward = 3 * of_softmax  # the logarithm, its gradient, and that of what went into it
    hidden = 2 * positions * shape.hidden * element.compute
    logits = positions * shape.vocabulary
    return LossMemory(making=logits * forward + hidden, leaving=logits * backward + hidden, kept=0.0)
