"""Measure this node for a minute or two, for every later plan of runs on it."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from allranks.cluster.cores import cores_of_rank, threads_of_rank
from allranks.cluster.loopback import free_port
from allranks.cluster.measure.child import Request
from allranks.cluster.measure.children import DeviceMeasured, measure_devices, number
from allranks.disk import refuse_unwritable
from allranks.errors import AllranksError
from allranks.plan.calibration import PAIRS, Calibration
from allranks.plan.hardware import Link
from allranks.plan.kept_calibration import changing, folder, keep, load
from allranks.plan.this_cpu import CPU

_LEAST_SECONDS = 180.0
"""Beside what is measured: torch is imported, and a busy machine gives little of its time."""
_SIZES = (4096, 2**26)
"""Bytes of the all-reduces: of one that only takes its hops, and of one that fills the links."""


def calibrate(
    seconds: float = 45.0, *, device: str = CPU, num_ranks: int = 1, environment: Mapping[str, str] | None = None
) -> Calibration:
    """Measure the devices of as many ranks as this node will have, all at a time, and what is between them; kept in the
    user's cache, with the earlier runs that are known of them. `environment`: what a launcher gives ranks beside their
    number of threads.

    Raises AllranksError where it cannot be measured, and at once where it could not be kept.
    """
    refuse_unwritable(folder(), "--calibrate", "XDG_CACHE_HOME")
    on_cpu = device == CPU
    threads = threads_of_rank(num_ranks)  # as a run would have
    kind = "cpu" if on_cpu else "cuda"
    port = free_port() if num_ranks > 1 else 0
    requests = [
        Request(
            *(kind, 0 if on_cpu else rank, rank, num_ranks),
            backend="gloo" if on_cpu else "nccl",
            seconds=_LEAST_SECONDS + 10 * seconds,  # on a busy machine ranks are done at different times
            rates_seconds=seconds,
            address="127.0.0.1",
            port=port,
            sizes=_SIZES,
        )
        for rank in range(num_ranks)
    ]
    own = {"OMP_NUM_THREADS": str(threads), **(environment or {})}
    found = measure_devices(requests, own, _LEAST_SECONDS + 10 * seconds)
    for one in found:
        if not one.done:
            raise AllranksError(f"{device} of this node could not be measured: {one.failed}")
    measured = Calibration(
        socket.gethostname(),
        device,
        on_cpu=on_cpu,
        num_ranks=num_ranks,
        num_threads=threads if on_cpu else 0,
        cores=cores_of_rank(num_ranks, threads),
        element_bytes=4 if on_cpu else 2,
        when=time.time(),
        within=_within(found),
        **_slowest(found),
    )
    with changing():
        before = load(device)
        measured = replace(measured, runs=before.runs if before is not None else ())
        keep(measured)
    return measured


def _slowest(found: Sequence[DeviceMeasured]) -> dict[str, Any]:
    """Of each rate that of the slowest rank: the others wait for it."""
    rates: dict[str, Any] = {}
    rates["optimizer"] = min(_number(one, "optimizer") for one in found)
    for name in ("kernel_seconds", "call_seconds"):
        rates[name] = max(_number(one, name) for one in found)
    rates["spread"] = max(number(one.rates.get("spread")) or 0.0 for one in found)
    rates["cold"] = min(number(one.rates.get("cold")) or 0.0 for one in found)
    rates["fresh_seconds"] = max(number(one.rates.get("fresh_seconds")) or 0.0 for one in found)
    for name in PAIRS:
        of_ranks = [_pairs(one, name) for one in found]
        rates[name] = tuple((pairs[0][0], min(rate for _, rate in pairs)) for pairs in zip(*of_ranks, strict=True))
    return rates


def _within(found: Sequence[DeviceMeasured]) -> Link | None:
    """What is between this node's ranks, by all-reduces: the largest says what a link carries, the smallest how long a
    hop takes. None for one rank."""
    reduced = [one.all_reduces for one in found if len(one.all_reduces) == len(_SIZES)]
    if len(reduced) < len(found) or len(found) < 2:
        return None
    number = len(found)
    carried = min(each[-1].bus_bytes_per_second(number) for each in reduced)
    hop = max(each[0].seconds for each in reduced) / (2 * (number - 1))
    return Link("measured", f"between {number} ranks of this node, measured", carried, hop, achieved=1.0)


def _number(one: DeviceMeasured, name: str) -> float:
    value = number(one.rates.get(name))
    if not value:
        raise AllranksError(f"this node's measurement of {name} came to nothing; try again")
    return value


def _pairs(one: DeviceMeasured, name: str) -> list[tuple[float, float]]:
    return [(float(size), float(rate)) for size, rate in one.rates.get(name) or ()]
