"""Which part of which tensor lies where in a checkpoint's files: `metadata.json`. Needs no torch.

It takes the place of DCP's own `.metadata`, which is a pickle: what that says depends on the version of Python that
wrote it, and reading it means to call whatever it names. This is data, with a version of its own:

    {"format": "allranks-checkpoint", "version": 1,
     "files": ["__0_0.distcp", …],
     "tensors": {name: {"dtype": "float32", "layout": "strided", "size": [8, 4],
                        "parts": [[offsets, sizes, number of the file, first byte, bytes], …]}},
     "values": {name: [number of the file, first byte, bytes]},
     "paths": {name: ["optimizer", "param_groups", 0, "lr"]}}

`paths` say where in the nested state a flat name belongs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from allranks.errors import CheckpointError

FILE = "metadata.json"
_FORMAT = "allranks-checkpoint"
_VERSION = 1

DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "complex128", "complex64", "complex32", "bool"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
    *("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2"),
)
"""The types of numbers that a checkpoint may hold, by torch's names."""

LAYOUTS = ("strided",)


class Place(NamedTuple):
    """Bytes of a file of the checkpoint."""

    file: str
    start: int
    num_bytes: int


class Part(NamedTuple):
    """A box of a tensor, and where its bytes are."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    place: Place


@dataclass(frozen=True)
class StoredTensor:
    dtype: str
    layout: str
    size: tuple[int, ...]
    parts: Sequence[Part]


@dataclass(frozen=True)
class Contents:
    """All tensors and all other values of a checkpoint, by their flat names; `paths`: name -> keys and indices."""

    tensors: Mapping[str, StoredTensor]
    values: Mapping[str, Place]
    paths: Mapping[str, tuple[str | int, ...]]


def write_contents(checkpoint: Path, contents: Contents) -> None:
    """Write `metadata.json`. Raises CheckpointError for a dtype or a layout that `read_contents` would refuse."""
    path = checkpoint / FILE
    for name, tensor in contents.tensors.items():
        _refuse_unknown(path, name, tensor.dtype, tensor.layout)
    numbers: dict[str, int] = {}

    def place(of: Place) -> list[int]:
        return [numbers.setdefault(of.file, len(numbers)), of.start, of.num_bytes]

    tensors = {
        name: {
            "dtype": tensor.dtype,
            "layout": tensor.layout,
            "size": tensor.size,
            "parts": [[part.offsets, part.sizes, *place(part.place)] for part in tensor.parts],
        }
        for name, tensor in contents.tensors.items()
    }
    values = {name: place(of) for name, of in contents.values.items()}
    head = {"format": _FORMAT, "version": _VERSION, "files": list(numbers)}
    document = {**head, "tensors": tensors, "values": values, "paths": {**contents.paths}}
    path.write_text(json.dumps(document, separators=(",", ":")), encoding="utf-8")


def read_contents(checkpoint: Path) -> Contents:
    """Read `metadata.json`. Raises CheckpointError for one that is missing, damaged or of a version to come."""
    path = checkpoint / FILE
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != _FORMAT:
            raise ValueError("it is not the JSON that allranks wrote")
        if document["version"] != _VERSION:
            raise CheckpointError(
                f"{path} has version {document['version']!r} of its format, and this allranks reads version "
                f"{_VERSION}: use the version of allranks that wrote it, or a newer one"
            )
        files = [_file(name) for name in _list(document["files"])]
        tensors = {name: _tensor(path, name, entry, files) for name, entry in document["tensors"].items()}
        values = {name: _place(place, files) for name, place in document["values"].items()}
        paths = {name: _keys(keys) for name, keys in document["paths"].items()}
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    return Contents(tensors, values, paths)


def _refuse_unknown(path: Path, name: str, dtype: object, layout: object) -> None:
    for what, found, known in (("dtype", dtype, DTYPES), ("layout", layout, LAYOUTS)):
        if found not in known:
            raise CheckpointError(
                f"{path}: {name} has the {what} {found!r}, which this version of allranks does not know "
                f"(it knows {', '.join(known)})"
            )


def _file(name: object) -> str:
    if not isinstance(name, str) or name in ("", ".", "..") or PurePosixPath(name).name != name or "\0" in name:
        raise ValueError(f"it points to a file outside of the checkpoint: {name!r}")
    return name


def _tensor(path: Path, name: str, entry: dict[str, Any], files: Sequence[str]) -> StoredTensor:
    _refuse_unknown(path, name, entry["dtype"], entry["layout"])
    size = _numbers(entry["size"])
    parts = []
    for offsets, sizes, *place in _list(entry["parts"]):
        part = Part(_numbers(offsets), _numbers(sizes), _place(place, files))
        if not len(part.offsets) == len(part.sizes) == len(size) or any(
            offset + extent > whole for offset, extent, whole in zip(part.offsets, part.sizes, size, strict=True)
        ):
            raise ValueError(f"a part of {name} lies outside of it")
        parts.append(part)
    return StoredTensor(entry["dtype"], entry["layout"], size, parts)


def _place(place: object, files: Sequence[str]) -> Place:
    number, start, num_bytes = _numbers(place)
    if number >= len(files):
        raise ValueError(f"there is no file of number {number}")
    return Place(files[number], start, num_bytes)


def _numbers(found: object) -> tuple[int, ...]:
    numbers = tuple(_list(found))
    for number in numbers:
        if type(number) is not int or number < 0:  # True is an int, too
            raise ValueError(f"{number!r} is no size or place")
    return numbers


def _keys(found: object) -> tuple[str | int, ...]:
    keys = tuple(_list(found))
    if not all(type(key) in (str, int) for key in keys):
        raise ValueError(f"{keys!r} is no path of keys")
    return keys


def _list(found: object) -> list[Any]:
    if not isinstance(found, list):
        raise TypeError(f"a list was expected, and there is {type(found).__name__}")
    return found
