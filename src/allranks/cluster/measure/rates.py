"""At which rates one device does what a step is made of; run in a child, which may hang or die without harm.

Each measurement is short and repeated, and the median counts. On a CPU time is that of the main thread on a core, which
works as long as its helpers do: what other programs take from it is none of the machine's rates. Float32 on a CPU,
bfloat16 on a GPU.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

_PRODUCTS = {"cpu": (32, 64, 128, 256, 512, 1024), "cuda": (128, 256, 512, 1024, 2048, 4096, 8192)}
_TENSORS = {"cpu": (2**14, 2**17, 2**20, 2**23, 2**25), "cuda": (2**20, 2**24, 2**28, 2**30)}
_ATTENTION = {"cpu": (4, 512, 64), "cuda": (32, 4096, 128)}  # heads, tokens, numbers of a head
_LOGITS = {"cpu": (256, 8192), "cuda": (4096, 65536)}
_TRAINED = {"cpu": 2**22, "cuda": 2**28}
_TINY_OPERATIONS = 200
_BACKWARD_KERNELS = 1.3
"""As plan/work.py counts them for one forward."""
_LOGITS_BYTES, _OPTIMIZER_BYTES = 30, 44
"""For each number, as plan/work.py counts them: of cross entropy forward and backward; of a fused AdamW and the norm of
its gradients, all in float32."""
_LEAST_REPEATS, _MOST_REPEATS = 3, 100


def measure_rates(device: Any, seconds: float, tell: Callable[..., None]) -> None:
    """Tell each rate as soon as it is known; `seconds` for all of them together."""
    import torch

    kind = device.type
    dtype = torch.bfloat16 if kind == "cuda" else torch.float32
    each = seconds / (len(_PRODUCTS[kind]) + len(_TENSORS[kind]) + 4)

    def timed(work: Callable[[], Any]) -> float:
        return _seconds(work, device, each)

    products = []
    for size in _PRODUCTS[kind]:
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in "ab")
        products.append((float(size), 2 * size**3 / timed(partial(torch.matmul, a, b))))
    tell(products=products)
    kernel = timed(lambda: _tiny(device)) / (_TINY_OPERATIONS * (1 + _BACKWARD_KERNELS))
    tell(kernel_seconds=kernel)
    small = []
    for num_bytes in _TENSORS[kind]:
        a, b = (torch.ones(num_bytes // dtype.itemsize, device=device, dtype=dtype) for _ in "ab")
        # The operation's own start is counted elsewhere; what is left of a small one is little.
        taken = timed(partial(torch.mul, a, b))
        small.append((float(num_bytes), 3 * num_bytes / max(taken - kernel, taken / 2)))
    tell(small=small)
    tell(attention=_attention(device, dtype, timed), logits=_logits(device, timed), optimizer=_optimizer(device, timed))


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


def _attention(device: Any, dtype: Any, timed: Callable[[Callable[[], Any]], float]) -> float:
    """Operations a second, forward and backward, with what is masked left out: 2 products forward, 5 backward."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    heads, tokens, numbers = _ATTENTION[device.type]
    q, k, v = (
        torch.randn(1, heads, tokens, numbers, device=device, dtype=dtype, requires_grad=True) for _ in ("q", "k", "v")
    )
    ahead = torch.ones(1, heads, tokens, numbers, device=device, dtype=dtype)
    taken = timed(lambda: scaled_dot_product_attention(q, k, v, is_causal=True).backward(ahead))
    return 3.5 * 4 * heads * tokens**2 * numbers / 2 / taken


def _logits(device: Any, timed: Callable[[Callable[[], Any]], float]) -> float:
    import torch

    rows, vocabulary = _LOGITS[device.type]
    logits = torch.randn(rows, vocabulary, device=device, requires_grad=True)
    labels = torch.zeros(rows, dtype=torch.int64, device=device)
    taken = timed(lambda: torch.nn.functional.cross_entropy(logits, labels).backward())
    return _LOGITS_BYTES * rows * vocabulary / taken


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
