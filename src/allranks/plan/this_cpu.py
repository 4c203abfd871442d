"""This node's processor as a device of a plan, before anything of it was measured."""

from __future__ import annotations

import socket

from allranks.cluster.cores import cores_of_rank, threads_of_rank
from allranks.plan.hardware import Device

CPU = "cpu"
# Rough figures of one core, for plans before anything was measured: products in float32, and memory.
_CORE_FLOPS, _CORE_BANDWIDTH = 50e9, 8e9


def this_cpu(num_ranks: int = 1) -> Device:
    """This node's processor as each of `num_ranks` has it; its rates are guesses until `calibrate` measures them."""
    import psutil  # only where a CPU is planned for: it takes a while

    cores = cores_of_rank(num_ranks, threads_of_rank(num_ranks))
    flops = cores * _CORE_FLOPS
    return Device(
        *(CPU, f"CPU of {socket.gethostname()}", psutil.virtual_memory().total / num_ranks),
        *(cores * _CORE_BANDWIDTH, flops, flops, flops),
        link="loopback",
        matmul=1.0,
    )
