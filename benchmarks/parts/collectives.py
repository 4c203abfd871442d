"""The collectives of a run with one rank, by NCCL on a GPU and by gloo without, and NCCL's log read by our reader."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from allranks.observe.nccl_log import read_log
from benchmarks.parts.part import Place, Row, not_tried
from benchmarks.parts.tiny import device_of

_NUMBERS = 2**20


def run(place: Place) -> Iterator[Row]:
    device = device_of(place.device)
    backend = "nccl" if place.device == "cuda" else "gloo"
    log = place.scratch / "nccl.log"
    # As a run of several ranks sets them, and before NCCL is loaded.
    os.environ |= {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_SUBSYS": "INIT,BOOTSTRAP,ENV,NET", "NCCL_DEBUG_FILE": str(log)}
    dist.init_process_group(
        backend,
        store=dist.HashStore(),
        rank=0,
        world_size=1,
        timeout=timedelta(seconds=30),
        device_id=device if backend == "nccl" else None,
    )
    for dtype in (torch.float32, torch.bfloat16):
        yield from _collectives(device, dtype, f"{backend}, {str(dtype).removeprefix('torch.')}")
    dist.barrier()
    dist.destroy_process_group()
    if backend == "nccl":
        yield from _read(log)
    else:
        yield not_tried("NCCL's log", "NCCL needs a CUDA device")


def _collectives(device: torch.device, dtype: torch.dtype, where: str) -> Iterator[Row]:
    given = torch.arange(_NUMBERS, device=device).remainder(251).to(dtype)
    reduced, gathered, scattered, sent = (given.clone() for _ in range(4))
    dist.all_reduce(reduced)
    dist.all_gather_into_tensor(gathered, given)
    dist.reduce_scatter_tensor(scattered, given)
    dist.broadcast(sent, 0)
    results = {"all-reduce": reduced, "all-gather": gathered, "reduce-scatter": scattered, "broadcast": sent}
    for name, found in results.items():
        is_same = torch.equal(found, given)
        yield Row(f"{name}, {where}", "unchanged" if is_same else "changed", "unchanged", is_same)


def _read(path: Path) -> Iterator[Row]:
    """What must be found in a log of one rank, whatever NCCL's version."""
    logs = read_log(path)
    yield Row("processes in NCCL's log", str(len(logs)), "1", len(logs) == 1)
    if not logs:
        return
    log = logs[0]
    version = ".".join(map(str, torch.cuda.nccl.version()))
    yield Row("NCCL's version in its log", log.version, version, log.version.startswith(version))
    ranks = [(one.rank, one.num_ranks, one.complete) for one in log.communicators]
    is_one = bool(ranks) and all(one == (0, 1, True) for one in ranks)
    yield Row("communicators in it", f"{len(ranks)}: {ranks[:3]}", "all of rank 0 of 1, complete", is_one)
    yield Row("its own process", str(log.pid), str(os.getpid()), log.pid == os.getpid())
    settings = log.settings or {}
    yield Row("settings in it", ", ".join(sorted(settings)) or "none")
    yield Row("networks and cards", f"{', '.join(log.networks) or 'none'}; {[card.name for card in log.cards]}")
    yield Row("warnings in it", "; ".join(log.problems)[:400] or "none")  # of the machine, for the reader to judge
