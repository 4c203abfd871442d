"""Values out of Arrow columns as they were before they went in: JSON parsed, padding left out.

A struct column gives every row the fields of all rows, filled with null. Nobody wrote these nulls, and a chat template
would. What is JSON (`Json()` of datasets, Arrow's `arrow.json`) has no padding: a null in it is the user's own.
"""

import json
from collections.abc import Callable
from typing import Any

from allranks.data.records import RecordError, excerpt

Restore = Callable[[Any], Any]


def row_restorer(schema: Any, *, parsed: bool = False) -> Callable[[dict], dict]:
    """What turns a row of this `pyarrow.Schema`, as `to_pylist` gives it, into the record it was.

    parsed: JSON has been parsed already (as `datasets` does). A column that is null stays. Errors, when a row is given:
    `RecordError` for JSON that cannot be parsed.
    """
    features = _features(schema)
    by_name = {field.name: _restorer(field.type, features.get(field.name), parsed) for field in schema}
    changing = {name: restore for name, restore in by_name.items() if restore is not None}

    def restored(row: dict) -> dict:
        for name, restore in changing.items():
            if row[name] is not None:
                row[name] = restore(row[name])
        return row

    return restored


def _restorer(kind: Any, feature: Any, parsed: bool) -> Restore | None:
    """How values of an Arrow type change; None if they do not. `feature`: what datasets noted of it, if anything."""
    from pyarrow import types

    if getattr(kind, "extension_name", None) == "arrow.json" or _is_json(feature):
        return None if parsed else _parsed
    if hasattr(kind, "storage_type"):
        return _restorer(kind.storage_type, feature, parsed)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        inner = _restorer(kind.value_type, _of_items(feature), parsed)
        return None if inner is None else lambda items: [item if item is None else inner(item) for item in items]
    if not types.is_struct(kind):
        return None
    fields = {field.name: _restorer(field.type, _of_field(feature, field.name), parsed) for field in kind}

    def restored(struct: dict) -> dict:
        return {
            name: restore(value) if (restore := fields.get(name)) else value
            for name, value in struct.items()
            if value is not None
        }

    return restored


def _parsed(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"a column of JSON: not valid JSON ({error}): {excerpt(text)}") from error


def _features(schema: Any) -> dict:
    """What `datasets` writes beside the schema; some tools keep that and turn the type `arrow.json` into text."""
    try:
        return json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}


def _is_json(feature: Any) -> bool:
    return isinstance(feature, dict) and feature.get("_type") == "Json"


def _of_items(feature: Any) -> Any:
    if isinstance(feature, list):
        return feature[0] if feature else None
    return feature.get("feature") if isinstance(feature, dict) else None


def _of_field(feature: Any, name: str) -> Any:
    return feature.get(name) if isinstance(feature, dict) else None
