"""What a step is made of, piece by piece, each as something to run that takes a known number of operations or bytes.

Float32 on a CPU, bfloat16 on a GPU. A step goes through more memory than any cache holds, so what waits for memory is
measured on what is in none. On a CPU products and attention are measured on what is near, and what products fetch and
leave behind by itself: how much that is beside the work depends on their shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from allranks.cluster.measure.layer import LAYER_KERNELS, LAYERS, SMALL_BYTES, layers_of_nothing, small_operations

_PRODUCTS = {"cpu": (32, 64, 128, 256, 512, 1024), "cuda": (128, 256, 512, 1024, 2048, 4096, 8192)}
_THIN = (4, 16, 64, 256)
_THICK = {"cpu": (1024, 512), "cuda": (8192, 4096)}
"""The thinnest side of a product, and its others."""
_TENSORS = {"cpu": (2**14, 2**17, 2**20, 2**23, 2**24 - 2**16, 2**24 + 2**20), "cuda": (2**20, 2**24, 2**28, 2**30)}
_LEAST_TENSOR = 2**12
FRESH_BYTES = 2**25
_DOCUMENTS = {"cpu": (16, 32, 64, 128, 256, 512, 1024, 2048), "cuda": (128, 512, 2048, 8192)}
HEADS = {"attention": 64, "wide_attention": 128}
"""Numbers of each: a product's time grows with them, the softmax's does not (`plan.rates` counts by both)."""
_ALL_HEADS = {"cpu": 512, "cuda": 4096}
_ROW = {"cpu": 1024, "cuda": 8192}
_CALLED, _CALLED_ROW = 8, 256
"""Tokens of a document, and of a row of such, where a call of attention takes all of the time."""
_HELD = {"cpu": 2**24, "cuda": 2**31}
"""Bytes of tensors that a pass keeps before it lets them go."""
_COLD_BYTES, _FETCHED = 2**20, 8
"""Of a tensor that is fetched or left behind, and how many of each."""
_LOGITS = {"cpu": ((256, 8192), (512, 32768)), "cuda": ((256, 65536), (4096, 65536))}  # labels, vocabulary
_TRAINED = {"cpu": 2**23, "cuda": 2**28}
_TINY_OPERATIONS = 200
_BACKWARD_KERNELS = 1.3
"""As plan/work.py counts them for one forward."""
_LOGITS_BYTES, _OPTIMIZER_BYTES = 30, 44
"""For each number, as plan/work.py counts them: of cross entropy forward and backward; of a fused AdamW and the norm of
its gradients, all in float32."""
_MOST_OPERANDS = 256
_MOST_OPERATIONS = 2**29
"""Of the products of one run, on a CPU."""

Run = Callable[[], Any]


class Piece(NamedTuple):
    """`amount` of operations or bytes in each run of what `make` makes, whose parts come one after the other. `start`:
    the name of what is counted elsewhere, and how often a run holds it. `is_cold`: each part begins with caches that
    hold nothing of it, as after the rest of a step."""

    make: Callable[[], Sequence[Run]]
    amount: float = 1.0
    start: tuple[str, float] = ("", 0.0)
    is_cold: bool = False


def of_sizes(device: Any) -> Iterator[tuple[str, Mapping[int, Piece]]]:
    """What has a rate at each of several sizes."""
    kind = device.type
    yield "products", {size: _products_of(size, device) for size in _PRODUCTS[kind]}
    yield "thin", {size: _thin(size, device) for size in _THIN}
    small = _small_on_cpu if kind == "cpu" else _small
    yield "small", {size: small(size, device) for size in _TENSORS[kind]}
    for name, numbers in HEADS.items():
        yield name, {length: _attention(length, numbers, device) for length in _DOCUMENTS[kind]}
    yield "logits", {4 * rows * vocabulary: _logits(rows, vocabulary, device) for rows, vocabulary in _LOGITS[kind]}


def alone(device: Any) -> Iterator[tuple[str, Mapping[int, Piece]]]:
    """The others, and what they are measured against."""
    kernels = LAYERS * LAYER_KERNELS * (1 + _BACKWARD_KERNELS)
    yield "kernel_seconds", {0: Piece(lambda: [layers_of_nothing(device)], kernels)}
    calls = _CALLED_ROW / _CALLED if device.type == "cpu" else 1
    yield "call_seconds", {0: Piece(lambda: _row_of_documents(1, 8, _CALLED, _CALLED_ROW, device), calls)}
    yield "optimizer", {0: _optimizer(device)}
    if device.type != "cpu":
        yield "tiny", {0: Piece(lambda: [lambda: _tiny(device)])}
        return
    yield "nothing", {0: Piece(lambda: small_operations(_LEAST_TENSOR // 4, 1, device))}
    yield "cold", {0: Piece(_fetching, 3.0 * _COLD_BYTES * _FETCHED, is_cold=True)}
    yield "fresh", {0: Piece(_fresh, is_cold=True)}
    yield "kept", {0: Piece(_kept, is_cold=True)}


def _dtype(device: Any) -> Any:
    import torch

    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _tiny(device: Any) -> None:
    """Operations on nothing, forward and backward: what each costs beside its work."""
    import torch

    value = torch.ones(8, device=device, requires_grad=True)
    result = value
    for _ in range(_TINY_OPERATIONS):
        result = result * value
    result.sum().backward()


def _attention(length: int, numbers: int, device: Any) -> Piece:
    """Of documents of one length, forward and back: 2 products and 5 of them, with what is masked left out. In whole
    steps it was found as fast as on what is near, and a fifth faster than on what is not."""
    row = max(length, _ROW[device.type])
    heads = _ALL_HEADS[device.type] // numbers
    calls = row // length if device.type == "cpu" else 1
    flops = 3.5 * 4 * heads * numbers * length * row / 2
    return Piece(
        lambda: _row_of_documents(heads, numbers, length, row, device),
        flops,
        start=("call_seconds", calls * _CALLED / _CALLED_ROW if device.type == "cpu" else 1),
    )


def _row_of_documents(heads: int, numbers: int, length: int, row: int, device: Any) -> Sequence[Run]:
    """Attention of documents of `length` in a row to themselves, and back, on what linear layers give: the heads of a
    token side by side. A CPU takes one document after the other, as `model.attention` does; a GPU all at a time."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    size, kind = (1, row, heads, numbers), {"device": device, "dtype": _dtype(device)}
    given = [torch.randn(size, **kind).transpose(1, 2).requires_grad_() for _ in "qkv"]
    ahead = torch.ones(size, **kind)

    def one_by_one() -> None:
        parts = zip(*(tensor.split(length, dim=2) for tensor in given), strict=True)
        outputs = [scaled_dot_product_attention(a, b, c, is_causal=True) for a, b, c in parts]
        torch.autograd.grad(torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), given, ahead)

    def together() -> None:
        apart = (row // length, length, heads, numbers)
        a, b, c = (tensor.transpose(1, 2).view(apart).transpose(1, 2) for tensor in given)
        outputs = scaled_dot_product_attention(a, b, c, is_causal=True)
        torch.autograd.grad(outputs.transpose(1, 2).reshape(size), given, ahead)

    return [one_by_one if device.type == "cpu" else together]


def _products_of(size: int, device: Any) -> Piece:
    """On a GPU of matrices that no cache holds any more when their turn comes, as in a step."""
    import torch

    dtype = _dtype(device)
    on_cpu = device.type == "cpu"
    number = _MOST_OPERATIONS // (2 * size**3) if on_cpu else _HELD["cuda"] // (2 * size * size * dtype.itemsize)
    number = min(_MOST_OPERANDS, max(1 if on_cpu else 2, number))

    def make() -> Sequence[Run]:
        different = 1 if on_cpu else number
        pairs = [[torch.randn(size, size, device=device, dtype=dtype) for _ in "ab"] for _ in range(different)]

        def run() -> None:
            for a, b in pairs * (number // different):
                a @ b

        return [run]

    return Piece(make, number * 2.0 * size**3)


def _thin(size: int, device: Any) -> Piece:
    """Products with one thin side, as an adapter's: of [tokens, columns] and [columns, size],
    and of the two that make the gradients of both, for every side is thin once."""
    import torch

    dtype, (tokens, columns) = _dtype(device), _THICK[device.type]
    number = 1 if device.type == "cpu" else max(2, _HELD["cuda"] // (4 * dtype.itemsize * tokens * columns))

    def make() -> Sequence[Run]:
        wide = [torch.randn(tokens, columns, device=device, dtype=dtype) for _ in range(number)]
        narrow = torch.randn(columns, size, device=device, dtype=dtype)
        ahead = torch.randn(tokens, size, device=device, dtype=dtype)

        def run() -> None:
            for one in wide:
                one @ narrow
                ahead @ narrow.T
                one.T @ ahead

        return [run]

    return Piece(make, number * 3 * 2.0 * tokens * columns * size)


def _fetching() -> Sequence[Run]:
    """Of three tensors two are fetched, and one is left behind: products of numbers, next to no work."""
    import torch

    a, b, c = (torch.ones(_FETCHED, _COLD_BYTES // 4) for _ in "abc")
    return [lambda: torch.mul(a, b, out=c)]


def _small_on_cpu(num_bytes: int, device: Any) -> Piece:
    """What a layer's small operations read and write, by the bytes of their tensors: an exponential or
    a rotation takes a core longer than a product of the same bytes."""
    layers = max(1, min(8, _HELD["cpu"] // (12 * num_bytes)))  # of 12 such each layer's graph keeps
    return Piece(
        lambda: small_operations(num_bytes // 4, layers, device),
        float(layers * SMALL_BYTES * (num_bytes // 4)),
        start=("nothing", layers),
        is_cold=True,
    )


def _small(num_bytes: int, device: Any) -> Piece:
    """The same on a GPU, where all such wait for memory alone. As a pass works: on what was written long ago and is in
    no cache, and what it makes is kept."""
    import torch

    dtype, number = _dtype(device), max(2, _HELD[device.type] // num_bytes)

    def make() -> Sequence[Run]:
        size = num_bytes // dtype.itemsize
        given = [torch.ones(size, device=device, dtype=dtype) for _ in range(number + 1)]

        def run() -> None:
            kept = []
            for one in range(number):
                kept.append(given[one] * given[-1])

        return [run]

    start = ("tiny", number / (_TINY_OPERATIONS * (1 + _BACKWARD_KERNELS)))
    return Piece(make, 3.0 * num_bytes * number, start)


def _fresh() -> Sequence[Run]:
    """The first writing to what the system gives, and takes back."""
    import mmap

    import torch

    def run() -> None:
        with mmap.mmap(-1, FRESH_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as given:
            torch.frombuffer(given, dtype=torch.uint8).zero_()

    return [run]


def _kept() -> Sequence[Run]:
    """The same writing to what is there."""
    import torch

    return [torch.empty(FRESH_BYTES, dtype=torch.uint8).zero_]


def _logits(rows: int, vocabulary: int, device: Any) -> Piece:
    """The cross entropy of a chunk, its gradients included. The logits are made by a product so thin that it costs
    nothing beside."""
    import torch

    def make() -> Sequence[Run]:
        hidden, weight = torch.randn(rows, 4, device=device), torch.randn(4, vocabulary, device=device)
        labels = torch.zeros(rows, 1, dtype=torch.int64, device=device)
        # Kept: whether an allocator has so much left is chance, and what fresh memory costs is measured by itself.
        kept = torch.empty(rows, vocabulary, device=device)

        def run() -> None:
            logits = torch.mm(hidden, weight, out=kept)
            logits -= logits.amax(1, keepdim=True)
            logits.gather(1, labels).sum()
            logits.exp_()
            logits *= 1 / logits.sum(1, keepdim=True)
            logits.scatter_add_(1, labels, -torch.ones_like(labels, dtype=logits.dtype))

        return [run]

    return Piece(make, float(_LOGITS_BYTES * rows * vocabulary), is_cold=device.type == "cpu")


def _optimizer(device: Any) -> Piece:
    import torch

    number = _TRAINED[device.type]

    def make() -> Sequence[Run]:
        weights = [torch.nn.Parameter(torch.zeros(number // 8, device=device)) for _ in range(8)]
        optimizer = torch.optim.AdamW(weights, fused=True)

        def run() -> None:
            for weight in weights:
                weight.grad = torch.ones_like(weight) if weight.grad is None else weight.grad
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()

        return [run]

    return Piece(make, float(_OPTIMIZER_BYTES * number), is_cold=device.type == "cpu")
