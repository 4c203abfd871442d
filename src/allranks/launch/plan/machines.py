"""The nodes that a plan is for: those that are asked for, or more of this machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from allranks.cluster.gpus import count_gpus, installed_gpus
from allranks.errors import UsageError
from allranks.plan.hardware import Device, find_device, find_link, find_reported
from allranks.plan.table import Machines

_USUAL_GPUS = 8


@dataclass(frozen=True)
class Asked:
    """What the command line says. `gpu`, `link`: names of plan/hardware.toml or of `device_file`."""

    num_nodes: int = 1
    gpus_per_node: int | None = None
    gpu: str | None = None
    link: str = "100gbit"
    device_file: Path | None = None
    calibrates: bool = False
    traces: bool = False
    price_per_gpu_hour: float | None = None
    batch: int | None = None
    """Effective batch that is to be kept, in place of what the config says."""


def machines_of(asked: Asked) -> tuple[Machines, bool]:
    """The nodes, and whether their ranks are on CPUs.

    Raises ConfigError for names that are not known, UsageError where this machine's GPU is none that is.
    """
    link = find_link(asked.link, asked.device_file)
    if asked.gpu is not None:
        device = find_device(asked.gpu, asked.device_file)
        return Machines(asked.num_nodes, asked.gpus_per_node or _USUAL_GPUS, device, link), False
    number = count_gpus()
    if number:
        return Machines(asked.num_nodes, asked.gpus_per_node or number, _own_gpu(), link), False
    raise UsageError(
        "this machine has no GPU: name those that the run will have, such as --gpu h100-80gb --gpus-per-node 8"
    )


def _own_gpu() -> Device:
    """This machine's first GPU, with the memory that its driver tells."""
    gpu = installed_gpus()[0]
    device = find_reported(gpu.model or "")
    if device is None:
        raise UsageError(
            f"this machine's GPU, {gpu.model}, is none that is known: name one that is like it by --gpu, or describe "
            "it in a --device-file"
        )
    return replace(device, memory_bytes=float(gpu.memory or device.memory_bytes))
