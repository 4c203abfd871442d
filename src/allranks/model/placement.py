"""Where a rank's model lives: its device and the mesh that its parameters are spread over."""

from dataclasses import dataclass

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from allranks.config import RunConfig
from allranks.config.strategy import Kind, strategy


@dataclass(frozen=True)
class Placement:
    """How one rank takes part.

    `kind`: "single" (one process), "ddp" (a whole replica on every rank) or "fsdp" (parameters in shards).
    `mesh`: only for "fsdp": 1-D ("shard",) or, for HSDP, 2-D ("replicate", "shard").
    """

    kind: Kind
    device: torch.device
    mesh: DeviceMesh | None = None
    rank: int = 0
    world_size: int = 1


def place(cfg: RunConfig, device: torch.device, rank: int, world_size: int) -> Placement:
    """Lay the mesh of the config's strategy. Needs an initialised process group where the strategy is FSDP."""
    kind, replicas, shards = strategy(cfg, world_size)
    mesh = None
    if kind == "fsdp" and replicas > 1:
        mesh = init_device_mesh(device.type, (replicas, shards), mesh_dim_names=("replicate", "shard"))
    elif kind == "fsdp":
        mesh = init_device_mesh(device.type, (shards,), mesh_dim_names=("shard",))
    return Placement(kind, device, mesh, rank, world_size)
