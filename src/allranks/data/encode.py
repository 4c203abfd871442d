"""Records -> tokens and masks, in batches, on one process or several, in the order of the records."""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from allranks.data.drafts import tokenize
from allranks.data.formats import Encoder
from allranks.data.records import Record, RecordError
from allranks.data.workers import Workers

# A batch ends with whichever comes first: enough work to make handing it over cheap, and little memory.
_BATCH_RECORDS = 500
_BATCH_BYTES = 2**20
# Below this, starting processes costs more than it saves: the tokenizer itself uses all cores.
_PARALLEL_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Encoded:
    """A batch of encoded records.

    tokens uint32[T], mask uint8[T], lengths int64[D] of the documents; problems: (place, what is wrong) of each record
    that gave none.
    """

    tokens: np.ndarray
    mask: np.ndarray
    lengths: np.ndarray
    problems: list[tuple[str, str]]
    num_records: int


def encode(
    records: Iterator[Record], encoder: Encoder, tokenizer: Any, workers: Workers | None = None
) -> Iterator[Encoded]:
    """Encode records batch by batch; the result does not depend on `workers`.

    What is in memory at a time is bounded by bytes: a batch, or two for each of the workers; a record is never divided.
    """
    batches = ((batch, [r.value for r in batch if r.problem is None]) for batch in _batches(records))
    with _frozen():
        if workers is None:
            for batch, values in batches:
                yield _located(batch, encode_values(values, encoder, tokenizer))
        else:
            for batch, result in workers.encode(batches, encoder, tokenizer, _span):
                yield _located(batch, result)


def choose_num_processes(asked: int | None, num_bytes: int) -> int:
    """`dataset_num_proc`, or what the data is worth: one process, or all cores for large data."""
    if asked is not None:
        return asked
    return len(os.sched_getaffinity(0)) if num_bytes >= _PARALLEL_BYTES else 1


@contextmanager
def _frozen() -> Iterator[None]:
    """What is in memory by now (the libraries: a million objects) is not gone through again by each collection."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    num_bytes = 0
    for record in records:
        size = _num_bytes(record.value)
        if batch and (len(batch) == _BATCH_RECORDS or num_bytes + size > _BATCH_BYTES):
            yield batch
            batch, num_bytes = [], 0
        batch.append(record)
        num_bytes += size
    if batch:
        yield batch


def _num_bytes(value: Any) -> int:
    """About what a record takes as text; a list of numbers as its first one."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_num_bytes, value.values()))
    if isinstance(value, list) and value:
        return 8 * len(value) if isinstance(value[0], (int, float)) else sum(map(_num_bytes, value))
    return 8


def _span(batch: list[Record]) -> str:
    first, last = batch[0].where(), batch[-1].where()
    return first if len(batch) == 1 else f"{first} to {last}"


def encode_values(
    values: list[Any], encoder: Encoder, tokenizer: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[tuple[int, str]]]:
    """Tokens, masks and lengths of the documents, and (index of the value, what is wrong with it)."""
    drafts, owners, problems = [], [], []
    for index, value in enumerate(values):
        try:
            made = encoder(value)
        except RecordError as error:
            problems.append((index, str(error)))
            continue
        drafts += made
        owners += [index] * len(made)
    samples = tokenize(drafts, tokenizer)
    has_target = {owner for owner, (_, mask) in zip(owners, samples, strict=True) if mask.any()}
    for index in sorted(set(owners) - has_target):
        problems.append((index, "nothing in it is trained: no turn or text that is to be learned has a token"))
    kept = [sample for owner, sample in zip(owners, samples, strict=True) if owner in has_target and sample[1].any()]
    tokens = np.concatenate([t for t, _ in kept]) if kept else np.empty(0, np.uint32)
    mask = np.concatenate([m for _, m in kept]) if kept else np.empty(0, np.uint8)
    return tokens, mask, np.array([len(t) for t, _ in kept], dtype=np.int64), sorted(problems)


def _located(batch: list[Record], result: Any) -> Encoded:
    tokens, mask, lengths, problems = result
    readable = [record for record in batch if record.problem is None]
    named = [(record.where, record.problem) for record in batch if record.problem is not None]
    named += [(readable[index].where, message) for index, message in problems]
    # Only the first few places are ever shown, and finding one in a JSON list takes time.
    places = [(where() if i < 5 else "", message) for i, (where, message) in enumerate(named)]
    return Encoded(tokens, mask, lengths, places, len(batch))
