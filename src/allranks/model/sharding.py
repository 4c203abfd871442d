"""The part of a parameter that this rank holds, and giving memory to parameters that have none yet."""

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from allranks.model.zero import is_partitioned, whole


def local_part(tensor: Tensor) -> tuple[Tensor, int]:
    """Return this rank's rows of `tensor` (sharing memory) and the index of the first of them.

    FSDP2 cuts the first dimension as `torch.chunk` does; over other mesh dimensions (HSDP's replicas) it copies.
    """
    if not isinstance(tensor, DTensor):
        return tensor.detach(), 0
    first = 0
    for mesh_dim, placement in enumerate(tensor.placements):
        if placement.is_shard():
            assert placement.is_shard(0), placement
            chunk = math.ceil(tensor.shape[0] / tensor.device_mesh.size(mesh_dim))
            first = min(chunk * tensor.device_mesh.get_local_rank(mesh_dim), tensor.shape[0])
    with torch.no_grad():
        return tensor.to_local(), first


@contextmanager
def filling(tensor: Tensor) -> Iterator[tuple[Tensor, int]]:
    """As `local_part`, for writing. Of a parameter in DeepSpeed's pieces it is all of it, and this rank's is kept."""
    if is_partitioned(tensor):
        with whole(tensor) as values:
            yield values, 0
    else:
        yield local_part(tensor)


def full_shape(tensor: Tensor) -> torch.Size:
    """The shape over all ranks; DeepSpeed leaves an empty tensor in the place of a partitioned parameter."""
    return getattr(tensor, "ds_shape", tensor.shape)


def materialise(model: nn.Module, device: torch.device, *, buffers: torch.device) -> None:
    """Give every parameter on the meta device uninitialised memory on `device`, and move the rest there.

    Buffers go to the device `buffers`: FSDP brings offloaded parameters to where they are computed with, buffers it
    leaves where they are. Parameters that were one (tied weights) are one again afterwards.
    """
    to_compute = {id(buffer) for buffer in model.buffers()}
    tied: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        tied[id(parameter)].append(name)
    made: dict[int, Tensor] = {}

    def allocate(tensor: Tensor) -> Tensor:
        where = buffers if id(tensor) in to_compute else device
        if not tensor.is_meta:
            return tensor.to(where)
        if id(tensor) not in made:
            made[id(tensor)] = torch.empty_like(tensor, device=where)
        return made[id(tensor)]

    model._apply(allocate)
    for first, *others in tied.values():
        parameter = model.get_parameter(first)
        for other in others:
            owner, _, attribute = other.rpartition(".")
            setattr(model.get_submodule(owner), attribute, parameter)
