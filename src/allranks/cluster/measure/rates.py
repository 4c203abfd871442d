"""At which rates one device does what a step is made of; run in a child, which may hang or die without harm.

Each measurement is short and repeated, and the median counts. On a CPU time is that of the main thread on a core, which
works as long as its helpers do: what other programs take from it is none of the machine's rates. Float32 on a CPU,
bfloat16 on a GPU.
"""

from __future__ import annotations

import mmap
import statistics
import time
from collections.abc import Callable
from typing import Any

from allranks.cluster.measure.layer import LAYER_KERNELS, LAYERS, SMALL_BYTES, layers_of_nothing, small_operations

_PRODUCTS = {"cpu": (32, 64, 128, 256, 512, 1024), "cuda": (128, 256, 512, 1024, 2048, 4096, 8192)}
_THIN = (4, 16, 64, 256)
_THICK = {"cpu": (1024, 512), "cuda": (8192, 4096)}
"""The thinnest side of a product, and its others."""
_TENSORS = {"cpu": (2**14, 2**17, 2**20, 2**23, 2**24 - 2**16, 2**24 + 2**20), "cuda": (2**20, 2**24, 2**28, 2**30)}
_LEAST_TENSOR = 2**12
_FRESH = 2**25
_DOCUMENTS = {"cpu": (16, 32, 64, 128, 256, 512, 1024, 2048), "cuda": (128, 512, 2048, 8192)}
_HEADS = {"cpu": (8, 64), "cuda": (32, 128)}  # of a layer, and numbers of each
_ROW = {"cpu": 1024, "cuda": 8192}
_HELD = {"cpu": 2**26, "cuda": 2**31}
"""Bytes of tensors that a pass keeps before it lets them go."""
_LOGITS = {"cpu": ((256, 8192), (512, 32768)), "cuda": ((256, 65536), (4096, 65536))}  # labels, vocabulary
_TRAINED = {"cpu": 2**22, "cuda": 2**28}
_TINY_OPERATIONS = 200
_BACKWARD_KERNELS = 1.3
"""As plan/work.py counts them for one forward."""
_LOGITS_BYTES, _OPTIMIZER_BYTES = 30, 44
"""For each number, as plan/work.py counts them: of cross entropy forward and backward; of a fused AdamW and the norm of
its gradients, all in float32."""
_MOST_OPERANDS = 256
_LEAST_REPEATS, _MOST_REPEATS = 3, 100


