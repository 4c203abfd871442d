"""Where a rank's model lives: its device and the mesh that its parameters are spread over."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from allranks.config import RunConfig
from allranks.config.strategy import Kind, strategy
from allranks.errors import ConfigError
from allranks.listing import few


@dataclass(frozen=True)
class Placement:
    """How one rank takes part.

    `kind`: "single" (one process), "ddp" (a whole replica on every rank), "fsdp" (parameters in shards) or "zero"
    (DeepSpeed's, of stage `zero_stage`).
    `mesh`: only for "fsdp": 1-D ("shard",) or, for HSDP, 2-D ("replicate", "shard").
    `nodes`: the node of each rank of the run, numbered from 0.
    """

    kind: Kind
    device: torch.device
    mesh: DeviceMesh | None = None
    rank: int = 0
    world_size: int = 1
    nodes: tuple[int, ...] = (0,)
    zero_stage: int = 0


def place(
    cfg: RunConfig, device: torch.device, rank: int, world_size: int, nodes: Sequence[int] | None = None
) -> Placement:
    """Lay the mesh of the config's strategy. Needs an initialised process group where the strategy is FSDP.

    `nodes`: the node of each rank; one node for all, if not given. Raises ConfigError where `dp_shard_size: node` asks
    for what the ranks' nodes do not allow.
    """
    nodes = tuple(nodes or (0,) * world_size)
    node_size = _equal_node_size(nodes) if cfg.parallel.dp_shard_size == "node" else None
    kind, replicas, shards = strategy(cfg, world_size, node_size)
    quantized = [key for key in cfg.deepspeed.zero if key.startswith("zero_quantized_") and cfg.deepspeed.zero[key]]
    if quantized and device.type != "cuda":
        raise ConfigError(f"{quantized[0]}: DeepSpeed's kernels that quantize need a GPU with CUDA; leave it out here")
    mesh = None
    if kind == "fsdp" and replicas > 1:
        timeout = datetime.timedelta(seconds=cfg.parallel.start_timeout_seconds)
        mesh = _replicas_of_shards(device.type, replicas, shards, timeout)
    elif kind == "fsdp":
        mesh = init_device_mesh(device.type, (shards,), mesh_dim_names=("shard",))
    return Placement(kind, device, mesh, rank, world_size, nodes, cfg.deepspeed.stage)


def _replicas_of_shards(device_type: str, replicas: int, shards: int, timeout: datetime.timedelta) -> DeviceMesh:
    """A mesh whose groups end with `timeout`; those that init_device_mesh makes have torch's default."""
    ranks = torch.arange(replicas * shards).view(replicas, shards)
    replicating, _ = dist.new_subgroups_by_enumeration(ranks.T.tolist(), timeout=timeout, group_desc="mesh_replicate")
    sharding, _ = dist.new_subgroups_by_enumeration(ranks.tolist(), timeout=timeout, group_desc="mesh_shard")
    return DeviceMesh.from_group([replicating, sharding], device_type, ranks, mesh_dim_names=("replicate", "shard"))


def _equal_node_size(nodes: Sequence[int]) -> int:
    """Ranks of each node. Raises ConfigError if nodes have unequally many, or ranks do not lie on them in order."""
    counts = {node: nodes.count(node) for node in dict.fromkeys(nodes)}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{count} on node {node}" for node, count in counts.items())
        raise ConfigError(
            f"dp_shard_size: node needs equally many ranks on every node, but there are {told}: start as many "
            "processes on each, or give a number that divides all of them"
        )
    size = counts[nodes[0]]
    if list(nodes) != [index // size for index in range(len(nodes))]:
        told = few(nodes)
        raise ConfigError(
            f"dp_shard_size: node needs the ranks of a node to follow each other, but ranks 0, 1, … lie on nodes "
            f"{told}: start them node by node (srun --distribution=block, mpirun --map-by slot)"
        )
    return size
