"""Anyone's logs, to a diagnosis."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import BinaryIO

from allranks.doctor.diagnose import diagnose
from allranks.doctor.diagnosis import Diagnosis
from allranks.doctor.progress import newest_step
from allranks.doctor.reading.index import Index
from allranks.doctor.reading.scanner import PIECE_BYTES, Read, Scanner
from allranks.doctor.reading.sources import Source, opened, read_some, sources
from allranks.doctor.ruleset import all_rules
from allranks.errors import UsageError


def diagnosis_of_logs(named: Sequence[str | Path]) -> Diagnosis:
    """Why a run failed, from its logs: files, folders, .gz, `-` for standard input. Raises UsageError."""
    return diagnose([read_log(source) for source in sources(named)])


def diagnosis_of_text(text: str | bytes, index: Index | None = None, name: str = "log") -> Diagnosis:
    """The same of one log that is at hand."""
    return diagnose([_read_text(text, index, name)])


def step_of_text(text: str) -> int | None:
    """The newest step that one log tells of, whatever became of it."""
    return newest_step([_read_text(text)])


def _read_text(text: str | bytes, index: Index | None = None, name: str = "log") -> Read:
    scanner = Scanner(index or our_index(), Source(None, name))
    scanner.feed(text.encode() if isinstance(text, str) else text, at_end=True)
    return scanner.read


def read_log(source: Source, index: Index | None = None) -> Read:
    """One log to its end. Raises UsageError where one that was named cannot be read; of a folder the others are."""
    scanner = Scanner(index or our_index(), source)
    try:
        with opened(source) as file:
            _read(file, scanner)
    except UsageError as why:
        if source.is_named:
            raise
        scanner.read.broken = str(why).removeprefix(f"{source.name}: ")
    scanner.feed(b"", at_end=True)
    return scanner.read


def _read(file: BinaryIO, scanner: Scanner) -> None:
    while True:
        piece, broken = read_some(file, PIECE_BYTES)
        if broken:
            scanner.read.broken = broken
        if not piece:
            return
        scanner.feed(piece)


@cache
def our_index() -> Index:
    return Index(all_rules())