def measure_rates(device: Any, seconds: float, tell: Callable[..., None]) -> None:
    """Tell each rate as soon as it is known; `seconds` for all of them together."""
    import torch

    kind = device.type
    dtype = torch.bfloat16 if kind == "cuda" else torch.float32
    many = (_PRODUCTS[kind], _THIN, _TENSORS[kind], _DOCUMENTS[kind], _LOGITS[kind])
    each = seconds / (sum(map(len, many)) + 6)

    def timed(work: Callable[[], Any]) -> float:
        return _seconds(work, device, each)

    products = []
    for size in _PRODUCTS[kind]:
        number = min(_MOST_OPERANDS, max(2, _HELD[kind] // (2 * size * size * dtype.itemsize)))
        taken = timed(_products_of(size, number, device, dtype)) / number
        products.append((float(size), 2 * size**3 / taken))
    tell(products=products, thin=[(float(size), _thin_rate(size, device, dtype, timed)) for size in _THIN])
    tell(kernel_seconds=timed(layers_of_nothing(device)) / (LAYERS * LAYER_KERNELS * (1 + _BACKWARD_KERNELS)))
    tell(small=_small_on_cpu(device, timed) if kind == "cpu" else _small(device, dtype, timed))
    if kind == "cpu":
        tell(fresh_seconds=_fresh_seconds(timed))
    call = _call_seconds(device, dtype, timed)
    tell(call_seconds=call, attention=_attention(device, dtype, call, timed))
    tell(logits=_logits(device, timed), optimizer=_optimizer(device, timed))


def _seconds(work: Callable[[], Any], device: Any, budget: float) -> float:
    """The median of as many times as the budget has room for."""
    import torch

    on_gpu = device.type == "cuda"
    clock = time.perf_counter if on_gpu else time.thread_time
    work()
    times: list[float] = []
    end = time.perf_counter() + budget
    while len(times) < _LEAST_REPEATS or (len(times) < _MOST_REPEATS and time.perf_counter() < end):
        begun = clock()
        work()
        if on_gpu:
            torch.cuda.synchronize(device)
        times.append(clock() - begun)
    return max(statistics.median(times), 1e-9)


def _tiny(device: Any) -> None:
    """Operations on nothing, forward and backward: what each costs beside its work."""
    import torch

    value = torch.ones(8, device=device, requires_grad=True)
    result = value
    for _ in range(_TINY_OPERATIONS):
        result = result * value
    result.sum().backward()


def _attention(
    device: Any, dtype: Any, call_seconds: float, timed: Callable[[Callable[[], Any]], float]
) -> list[tuple[float, float]]:
    """Operations a second by length of documents, forward and backward: 2 products forward, 5 backward, with what is
    masked left out. What each call takes beside its work is counted elsewhere."""
    heads, numbers = _HEADS[device.type]
    rates = []
    for length in _DOCUMENTS[device.type]:
        row = max(length, _ROW[device.type])
        calls = row // length if device.type == "cpu" else 1
        taken = timed(_row_of_documents(device, dtype, heads, numbers, length, row))
        taken = max(taken - calls * call_seconds, taken / 2)
        rates.append((float(length), 3.5 * 4 * heads * numbers * length * row / 2 / taken))
    return rates


def _call_seconds(device: Any, dtype: Any, timed: Callable[[Callable[[], Any]], float]) -> float:
    """What a call takes beside its work, forward and backward: of next to nothing."""
    length, row = 8, 256
    return timed(_row_of_documents(device, dtype, 1, 8, length, row)) * (length / row if device.type == "cpu" else 1)


def _row_of_documents(device: Any, dtype: Any, heads: int, numbers: int, length: int, row: int) -> Callable[[], None]:
    """Attention of documents of `length` in a row to themselves, and back. A CPU takes one after the other, as
    `model.attention` does; a GPU all at a time."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    q, k, v = (
        torch.randn(1, heads, row, numbers, device=device, dtype=dtype, requires_grad=True) for _ in ("q", "k", "v")
    )
    ahead = torch.ones(1, row, heads, numbers, device=device, dtype=dtype)

    def one_by_one() -> None:
        parts = zip(*(tensor.split(length, dim=2) for tensor in (q, k, v)), strict=True)
        outputs = [scaled_dot_product_attention(a, b, c, is_causal=True) for a, b, c in parts]
        torch.cat(outputs, dim=2).transpose(1, 2).contiguous().backward(ahead)

    def together() -> None:
        a, b, c = (
            tensor.view(heads, row // length, length, numbers).transpose(0, 1).contiguous() for tensor in (q, k, v)
        )
        outputs = scaled_dot_product_attention(a, b, c, is_causal=True)
        outputs.permute(0, 2, 1, 3).reshape(ahead.shape).backward(ahead)

    return one_by_one if device.type == "cpu" else together


def _products_of(size: int, number: int, device: Any, dtype: Any) -> Callable[[], None]:
    """Of matrices that no cache holds any more when their turn comes, as in a step."""
    import torch

    pairs = [[torch.randn(size, size, device=device, dtype=dtype) for _ in "ab"] for _ in range(number)]

    def work() -> None:
        for a, b in pairs:
            a @ b

    return work


def _thin_rate(size: int, device: Any, dtype: Any, timed: Callable[[Callable[[], Any]], float]) -> float:
    """Operations a second of products with one thin side, as an adapter's: of [tokens, columns] and [columns, size],
    and of the two that make the gradients of both, for every side is thin once."""
    import torch

    tokens, columns = _THICK[device.type]
    number = max(2, _HELD[device.type] // (4 * dtype.itemsize * tokens * columns))
    wide = [torch.randn(tokens, columns, device=device, dtype=dtype) for _ in range(number)]
    narrow = torch.randn(columns, size, device=device, dtype=dtype)
    ahead = torch.randn(tokens, size, device=device, dtype=dtype)

    def work() -> None:
        for one in wide:
            one @ narrow
            ahead @ narrow.T
            one.T @ ahead

    return number * 3 * 2 * tokens * columns * size / timed(work)


def _small_on_cpu(device: Any, timed: Callable[[Callable[[], Any]], float]) -> list[tuple[float, float]]:
    """Bytes a second that a layer's small operations read and write, by the bytes of their tensors: an exponential or
    a rotation takes a core longer than a product of the same bytes. Their start is counted elsewhere."""
    few = 2
    start = timed(small_operations(_LEAST_TENSOR // 4, few, device)) / few
    rates = []
    for num_bytes in _TENSORS["cpu"]:
        layers = max(1, min(8, _HELD["cpu"] // (12 * num_bytes)))  # of 12 such each layer's graph keeps
        taken = timed(small_operations(num_bytes // 4, layers, device)) / layers
        rates.append((float(num_bytes), SMALL_BYTES * (num_bytes // 4) / max(taken - start, taken / 2)))
    return rates


def _small(device: Any, dtype: Any, timed: Callable[[Callable[[], Any]], float]) -> list[tuple[float, float]]:
    """The same on a GPU, where all such wait for memory alone."""
    start = timed(lambda: _tiny(device)) / (_TINY_OPERATIONS * (1 + _BACKWARD_KERNELS))
    rates = []
    for num_bytes in _TENSORS[device.type]:
        number = max(2, _HELD[device.type] // num_bytes)
        taken = timed(_pass_over(num_bytes // dtype.itemsize, number, device, dtype)) / number
        # The operation's own start is counted elsewhere; what is left of a small one is little.
        rates.append((float(num_bytes), 3 * num_bytes / max(taken - start, taken / 2)))
    return rates


def _fresh_seconds(timed: Callable[[Callable[[], Any]], float]) -> float:
    """What a byte costs that the system gives for a first writing and takes back, beside the writing."""
    import torch

    kept = torch.empty(_FRESH, dtype=torch.uint8)

    def work() -> None:
        with mmap.mmap(-1, _FRESH, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as given:
            torch.frombuffer(given, dtype=torch.uint8).zero_()

    return max(timed(work) - timed(kept.zero_), 0.0) / _FRESH


def _pass_over(size: int, number: int, device: Any, dtype: Any) -> Callable[[], None]:
    """As a pass works: on what was written long ago and is in no cache, and what it makes is kept. Memory that comes
    fresh from the system is dearer than any operation on it."""
    import torch

    given = [torch.ones(size, device=device, dtype=dtype) for _ in range(number + 1)]

    def work() -> None:
        kept = []
        for one in range(number):
            kept.append(given[one] * given[-1])

    return work


def _logits(device: Any, timed: Callable[[Callable[[], Any]], float]) -> list[tuple[float, float]]:
    """Bytes a second in the cross entropy of a chunk, its gradients included, by the chunk's bytes. They are made by a
    product so thin that it costs nothing beside."""
    import torch

    rates = []
    for rows, vocabulary in _LOGITS[device.type]:
        hidden, weight = torch.randn(rows, 4, device=device), torch.randn(4, vocabulary, device=device)
        labels = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        # Kept: whether an allocator has so much left is chance, and what fresh memory costs is measured by itself.
        kept = torch.empty(rows, vocabulary, device=device)

        def work(hidden: Any = hidden, weight: Any = weight, labels: Any = labels, kept: Any = kept) -> None:
            logits = torch.mm(hidden, weight, out=kept)
            logits -= logits.amax(1, keepdim=True)
            logits.gather(1, labels).sum()
            logits.exp_()
            logits *= 1 / logits.sum(1, keepdim=True)
            logits.scatter_add_(1, labels, -torch.ones_like(labels, dtype=logits.dtype))

        rates.append((4.0 * rows * vocabulary, _LOGITS_BYTES * rows * vocabulary / timed(work)))
    return rates


def _optimizer(device: Any, timed: Callable[[Callable[[], Any]], float]) -> float:
    import torch

    number = _TRAINED[device.type]
    weights = [torch.nn.Parameter(torch.zeros(number // 8, device=device)) for _ in range(8)]
    optimizer = torch.optim.AdamW(weights, fused=True)

    def step() -> None:
        for weight in weights:
            weight.grad = torch.ones_like(weight) if weight.grad is None else weight.grad
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()

    return _OPTIMIZER_BYTES * number / timed(step)
