"""How many GPUs a process on this node would see, without starting CUDA or importing torch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from allranks.cluster.node_report import Gpu


def count_gpus(env: Mapping[str, str] = os.environ) -> int:
    """NVIDIA GPUs of this node that CUDA_VISIBLE_DEVICES leaves visible; 0 without a driver."""
    visible = env.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not visible.strip():
        return 0
    total = _installed_gpus()
    return total if visible is None else _visible_gpus(visible, total)


def installed_gpus() -> list[Gpu]:
    """Model and memory of each NVIDIA GPU of this node, by the driver; none without one."""
    import pynvml

    from allranks.cluster.node_report import Gpu

    found = []
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        try:
            for index in range(pynvml.nvmlDeviceGetCount()):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                memory = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
                name, uuid = (str(read(handle)) for read in (pynvml.nvmlDeviceGetName, pynvml.nvmlDeviceGetUUID))
                found.append(Gpu(index=index, model=name, uuid=uuid, memory=memory, mig=_mig(pynvml, handle)))
        finally:
            pynvml.nvmlShutdown()
    return found


def _mig(pynvml: Any, handle: Any) -> str | None:
    """Whether the GPU is cut into instances, in nvidia-smi's words; those that cannot be cut tell nothing."""
    try:
        return "Enabled" if pynvml.nvmlDeviceGetMigMode(handle)[0] else "Disabled"
    except pynvml.NVMLError:
        return None


def _visible_gpus(visible: str, total: int) -> int:
    """CUDA reads the list up to its first invalid entry and hides the rest (CUDA programming guide, environment
    variables). Entries are indices, or GPU- and MIG- identifiers, which are taken as present where there is a GPU."""
    count = 0
    for entry in (part.strip() for part in visible.split(",")):
        known = int(entry) < total if entry.isdigit() else total > 0 and entry.startswith(("GPU-", "MIG-"))
        if not known:
            break
        count += 1
    return count


def _installed_gpus() -> int:
    import pynvml

    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        try:
            return pynvml.nvmlDeviceGetCount()
        finally:
            pynvml.nvmlShutdown()
    return 0
