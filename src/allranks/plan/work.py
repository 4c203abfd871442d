"""What a micro-batch gives a device to do, counted from shapes: matrix products, attention, bytes of small operations,
and how many kernels have to be started."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from allranks.plan.workload import ModelShape, Packing, Workload

# Bytes that the small operations of Hugging Face's eager layers read and write, forward and backward, for each number
# of the tensor they work on, counted in transformers' modeling_llama.py for a type of 2 and of 4 bytes. One pass of a
# fused kernel (torch.compile) reads and writes each number once, and backward what came in forward, too.
_NORM = {2: (36, 60), 4: (28, 52)}  # to float32, square, mean, scale, back, weight
_ROTARY = {2: (20, 20), 4: (40, 40)}  # negate, concatenate, two products, a sum
_GATE = {2: (10, 20), 4: (20, 40)}  # the activation, and its product with the other half
_RESIDUAL = {2: (6, 6), 4: (12, 12)}
_LOGITS = (15, 15)  # to float32, log-softmax; its gradient, back

# Kernels of a forward pass in eager mode: of a layer; of each matrix with LoRA (casts, dropout, two products, scaling,
# sum); of each in 4 or 8 bits; of the embeddings, last norm and loss. Backwards there are about twice as many, started
# by C++ and not by Python.
_LAYER_KERNELS, _ADAPTER_KERNELS, _END_KERNELS = 40, 7, 30
_COMPILED_KERNELS = 15
_BACKWARD_KERNELS = 1.3


# Unpacking a weight, by who does it: bytes read and written for each element beside its packed ones, and kernels.
# bitsandbytes writes the result at once; AutoGPTQ's PyTorch path shifts, masks, shifts by zero points and scales, in
# tensors of 4 and 2 bytes (auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py).
_UNPACKING: Mapping[Packing, tuple[float, int]] = {"bitsandbytes": (2, 3), "gptq": (22, 10)}


@dataclass(frozen=True)
class Product:
    """`count` products of [tokens, rows] and [rows, columns]."""

    tokens: float
    rows: int
    columns: int
    count: float


@dataclass(frozen=True)
class Moved:
    """`num_bytes` read and written by operations on tensors of `tensor_bytes`, which a cache may hold."""

    tensor_bytes: float
    num_bytes: float


@dataclass(frozen=True)
class Work:
    """Of one pass over a micro-batch. `attention_flops` of the device's matrix units, `moved` by operations that wait
    for memory, `logits_bytes` by those of the loss, `kernels` that are started one by one."""

    products: tuple[Product, ...]
    attention_flops: float
    moved: tuple[Moved, ...]
    logits_bytes: float
    kernels: float


def forward(workload: Workload) -> Work:
    """All layers, embeddings, output layer and loss, forward."""
    shape, labelled = workload.shape, _with_logits(workload)
    products = (*_base_products(workload), *_adapter_products(workload))
    return Work(
        (*products, Product(labelled, shape.hidden, shape.vocabulary, 1)),
        _attention_flops(workload),
        (*_in_layers(workload, 0), _unpacked(workload), _at_the_end(workload, 0)),
        labelled * shape.vocabulary * _LOGITS[0],
        _kernels_of_layers(workload) + _END_KERNELS,
    )


def backward(workload: Workload) -> Work:
    """The same backward, with recomputed layers and what each micro-batch adds to the gradients."""
    labelled, shape = _with_logits(workload), workload.shape
    again = 1.0 if workload.recomputes else 0.0
    products = [_times(one, 1 + again + (workload.method == "full")) for one in _base_products(workload)]
    products += [_times(one, 2 + again) for one in _adapter_products(workload)]
    products.append(Product(labelled, shape.hidden, shape.vocabulary, 2.0 if workload.trains_embeddings else 1.0))
    moved = [*_in_layers(workload, 1), _unpacked(workload), _at_the_end(workload, 1), _gradients(workload)]
    if workload.recomputes:
        moved += [*_in_layers(workload, 0), _unpacked(workload)]
    return Work(
        tuple(products),
        # FlashAttention computes the scores again (Dao 2023, arXiv 2307.08691).
        _attention_flops(workload) * (2.5 + again),
        tuple(moved),
        labelled * shape.vocabulary * _LOGITS[1],
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
        kernels += sum(_matrices(_Same(shape)).values()) * _UNPACKING[workload.packing][1]
    # Of each expert's own three products, where they are not made together.
    return kernels + 3.0 * min(shape.num_experts, 64) * (shape.num_layers - shape.num_dense_layers)


def _base_products(workload: Workload) -> Iterator[Product]:
    """Of every matrix of the layers; an expert's gets its part of the tokens."""
    shape, tokens = workload.shape, _tokens(workload)
    for (rows, columns, is_expert), count in _matrices(_Same(shape)).items():
        share = shape.experts_per_token / shape.num_experts if is_expert and shape.num_experts else 1.0
        yield Product(tokens * share, columns, rows, count)


def _adapter_products(workload: Workload) -> Iterator[Product]:
    rank, tokens = workload.lora_rank, _tokens(workload)
    for (rows, columns), count in Counter(workload.adapted.values()).items():
        yield Product(tokens, columns, rank, count)
        yield Product(tokens, rank, rows, count)


@dataclass(frozen=True, eq=False)
class _Same:
    """A shape, the same only as itself: to compare its thousands of tensors would take longer than to count them."""

    shape: ModelShape

    def __hash__(self) -> int:
        return id(self.shape)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.shape is self.shape


