"""The processes of a run: joining them, agreeing on what is run, laying the mesh, leaving in good order."""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import os
import platform
import socket
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from allranks.cluster.identity import Identity
from allranks.errors import AllranksError, RefusedError
from allranks.exit_codes import DONE, PREEMPTED
from allranks.listing import few
from allranks.observe import say, settle_output
from allranks.train.devices import choose_device, claim, refuse_conflicts

_JOINS = itertools.count()
"""How often this process has joined the others: all do so equally often."""


def join(identity: Identity, *, timeout_seconds: float, needs_group: bool) -> torch.device:
    """Choose this rank's device and, where there are several ranks, join the process group.

    `needs_group` makes a group even for one process (FSDP with CPU offload needs it). The time-out holds for every
    collective of the run. Raises AllranksError that names rank and address when the others are not reached, and one
    that names both ranks when two would share a GPU.
    """
    device = choose_device(identity)
    if identity.alone and not needs_group:
        return device
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    timeout = datetime.timedelta(seconds=timeout_seconds)
    if identity.alone:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=timeout)
        return device
    # init_process_group's env:// reads these; under srun and mpirun they were not set by the launcher.
    os.environ.update(
        RANK=str(identity.rank),
        WORLD_SIZE=str(identity.world_size),
        LOCAL_RANK=str(identity.local_rank),
        MASTER_ADDR=identity.master_addr,
        MASTER_PORT=str(identity.master_port),
    )
    try:
        store, rank, world_size = next(dist.rendezvous("env://", timeout=timeout))
        store.set_timeout(timeout)
        # torchrun's store outlives a restart of the ranks, and one training after another in the same processes.
        attempt = f"{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}.{next(_JOINS)}"
        refuse_conflicts(claim(device), dist.PrefixStore(f"devices {attempt}", store), rank, world_size)
        dist.init_process_group(
            backend,
            store=dist.PrefixStore(f"default_pg {attempt}", store),
            rank=rank,
            world_size=world_size,
            timeout=timeout,
            device_id=device if device.type == "cuda" else None,
        )
    except (dist.DistError, RuntimeError, ValueError) as error:
        raise AllranksError(
            f"rank {identity.rank} of {identity.world_size} on {socket.gethostname()} could not join the others at "
            f"{identity.master_addr}:{identity.master_port} (address from {identity.source}): {error}"
        ) from error
    return device


def check_equal(facts: Mapping[str, Any], identity: Identity) -> None:
    """Compare what every rank believes about the run; call it on all ranks. Values are JSON, keys a flat name each.

    Raises RefusedError on all ranks, naming each differing field with the ranks that hold each value.
    """
    if identity.alone:
        return
    mine = {
        **{field: json.dumps(value, sort_keys=True, default=str) for field, value in facts.items()},
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    summary = hashlib.sha256(json.dumps(mine, sort_keys=True).encode()).hexdigest()
    summaries: list[str] = [""] * identity.world_size
    dist.all_gather_object(summaries, summary)
    if len(set(summaries)) == 1:
        return
    # Only now do the values themselves travel.
    everyone: list[dict[str, str]] = [{} for _ in range(identity.world_size)]
    dist.all_gather_object(everyone, {**mine, "host": socket.gethostname()})
    fields = sorted({field for facts in everyone for field in facts} - {"host"})
    differences = [f"{field}: {described}" for field in fields if (described := _difference(field, everyone))]
    raise RefusedError("the ranks do not run the same thing:\n  " + "\n  ".join(differences))


def nodes_of_ranks(identity: Identity) -> tuple[int, ...]:
    """The node of each rank, numbered from 0 in the order of ranks; call it on all ranks."""
    if identity.alone:
        return (0,)
    # Both, because some launchers do not count nodes, and two nodes of a trial may be one machine.
    names: list[tuple[int | None, str]] = [(None, "")] * identity.world_size
    dist.all_gather_object(names, (identity.node_rank, socket.gethostname()))
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return tuple(numbers[name] for name in names)


def _difference(field: str, everyone: list[dict[str, str]]) -> str | None:
    holders: dict[str, list[int]] = {}
    for rank, facts in enumerate(everyone):
        holders.setdefault(facts.get(field, "not set"), []).append(rank)
    if len(holders) == 1:
        return None
    return "; ".join(
        f"{value[:200]} on rank{'s' if len(ranks) > 1 else ''} {few(ranks)} ({everyone[ranks[0]]['host']})"
        for value, ranks in holders.items()
    )


def destroy_group() -> None:
    """Wait for all ranks and give up the process groups, if there are any."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def exit_rank(code: int, identity: Identity) -> NoReturn:
    """End this process with `code` without running the interpreter's and the libraries' tear-down.

    gloo's worker threads sometimes abort after all work is done, and torchrun then reports a finished run as failed.
    A barrier before the group is destroyed, and leaving by os._exit, avoids that; a failing rank does not wait.
    """
    if code in (DONE, PREEMPTED):
        try:
            destroy_group()
        except (dist.DistError, RuntimeError) as error:
            say(f"rank {identity.rank}: at exit, after all work was done: {error}", file=sys.stderr)
    settle_output()
    os._exit(code)
