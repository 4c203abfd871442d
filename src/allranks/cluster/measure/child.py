"""The program that measures one device, and the collectives between all of them: it may hang or die without harm.

It reads one line of JSON, a `Request`, and writes a line as soon as it knows something. Whoever started it kills it.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any

REPEATS = 5
"""Of each measurement; the median counts, and a first one that warms up does not."""
_SIZE_SECONDS = 10.0
"""For the all-reduces of one size. Over a slow link one counts by itself, and a size that would take longer is left
out: the rate is known by then."""
_TELLS_RATE = 2**20
"""Bytes from which an all-reduce takes as long as its bytes do, and not as its messages."""


@dataclass(frozen=True)
class Request:
    """`rank` of `world_size` over all nodes; with `port` 0 there are no collectives. `sizes` are bytes of float32."""

    device: str
    local_rank: int = 0
    rank: int = 0
    world_size: int = 1
    address: str = ""
    port: int = 0
    backend: str = "gloo"
    seconds: float = 30.0
    sizes: Sequence[int] = field(default_factory=tuple)
    rates_seconds: float = 0.0
    """For the rates that a plan asks for, in place of one product and one copy; 0: they are not asked for."""

    def to_line(self) -> str:
        return json.dumps(asdict(self)) + "\n"


def main() -> None:
    line = "" if sys.stdin.isatty() else sys.stdin.readline()
    if not line.strip():
        from allranks.entry_points import refuse_by_hand

        refuse_by_hand("allranks.cluster.measure.child", "`allranks check`")
    request = Request(**json.loads(line))
    import torch

    device = torch.device(request.device, request.local_rank) if request.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if request.rates_seconds:
        from allranks.cluster.measure.rates import measure_rates

        measure_rates(device, request.rates_seconds, _tell)
    else:
        _tell(matmul_flops=_matmul(device), copy_bytes_per_second=_copy(device))
    if request.port:
        _collectives(request, device)
    _tell(done=True)


def _tell(**known: Any) -> None:
    print(json.dumps(known), flush=True)


def _matmul(device: Any) -> float:
    """Floating-point operations per second of a matmul, as models use it there."""
    import torch

    on_gpu = device.type == "cuda"
    size = 8192 if on_gpu else 768
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16 if on_gpu else torch.float32) for _ in "ab")
    return 2 * size**3 / _median_seconds(lambda: a @ b, device)


def _copy(device: Any) -> float:
    """Bytes per second that memory takes and gives, reads and writes together."""
    import torch

    num_bytes = 2**30 if device.type == "cuda" else 2**26
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / _median_seconds(lambda: target.copy_(source), device)


def _median_seconds(work: Callable[[], Any], device: Any) -> float:
    import torch

    times = []
    for _ in range(REPEATS + 1):
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    return max(statistics.median(times[1:]), 1e-9)


def _collectives(request: Request, device: Any) -> None:
    """All-reduces of every size, in a process group that gives up by itself."""
    import torch
    import torch.distributed as dist

    dist.init_process_group(
        request.backend,
        init_method=f"tcp://{_host(request.address)}:{request.port}",
        rank=request.rank,
        world_size=request.world_size,
        timeout=timedelta(seconds=request.seconds),
    )
    _tell(joined=True)
    seconds_of_byte = 0.0
    for num_bytes in request.sizes:
        if seconds_of_byte * num_bytes > _SIZE_SECONDS:
            break
        values = torch.empty(num_bytes // 4, device=device)
        wanted = float(request.world_size * (request.world_size + 1) // 2)
        right = True
        times: list[float] = []
        repeats = REPEATS
        while len(times) < repeats:
            values.fill_(request.rank + 1)
            dist.barrier()
            begun = time.perf_counter()
            dist.all_reduce(values)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - begun)
            right = right and bool((values == wanted).all())
            if len(times) == 1:
                repeats = max(1, min(REPEATS, int(_SIZE_SECONDS / _slowest(times[0], device))))
        seconds = statistics.median(times[1:] or times)
        if num_bytes >= _TELLS_RATE:
            seconds_of_byte = _slowest(seconds, device) / num_bytes
        _tell(num_bytes=num_bytes, seconds=seconds, right=right)
    dist.barrier()
    dist.destroy_process_group()


def _slowest(seconds: float, device: Any) -> float:
    """The most that any rank took: all go by it, for they must do the same."""
    import torch
    import torch.distributed as dist

    most = torch.tensor([max(seconds, 1e-9)], device=device)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return float(most.item())


def _host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


if __name__ == "__main__":
    main()
