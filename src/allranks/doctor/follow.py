"""Logs that go on: read as they grow, until a cause is known."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from allranks import interrupt
from allranks.doctor.diagnose import diagnose
from allranks.doctor.diagnosis import Diagnosis
from allranks.doctor.read_logs import our_index
from allranks.doctor.reading.scanner import PIECE_BYTES, Scanner
from allranks.doctor.reading.sources import opened, read_some, sources
from allranks.errors import UsageError

_POLL_SECONDS = 0.5
STANDS_SECONDS = 5.0  # a cause: ranks that end take others with them, and each says something


def followed(
    named: Sequence[str | Path],
    *,
    stands_seconds: float = STANDS_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> Diagnosis:
    """The answer as soon as one stands for `stands_seconds`; at the latest when standard input ends, if that is all.

    Files are followed as they grow, and for ever where nothing fails; Ctrl-C asks what there is to tell of them so
    far. Raises UsageError.
    """
    with ExitStack() as stack:
        logs: list[tuple[BinaryIO, Scanner]] = []
        for one in sources(named):
            try:
                logs.append((stack.enter_context(opened(one)), Scanner(our_index(), one)))
            except UsageError:
                if one.is_named:
                    raise  # of a folder the others are followed
        try:
            with interrupt.interruptible():
                return _answer(logs, stands_seconds, clock)
        except KeyboardInterrupt:
            interrupt.answered()
            return diagnose([scanner.so_far() for _, scanner in logs])


def _answer(logs: Sequence[tuple[BinaryIO, Scanner]], stands_seconds: float, clock: Callable[[], float]) -> Diagnosis:
    ended: set[int] = set()
    told, since = diagnose([]), clock()
    while True:
        came = False
        for number, (file, scanner) in enumerate(logs):
            if number not in ended:
                came |= _read(file, scanner, number, ended)
        if came or len(ended) == len(logs):
            now = diagnose([scanner.so_far() for _, scanner in logs])
            if (now.cause, now.rank, now.node) != (told.cause, told.rank, told.node):
                since = clock()
            told = now
        if len(ended) == len(logs) or (told.is_known and clock() - since >= stands_seconds):
            return told
        if not came and not _readable(logs[0][0], logs[0][1].read.source.path):
            time.sleep(_POLL_SECONDS)


def _read(file: BinaryIO, scanner: Scanner, number: int, ended: set[int]) -> bool:
    """Whether something came; what was standard input's end is noted."""
    path = scanner.read.source.path
    if path is None and not _readable(file, path):
        return False
    piece, broken = read_some(file, PIECE_BYTES)
    if broken:
        scanner.read.broken = broken
    if piece:
        scanner.feed(piece)
    elif path is None or broken:
        ended.add(number)
    return bool(piece)


def _readable(file: BinaryIO, path: Path | None) -> bool:
    """Whether standard input has something, or its end; waits a moment for it. Of a file there is no telling."""
    if path is not None:
        return False
    return bool(select.select([file], [], [], _POLL_SECONDS)[0])
