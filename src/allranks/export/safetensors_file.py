"""Write safetensors files tensor by tensor, so that a file of any size needs the memory of one tensor.

Format: https://github.com/huggingface/safetensors#format
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Entry:
    """A tensor to come."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass
class Layout:
    """Which tensors go into which file, in the order in which they are written."""

    files: dict[str, list[Entry]] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        return sum(entry.num_bytes for entries in self.files.values() for entry in entries)

    def index(self) -> dict[str, object]:
        """The contents of `model.safetensors.index.json`."""
        weight_map = {entry.name: file for file, entries in self.files.items() for entry in entries}
        return {"metadata": {"total_size": self.total_bytes}, "weight_map": dict(sorted(weight_map.items()))}


def lay_out(entries: list[Entry], max_shard_bytes: int) -> Layout:
    """Fill files of at most `max_shard_bytes` in order; a larger tensor gets a file of its own."""
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if shards[-1] and size + entry.num_bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.num_bytes
    if len(shards) == 1:
        return Layout({"model.safetensors": shards[0]})
    names = (f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1))
    return Layout(dict(zip(names, shards, strict=True)))


def write(folder: Path, layout: Layout, tensors: Iterator[tuple[str, Tensor]]) -> None:
    """Write the files of `layout`. `tensors` must come in its order, with the shapes and dtypes announced."""
    for file, entries in layout.files.items():
        with (folder / file).open("wb") as stream:
            stream.write(_header(entries))
            for entry in entries:
                name, tensor = next(tensors)
                got = Entry(name, tuple(tensor.shape), tensor.dtype)
                if got != entry:
                    raise RuntimeError(f"expected {entry}, got {got}")
                stream.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    if len(layout.files) > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps(layout.index(), indent=2) + "\n")


def _header(entries: list[Entry]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for entry in entries:
        end = position + entry.num_bytes
        header[entry.name] = {
            "dtype": _NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins aligned
    return len(text).to_bytes(8, "little") + text
