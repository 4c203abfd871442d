"""Which tensors and how many numbers a model folder holds, by the headers of its files. Needs no torch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

# The names of floating-point types (safetensors' format); of others nobody knows here how many numbers they stand for.
_FLOATS = ("F64", "F32", "F16", "BF16")
_LARGEST_HEADER_BYTES = 100_000_000  # safetensors' own limit


def num_stored_elements(folder: Path) -> int | None:
    """Elements of all tensors of a model that is stored as plain floating-point numbers; None where that is not known.

    Tied weights are stored once, and count once.
    """
    shapes = stored_shapes(folder)
    return None if shapes is None else sum(map(math.prod, shapes.values()))


def stored_shapes(folder: Path, name: str = "model") -> dict[str, tuple[int, ...]] | None:
    """The shape of each tensor in `NAME.safetensors`, or in the files of its index; None as above."""
    index, shapes = folder / f"{name}.safetensors.index.json", {}
    try:
        if index.is_file():
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        else:
            names = [f"{name}.safetensors"]
        for file in names:
            for tensor, entry in _header(folder / file).items():
                if entry["dtype"] not in _FLOATS:
                    return None
                shapes[tensor] = tuple(map(int, entry["shape"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # whoever reads the model says what is wrong with it
    return shapes


def _header(file: Path) -> dict[str, Any]:
    with file.open("rb") as opened:
        num_bytes = int.from_bytes(opened.read(8), "little")
        if num_bytes > _LARGEST_HEADER_BYTES:
            raise ValueError("no header")
        header = json.loads(opened.read(num_bytes))
    return {name: entry for name, entry in header.items() if name != "__metadata__"}
