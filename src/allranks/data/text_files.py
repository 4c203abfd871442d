"""Read CSV (columns named by the first line) and plain text (one record a line)."""

import csv
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from allranks.data.packed_files import text_lines, undecoded
from allranks.data.records import Record, UnreadableError

_NUL = "it holds a NUL character: the file is damaged, or not UTF-8"


def read_csv(path: Path, delimiter: str) -> Iterator[Record]:
    """The rows of a CSV file as dicts of text. Quotes are taken strictly: a stray one would change the text."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default, 128 KiB, is less than a long conversation
    reader = csv.reader(text_lines(path, newline=""), delimiter=delimiter, strict=True)
    names: list[str] | None = None
    while True:
        start = reader.line_num + 1
        where = partial(_at_line, path, start)
        try:
            row = next(reader, None)
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise UnreadableError(
                    where(), 'a quote (") that opens in this record is never closed; nothing behind it can be read'
                ) from error
            if names is None:
                raise UnreadableError(where(), f"not valid CSV: {error}") from error
            yield Record(None, where, problem=f"not valid CSV: {error}")
            continue
        if row is None:
            break
        if not row:
            continue
        if names is None:
            names = _checked_names(row, where())
        elif len(row) != len(names):
            yield Record(None, where, problem=f"{len(row)} columns, but the first line names {len(names)}")
        else:
            problem = _problem("".join(row))
            yield Record(None if problem else dict(zip(names, row, strict=True)), where, problem=problem)
    if names is None:
        raise UnreadableError(str(path), "the file is empty")


def read_text(path: Path) -> Iterator[Record]:
    """The lines of a text file as records with the field `text`; blank lines are skipped."""
    for number, line in enumerate(text_lines(path), start=1):
        if line.strip():
            problem = _problem(line)
            value = None if problem else {"text": line.rstrip("\r\n")}
            yield Record(value, partial(_at_line, path, number), problem=problem)


def _checked_names(row: list[str], where: str) -> list[str]:
    problem = _problem("".join(row))
    twice = next((name for name in row if row.count(name) > 1), None)
    if problem is None and twice is not None:
        problem = f"two columns have the name {twice!r}; one of them would be lost"
    if problem:
        raise UnreadableError(where, problem)
    return row


def _problem(text: str) -> str | None:
    return _NUL if "\x00" in text else undecoded(text)


def _at_line(path: Path, number: int) -> str:
    return f"{path}:{number}"
