"""Read JSON: a list of objects, one object a line, or a single object."""

import gzip
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO

from allranks.data.records import Record, excerpt
from allranks.errors import DataError

_WHITESPACE = " \t\r\n"


def read_json(path: Path) -> Iterator[Record]:
    """The records of a JSON file.

    A broken line of a JSON-lines file is a broken record. A JSON list that cannot be parsed is an error that names line
    and column, since nothing after that place can be trusted.
    """
    with open_text(path) as file:
        start = _first_character(file, path)
        if start == "[":
            yield from _list(path, file.read())
            return
        if start == "{":
            whole = _single_object(file)
            if whole is not None:
                yield Record(whole, partial(_at_line, path, 1))
                return
        file.seek(0)
        yield from _lines(path, file)


def open_text(path: Path) -> IO[str]:
    """Open a text file, unpacked if its name ends in .gz. A byte order mark is skipped."""
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return path.open(encoding="utf-8-sig")


def _first_character(file: IO[str], path: Path) -> str:
    try:
        while (character := file.read(1)) and character in _WHITESPACE:
            pass
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"data file {path} is not UTF-8 text: {error}") from error
    if not character:
        raise DataError(f"data file {path} is empty")
    file.seek(0)
    return character


def _single_object(file: IO[str]) -> dict | None:
    """The only object of the file, or None if its first line is an object of its own (JSON lines) or broken."""
    first = next((line for line in file if line.strip()), "")
    try:
        json.loads(first)
        return None
    except ValueError:
        pass
    file.seek(0)
    try:
        return json.loads(file.read())
    except ValueError:
        return None


def _list(path: Path, text: str) -> Iterator[Record]:
    try:
        values = json.loads(text)
    except ValueError as error:
        line, column = getattr(error, "lineno", "?"), getattr(error, "colno", "?")
        raise DataError(
            f"{path}:{line}:{column}: not valid JSON: {getattr(error, 'msg', error)}. The file starts with [ and must "
            "be one JSON list of objects; one object a line is read as well, without the brackets"
        ) from error
    if not values:
        raise DataError(f"data file {path} is an empty list")
    # The values are copied into records; keep the text only as long as a place in it may be asked for.
    for index, value in enumerate(values):
        yield Record(value, partial(_at_index, path, text, index))


def _lines(path: Path, file: IO[str]) -> Iterator[Record]:
    number = 0
    try:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = partial(_at_line, path, number)
            try:
                yield Record(json.loads(line.rstrip()), where)
            except ValueError as error:
                column = getattr(error, "colno", "?")
                reason = (
                    f"not valid JSON (column {column}: {getattr(error, 'msg', error)}): {excerpt(line.strip(), 40)}"
                )
                yield Record(None, where, problem=reason)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: after line {number}: not UTF-8 text: {error}") from error


def _at_line(path: Path, number: int) -> str:
    return f"{path}:{number}"


def _at_index(path: Path, text: str, index: int) -> str:
    """Name an element of a JSON list with the line it starts on."""
    decoder = json.JSONDecoder()
    at = text.index("[") + 1
    for _ in range(index):
        at = decoder.raw_decode(text, _skip(text, at))[1]
        at = _skip(text, at) + 1  # the comma
    at = _skip(text, at)
    return f"{path}:{text.count(chr(10), 0, at) + 1} (record {index}, counted from 0)"


def _skip(text: str, at: int) -> int:
    while text[at] in _WHITESPACE:
        at += 1
    return at
