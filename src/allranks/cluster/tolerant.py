"""JSON from any version of a program, read into dataclasses: what cannot be read is not known, and named.

Each dataclass has a field `other`, which takes the keys that this version does not know; all fields have defaults.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

_T = TypeVar("_T")
_NAMES = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false"}


def read_table(kind: type[_T], message: object, what: str) -> tuple[_T, list[str]]:
    """The message as a `kind`, and the places whose values are of another type, in words.

    Such a value is left at its field's default; in a list or mapping it is left out, or, where tables are expected,
    one of which nothing is known. Raises ValueError, naming `what` this is, for what is no table, and nothing else.
    """
    if not isinstance(message, Mapping):
        raise ValueError(f"{what} is a table, not {_kind_of(message)}")
    unreadable: list[str] = []
    return kind(**_table(kind, message, "", unreadable)), unreadable


def plain(value: Any) -> Any:
    """Plain JSON types, without what is None."""
    if is_dataclass(value) and not isinstance(value, type):
        own = {each.name: getattr(value, each.name) for each in fields(value) if each.name != "other"}
        known = {name: plain(item) for name, item in own.items() if item is not None}
        return {**getattr(value, "other"), **known}  # noqa: B009
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value


@cache
def _hints(kind: type) -> dict[str, Any]:
    """Kept: a thousand reports have some hundred thousand tables, and the annotations are text that is evaluated."""
    return get_type_hints(kind)


def _table(kind: type, message: Mapping[Any, object], where: str, unreadable: list[str]) -> dict[str, Any]:
    """The fields of `kind` that the message has, as arguments; what cannot be read is left to its default."""
    hints = _hints(kind)
    found: dict[str, Any] = {"other": {}}
    for key, value in message.items():
        if key not in hints or key == "other":
            found["other"][key] = value
        else:
            read = _read(hints[key], value, f"{where}{key}", unreadable)
            if read is not None:
                found[key] = read
    return found


def _read(kind: Any, value: object, where: str, unreadable: list[str]) -> Any:
    """`value` as `kind`; None where it is null, and where it is something else, with a line in `unreadable`."""
    if value is None:
        return None
    kind, origin, args, is_table = _shape(kind)
    if is_table and isinstance(value, Mapping):
        return kind(**_table(kind, value, f"{where}.", unreadable))
    if origin is Sequence and isinstance(value, list | tuple):
        (of,) = args
        each = (_item(of, item, f"{where}[{index}]", unreadable) for index, item in enumerate(value))
        return tuple(item for item in each if item is not None)
    if origin is Mapping and isinstance(value, Mapping):
        of = args[1]
        read = {str(key): _item(of, item, f"{where}.{key}", unreadable) for key, item in value.items()}
        return {key: item for key, item in read.items() if item is not None}
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value):
        return value
    if kind in (str, int, bool) and type(value) is kind:
        return value
    expected = _NAMES.get(kind, "a list" if origin is Sequence else "a table")
    unreadable.append(f"{where} is {_kind_of(value)}, not {expected}")
    return None


def _item(kind: Any, value: object, where: str, unreadable: list[str]) -> Any:
    """As `_read`; but a table that cannot be read is one of which nothing is known, so that it still counts."""
    read = _read(kind, value, where, unreadable)
    return kind() if read is None and _shape(kind)[3] else read


@cache
def _shape(kind: Any) -> tuple[Any, Any, tuple[Any, ...], bool]:
    """Of an annotation: without None, its generic type and arguments, and whether it is one of our tables."""
    if get_origin(kind) is UnionType:
        kind = next(one for one in get_args(kind) if one is not type(None))
    return kind, get_origin(kind), get_args(kind), isinstance(kind, type) and is_dataclass(kind)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond every float
        return False


def _kind_of(value: object) -> str:
    """In words, and never long: neither a list of a million nor one of a thousand levels is written out."""
    if isinstance(value, str):
        return repr(value[:80])
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, Mapping):
        return "a table"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "a number" if isinstance(value, int | float) else type(value).__name__
