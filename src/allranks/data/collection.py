"""The documents of all data sets of a config while they are collected, and what became of each record."""

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from allranks.config import RunConfig
from allranks.data.blocks import BlockSet, arrange
from allranks.disk import disk_told
from allranks.errors import DataError


@dataclass
class SourceStats:
    """What became of the records of one data set."""

    path: str
    type: str
    records: int = 0
    documents: int = 0
    invalid: int = 0
    too_long: int = 0
    truncated: int = 0
    in_pieces: int = 0  # cut into several documents
    too_short: int = 0
    no_target: int = 0
    duplicates: int = 0
    not_drawn: int = 0  # by `weight`
    keep_95: int = 0  # the sequence_len that would keep 95 % of the samples whole; 0: it does
    keep_99: int = 0


class Collection:
    """Documents that were encoded, in files of their own until they are packed."""

    def __init__(self, folder: Path, name: str, sequence_len: int):
        self.sequence_len = sequence_len  # of its blocks, and the most in a document
        self._tokens_file, self._mask_file = folder / f"{name}.tokens", folder / f"{name}.mask"
        self._lengths: list[np.ndarray] = []
        self._records: list[np.ndarray] = []
        self._digests: list[np.ndarray] = []
        self._num_records = 0
        self._seen: set[bytes] = set()
        self._excess_lengths: list[int] = []  # of the data set that is being added
        self._num_of_earlier = 0  # documents of the data sets before it

    def add(self, cfg: RunConfig, encoded: Any, stats: SourceStats, overlap: int | None = None) -> None:
        """Append a batch, without the documents that are too long, too short or seen before.

        overlap: cut those that are too long into pieces, each with so many tokens of the one before as context.
        """
        data = cfg.data
        tokens_out, mask_out, lengths, kept = [], [], [], []
        offsets = np.concatenate(([0], np.cumsum(encoded.lengths))).tolist()
        for number, (start, stop) in enumerate(pairwise(offsets)):
            tokens, mask = encoded.tokens[start:stop], encoded.mask[start:stop]
            is_long = len(tokens) > self.sequence_len
            if is_long and overlap is None:
                self._excess_lengths.append(len(tokens))
                if data.excess_length_strategy == "drop":
                    stats.too_long += 1
                    continue
                if data.excess_length_strategy == "raise":
                    raise DataError(
                        f"data set {stats.path}: a sample has {len(tokens)} tokens, more than sequence_len "
                        f"({self.sequence_len}), and excess_length_strategy is raise; set a larger sequence_len, or "
                        "drop or truncate"
                    )
                tokens, mask = tokens[: self.sequence_len], mask[: self.sequence_len]
                stats.truncated += 1
                if not mask.any():
                    stats.no_target += 1
                    continue
            if len(tokens) < (data.min_sample_len or 0):
                stats.too_short += 1
                continue
            if data.dataset_exact_deduplication:
                key = hashlib.blake2b(tokens.tobytes() + mask.tobytes(), digest_size=16).digest()
                if key in self._seen:
                    stats.duplicates += 1
                    continue
                self._seen.add(key)
            pieces = [(tokens, mask)]
            if is_long and overlap is not None:
                pieces = cut(tokens, mask, self.sequence_len, overlap)
                stats.in_pieces += 1
            tokens_out += [piece for piece, _ in pieces]
            mask_out += [piece for _, piece in pieces]
            lengths += [len(piece) for piece, _ in pieces]
            kept += [number] * len(pieces)
        stats.documents += len(lengths)
        if lengths:
            self._lengths.append(np.array(lengths, dtype=np.int64))
            if data.val_set_size:
                self._records.append(encoded.records[kept] + self._num_records)
                self._digests.append(_record_digests(encoded, offsets)[kept])
        self._num_records += encoded.num_records
        if lengths:
            with self._tokens_file.open("ab") as file:
                file.write(np.concatenate(tokens_out).tobytes())
            with self._mask_file.open("ab") as file:
                file.write(np.concatenate(mask_out).tobytes())

    def end_source(self, stats: SourceStats) -> None:
        """Note, once all of a data set is added, which `sequence_len` would keep how much of it."""
        excess, self._excess_lengths = self._excess_lengths, []
        first, self._num_of_earlier = self._num_of_earlier, self.num_documents
        if not excess:
            return
        kept = np.concatenate([np.empty(0, np.int64), *self._lengths])[first:]
        # What was cut counts with its own length, and stands at the end of the others.
        kept = np.sort(kept)[: max(0, len(kept) - (stats.truncated - stats.no_target))]
        lengths = np.concatenate([kept, np.sort(np.array(excess, np.int64))])
        for field, share in (("keep_95", 0.95), ("keep_99", 0.99)):
            length = int(lengths[int(np.ceil(share * len(lengths))) - 1])
            setattr(stats, field, length if length > self.sequence_len else 0)

    @property
    def origins(self) -> list[np.ndarray]:
        """[D]: of which record each document is, by what that holds and by its number. Only with `val_set_size`."""
        return [np.concatenate(parts) for parts in (self._digests, self._records) if parts]

    @property
    def num_documents(self) -> int:
        return sum(map(len, self._lengths))

    def write(self, folder: Path, documents: np.ndarray, *, packing: bool, in_order: bool = False) -> BlockSet:
        """Group `documents` into blocks and write them into `folder`."""
        folder.mkdir()
        with disk_told(
            "the prepared data is not written", folder, needed_bytes=self._packed_bytes, partial=folder.parent
        ):
            return self._write(folder, documents, packing=packing, in_order=in_order)

    def _packed_bytes(self) -> int:
        """What the blocks take beside the documents that they are made of; those go once the blocks are there."""
        return 2 * sum(file.stat().st_size for file in (self._tokens_file, self._mask_file))

    def _write(self, folder: Path, documents: np.ndarray, *, packing: bool, in_order: bool) -> BlockSet:
        offsets = np.concatenate([[0], *self._lengths]).cumsum()
        tokens = np.memmap(self._tokens_file, np.uint32, "r")
        mask = np.memmap(self._mask_file, np.uint8, "r")
        blocks = arrange(
            tokens,
            mask,
            offsets,
            self.sequence_len,
            packing=packing,
            in_order=in_order,
            documents=documents,
            folder=folder,
        )
        blocks.save(folder)
        return blocks

    def remove(self) -> None:
        self._tokens_file.unlink(missing_ok=True)
        self._mask_file.unlink(missing_ok=True)


