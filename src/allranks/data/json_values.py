"""JSON as Python values: as `json.loads` reads it, but no key of the user's is dropped in silence."""

import json
from typing import Any

from allranks.data.packed_files import undecoded
from allranks.data.records import excerpt


class RepeatedKeyError(ValueError):
    """A key that stands twice in one object: whichever value was meant, the other would be lost."""


def problem_of(error: Exception, text: str) -> str:
    """What an error in reading `text`, a record, says to the user."""
    if bad := undecoded(text):
        return bad
    if isinstance(error, RecursionError):
        return f"nested too deeply: {excerpt(text.strip(), 40)}"
    if isinstance(error, json.JSONDecodeError):
        return f"not valid JSON (column {error.colno}: {error.msg}): {excerpt(text.strip(), 40)}"
    if isinstance(error, RepeatedKeyError):
        return str(error)
    return f"a value cannot be read: {error}"  # a number of more digits than Python takes


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RepeatedKeyError(f"the key {excerpt(twice)} stands twice in one object; keep one of them")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_object)
"""Raises ValueError (JSONDecodeError, RepeatedKeyError, a number too large) or RecursionError."""
