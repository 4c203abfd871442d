"""The block set: tokenized documents, grouped into blocks, as flat arrays in memory or on disk."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from allranks.data.packing import pack, pack_in_order

_DTYPES = {
    "tokens": np.uint32,
    "mask": np.uint8,
    "document_offsets": np.int64,
    "block_documents": np.int64,
    "target_counts": np.int32,
    "token_counts": np.int32,
}
_STRETCH_TOKENS = 2**20  # what is gathered at a time


@dataclass(frozen=True)
class BlockSet:
    """Blocks of whole documents. With D documents, B blocks and T tokens in all:

    tokens           uint32[T]    documents one after the other, block by block
    mask             uint8[T]     1 = this token is a target of training; never a document's first token
    document_offsets int64[D+1]   document d is tokens[document_offsets[d]:document_offsets[d+1]]
    block_documents  int64[B+1]   block b is documents block_documents[b]:block_documents[b+1]
    target_counts    int32[B]     targets in each block
    token_counts     int32[B]     tokens in each block
    sequence_len     int          no block is longer
    """

    tokens: np.ndarray
    mask: np.ndarray
    document_offsets: np.ndarray
    block_documents: np.ndarray
    target_counts: np.ndarray
    token_counts: np.ndarray
    sequence_len: int

    def __len__(self) -> int:
        return len(self.block_documents) - 1

    @property
    def num_documents(self) -> int:
        return len(self.document_offsets) - 1

    def document_counts(self) -> dict[int, int]:
        """Tokens of a document -> how many documents are that long."""
        lengths, numbers = np.unique(np.diff(self.document_offsets), return_counts=True)
        return dict(zip(lengths.tolist(), numbers.tolist(), strict=True))

    def document(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and mask of one document."""
        span = slice(int(self.document_offsets[index]), int(self.document_offsets[index + 1]))
        return self.tokens[span], self.mask[span]

    @classmethod
    def from_documents(
        cls, documents: Iterable[tuple[Iterable[int], Iterable[int]]], sequence_len: int, packing: bool = True
    ) -> "BlockSet":
        """Build a block set in memory from (tokens, mask) pairs, none longer than `sequence_len`."""
        pairs = [(np.asarray(t, dtype=np.uint32), np.asarray(m, dtype=np.uint8)) for t, m in documents]
        offsets = np.zeros(len(pairs) + 1, np.int64)
        np.cumsum([len(tokens) for tokens, _ in pairs], out=offsets[1:])
        tokens = np.concatenate([t for t, _ in pairs]) if pairs else np.empty(0, np.uint32)
        mask = np.concatenate([m for _, m in pairs]) if pairs else np.empty(0, np.uint8)
        if len(tokens) != len(mask):
            raise ValueError(f"{len(tokens)} tokens but {len(mask)} mask entries")
        mask[offsets[:-1]] = 0
        return arrange(tokens, mask, offsets, sequence_len, packing=packing)

    def save(self, folder: Path) -> None:
        """Write one .npy file per array into `folder`, made if missing."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in _DTYPES:
            file, array = folder / f"{name}.npy", getattr(self, name)
            # Its name is absolute, whatever `folder` is. Writing the file anew would empty what is being read.
            if isinstance(array, np.memmap) and file.exists() and file.samefile(str(array.filename)):
                array.flush()
            else:
                np.save(file, array, allow_pickle=False)

    @classmethod
    def open(cls, folder: Path, sequence_len: int) -> "BlockSet":
        """Open what `save` wrote. Tokens and mask are memory-mapped; the indexes are read."""
        arrays = {}
        for name in _DTYPES:
            on_disk = name in ("tokens", "mask")
            arrays[name] = np.load(folder / f"{name}.npy", mmap_mode="r" if on_disk else None, allow_pickle=False)
        return cls(**arrays, sequence_len=sequence_len)


def arrange(
    tokens: np.ndarray,
    mask: np.ndarray,
    document_offsets: np.ndarray,
    sequence_len: int,
    *,
    packing: bool,
    in_order: bool = False,
    documents: np.ndarray | None = None,
    folder: Path | None = None,
) -> BlockSet:
    """Group documents into blocks and bring the tokens into block order.

    packing: into blocks of `sequence_len`, best-fit or, with `in_order`, one after the other; otherwise every document
    is a block of its own.
    documents: int64, the documents to take, in this order (default: all). folder: where to build tokens and mask on
    disk, as `BlockSet.save` names them; in memory if not given.
    """
    if documents is None:
        documents = np.arange(len(document_offsets) - 1)
    lengths = document_offsets[documents + 1] - document_offsets[documents]
    if packing:
        order, block_documents = (pack_in_order if in_order else pack)(lengths, sequence_len)
        documents, lengths = documents[order], lengths[order]
    else:
        block_documents = np.arange(len(documents) + 1, dtype=np.int64)
    offsets = np.zeros(len(documents) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    tokens = _gather(tokens, document_offsets, documents, offsets, folder and folder / "tokens.npy")
    mask = _gather(mask, document_offsets, documents, offsets, folder and folder / "mask.npy")
    targets = _target_counts(mask, offsets)
    blocks = block_documents[:-1]
    arrays = {
        "tokens": tokens,
        "mask": mask,
        "document_offsets": offsets,
        "block_documents": block_documents,
        "target_counts": np.add.reduceat(targets, blocks) if len(blocks) else targets,
        "token_counts": np.add.reduceat(lengths, blocks) if len(blocks) else lengths,
    }
    arrays = {name: array.astype(_DTYPES[name], copy=False) for name, array in arrays.items()}
    return BlockSet(**arrays, sequence_len=sequence_len)


def _gather(
    values: np.ndarray, starts: np.ndarray, documents: np.ndarray, offsets: np.ndarray, file: Path | None
) -> np.ndarray:
    """Write the documents of `values` one after the other, where `offsets` says."""
    out = np.empty(0 if file else int(offsets[-1]), values.dtype)
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(file.open("wb")) if file else None
        if disk:
            header = {"descr": np.lib.format.dtype_to_descr(values.dtype), "fortran_order": False}
            np.lib.format.write_array_header_1_0(disk, header | {"shape": (int(offsets[-1]),)})
        source, begin = None, 0
        if isinstance(values, np.memmap):
            source, begin = stack.enter_context(Path(str(values.filename)).open("rb")), values.offset
        for first, last in _stretches(offsets):
            from_start, from_stop = starts[documents[first:last]], starts[documents[first:last] + 1]
            # Documents that lie one behind the other are taken together.
            breaks = np.flatnonzero(from_stop[:-1] != from_start[1:]) + 1
            runs = zip(from_start[[0, *breaks]].tolist(), from_stop[[*(breaks - 1), -1]].tolist(), strict=True)
            found = np.empty(int(offsets[last] - offsets[first]), values.dtype)
            at = 0
            for start, stop in runs:
                part = found[at : at + stop - start]
                if source is None or not isinstance(values, np.memmap):
                    part[:] = values[start:stop]
                else:  # not through the map: each page that is touched would stay in memory, or 2 MiB around it
                    _read(source, begin + start * values.itemsize, part)
                at += stop - start
            if disk:
                disk.write(found.data)
            else:
                out[offsets[first] : offsets[last]] = found
    if file and offsets[-1]:  # an empty file cannot be mapped
        return np.load(file, mmap_mode="r", allow_pickle=False)
    return out


def _read(file: BinaryIO, offset: int, into: np.ndarray) -> None:
    left = into.data.cast("B")
    while left:
        count = os.preadv(file.fileno(), [left], offset)
        if count == 0:
            raise OSError(f"{file.name} ends before byte {offset}")
        left, offset = left[count:], offset + count


def _target_counts(mask: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """int64[D]: targets of each document."""
    counts = np.empty(len(offsets) - 1, np.int64)
    for first, last in _stretches(offsets):
        part = afresh(mask)[offsets[first] : offsets[last]]
        np.add.reduceat(part, offsets[first:last] - offsets[first], dtype=np.int64, out=counts[first:last])
    return counts


def _stretches(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    """Documents [first, last) that are in memory together."""
    first, num_documents = 0, len(offsets) - 1
    while first < num_documents:
        last = int(np.searchsorted(offsets, offsets[first] + _STRETCH_TOKENS, side="right")) - 1
        last = max(first + 1, last)
        yield first, last
        first = last


def afresh(values: np.ndarray) -> np.ndarray:
    """The same array; one on disk through a map of its own, so that the pages that were read go when it goes."""
    if not isinstance(values, np.memmap):
        return values
    return np.memmap(str(values.filename), values.dtype, "r", offset=values.offset, shape=values.shape)
