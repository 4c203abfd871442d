"""A line of a rank's record as the event that it tells, whichever version wrote it."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import fields
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from allranks.observe.events import KINDS, Event, UnknownEvent

_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}  # JSON has no numbers for them


def parse_event(line: bytes) -> Event | None:
    """The event of one line; None for what is none, such as a line torn by a kill or zeros left by a power cut."""
    try:
        found = json.loads(line.decode("utf-8", "replace").strip("\0 \r\n"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(kind := found.pop("kind", None), str):
        return None
    event = KINDS.get(kind, UnknownEvent)
    types = _types(event.kind)
    values: dict[str, Any] = {"name": kind} if event is UnknownEvent else {}
    other = {}
    for key, value in found.items():
        is_known, converted = _converted(value, types[key]) if key in types else (False, None)
        if is_known:
            values[key] = converted
        else:
            other[key] = value
    return event(**values, other=other)


@functools.cache
def _types(kind: str) -> dict[str, Any]:
    event = KINDS.get(kind, UnknownEvent)
    hints = get_type_hints(event)
    return {each.name: hints[each.name] for each in fields(event) if each.name not in ("other", "name")}


def _converted(value: Any, wanted: Any) -> tuple[bool, Any]:
    """Whether JSON's `value` is one of type `wanted`, and it as such."""
    # Nearly all are plain, and a node reads those of all its steps while they are made.
    if type(value) is wanted:
        return True, value
    if isinstance(wanted, UnionType):
        for one in wanted.__args__:
            if (tried := _converted(value, one))[0]:
                return tried
        return False, None
    origin = None if isinstance(wanted, type) else get_origin(wanted)
    if origin is tuple:
        items = [_converted(item, get_args(wanted)[0]) for item in value] if isinstance(value, list) else [(False, 0)]
        return all(fits for fits, _ in items), tuple(item for _, item in items)
    if origin is Mapping:
        return isinstance(value, dict), value
    if wanted is float:
        if isinstance(value, str) and value in _NOT_FINITE:
            return True, _NOT_FINITE[value]
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                return True, float(value)
            except OverflowError:
                return False, None
        return False, None
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    return isinstance(value, wanted), value
