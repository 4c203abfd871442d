"""After loading: what several ranks hold of the model alike must be alike, or they would train a mixture of models."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from allranks.cluster.identity import Identity
from allranks.errors import RefusedError
from allranks.listing import few
from allranks.model.zero import is_partitioned

_SHOWN = 4


def check_replicas(model: nn.Module, identity: Identity) -> None:
    """Compare checksums of the parameters and buffers that ranks share; call it on all ranks, right after loading.

    Covered is every whole tensor on all ranks, and every shard on those ranks that hold the same one (HSDP's
    replicas). Shards that one rank alone holds have nothing to be compared with: there the files are (model/files.py).
    Costs one reading of the rank's part of the model. Raises RefusedError on all ranks, naming tensor and ranks.
    """
    if found := compare_replicas(model, identity).different:
        raise RefusedError(
            "the ranks loaded different weights: "
            + few(found, _SHOWN, between="; ", rest="; and {:,} more tensors")
            + ". Copy the same model to all nodes: compare its files there (sha256sum)"
        )


@dataclass(frozen=True)
class Compared:
    """What this rank holds, in digests, and which tensors `different` ranks hold differently, in words."""

    whole: str
    """Of the checksums of what every rank holds whole."""
    parts: str
    """Of which tensors, and which parts of them, this rank holds."""
    sums: str
    """Of the checksums of all of it."""
    different: list[str]


def compare_replicas(model: nn.Module, identity: Identity) -> Compared:
    """Compare what several ranks hold of `model` alike; call it on all ranks, which all get the same `different`."""
    mine = checksums(model)
    whole = {key: value for key, value in mine.items() if "@" not in key}
    digests = (_digest(whole), _digest(sorted(mine)), _digest(mine))
    if identity.alone:
        return Compared(*digests, different=[])
    # Ranks that hold the same parts must have the same sums; only where they have not, the sums themselves travel.
    everyone: list[tuple[str, str, str]] = [("", "", "")] * identity.world_size
    dist.all_gather_object(everyone, digests)
    sums_of_parts: dict[str, set[str]] = {}
    for _, parts, sums in everyone:
        sums_of_parts.setdefault(parts, set()).add(sums)
    if len({of_rank for of_rank, _, _ in everyone}) == 1 and all(len(sums) == 1 for sums in sums_of_parts.values()):
        return Compared(*digests, different=[])
    tables: list[dict[str, int]] = [{} for _ in range(identity.world_size)]
    dist.all_gather_object(tables, mine)
    return Compared(*digests, different=different(tables))


def differing_tensors(model: nn.Module, identity: Identity) -> list[str]:
    """One text for each tensor of which ranks hold different values; the same on all ranks, which all call it."""
    return compare_replicas(model, identity).different


def checksums(model: nn.Module) -> dict[str, int]:
    """Of each parameter and buffer the sum of its bits as integers: exact, in any order, on any device.

    Keys are names, for a shard with its place in the whole tensor: `name@offset,…`. A tensor that a strategy has taken
    apart (ZeRO-3) is left out.
    """
    sums: dict[str, int] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        local, key = tensor.detach(), name
        if isinstance(local, DTensor):
            shape, offset = compute_local_shape_and_global_offset(local.shape, local.device_mesh, local.placements)
            key = f"{name}@{','.join(map(str, [*offset, *shape]))}"
            local = local.to_local()
        if is_partitioned(tensor) or local.is_meta or local.numel() == 0:
            continue
        sums[key] = int(local.contiguous().view(-1).view(_INTEGERS[local.element_size()]).sum(dtype=torch.int64))
    return sums


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def different(tables: list[dict[str, int]]) -> list[str]:
    """One text for each tensor of which ranks that hold it have different checksums."""
    found = []
    for key in dict.fromkeys(key for table in tables for key in table):
        holders: dict[int, list[int]] = {}
        for rank, table in enumerate(tables):
            if key in table:
                holders.setdefault(table[key], []).append(rank)
        if len(holders) > 1:
            groups = sorted(holders.values(), key=lambda ranks: (-len(ranks), ranks))
            found.append(f"{key.partition('@')[0]} is one on {' and another on '.join(map(_ranks, groups))}")
    return found


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {few(ranks)}"
