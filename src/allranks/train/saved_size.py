"""How many bytes a checkpoint takes, and of them this rank's disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor

from allranks.train.strategies.flat import FlatRange


def saved_bytes(contents: Mapping[str, Any], world_size: int) -> float:
    """This rank's share of what is saved of `contents`, `{"model": …, "optimizer": …}`."""
    return sum(share(value, world_size) for values in contents.values() for value in values.values())


def share(value: Any, world_size: int) -> float:
    """This rank's part of the bytes of one value.

    What several ranks hold alike is written once, by the one that has least to write; so each counts with its part.
    """
    copies = 1 if isinstance(value, FlatRange) else world_size
    if isinstance(value, DTensor):
        sizes = zip(value.device_mesh.shape, value.placements, strict=True)
        copies = math.prod(size for size, place in sizes if place.is_replicate())
    return num_bytes(value) / copies


def num_bytes(value: Any) -> int:
    """Bytes that this rank holds of it; 0 for what is no tensor."""
    local = held_here(value)
    return 0 if local is None else local.numel() * local.element_size()


def held_here(value: Any) -> Tensor | None:
    """The part of a tensor that is on this rank; None for what is none."""
    if isinstance(value, DTensor):
        return value.to_local()
    return value.values if isinstance(value, FlatRange) else value if isinstance(value, Tensor) else None
