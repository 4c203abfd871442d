"""Which GPU is this rank's, and is it nobody else's?"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
import torch.distributed as dist

from allranks.cluster.identity import Identity
from allranks.errors import AllranksError


@dataclass(frozen=True)
class Claim:
    """The device that a rank is going to use: `gpu` is the GPU's UUID, None for the CPU."""

    host: str
    gpu: str | None


def choose_device(identity: Identity) -> torch.device:
    """This rank's device, made the current one. Raises AllranksError where there are fewer GPUs than processes."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", choose_gpu(identity, torch.cuda.device_count(), os.environ))
    torch.cuda.set_device(device)
    return device


def choose_gpu(identity: Identity, num_visible: int, env: Mapping[str, str]) -> int:
    """The number of this rank's GPU among the `num_visible` that it sees.

    Slurm (--gpus-per-task=1) and wrapper scripts show each process its own GPU only; that is then number 0 for all.
    Whether it is really another one for each, `refuse_conflicts` finds out.
    """
    if identity.local_rank < num_visible:
        return identity.local_rank
    if num_visible == 1 and ("CUDA_VISIBLE_DEVICES" in env or "SLURM_STEP_ID" in env):
        return 0
    raise AllranksError(
        f"rank {identity.rank} has local rank {identity.local_rank}, but {socket.gethostname()} shows "
        f"{num_visible} GPU(s): start at most that many processes on it (--nproc-per-node)"
    )


def claim(device: torch.device) -> Claim:
    """What this process says of its device."""
    gpu = f"GPU-{torch.cuda.get_device_properties(device).uuid}" if device.type == "cuda" else None
    return Claim(socket.gethostname(), gpu)


def refuse_conflicts(mine: Claim, store: dist.Store, rank: int, world_size: int) -> None:
    """Compare the devices of all ranks through `store`, before NCCL, which would only abort. Call it on all ranks.

    Raises AllranksError on all ranks.
    """
    store.set(f"claim {rank}", json.dumps(asdict(mine)))
    if store.add("claims", 1) == world_size:
        claims = [Claim(**json.loads(store.get(f"claim {other}"))) for other in range(world_size)]
        store.set("conflict", conflict(claims))
    found = store.get("conflict").decode()
    if not found:
        return
    # Rank 0 may hold the store: it leaves last.
    if store.add("heard", 1) == world_size:
        store.set("all heard", "")
    if rank == 0:
        store.wait(["all heard"])
    raise AllranksError(found)


def conflict(claims: Sequence[Claim]) -> str:
    """What is wrong with these devices, by rank; "" if nothing."""
    without = [rank for rank, claim in enumerate(claims) if claim.gpu is None]
    if 0 < len(without) < len(claims):
        first = without[0]
        return (
            f"{len(without)} of {len(claims)} ranks see no GPU, the first of them rank {first} on "
            f"{claims[first].host}: check the driver (nvidia-smi) and CUDA_VISIBLE_DEVICES there"
        )
    taken: dict[Claim, int] = {}
    for rank, claim in enumerate(claims):
        other = taken.setdefault(claim, rank)
        if claim.gpu is not None and other != rank:
            return (
                f"ranks {other} and {rank} on {claim.host} would share {claim.gpu}: show each process a GPU of its own "
                "(srun --gpus-per-task=1, or CUDA_VISIBLE_DEVICES by rank), or all GPUs to all of them"
            )
    return ""
