"""Calls of tools that a chat template is tried with, to see what ends such a turn."""

import json
from collections.abc import Iterator
from typing import Any

_NAMES = ("find_place", "find_time")
_ARGUMENTS = {"name": "here"}
PROBE_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"for {name}",
            "parameters": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
        },
    }
    for name in _NAMES
]


def probe_calls() -> Iterator[list[dict[str, Any]]]:
    """Calls of PROBE_TOOLS: two of them, or one for templates that take no more; arguments as an object or as text."""
    for names in (_NAMES, _NAMES[:1]):
        for arguments in (_ARGUMENTS, json.dumps(_ARGUMENTS)):
            yield [
                {"id": f"call{n:05}", "type": "function", "function": {"name": name, "arguments": arguments}}
                for n, name in enumerate(names)
            ]
