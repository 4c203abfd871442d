"""How many bytes a checkpoint takes, and of them this rank's disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from allranks.train.strategies.flat import FlatRange


def saved_bytes(contents: Mapping[str, Any], world_size: int) -> float:
    """This rank's share of what is saved of `contents`, `{"model": …, "optimizer": …}`.

    What several ranks hold alike is written once, by the one that has least to write; so each counts with its part.
    """
    return sum(_share(value, world_size) for values in contents.values() for value in values.values())


def _share(value: Any, world_size: int) -> float:
    if isinstance(value, DTensor):
        sizes = zip(value.device_mesh.shape, value.placements, strict=True)
        return _num_bytes(value.to_local()) / math.prod(size for size, place in sizes if place.is_replicate())
    if isinstance(value, FlatRange):
        return _num_bytes(value.values)
    return _num_bytes(value) / world_size if isinstance(value, Tensor) else 0


def _num_bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
