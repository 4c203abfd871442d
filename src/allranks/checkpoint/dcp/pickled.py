"""DCP's own metadata, `.metadata`: a pickle, as earlier versions of allranks left it in their checkpoints.

A pickle may call whatever it names. Here it may name only what DCP writes; so a checkpoint can come from anybody.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from enum import Enum
from pathlib import Path, PosixPath, PurePath, PurePosixPath
from typing import IO, Any

import torch
from torch.distributed.checkpoint import metadata as dcp_metadata
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata
from torch.serialization import _get_layout

from allranks.errors import CheckpointError

FILE = ".metadata"

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


def read_pickled(checkpoint: Path) -> Metadata:
    """Read `.metadata` without running anything. Raises CheckpointError for what is not DCP's, or is damaged."""
    path = checkpoint / FILE
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
    return metadata


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if (module, name) == ("builtins", "getattr"):
            return _member
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None


class _Refused(Exception):
    """The pickle names something that DCP does not write."""


def _member(kind: object, name: object) -> Enum:
    """Python 3.11.0 to 3.11.3 pickle a member of an Enum as `getattr(its class, its name)`. That, and nothing else."""
    if isinstance(kind, type) and issubclass(kind, Enum) and name in kind.__members__:
        return kind[str(name)]
    raise _Refused(f"builtins.getattr({kind!r}, {name!r})")


def _unpickled(file: IO[bytes]) -> Metadata:
    metadata = _Unpickler(file).load()
    if not isinstance(metadata, Metadata):
        raise TypeError(f"it holds a {type(metadata).__name__}")
    return metadata
