"""Records -> tokens and masks, in batches, on one process or several, in the order of the records."""

import gc
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from allranks.data.drafts import Draft, tokenize
from allranks.data.formats import Encoder
from allranks.data.records import Record, RecordError, excerpt
from allranks.data.workers import Workers
from allranks.errors import AllranksError

# A batch ends with whichever comes first: enough work to make handing it over cheap, and little memory.
_BATCH_RECORDS = 500
_BATCH_BYTES = 2**20
# A record nested more deeply is broken: it could not be handed to another process, or written by a template.
_DEEPEST = 200
_LONGEST_REASON = 600
SHOWN_PROBLEMS = 5
# Below this, starting processes costs more than it saves: the tokenizer itself uses all cores.
_PARALLEL_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Encoded:
    """A batch of encoded records.

    tokens uint32[T], mask uint8[T], lengths int64[D] of the documents, records int64[D]: of which record of the batch
    each is; problems: (place, what is wrong) of each record that gave none.
    """

    tokens: np.ndarray
    mask: np.ndarray
    lengths: np.ndarray
    records: np.ndarray
    problems: list[tuple[str, str]]
    num_records: int


def encode(
    records: Iterator[Record],
    encoder: Encoder,
    tokenizer: Any,
    workers: Workers | None = None,
    way_out: Callable[[Any], str | None] = lambda _: None,
) -> Iterator[Encoded]:
    """Encode records batch by batch; the result does not depend on `workers`.

    way_out: what to advise for a record that the encoder does not take.
    What is in memory at a time is bounded by bytes: a batch, or two for each of the workers; a record is never divided.
    """
    batches = ((batch, [r.value for r in batch if r.problem is None]) for batch in _batches(records))
    with _frozen():
        if workers is None:
            for batch, values in batches:
                yield _located(batch, encode_values(values, encoder, tokenizer), way_out)
        else:
            for batch, result in workers.encode(batches, encoder, tokenizer, _span):
                yield _located(batch, result, way_out)


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
        try:
            size = _num_bytes(record.value)
        except RecursionError:
            record, size = Record(None, record.where, problem=f"nested more than {_DEEPEST} levels deep"), 8
        if batch and (len(batch) == _BATCH_RECORDS or num_bytes + size > _BATCH_BYTES):
            yield batch
            batch, num_bytes = [], 0
        batch.append(record)
        num_bytes += size
    if batch:
        yield batch


def _num_bytes(value: Any, deepest: int = _DEEPEST) -> int:
    """About what a record takes as text; a list of numbers as its first one. Errors: `RecursionError`."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, (dict, list)) and deepest == 0:
        raise RecursionError
    if isinstance(value, dict):
        return sum([_num_bytes(item, deepest - 1) for item in value.values()])
    if isinstance(value, list) and value:
        if set(map(type, value)) <= {int, float}:
            return 8 * len(value)
        return sum([_num_bytes(item, deepest - 1) for item in value])
    return 8


def _span(batch: list[Record]) -> str:
    first, last = batch[0].where(), batch[-1].where()
    return first if len(batch) == 1 else f"{first} to {last}"


def encode_values(
    values: list[Any], encoder: Encoder, tokenizer: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[tuple[int, str]]]:
    """Tokens, masks, lengths and values (by index) of the documents, and (index of a value, what is wrong with it)."""
    drafts, owners, problems = [], [], []
    for index, value in enumerate(values):
        try:
            made = encoder(value)
        except RecordError as error:
            problems.append((index, str(error)))
            continue
        except BaseException as error:
            problems.append((index, _of_record(error)))
            continue
        drafts += made
        owners += [index] * len(made)
    samples, owners, refused = _tokenized(drafts, owners, tokenizer)
    problems += refused
    has_target = {owner for owner, (_, mask) in zip(owners, samples, strict=True) if mask.any()}
    for index in sorted(set(owners) - has_target):
        problems.append((index, "nothing in it is trained: no turn or text that is to be learned has a token"))
    kept = [
        (owner, *sample)
        for owner, sample in zip(owners, samples, strict=True)
        if owner in has_target and sample[1].any()
    ]
    tokens = np.concatenate([t for _, t, _ in kept]) if kept else np.empty(0, np.uint32)
    mask = np.concatenate([m for _, _, m in kept]) if kept else np.empty(0, np.uint8)
    lengths = np.array([len(t) for _, t, _ in kept], dtype=np.int64)
    return tokens, mask, lengths, np.array([owner for owner, _, _ in kept], dtype=np.int64), sorted(problems)


def _tokenized(
    drafts: list[Draft], owners: list[int], tokenizer: Any
) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[int], list[tuple[int, str]]]:
    """Tokens and mask of each draft with the record that it is of, and what is wrong with those that have none."""
    try:
        return tokenize(drafts, tokenizer), owners, []
    except BaseException as error:
        _of_record(error)  # of one of them: of which?
    samples: list[tuple[np.ndarray, np.ndarray]] = []
    kept: list[int] = []
    problems = []
    for owner, group in groupby(zip(owners, drafts, strict=True), key=itemgetter(0)):
        own = [draft for _, draft in group]
        try:
            samples += tokenize(own, tokenizer)
            kept += [owner] * len(own)
        except BaseException as error:
            problems.append((owner, _lone_surrogate(own) or _of_record(error)))
    return samples, kept, problems


def _of_record(error: BaseException) -> str:
    """What a library that could not take a record says; raises again what no record is to blame for."""
    # What panics in Rust is no Exception.
    of_record = isinstance(error, Exception) or type(error).__name__ == "PanicException"
    if not of_record or isinstance(error, (AllranksError, MemoryError)):
        raise error
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    at = traceback.extract_tb(error.__traceback__)[-1]
    reason = " ".join(str(error).split())
    return f"it cannot be encoded: {type(error).__name__}: {reason} ({Path(at.filename).name}:{at.lineno})"


def _lone_surrogate(drafts: list[Draft]) -> str | None:
    for piece in chain.from_iterable(drafts):
        try:
            piece.text.encode()
        except UnicodeEncodeError as error:
            around = piece.text[max(0, error.start - 20) : error.end + 20]
            return (
                f"its text holds half of a character (a lone surrogate), which no token stands for: {excerpt(around)}"
            )
    return None


def _located(batch: list[Record], result: Any, way_out: Callable[[Any], str | None]) -> Encoded:
    tokens, mask, lengths, records, problems = result
    of_values = dict(problems)
    named, index = [], 0
    for record in batch:
        if record.problem is not None:
            named.append((record, record.problem))
            continue
        if index in of_values:
            named.append((record, of_values[index]))
        index += 1
    places = []
    for record, message in named[:SHOWN_PROBLEMS]:  # more are never shown
        advice = way_out(record.value)
        places.append((_printable(record.where()), _printable(message) + (f". {_printable(advice)}" if advice else "")))
    places += [("", "")] * (len(named) - len(places))
    return Encoded(tokens, mask, lengths, records, places, len(batch))


def _printable(message: str) -> str:
    """A message with parts of the user's data in it as one short line that any terminal and file takes."""
    if not message.isprintable():
        message = "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in message[:_LONGEST_REASON])
    return message if len(message) <= _LONGEST_REASON else message[: _LONGEST_REASON - 1] + "…"
