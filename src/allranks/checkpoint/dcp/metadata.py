"""DCP's `Metadata` to and from what `metadata.json` holds (`checkpoint/contents.py`)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    STORAGE_TYPES,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from allranks.checkpoint.contents import (
    DTYPES,
    FILE,
    LAYOUTS,
    Contents,
    Part,
    Place,
    StoredTensor,
    read_contents,
    write_contents,
)
from allranks.errors import CheckpointError

# A build of torch may lack the newest types: they are refused by name where a tensor has them.
_DTYPES = {name: getattr(torch, name) for name in DTYPES if hasattr(torch, name)}
_LAYOUTS = {name: getattr(torch, name) for name in LAYOUTS}


def write_metadata(checkpoint: Path, metadata: Metadata) -> None:
    """Write what a planner and a file writer of DCP say of a checkpoint as its `metadata.json`."""
    storage = metadata.storage_data

    def place(index: MetadataIndex) -> Place:
        found: _StorageInfo = storage[index]
        # Compression and the like, which are not used: without their names the bytes would mean nothing.
        assert not found.transform_descriptors
        return Place(str(found.relative_path), found.offset, found.length)

    tensors, values = {}, {}
    for name, entry in metadata.state_dict_metadata.items():
        if isinstance(entry, TensorStorageMetadata):
            parts = [
                Part(tuple(chunk.offsets), tuple(chunk.sizes), place(MetadataIndex(name, chunk.offsets)))
                for chunk in entry.chunks
            ]
            properties = entry.properties
            dtype, layout = (str(of).removeprefix("torch.") for of in (properties.dtype, properties.layout))
            tensors[name] = StoredTensor(dtype, layout, tuple(entry.size), parts)
        else:
            values[name] = place(MetadataIndex(name))
    write_contents(checkpoint, Contents(tensors, values, metadata.planner_data or {}))


def read_metadata(checkpoint: Path) -> Metadata:
    """What `write_metadata` wrote. Raises CheckpointError for what cannot be read."""
    contents = read_contents(checkpoint)
    entries: dict[str, STORAGE_TYPES] = {}
    storage: dict[MetadataIndex, _StorageInfo] = {}
    for name, tensor in contents.tensors.items():
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(
                f"{checkpoint / FILE}: {name} has the dtype {tensor.dtype}, which torch {torch.__version__} does not "
                "know: use the version that the checkpoint was written with"
            )
        chunks = []
        for number, part in enumerate(tensor.parts):
            offsets = torch.Size(part.offsets)
            chunks.append(ChunkStorageMetadata(offsets, torch.Size(part.sizes)))
            storage[MetadataIndex(name, offsets, number)] = _StorageInfo(*part.place)
        properties = TensorProperties(_DTYPES[tensor.dtype], _LAYOUTS[tensor.layout])
        entries[name] = TensorStorageMetadata(properties, torch.Size(tensor.size), chunks)
    for name, place in contents.values.items():
        entries[name] = BytesStorageMetadata()
        storage[MetadataIndex(name)] = _StorageInfo(*place)
    return Metadata(entries, dict(contents.paths), storage)
