"""Read JSON: a list of objects, one object a line, or objects over several lines."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from allranks.data.json_stream import begins_with_long_value, read_list, read_objects
from allranks.data.json_values import DECODER, problem_of
from allranks.data.packed_files import open_text, reading, text_lines, undecoded
from allranks.data.records import Record, UnreadableError

_BETWEEN = " \t\r\n\ufeff"  # files that were put together may have a byte order mark in front of each


def read_json(path: Path) -> Iterator[Record]:
    """The records of a JSON file, one at a time in memory.

    A broken line, or element of a list, is a broken record. Errors: `UnreadableError` where no later record can be told
    from the rest.
    """
    first = _beginning(path)
    if first.startswith("["):
        return read_list(path)
    if first.startswith("{") and not _is_json(first) and begins_with_long_value(path):
        return read_objects(path)
    return _lines(path)


def _beginning(path: Path) -> str:
    """The first line that is not blank; of a list its bracket only, since all of it may stand in one line."""
    with reading(partial(_at_line, path, 1)), open_text(path) as file:
        while (sign := file.read(1)) and sign in _BETWEEN:
            pass
        if not sign:
            raise UnreadableError(str(path), "the file is empty")
        return sign if sign == "[" else sign + file.readline()


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except RecursionError:
        return True
    except ValueError as error:
        return not isinstance(error, json.JSONDecodeError)
    return True


def _lines(path: Path) -> Iterator[Record]:
    for number, line in enumerate(text_lines(path), start=1):
        line = line.strip(_BETWEEN)
        if not line:
            continue
        where = partial(_at_line, path, number)
        try:
            value = DECODER.decode(line)
        except (ValueError, RecursionError) as error:
            yield Record(None, where, problem=problem_of(error, line))
        else:
            problem = undecoded(line)
            yield Record(None if problem else value, where, problem=problem)


def _at_line(path: Path, number: int) -> str:
    return f"{path}:{number}"
