"""Records -> tokens and masks, in batches, on one process or several, in the order of the records."""

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from typing import Any

import numpy as np

from allranks.data.drafts import tokenize
from allranks.data.formats import Encoder
from allranks.data.records import Record, RecordError
from allranks.errors import DataError
from allranks.observe import die_with_parent

_PARALLELISM = "TOKENIZERS_PARALLELISM"
_BATCH_RECORDS = 500
# Below this, starting processes costs more than it saves: the tokenizer itself uses all cores.
_PARALLEL_BYTES = 64 * 2**20


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


def encode(records: Iterator[Record], encoder: Encoder, tokenizer: Any, num_processes: int) -> Iterator[Encoded]:
    """Encode records batch by batch; the result does not depend on `num_processes`."""
    batches = _batches(records)
    if num_processes == 1:
        for batch in batches:
            yield _located(batch, _encode_values([r.value for r in batch if r.problem is None], encoder, tokenizer))
        return
    # Forked processes have the encoder and the tokenizer already; nothing is imported or loaded again.
    with (
        _parallelism_said(),
        ProcessPoolExecutor(num_processes, get_context("fork"), _start_worker, (encoder, tokenizer)) as pool,
    ):
        waiting: deque[tuple[list[Record], Future]] = deque()
        try:
            for batch in batches:
                values = [r.value for r in batch if r.problem is None]
                waiting.append((batch, pool.submit(_encode_in_worker, values)))
                if len(waiting) > 3 * num_processes:  # enough to keep all busy, without holding all data in memory
                    first, result = waiting.popleft()
                    yield _located(first, result.result())
            for first, result in waiting:
                yield _located(first, result.result())
        except BrokenProcessPool as error:
            raise DataError(
                "a process that prepared data was killed, most often for want of memory; set dataset_num_proc lower"
            ) from error


def choose_num_processes(asked: int | None, num_bytes: int) -> int:
    """`dataset_num_proc`, or what the data is worth: one process, or all cores for large data."""
    if asked is not None:
        return asked
    return len(os.sched_getaffinity(0)) if num_bytes >= _PARALLEL_BYTES else 1


@contextmanager
def _parallelism_said() -> Iterator[None]:
    """Without this variable, the tokenizers library warns in every forked process that it is switched to one thread."""
    before = os.environ.get(_PARALLELISM)
    os.environ[_PARALLELISM] = before or "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PARALLELISM]


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    while batch := list(islice(records, _BATCH_RECORDS)):
        yield batch


_worker: tuple[Encoder, Any] | None = None


def _start_worker(encoder: Encoder, tokenizer: Any) -> None:
    global _worker
    die_with_parent()
    os.environ[_PARALLELISM] = "false"  # the processes share the cores already
    _worker = encoder, tokenizer


def _encode_in_worker(values: list[Any]) -> Any:
    assert _worker is not None
    return _encode_values(values, *_worker)


def _encode_values(
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