@lru_cache(maxsize=8)
def _matrices(of: _Same) -> Counter[tuple[int, int, bool]]:
    """(rows, columns, whether of an expert) of each matrix that all or some tokens pass, without those of the ends."""
    found: Counter[tuple[int, int, bool]] = Counter()
    for name, size in of.shape.tensors.items():
        if len(size) not in (2, 3) or of.shape.vocabulary in size or min(size) < 2:
            continue
        is_expert = ".experts." in name or len(size) == 3
        found[size[-2], size[-1], is_expert] += size[0] if len(size) == 3 else 1
    return found


def _in_layers(workload: Workload, way: int) -> Iterator[Moved]:
    """By the layers' small operations and eager attention's scores; `way` 0 is forward, 1 backward."""
    shape = workload.shape
    size = _tokens(workload) * workload.element.compute
    heads = (shape.num_heads + shape.num_kv_heads) * shape.head_dim
    width = shape.intermediate * (shape.experts_per_token or 1) + shape.shared_intermediate
    norm, residual, rotary, gate = (
        float(_bytes_each(table, workload)[way]) for table in (_NORM, _RESIDUAL, _ROTARY, _GATE)
    )
    if workload.is_compiled:
        # Norm and residual in one kernel, the rotation in another, the gate in a third.
        each = workload.element.compute * (1, 1.5)[way]
        norm, residual, rotary, gate = 4 * each, 0.0, 2 * each, 3 * each
    for numbers, bytes_each in ((2 * shape.hidden, norm + residual), (heads, rotary), (width, gate)):
        yield Moved(size * min(numbers, width), _tokens(workload) * shape.num_layers * numbers * bytes_each)
    if workload.adapted:
        yield Moved(size * shape.hidden, _tokens(workload) * _moved_by_adapters(workload, way))
    if workload.attention == "eager":
        # Mask, softmax in float32 and cast, each read and written.
        scores = shape.num_heads * workload.tokens**2 * workload.micro_batch_size * workload.element.compute
        yield Moved(scores, shape.num_layers * scores * 8.0)


def _moved_by_adapters(workload: Workload, way: int) -> float:
    """Bytes for one token in all adapters: PEFT's casts, dropout, scaling and sum (peft/tuners/lora/layer.py). Backward
    a gradient goes the same way back, and is added to that of the layer's input."""
    compute, trained = workload.element.compute, workload.element.trained
    casts = 2 * (compute + trained) if trained != compute else 0.0
    dropout = 2 * trained + 1 if workload.lora_dropout else 0.0
    of_input = casts + dropout + (0, 3 * compute)[way]
    of_output = (5, 2)[way] * compute
    if workload.is_compiled:
        of_input, of_output = of_input / 2, 2 * compute
    return float(sum(columns * of_input + rows * of_output for rows, columns in workload.adapted.values()))


def _unpacked(workload: Workload) -> Moved:
    """A pass over weights in 4 or 8 bits reads and writes them to have them in the computing type."""
    written = _UNPACKING[workload.packing][0] * workload.element.compute / 2
    num_bytes = workload.num_packed * (workload.element.packed + written)
    return Moved(num_bytes, num_bytes)


def _at_the_end(workload: Workload, way: int) -> Moved:
    """The last norm."""
    numbers = _tokens(workload) * workload.shape.hidden
    return Moved(numbers * workload.element.compute, numbers * _bytes_each(_NORM, workload)[way])


def _gradients(workload: Workload) -> Moved:
    """Of each trained element one is written, and from the second micro-batch on added to what is there."""
    num_bytes = workload.num_trained * workload.element.trained
    return Moved(num_bytes, num_bytes * (3 if workload.num_micro_batches > 1 else 1))


def _attention_flops(workload: Workload) -> float:
    """Forward: two products of every query with the keys before it."""
    shape, length = workload.shape, float(workload.tokens)
    widths = shape.num_heads * (shape.head_dim + (shape.value_head_dim or shape.head_dim))
    windowed = shape.num_windowed_layers if shape.window else 0
    # A kernel skips what comes later; eager attention computes it and masks it.
    is_whole = workload.attention == "eager"
    seen = length if is_whole else length / 2
    near = seen if is_whole else min(seen, shape.window or seen)
    pairs = length * ((shape.num_layers - windowed) * seen + windowed * near)
    return 2.0 * widths * pairs * workload.micro_batch_size


def _tokens(workload: Workload) -> float:
    return float(workload.micro_batch_size * workload.tokens)


def _with_logits(workload: Workload) -> float:
    """Tokens whose logits are computed: in chunks, only those with a label."""
    return _tokens(workload) * (workload.labelled if workload.chunks_logits else 1.0)


def _bytes_each(table: Mapping[int, tuple[int, int]], workload: Workload) -> tuple[int, int]:
    return table[4 if workload.element.compute > 2 else 2]


def _times(product: Product, count: float) -> Product:
    return Product(product.tokens, product.rows, product.columns, product.count * count)


def useful_flops(workload: Workload) -> float:
    """Of one micro-batch without recomputation: what model FLOPs utilisation counts (Chowdhery et al. 2022, PaLM,
    appendix B), with the frozen part's missing gradients left out."""
    products = [*_base_products(workload)]
    passes = 3 if workload.method == "full" else 2
    of_base = passes * sum(map(_flops, products))
    of_adapters = 3 * sum(map(_flops, _adapter_products(workload)))
    shape, labelled = workload.shape, _with_logits(workload)
    head = 2.0 * labelled * shape.hidden * shape.vocabulary * (3 if workload.trains_embeddings else 2)
    return of_base + of_adapters + head + 3 * _attention_flops(workload)


def _flops(product: Product) -> float:
    return 2.0 * product.tokens * math.prod((product.rows, product.columns)) * product.count
