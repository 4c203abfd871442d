"""What of a micro-batch waits for memory, counted from shapes: bytes that its small operations read and write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from allranks.plan.activations import has_query_norms
from allranks.plan.loss_memory import rows_of_a_chunk
from allranks.plan.same import sizes_of
from allranks.plan.workload import Packing, Workload

# Bytes that the small operations of Hugging Face's eager layers read and write, forward and backward, for each number
# of the tensor they work on, counted in transformers' modeling_llama.py for a type of 2 and of 4 bytes. One pass of a
# fused kernel (torch.compile) reads and writes each number once, and backward what came in forward, too.
_NORM = {2: (36, 60), 4: (28, 88)}  # to float32, square, mean, scale, back, weight
_ROTARY = {2: (20, 20), 4: (40, 56)}  # negate, concatenate, two products, a sum
_GATE = {2: (10, 20), 4: (20, 36)}  # the activation, and its product with the other half
_RESIDUAL = {2: (6, 6), 4: (12, 30)}  # and the sum of the gradients of what several products read
_LOGITS = (15, 15)  # to float32, log-softmax; its gradient, back
# Of all logits at once, by torch's kernels (aten/src/ATen/native/cuda/SoftMax.cu): log-softmax reads a row three times
# and writes it, its gradient comes of zeroes and of two readings of both. In 16 bits, or cast to float32 and back.
_ALL_LOGITS = {2: (8, 12), 4: (22, 30)}
_SHIFTED = (4, 6)  # copied without the last token; its gradient into zeroes

# Unpacking a weight, by who does it: bytes read and written for each element beside its packed ones, and kernels.
# bitsandbytes writes the result at once; AutoGPTQ's PyTorch path shifts, masks, shifts by zero points and scales, in
# tensors of 4 and 2 bytes (auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py).
UNPACKING: Mapping[Packing, tuple[float, int]] = {"bitsandbytes": (2, 3), "gptq": (22, 10)}


@dataclass(frozen=True)
class Moved:
    """`num_bytes` read and written by operations on tensors of `tensor_bytes`, which a cache may hold."""

    tensor_bytes: float
    num_bytes: float


def in_layers(workload: Workload, way: int) -> Iterator[Moved]:
    """By the layers' small operations and eager attention's scores; `way` 0 is forward, 1 backward."""
    shape = workload.shape
    size = tokens_of(workload) * workload.element.compute
    queries, keys = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    width = shape.intermediate * (shape.experts_per_token or 1) + shape.shared_intermediate
    norm, residual, rotary, gate = (
        float(_bytes_each(table, workload)[way]) for table in (_NORM, _RESIDUAL, _ROTARY, _GATE)
    )
    query_norm = norm if has_query_norms(shape) else 0.0
    if workload.is_compiled:
        # Norm and residual in one kernel, the rotation in another, the gate in a third.
        each = workload.element.compute * (1, 1.5)[way]
        norm, residual, rotary, gate = 4 * each, 0.0, 2 * each, 3 * each
        query_norm = 2 * each if query_norm else 0.0
    rotary += query_norm
    for tensors, numbers, bytes_each in (
        (2, shape.hidden, norm + residual),
        (1, queries, rotary),
        (1, keys, rotary),
        (1, width, gate),
    ):
        yield Moved(size * numbers, tensors * tokens_of(workload) * shape.num_layers * numbers * bytes_each)
    if workload.adapted:
        yield Moved(size * shape.hidden, tokens_of(workload) * _moved_by_adapters(workload, way))
    if workload.attention == "eager":
        # Mask, softmax in float32 and cast, each read and written.
        scores = shape.num_heads * tokens_of(workload) ** 2 * workload.element.compute
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
    sizes = sizes_of(workload.adapted).items()
    return float(sum(number * (columns * of_input + rows * of_output) for (rows, columns), number in sizes))


def unpacked(workload: Workload) -> Moved:
    """A pass over weights in 4 or 8 bits reads and writes them to have them in the computing type."""
    written = UNPACKING[workload.packing][0] * workload.element.compute / 2
    num_bytes = workload.num_packed * (workload.element.packed + written)
    return Moved(num_bytes, num_bytes)


def at_the_end(workload: Workload, way: int) -> Moved:
    """The last norm."""
    numbers = tokens_of(workload) * workload.shape.hidden
    return Moved(numbers * workload.element.compute, numbers * _bytes_each(_NORM, workload)[way])


def logits(workload: Workload, way: int) -> Moved:
    """By the loss, which makes them a chunk at a time where it can."""
    labelled, vocabulary = with_logits(workload), workload.shape.vocabulary
    rows = rows_of_a_chunk(labelled, vocabulary) if workload.chunks_logits else labelled
    return Moved(4 * rows * vocabulary, labelled * vocabulary * _of_a_logit(workload, way))


def _of_a_logit(workload: Workload, way: int) -> float:
    if workload.chunks_logits or workload.on_cpu:  # whose caches hold a row, and whose rate is measured by these bytes
        return _LOGITS[way]
    shifted = _SHIFTED[way] if workload.shifts_logits else 0
    return _ALL_LOGITS[4 if workload.upcasts_logits else 2][way] + shifted


def gradients(workload: Workload) -> Moved:
    """Of each trained element one is written, and from the second micro-batch on added to what is there, a matrix at a
    time."""
    num_bytes = workload.num_trained * workload.element.trained
    matrix = workload.shape.hidden * (workload.lora_rank or workload.shape.hidden) * workload.element.trained
    return Moved(matrix, num_bytes * (3 if workload.num_micro_batches > 1 else 1))


def into_buckets(workload: Workload) -> Moved:
    """In the mean of a step's micro-batches: DDP copies each gradient into its bucket once."""
    copies = workload.layout.kind == "ddp" and workload.num_ranks > 1
    num_bytes = 2.0 * workload.num_trained * workload.element.trained if copies else 0.0
    return Moved(min(num_bytes / 2, workload.bucket_bytes), num_bytes / workload.num_micro_batches)


def tokens_of(workload: Workload) -> float:
    return float(workload.micro_batch_size * workload.tokens)


def with_logits(workload: Workload) -> float:
    """Tokens whose logits are computed: in chunks, only those with a label."""
    return tokens_of(workload) * (workload.labelled if workload.chunks_logits else 1.0)


def _bytes_each(table: Mapping[int, tuple[int, int]], workload: Workload) -> tuple[int, int]:
    return table[4 if workload.element.compute > 2 else 2]
