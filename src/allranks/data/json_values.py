"""JSON as Python values: as `json.loads` reads it, but no key of the user's is dropped in silence."""

import json
from typing import Any

from allranks.data.packed_files import undecoded
from allranks.data.records import excerpt

TRAILING_COMMA = "Illegal trailing comma before end of"  # Python's words since 3.13
_EXPECTED_BEFORE = {
    ("Expecting value", "]"): "array",
    ("Expecting property name enclosed in double quotes", "}"): "object",
}


class RepeatedKeyError(ValueError):
    """A key that stands twice in one object: whichever value was meant, the other would be lost."""


def problem_of(error: Exception, text: str) -> str:
    """What an error in reading `text`, a record, says to the user."""
    if bad := undecoded(text):
        return bad
    if isinstance(error, RecursionError):
        return f"nested too deeply: {excerpt(text.strip(), 40)}"
    if isinstance(error, json.JSONDecodeError):
        error = placed(error)
        return f"not valid JSON (column {error.colno}: {error.msg}): {excerpt(text.strip(), 40)}"
    if isinstance(error, RepeatedKeyError):
        return str(error)
    return f"a value cannot be read: {error}"  # a number of more digits than Python takes


def placed(error: json.JSONDecodeError) -> json.JSONDecodeError:
    """The error, at the comma where one is too many: Python 3.13 points there itself, earlier ones at what follows it.

    So a damaged file is told of in the same words on every node, and where the user has to mend it.
    """
    closed = _EXPECTED_BEFORE.get((error.msg, error.doc[error.pos : error.pos + 1]))
    if closed and (before := error.doc[: error.pos].rstrip(" \t\r\n")).endswith(","):
        return json.JSONDecodeError(f"{TRAILING_COMMA} {closed}", error.doc, len(before) - 1)
    return error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RepeatedKeyError(f"the key {excerpt(twice)} stands twice in one object; keep one of them")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_object)
"""Raises ValueError (JSONDecodeError, RepeatedKeyError, a number too large) or RecursionError."""
