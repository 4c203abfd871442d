"""Out of memory: what could not be had, and how much was held by what."""

from __future__ import annotations

import re
from dataclasses import dataclass

_GPU = re.compile(
    r"(?:CUDA|HIP) out of memory|CUDA error: out of memory|Cuda failure (?:\d+ )?'out of memory'"
    r"|CUBLAS_STATUS_ALLOC_FAILED"
)
# torch on a CPU, C++, the kernel's ENOMEM, numpy, Arrow.
_HOST = re.compile(
    r"DefaultCPUAllocator: (?:can't allocate|not enough) memory|std::bad_alloc|Cannot allocate memory"
    r"|Unable to allocate .* for an array|malloc of size \d+ failed"
)
_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "PiB": 2**50}
_SIZE = r"([\d.]+) (bytes|[KMGTP]iB)"
# torch 2.6 to 2.13, c10/cuda/CUDACachingAllocator.cpp and c10/core/impl/alloc_cpu.cpp.
_TRIED = re.compile(rf"Tried to allocate {_SIZE}|you tried to allocate (\d+) (bytes)|Unable to allocate {_SIZE}")
_DEVICE = re.compile(rf"GPU (\d+) has a total capacity of {_SIZE} of which {_SIZE} is free")
_OTHERS = re.compile(rf"Process \d+ has {_SIZE} memory in use")
_ALLOCATED = re.compile(rf"Of the allocated memory {_SIZE} is allocated by PyTorch")
_UNUSED = re.compile(rf"{_SIZE} is reserved by PyTorch but unallocated")


@dataclass(frozen=True)
class Shortage:
    """What could not be had: `where` is "host" or "GPU 0". Sizes in bytes, None for what the message does not say.

    `held` by this process's tensors, `unused` by its allocator besides, `others` by other processes.
    """

    where: str
    tried: int | None = None
    limit: int | None = None
    held: int | None = None
    unused: int = 0
    others: int = 0


@dataclass(frozen=True)
class Held:
    """Bytes that one rank holds on the device that is short; `rest`: activations, and what libraries hold."""

    parameters: int = 0
    gradients: int = 0
    optimizer: int = 0
    rest: int = 0

    @property
    def states(self) -> int:
        return self.parameters + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        return self.states + self.rest


def shortage(error: BaseException) -> Shortage | None:
    """What `error` says is short; None if it is of something else."""
    text = str(error)
    is_gpu = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__) or bool(_GPU.search(text))
    if not is_gpu and not isinstance(error, MemoryError) and not _HOST.search(text):
        return None
    device = _DEVICE.search(text)
    return Shortage(
        where=(f"GPU {device[1]}" if device else "the GPU") if is_gpu else "host",
        tried=_bytes(_TRIED.search(text)),
        limit=_bytes(device, 2) if device else None,
        held=_bytes(_ALLOCATED.search(text)),
        unused=_bytes(_UNUSED.search(text)) or 0,
        others=sum(int(float(number) * _UNITS[unit]) for number, unit in _OTHERS.findall(text)),
    )


def told(short: Shortage, limit: str = "") -> str:
    """One line: what was short, and how much was asked for. `limit`: of the host's memory, and who sets it."""
    where = "this host" if short.where == "host" else short.where
    of = f", which has {gib(short.limit)}" if short.limit else limit and f", {limit}"
    tried = f": {gib(short.tried)} more could not be had" if short.tried else ""
    return f"out of memory on {where}{of}{tried}"


def account(held: Held, short: Shortage) -> list[str]:
    """What holds how much, a line each; empty if nothing is known."""
    parts = [
        ("parameters", held.parameters),
        ("gradients", held.gradients),
        ("optimizer states", held.optimizer),
        ("activations and the rest", held.rest),
    ]
    parts += [("reserved, not in use", short.unused), ("other processes", short.others)]
    return [f"{name:<24}{gib(size):>10}" for name, size in parts if size]


def gib(num_bytes: float) -> str:
    """An amount of memory for the user: powers of 1024, as torch and nvidia-smi count."""
    return f"{num_bytes / 2**30:.1f} GiB" if num_bytes >= 0.05 * 2**30 else f"{num_bytes / 2**20:.1f} MiB"


def _bytes(found: re.Match[str] | None, first: int = 1) -> int | None:
    if found is None:
        return None
    numbers = [group for group in found.groups()[first - 1 :] if group is not None]
    return int(float(numbers[0]) * _UNITS[numbers[1]])
