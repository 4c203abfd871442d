"""The block set: tokenized documents, grouped into blocks, as flat arrays in memory or on disk."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

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
    lengths = np.diff(document_offsets)[documents]
    if packing:
        order, block_documents = (pack_in_order if in_order else pack)(lengths, sequence_len)
        documents, lengths = documents[order], lengths[order]
    else:
        block_documents = np.arange(len(documents) + 1, dtype=np.int64)
    offsets = np.zeros(len(documents) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    tokens = _gather(tokens, document_offsets, documents, offsets, folder and folder / "tokens.npy")
    mask = _gather(mask, document_offsets, documents, offsets, folder and folder / "mask.npy")
    targets = np.add.reduceat(mask, offsets[:-1], dtype=np.int64) if len(documents) else np.empty(0, np.int64)
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
    total = int(offsets[-1])
    if file is None or total == 0:  # an empty file cannot be mapped
        out = np.empty(total, values.dtype)
    else:
        out = np.lib.format.open_memmap(file, mode="w+", dtype=values.dtype, shape=(total,))
    bounds = (starts[documents], starts[documents + 1], offsets[:-1], offsets[1:])
    for start, stop, to_start, to_stop in zip(*(bound.tolist() for bound in bounds), strict=True):
        out[to_start:to_stop] = values[start:stop]
    return out
