"""This node's processor as a device of a plan, before anything of it was measured."""

from __future__ import annotations

import socket

from allranks.cluster.cores import cores_of_rank, threads_of_rank
from allranks.cluster.memory import memory_limit
from allranks.plan.hardware import Device

CPU = "cpu"
# Rough figures of one core, for plans before anything was measured: products in float32, and memory.
_CORE_FLOPS, _CORE_BANDWIDTH = 50e9, 8e9


def this_cpu(num_ranks: int = 1) -> Device:
    """This node's processor as each of `num_ranks` has it; its rates are guesses until `calibrate` measures them."""
    cores = cores_of_rank(num_ranks, threads_of_rank(num_ranks))
    flops = cores * _CORE_FLOPS
    return Device(
        *(CPU, f"CPU of {socket.gethostname()}", _memory() / num_ranks),
        *(cores * _CORE_BANDWIDTH, flops, flops, flops),
        link="loopback",
        matmul=1.0,
    )


def _memory() -> float:
    """Of the machine, or what its cgroup gives to a container or a job."""
    if (limit := memory_limit()) is not None:
        return limit.num_bytes
    import psutil  # only where the system does not tell in files: it takes a while

    return float(psutil.virtual_memory().total)
