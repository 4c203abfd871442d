"""What a micro-batch gives a device to do, counted from shapes: matrix products, attention, bytes of small operations,
and how many kernels have to be started."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from allranks.plan import fsdp_copies
from allranks.plan.counted import alike
from allranks.plan.moved import (
    UNPACKING,
    Moved,
    at_the_end,
    gradients,
    in_layers,
    into_buckets,
    logits,
    tokens_of,
    unpacked,
    with_logits,
)
from allranks.plan.same import Same, sizes_of
from allranks.plan.workload import ModelShape, Workload
from allranks.plan.zero_gathers import copied

# Kernels of a forward pass in eager mode: of a layer; of each matrix with LoRA (casts, dropout, two products, scaling,
# sum); of each in 4 or 8 bits; of the embeddings, last norm and loss. Backwards there are about twice as many, started
# by C++ and not by Python.
_LAYER_KERNELS, _ADAPTER_KERNELS, _END_KERNELS = 40, 7, 30
_COMPILED_KERNELS = 15
_BACKWARD_KERNELS = 1.3
_FORWARD_CALL = 1 / 3
"""Of what a call of attention takes beside its work, forward and back."""


# Modules whose product is a dense layer's last. An expert's is weighed, and the weights' gradients want it.
_LAST = ("mlp.down_proj", "ffn.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h", "feed_forward.w2", "mlp.fc2")


@dataclass(frozen=True)
class Product:
    """`count` products of [tokens, rows] and [rows, columns]."""

    tokens: float
    rows: int
    columns: int
    count: float


@dataclass(frozen=True)
class Attended:
    """`flops` in `calls` of attention, each forward and back over a document of `tokens`, with heads of so many
    `numbers` (the mean of keys and values)."""

    tokens: float
    calls: float
    flops: float
    numbers: float


@dataclass(frozen=True)
class Work:
    """Of one pass over a micro-batch. `attended`: attention by length of documents; `moved` by operations that wait
    for memory, `logits` by those of the loss, `kernels` that are started one by one."""

    products: tuple[Product, ...]
    attended: tuple[Attended, ...]
    moved: tuple[Moved, ...]
    logits: Moved
    kernels: float


def forward(workload: Workload) -> Work:
    """All layers, embeddings, output layer and loss, forward."""
    shape, labelled = workload.shape, with_logits(workload)
    products = (*_base_products(workload), *_adapter_products(workload))
    return Work(
        (*products, Product(labelled, shape.hidden, shape.vocabulary, 1)),
        tuple(_attended(workload, 1.0, _FORWARD_CALL)),
        (
            *in_layers(workload, 0),
            unpacked(workload),
            at_the_end(workload, 0),
            copied(workload),
            fsdp_copies.copied(workload, backward=False),
        ),
        logits(workload, 0),
        _kernels_of_layers(workload) + _END_KERNELS,
    )


def backward(workload: Workload) -> Work:
    """The same backward, with recomputed layers and what each micro-batch adds to the gradients."""
    labelled, shape = with_logits(workload), workload.shape
    again = 1.0 if workload.recomputes else 0.0
    passes = 1 + (workload.method == "full")
    products = [_times(one, passes + again) for one in _base_products(workload)]
    if again and workload.stops_early:
        products += [_times(one, -1) for one in _base_products(workload, last=True)]
    products += [_times(one, 2 + again) for one in _adapter_products(workload)]
    products.append(Product(labelled, shape.hidden, shape.vocabulary, 2.0 if workload.trains_embeddings else 1.0))
    moved = [
        *in_layers(workload, 1),
        unpacked(workload),
        at_the_end(workload, 1),
        gradients(workload),
        into_buckets(workload),
        copied(workload),
        fsdp_copies.copied(workload, backward=True),
    ]
    if workload.recomputes:
        moved += [*in_layers(workload, 0), unpacked(workload)]
    return Work(
        tuple(products),
        # FlashAttention computes the scores again (Dao 2023, arXiv 2307.08691).
        tuple(_attended(workload, 2.5 + again, 1 - _FORWARD_CALL + _FORWARD_CALL * again)),
        tuple(moved),
        logits(workload, 1),
        _kernels_of_layers(workload) * (_BACKWARD_KERNELS + again) + _END_KERNELS,
    )


def optimizer_bytes(workload: Workload, num_elements: float) -> float:
    """Read and written by the optimizer's step for so many elements, the gradient's norm and its reset included."""
    element = workload.element
    states = 2 * (element.state + element.master)
    fused = 2 * element.trained + element.trained + states
    # Without one fused kernel each operation of Adam reads and writes for itself: about three times as much.
    of_step = 3 * fused if workload.foreach else fused
    of_norm = 4 * element.trained  # its square, its scaling, zeroes
    return num_elements * (of_step + of_norm)


def _kernels_of_layers(workload: Workload) -> float:
    """Started forward."""
    shape, compiled = workload.shape, workload.is_compiled
    kernels = shape.num_layers * (_COMPILED_KERNELS if compiled else _LAYER_KERNELS)
    kernels += len(workload.adapted) * (3 if compiled else _ADAPTER_KERNELS)
    if workload.num_packed:
        kernels += sum(_matrices(Same(shape)).values()) * UNPACKING[workload.packing][1]
    # Of each expert's own three products, where they are not made together.
    return kernels + 3.0 * min(shape.num_experts, 64) * (shape.num_layers - shape.num_dense_layers)


def _base_products(workload: Workload, *, last: bool = False) -> Iterator[Product]:
    """Of every matrix of the layers; an expert's gets its part of the tokens. `last`: of those alone that end a layer,
    and that nothing after them has need of."""
    shape, tokens = workload.shape, tokens_of(workload)
    adapted = any(name.endswith(_LAST) for name in workload.adapted)
    for (rows, columns, is_expert, is_last), count in _matrices(Same(shape)).items():
        if last and (not is_last or adapted):
            continue
        share = shape.experts_per_token / shape.num_experts if is_expert and shape.num_experts else 1.0
        yield Product(tokens * share, columns, rows, count)


def _adapter_products(workload: Workload) -> Iterator[Product]:
    rank, tokens = workload.lora_rank, tokens_of(workload)
    for (rows, columns), count in sizes_of(workload.adapted).items():
        yield Product(tokens, columns, rank, count)
        yield Product(tokens, rank, rows, count)


@lru_cache(maxsize=8)
def _matrices(of: Same[ModelShape]) -> Counter[tuple[int, int, bool, bool]]:
    """(rows, columns, whether of an expert, whether the last of a layer) of each matrix that all or some tokens pass,
    without those of the ends."""
    found: Counter[tuple[int, int, bool, bool]] = Counter()
    for (name, size), number in alike(of.value).items():
        if len(size) not in (2, 3) or of.value.vocabulary in size or min(size) < 2:
            continue
        is_expert = ".experts." in name or len(size) == 3
        is_last = not is_expert and name.removesuffix(".weight").endswith(_LAST)
        found[size[-2], size[-1], is_expert, is_last] += number * (size[0] if len(size) == 3 else 1)
    return found


def _attended(workload: Workload, times: float, calls: float) -> Iterator[Attended]:
    """Forward: two products of every query with the keys before it, `times` over; `calls` of each layer."""
    shape = workload.shape
    numbers = (shape.head_dim + (shape.value_head_dim or shape.head_dim)) / 2
    windowed = shape.num_windowed_layers if shape.window else 0
    row = workload.micro_batch_size * workload.tokens
    documents = [
        (tokens, number * workload.micro_batch_size) for tokens, number in workload.documents or [(workload.tokens, 1)]
    ]
    # A kernel skips what comes later in a document; under a mask all pairs of a micro-batch's one row are computed.
    is_whole = workload.attention == "eager" or (workload.masks_row and sum(number for _, number in documents) > 1)
    for tokens, number in [(float(row), 1.0)] if is_whole else documents:
        seen = tokens if is_whole else tokens / 2
        near = seen if is_whole else min(seen, shape.window or seen)
        pairs = tokens * ((shape.num_layers - windowed) * seen + windowed * near)
        yield Attended(
            tokens, calls * number * shape.num_layers, times * number * 4.0 * shape.num_heads * numbers * pairs, numbers
        )


def attended(workload: Workload) -> float:
    """Tokens of the document that a token is in, in the mean of all tokens."""
    documents = workload.documents or [(workload.tokens, 1)]
    return sum(tokens**2 * number for tokens, number in documents) / sum(
        tokens * number for tokens, number in documents
    )


def _times(product: Product, count: float) -> Product:
    return Product(product.tokens, product.rows, product.columns, product.count * count)


def useful_flops(workload: Workload) -> float:
    """Of one micro-batch without recomputation: what model FLOPs utilisation counts (Chowdhery et al. 2022, PaLM,
    appendix B), with the frozen part's missing gradients left out."""
    products = [*_base_products(workload)]
    passes = 3 if workload.method == "full" else 2
    of_base = passes * sum(map(_flops, products))
    of_adapters = 3 * sum(map(_flops, _adapter_products(workload)))
    shape, labelled = workload.shape, with_logits(workload)
    head = 2.0 * labelled * shape.hidden * shape.vocabulary * (3 if workload.trains_embeddings else 2)
    return of_base + of_adapters + head + 3 * sum(one.flops for one in _attended(workload, 1.0, _FORWARD_CALL))


def _flops(product: Product) -> float:
    return 2.0 * product.tokens * math.prod((product.rows, product.columns)) * product.count
