"""Read a DCP checkpoint without running anything that is in it.

DCP keeps its metadata, and every value that is no tensor, as pickle, and pickle may call whatever it names. Here it may
name only what DCP writes; so a checkpoint can come from anybody.
"""

from __future__ import annotations

import io
import math
import pickle
from collections import OrderedDict
from pathlib import Path, PosixPath, PurePath, PurePosixPath
from typing import IO, Any

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint import metadata as dcp_metadata
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem
from torch.serialization import _get_layout

from allranks.errors import CheckpointError


def reader(checkpoint: Path) -> FileSystemReader:
    """The storage reader for `dcp.load`. Its `read_metadata` raises CheckpointError for metadata that is not DCP's."""
    return _Reader(checkpoint)


def planner() -> DefaultLoadPlanner:
    """The load planner for `dcp.load`, to go with `reader`."""
    return Planner()


# All that DCP's metadata is made of.
_ALLOWED: dict[tuple[str, str], Any] = {
    (thing.__module__, thing.__name__): thing
    for thing in (
        *(getattr(dcp_metadata, name) for name in dcp_metadata.__all__),
        dcp_metadata._MEM_FORMAT_ENCODING,
        _StorageInfo,
        _get_layout,  # looks a name up in torch's table of layouts
        torch.Size,
        PosixPath,
        PurePosixPath,
        OrderedDict,
        set,
        frozenset,
    )
}
# Python 3.13 moved the paths; a checkpoint may come from either side of that.
for _pathlib in ("pathlib", "pathlib._local"):
    _ALLOWED |= {(_pathlib, kind.__name__): kind for kind in (PosixPath, PurePosixPath)}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None


class _Refused(Exception):
    """The pickle names something that DCP does not write."""


class _Reader(FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = Path(self.path) / ".metadata"
        try:
            with path.open("rb") as file:
                metadata = _unpickled(file)
        except _Refused as error:
            raise CheckpointError(
                f"{path} is not what training writes: it wants to call {error}, which could run any program. "
                "Nothing of it was run; do not use this checkpoint"
            ) from None
        except Exception as error:  # damaged pickle fails in many ways
            raise CheckpointError(f"{path} cannot be read: {error}") from None
        for place in metadata.storage_data.values():
            if PurePath(place.relative_path).name != place.relative_path:
                raise CheckpointError(f"{path} points to a file outside of the checkpoint: {place.relative_path}")
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


def _unpickled(file: IO[bytes]) -> Metadata:
    metadata = _Unpickler(file).load()
    if not isinstance(metadata, Metadata):
        raise TypeError(f"it holds a {type(metadata).__name__}")
    return metadata


class Planner(DefaultLoadPlanner):
    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """As DefaultLoadPlanner does, but for numbers, strings, containers and tensors only."""
        loaded = torch.load(value, map_location="cpu", weights_only=True)
        set_element(self.original_state_dict, self.mappings[read_item.dest_index.fqn], loaded)
