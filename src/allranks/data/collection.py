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
    too_short: int = 0
    no_target: int = 0
    duplicates: int = 0
    not_drawn: int = 0  # by `weight`


class Collection:
    """Documents that were encoded, in files of their own until they are packed."""

    def __init__(self, folder: Path, name: str, sequence_len: int):
        self.sequence_len = sequence_len  # of its blocks, and the most in a document
        self._tokens_file, self._mask_file = folder / f"{name}.tokens", folder / f"{name}.mask"
        self._lengths: list[np.ndarray] = []
        self._seen: set[bytes] = set()

    def add(self, cfg: RunConfig, encoded: Any, stats: SourceStats) -> None:
        """Append a batch, without the documents that are too long, too short or seen before."""
        data = cfg.data
        tokens_out, mask_out, lengths = [], [], []
        offsets = np.concatenate(([0], np.cumsum(encoded.lengths))).tolist()
        for start, stop in pairwise(offsets):
            tokens, mask = encoded.tokens[start:stop], encoded.mask[start:stop]
            if len(tokens) > self.sequence_len:
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
            tokens_out.append(tokens)
            mask_out.append(mask)
            lengths.append(len(tokens))
        stats.documents += len(lengths)
        if lengths:
            self._lengths.append(np.array(lengths, dtype=np.int64))
            with self._tokens_file.open("ab") as file:
                file.write(np.concatenate(tokens_out).tobytes())
            with self._mask_file.open("ab") as file:
                file.write(np.concatenate(mask_out).tobytes())

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
