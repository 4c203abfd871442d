"""Checkpoints of tensors of which a rank holds a range of the flattened elements, as ZeRO cuts them.

torch.distributed.checkpoint (DCP) knows boxes. A range of a row-major tensor is a few boxes: the end of a row, whole
rows, the beginning of a row. So every rank writes what it holds, without any communication, and what is written has the
form of every other strategy's checkpoint: it can be loaded by each of them, on any number of ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from allranks.checkpoint.dcp.reader import Planner

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Offsets and sizes."""


class FlatRange:
    """Elements `start` … of a flattened tensor of shape `shape`; `values`, 1-D, shares memory with whoever holds them.

    DCP asks for the methods with underscores (`torch.distributed._checkpointable`).
    """

    def __init__(self, shape: tuple[int, ...], start: int, values: Tensor) -> None:
        self.shape = torch.Size(shape)
        self.start = start
        self.values = values

    def size(self) -> torch.Size:
        return self.shape

    def chunks(self) -> list[ChunkStorageMetadata]:
        cut = boxes(tuple(self.shape), self.start, self.start + self.values.numel())
        return [ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes in cut]

    def box(self, index: MetadataIndex) -> Tensor:
        """The values of one chunk, in its shape."""
        assert index.offset is not None
        first = _flat_index(tuple(self.shape), tuple(index.offset)) - self.start
        sizes = next(chunk.sizes for chunk in self.chunks() if chunk.offsets == index.offset)
        return self.values[first : first + math.prod(sizes)].view(sizes)

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return self.chunks()

    def __create_write_items__(self, name: str, _: Any) -> list[WriteItem]:
        properties = TensorProperties.create_from_tensor(self.values)
        return [
            WriteItem(
                MetadataIndex(name, chunk.offsets),
                WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk, properties, self.shape),
            )
            for chunk in self.chunks()
        ]


class SavePlanner(DefaultSavePlanner):
    """DCP's own, which also finds the boxes of a `FlatRange`."""

    def lookup_object(self, index: MetadataIndex) -> Any:
        held = self.state_dict[index.fqn]
        return held.box(index) if isinstance(held, FlatRange) else super().lookup_object(index)


class LoadPlanner(Planner):
    """The reader's own, which also finds the boxes of a `FlatRange`."""

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        # DCP puts None in the place of whatever is no tensor, number or text.
        ranges = [
            (part, name, held)
            for part, entries in state_dict.items()
            for name, held in entries.items()
            if isinstance(held, FlatRange)
        ]
        super().set_up_planner(state_dict, metadata, is_coordinator)
        for part, name, held in ranges:
            state_dict[part][name] = self.state_dict[f"{part}.{name}"] = held

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        held = self.state_dict[index.fqn]
        return held.box(index) if isinstance(held, FlatRange) else super().lookup_tensor(index)


def boxes(shape: tuple[int, ...], start: int, stop: int, lead: tuple[int, ...] = ()) -> Iterator[Box]:
    """Cut elements `start` … `stop` - 1 of a row-major tensor into boxes, in order; `lead`: indices of outer rows."""
    if start >= stop:
        return
    ones = (1,) * len(lead)
    if len(shape) <= 1:
        yield (*lead, *(start,) * len(shape)), (*ones, *(stop - start,) * len(shape))
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row  # whole rows: first … last - 1
    if first > last:
        yield from boxes(shape[1:], start - last * row, stop - last * row, (*lead, last))
        return
    if start < first * row:
        yield from boxes(shape[1:], start - (first - 1) * row, row, (*lead, first - 1))
    if first < last:
        yield (*lead, first, *(0,) * (len(shape) - 1)), (*ones, last - first, *shape[1:])
    if last * row < stop:
        yield from boxes(shape[1:], 0, stop - last * row, (*lead, last))


def _flat_index(shape: tuple[int, ...], offsets: tuple[int, ...]) -> int:
    flat = 0
    for size, offset in zip(shape, offsets, strict=True):
        flat = flat * size + offset
    return flat
