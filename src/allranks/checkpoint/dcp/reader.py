"""Read a DCP checkpoint without running anything that is in it.

What lies where is JSON (`checkpoint/contents.py`), or a pickle that may name only what DCP writes (`pickled.py`);
values that are no tensors are read as plain data only. So a checkpoint can come from anybody, and from any Python.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem

from allranks.checkpoint import commit, contents
from allranks.checkpoint.dcp import pickled
from allranks.checkpoint.dcp.metadata import read_metadata
from allranks.errors import CheckpointError


def reader(checkpoint: Path) -> FileSystemReader:
    """The storage reader for `dcp.load`. Its `read_metadata` raises CheckpointError for what cannot be read safely."""
    return _Reader(checkpoint)


def planner() -> DefaultLoadPlanner:
    """The load planner for `dcp.load`, to go with `reader`."""
    return Planner()


class _Reader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        checkpoint = Path(self.path)
        path = checkpoint / contents.FILE
        if not path.exists() and (checkpoint / pickled.FILE).exists():
            path = checkpoint / pickled.FILE
        metadata = pickled.read_pickled(checkpoint) if path.name == pickled.FILE else read_metadata(checkpoint)
        for name in {place.relative_path for place in metadata.storage_data.values()}:
            if commit.leads_out(checkpoint, name):
                raise CheckpointError(
                    f"{checkpoint / name} is a symbolic link that leads out of the checkpoint's folder"
                )
        if missing := _not_covered(metadata):
            raise CheckpointError(
                f"{path}: parts of {', '.join(missing[:4])} were saved by no rank, and would be read as whatever is in "
                "memory; use an earlier checkpoint"
            )
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def _not_covered(metadata: Metadata) -> list[str]:
    """The tensors whose saved parts do not make up the whole. DCP itself compares them only when it saves."""
    return [
        name
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
        and sum(math.prod(sizes) for _, sizes in {(tuple(c.offsets), tuple(c.sizes)) for c in entry.chunks})
        < math.prod(entry.size)
    ]


class Planner(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """As DefaultLoadPlanner does, but for numbers, strings, containers and tensors only."""
        loaded = torch.load(value, map_location="cpu", weights_only=True)
        set_element(self.original_state_dict, self.mappings[read_item.dest_index.fqn], loaded)
