"""Read CSV (columns named by the first line) and plain text (one record a line)."""

import csv
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from allranks.data.json_files import open_text
from allranks.data.records import Record
from allranks.errors import DataError


def read_csv(path: Path, delimiter: str) -> Iterator[Record]:
    """The rows of a CSV file as dicts of text."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the default, 128 KiB, is less than a long conversation
    with open_text(path) as file:
        reader = csv.reader(file, delimiter=delimiter)
        names: list[str] = []
        try:
            names = next((row for row in reader if row), [])
            if not names:
                raise DataError(f"data file {path} is empty")
            start = reader.line_num + 1
            for row in reader:
                where = partial(_at_line, path, start)
                start = reader.line_num + 1
                if not row:
                    continue
                if len(row) != len(names):
                    yield Record(None, where, problem=f"{len(row)} columns, but the first line names {len(names)}")
                else:
                    yield Record(dict(zip(names, row, strict=True)), where)
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: not valid CSV: {error}") from error
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: after line {reader.line_num}: not UTF-8 text: {error}") from error


def read_text(path: Path) -> Iterator[Record]:
    """The lines of a text file as records with the field `text`; blank lines are skipped."""
    number = 0
    with open_text(path) as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield Record({"text": line.rstrip("\r\n")}, partial(_at_line, path, number))
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: after line {number}: not UTF-8 text: {error}") from error


def _at_line(path: Path, number: int) -> str:
    return f"{path}:{number}"
