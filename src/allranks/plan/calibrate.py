"""Measure this node for a minute, for every later plan of runs on it."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from typing import Any

import psutil

from allranks.cluster.measure.child import Request
from allranks.cluster.measure.children import DeviceMeasured, measure_devices, number
from allranks.errors import AllranksError
from allranks.plan.calibration import Calibration, keep, load
from allranks.plan.hardware import Device

CPU = "cpu"
_LEAST_SECONDS = 60.0
"""Beside what is measured: torch is imported, and a busy machine gives little of its time."""
# Rough figures of one core, for plans before anything was measured: products in float32, and memory.
_CORE_FLOPS, _CORE_BANDWIDTH = 50e9, 8e9


def this_cpu(num_ranks: int = 1) -> Device:
    """This node's processor as each of `num_ranks` has it; its rates are guesses until `calibrate` measures them."""
    cores = _cores() / num_ranks
    flops = cores * _CORE_FLOPS
    return Device(
        *(CPU, f"CPU of {socket.gethostname()}", psutil.virtual_memory().total / num_ranks),
        *(cores * _CORE_BANDWIDTH, flops, flops, flops),
        link="loopback",
        matmul=1.0,
    )


def calibrate(seconds: float = 60.0, *, device: str = CPU, num_ranks: int = 1) -> Calibration:
    """Measure one device, or on a CPU as many ranks at a time as a run will have; kept in the user's cache, with the
    earlier runs that are known of it.

    Raises AllranksError where it cannot be measured.
    """
    on_cpu = device == CPU
    threads = max(1, _cores() // num_ranks)
    kind = "cpu" if on_cpu else "cuda"
    requests = [Request(kind, rank=rank, rates_seconds=seconds) for rank in range(num_ranks if on_cpu else 1)]
    environment = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}  # as a run would have
    found = measure_devices(requests, environment, _LEAST_SECONDS + 10 * seconds)
    for one in found:
        if not one.done:
            raise AllranksError(f"{device} of this node could not be measured: {one.failed}")
    before = load(device)
    measured = Calibration(
        socket.gethostname(),
        device,
        on_cpu=on_cpu,
        num_ranks=len(requests),
        element_bytes=4 if on_cpu else 2,
        runs=before.runs if before is not None else (),
        when=time.time(),
        **_slowest(found),
    )
    keep(measured)
    return measured


def _slowest(found: Sequence[DeviceMeasured]) -> dict[str, Any]:
    """Of each rate that of the slowest rank: the others wait for it."""
    rates: dict[str, Any] = {}
    for name in ("attention", "logits", "optimizer"):
        rates[name] = min(_number(one, name) for one in found)
    rates["kernel_seconds"] = max(_number(one, "kernel_seconds") for one in found)
    for name in ("products", "small"):
        of_ranks = [_pairs(one, name) for one in found]
        rates[name] = [(pairs[0][0], min(rate for _, rate in pairs)) for pairs in zip(*of_ranks, strict=True)]
    return rates


def _number(one: DeviceMeasured, name: str) -> float:
    value = number(one.rates.get(name))
    if not value:
        raise AllranksError(f"this node's measurement of {name} came to nothing; try again")
    return value


def _pairs(one: DeviceMeasured, name: str) -> list[tuple[float, float]]:
    return [(float(size), float(rate)) for size, rate in one.rates.get(name) or ()]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
