"""Whether JSON's values are of the types that fields are annotated with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, get_args, get_origin


def is_a(value: Any, kind: Any) -> bool:
    """Whether `value`, as the json module reads it, is of the annotated type `kind`; True and False are no numbers."""
    origin = get_origin(kind)
    if origin is UnionType:
        return any(is_a(value, one) for one in get_args(kind))
    if kind is Any:
        return True
    if origin is Mapping:
        of = get_args(kind)[1]
        return isinstance(value, dict) and (of is Any or all(is_a(item, of) for item in value.values()))
    if origin is Sequence:
        of = get_args(kind)[0]
        return isinstance(value, list | tuple) and all(is_a(item, of) for item in value)
    if kind in (int, float):
        return isinstance(value, int | float if kind is float else int) and not isinstance(value, bool)
    return isinstance(value, kind)
