"""What a rank has held in memory at its fullest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil
import torch

_PROC = Path("/proc/self")
_FORGET_PEAK = "5"
"""Into clear_refs, which sets the peak of a process to what it holds (proc_pid_clear_refs(5))."""


def memory_meter(device: torch.device) -> Callable[[], int]:
    """Reads the peak in bytes: of the GPU, without waiting for it; on a CPU of what the process has held since now.

    Loading a model is over by then: the files that it is read from count as the process's own while they are. What
    was freed within a step is in the peak, what the end of a step shows is not all. Where the system does not tell
    a peak (macOS), or will not forget the one before, it is what the process holds.
    """
    if device.type == "cuda":
        return lambda: torch.cuda.max_memory_allocated(device)
    process, has_peak = psutil.Process(), _forget_peak()

    def held() -> int:
        now = process.memory_info().rss
        return max(now, _peak()) if has_peak else now

    return held


def _forget_peak() -> bool:
    try:
        (_PROC / "clear_refs").write_text(_FORGET_PEAK)
    except OSError:
        return False
    return True


def _peak() -> int:
    with (_PROC / "status").open() as status:
        return next((1024 * int(line.split()[1]) for line in status if line.startswith("VmHWM:")), 0)