def _record_digests(encoded: Any, offsets: list[int]) -> np.ndarray:
    """uint64[D]: for each document a digest of all that its record gave."""
    digests: list[int] = []
    bounds = [0, *(np.flatnonzero(np.diff(encoded.records)) + 1).tolist(), len(encoded.records)]
    for first, last in pairwise(bounds):
        if first < last:
            tokens = encoded.tokens[offsets[first] : offsets[last]]
            digest = hashlib.blake2b(tokens.tobytes(), digest_size=8).digest()
            digests += [int.from_bytes(digest)] * (last - first)
    return np.array(digests, dtype=np.uint64)


def cut(tokens: np.ndarray, mask: np.ndarray, sequence_len: int, overlap: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """A document in pieces of at most `sequence_len` tokens, as Axolotl cuts them; all of it is in them.

    Each piece begins with the last `overlap` tokens of the one before, untrained. A first token is never a target, so
    that with no overlap the first of each piece is not trained, and with one every token is.
    """
    pieces = []
    start = 0
    while True:
        stop = min(start + sequence_len, len(tokens))
        if stop == len(tokens) - 1 and not overlap and sequence_len > 2:
            stop -= 1  # a single token that is left would have nothing before it
        piece = mask[start:stop].copy()
        piece[: max(1, overlap) if start else 1] = 0
        pieces.append((tokens[start:stop], piece))
        if stop == len(tokens):
            return pieces
        start = stop - overlap
