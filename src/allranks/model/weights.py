"""Read tensors, and rows of tensors, out of safetensors files.

Format: https://github.com/huggingface/safetensors#format (8 bytes little-endian header size, JSON header, data).
Files are read with `pread` through a small buffer, never mapped: mapped pages count towards a process's memory, and a
rank that maps the whole checkpoint to read its shards looks (and, under a memory limit, dies) as if it held it all.
"""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from allranks.errors import ConfigError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}

# Large enough that the cost of a call vanishes, small enough not to count beside a model.
_BUFFER_BYTES = 16 << 20

# A header larger than this is no header; the format's own limit.
_LARGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: `offset` is in bytes from the beginning of `file`."""

    file: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class MadeTensor(StoredTensor):
    """A tensor that is made of others while it is read; `offset` tells nothing."""

    def make_rows(self, first: int, num: int) -> Tensor:
        """Rows `first` … `first + num`, on the CPU."""
        raise NotImplementedError


def find_weights(folder: Path) -> dict[str, StoredTensor]:
    """List the tensors of a model folder: `model.safetensors`, or the files that `model.safetensors.index.json` names.

    Raises:
        ConfigError: no safetensors files, a file that the index names is missing, or a damaged header.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        files = [single]
    elif index.is_file():
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = [folder / name for name in sorted(set(weight_map.values()))]
    else:
        raise ConfigError(_no_safetensors(folder))
    stored: dict[str, StoredTensor] = {}
    for file in files:
        if not file.is_file():
            raise ConfigError(f"{index} names {file.name}, but that file is missing; download the model again")
        stored.update(read_header(file))
    return stored


def read_header(file: Path) -> dict[str, StoredTensor]:
    """List the tensors of one safetensors file."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(_LARGEST_HEADER, size - 8):
            raise ConfigError(f"{file} is not a safetensors file, or was cut off while it was copied")
        header = json.loads(stream.read(length))
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        if entry["dtype"] not in _DTYPES:
            raise ConfigError(f"{file}: tensor {name} has dtype {entry['dtype']}, which torch cannot hold")
        tensor = StoredTensor(file, name, _DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + length + begin)
        if end - begin != tensor.num_bytes or tensor.offset + tensor.num_bytes > size:
            raise ConfigError(f"{file}: tensor {name} reaches beyond the end of the file; copy the file again")
        tensors[name] = tensor
    return tensors


def read_rows(stored: StoredTensor, first: int, out: Tensor) -> None:
    """Fill `out` with rows `first` … `first + len(out)` of `stored`, in the dtype and on the device of `out`."""
    if isinstance(stored, MadeTensor):
        for row, place in enumerate(out.view(-1, *stored.shape[1:])):
            place.copy_(stored.make_rows(first + row, 1)[0])  # one at a time: no more memory than that
        return
    row = math.prod(stored.shape[1:])
    flat = out.view(-1)
    position = 0
    for piece in _pieces(stored, first * row, flat.numel()):
        flat[position : position + piece.numel()].copy_(piece)
        position += piece.numel()


def read_tensor(stored: StoredTensor) -> Tensor:
    """Return the whole tensor on the CPU in the dtype that it is stored in."""
    out = torch.empty(stored.shape, dtype=stored.dtype)
    if out.numel():
        read_rows(stored, 0, out)
    return out


def mean_row(stored: StoredTensor) -> Tensor:
    """Return the mean over the first dimension in float32, read piece by piece."""
    row = math.prod(stored.shape[1:])
    total = torch.zeros(row, dtype=torch.float64)
    rows = max(1, _BUFFER_BYTES // max(1, row * stored.dtype.itemsize))
    buffer = torch.empty((rows, row), dtype=stored.dtype)
    for first in range(0, stored.shape[0], rows):
        part = buffer[: min(rows, stored.shape[0] - first)]
        read_rows(stored, first, part)
        total += part.double().sum(0)
    return (total / stored.shape[0]).float().view(stored.shape[1:])


def same_values(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two stored tensors are equal byte by byte."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    count = math.prod(one.shape)
    pairs = zip(_pieces(one, 0, count), _pieces(other, 0, count), strict=True)
    return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in pairs)


def _pieces(stored: StoredTensor, first: int, count: int) -> Iterator[Tensor]:
    """Yield elements `first` … `first + count` in order, in pieces that share one buffer."""
    width = stored.dtype.itemsize
    buffer = bytearray(min(_BUFFER_BYTES, count * width))
    view = memoryview(buffer)
    whole = torch.frombuffer(buffer, dtype=stored.dtype) if count else None
    position, end = stored.offset + first * width, stored.offset + (first + count) * width
    descriptor = os.open(stored.file, os.O_RDONLY)
    try:
        while position < end:
            wanted = min(len(buffer), end - position)
            got = 0
            while got < wanted:
                received = os.preadv(descriptor, [view[got:wanted]], position + got)
                if received == 0:
                    raise ConfigError(f"{stored.file} ends before tensor {stored.name} does; copy the file again")
                got += received
            assert whole is not None
            yield whole[: wanted // width]
            position += wanted
    finally:
        os.close(descriptor)


def _no_safetensors(folder: Path) -> str:
    bins = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt")) + sorted(folder.glob("*.pth"))
    if not bins:
        return f"{folder} holds no model weights: expected model.safetensors or model.safetensors.index.json"
    return (
        f"{folder} holds its weights as pickle ({bins[0].name}), which is neither safe nor readable in slices; convert "
        f'it once: python -c "from transformers import AutoModelForCausalLM as M; '
        f"M.from_pretrained('{folder}', torch_dtype='auto').save_pretrained('NEW_FOLDER')\", copy the tokenizer files "
        f"beside it and set base_model: NEW_FOLDER"
    )
