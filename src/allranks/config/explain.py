"""Say in plain words what a field allows, and what is wrong with a value that pydantic refused."""

import re
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from allranks.config.names import nearest_value
from allranks.config.run import SECTIONS
from allranks.config.sections.section import Section, key_help
from allranks.config.yaml_lines import KeyPath

Form = Literal["text", "list", "mapping", "value"]
"""`text` is any; a `value` is a number, a switch or one of some words."""


def explain(section: type[Section], error: ValidationError) -> Iterator[tuple[KeyPath, str, set[str] | None]]:
    """For each value that is wrong: its path, the message, and for an unknown key its known neighbours.

    Pydantic reports each branch of a union by itself. Here it is one line a value, and of several branches the one that
    got furthest.
    """
    details: dict[KeyPath, tuple[Any, type[Section], Any]] = {}
    for detail in error.errors(include_url=False, include_context=False):
        path, holder, field = _locate(section, detail["loc"])
        details.setdefault(path, (detail, holder, field))
    for path, (detail, holder, field) in details.items():
        if any(other[: len(path)] == path for other in details if other != path):
            continue
        if detail["type"] == "extra_forbidden":
            yield path, "unknown key", set(holder.model_fields)
        elif detail["type"] == "missing":
            yield path, f"required: {_help(holder, str(path[-1]))}", None
        else:
            yield path, _mismatch(field, str(path[-1]), detail["input"]), None


def forms(path: KeyPath) -> set[Form]:
    """What the config takes at a path, as far as a text given there may be it."""
    for section in SECTIONS.values():
        if path[0] in section.model_fields:
            found, _, field = _locate(section, path)
            return (
                {_form_of(choice) for choice in _alternatives(field)} if found == path and field is not None else set()
            )
    return set()


def _form_of(annotation: Any) -> Form:
    if get_origin(annotation) is Annotated:
        return _form_of(get_args(annotation)[0])
    if annotation is str:
        return "text"
    if get_origin(annotation) is list:
        return "list"
    return "mapping" if get_origin(annotation) is dict or _is_section(annotation) else "value"


def allowed(field: FieldInfo | Any) -> str:
    """What a field accepts, such as `an integer of at least 1` or `true, false or auto`."""
    if isinstance(field, FieldInfo):
        return _either(_choices(field.annotation, field.metadata))
    return _either(_choices(field, []))


def as_yaml(value: Any) -> str:
    """A value as YAML would write it, shortened."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…" + text[-1]


def _mismatch(field: FieldInfo | Any, key: str, value: Any) -> str:
    expected = allowed(field)
    message = f"expected {expected}, got {as_yaml(value)}"
    if expected.startswith("text") and isinstance(value, bool | int | float):
        return f"{message}; put it in quotes"
    if isinstance(value, str) and re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?|true|false", value.strip(), re.IGNORECASE):
        return f"{message}; leave out the quotes"
    near = nearest_value(key, value, _names(field)) if isinstance(value, str) else None
    return f"{message}; did you mean {near}?" if near else message


def _names(field: FieldInfo | Any) -> list[str]:
    """The values with a name that a field takes, in lists too."""
    annotation = field.annotation if isinstance(field, FieldInfo) else field
    if get_origin(annotation) is Literal:
        return [choice for choice in get_args(annotation) if isinstance(choice, str)]
    return [name for inner in get_args(annotation) for name in _names(inner)]


def _choices(annotation: Any, limits: list[Any]) -> list[str]:
    """The alternatives that a type allows, each in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        for limit in arguments[1:]:
            limits = [*limits, *(limit.metadata if isinstance(limit, FieldInfo) else [limit])]
        return _choices(arguments[0], limits)
    if origin in (Union, types.UnionType):
        choices = [choice for argument in arguments for choice in _choices(argument, limits)]
        # An integer is named only where it may be what a number may not.
        return [choice for choice in choices if choice.replace("an integer", "a number") not in {*choices} - {choice}]
    if origin is Literal:
        return [choice if isinstance(choice, str) else as_yaml(choice) for choice in arguments]
    if origin is list:
        return [f"a list of {_plural(_either(_choices(arguments[0], [])))}"]
    if origin is dict:
        entries = "" if arguments[1] is Any else f" of names to {_plural(_either(_choices(arguments[1], [])))}"
        return [f"a mapping{entries}"]
    if _is_section(annotation):
        return ["a mapping"]
    if annotation is bool:
        return ["true", "false"]
    if annotation is type(None):
        return []
    scalars = {
        int: ["an integer" + _bounds(limits)],
        float: ["a number" + _bounds(limits)],
        str: ["text" + _form(limits)],
    }
    return scalars.get(annotation, ["any value"])


def _bounds(limits: list[Any]) -> str:
    lower = upper = ""
    for limit in limits:
        if getattr(limit, "ge", None) is not None:
            lower = f"of at least {limit.ge}"
        if getattr(limit, "gt", None) is not None:
            lower = f"above {limit.gt}"
        if getattr(limit, "le", None) is not None:
            upper = f"at most {limit.le}"
        if getattr(limit, "lt", None) is not None:
            upper = f"below {limit.lt}"
    words = " and ".join(part for part in (lower, upper) if part)
    return f" {words}" if words else ""


def _form(limits: list[Any]) -> str:
    for limit in limits:
        if getattr(limit, "pattern", None):
            return " of the form " + limit.pattern.strip("^$").replace(r"\w+", "…")
        if getattr(limit, "min_length", None):
            return " that is not empty"
    return ""


def _either(choices: list[str]) -> str:
    choices = list(dict.fromkeys(choices))
    return choices[0] if len(choices) == 1 else ", ".join(choices[:-1]) + " or " + choices[-1]


def _plural(word: str) -> str:
    return {"text": "texts", "an integer": "integers", "a mapping": "mappings"}.get(
        word, word.replace("a list of", "lists of").replace("a number", "numbers")
    )


def _help(holder: type[Section], key: str) -> str:
    text = key_help(holder).get(key, "")
    return text[:1].lower() + text[1:].rstrip(".")


def _locate(section: type[Section], location: tuple[Any, ...]) -> tuple[KeyPath, type[Section], Any]:
    """The path in the config of a pydantic location, which also names branches of unions; its model; its field."""
    path: list[str | int] = []
    holder, current = section, cast(Any, section)
    for part in location:
        choices = _alternatives(current)
        nested = next((choice for choice in choices if _is_section(choice)), None)
        if nested and part == nested.__name__:
            current = nested
        elif nested and (part in nested.model_fields or len(choices) == 1):
            holder, current = nested, nested.model_fields.get(part)
            path.append(part)
        elif isinstance(part, int) or len(choices) == 1:
            inner = next((get_args(choice) for choice in choices if get_origin(choice) in (list, dict)), None)
            current = inner[-1] if inner else None
            path.append(part)
        # Else it is pydantic's name of a branch, such as `list[str]`, and no part of the config.
    return tuple(path), holder, current


def _alternatives(field: Any) -> list[Any]:
    """The types that a field may have, None aside."""
    annotation = field.annotation if isinstance(field, FieldInfo) else field
    is_union = get_origin(annotation) in (Union, types.UnionType)
    return [choice for choice in (get_args(annotation) if is_union else (annotation,)) if choice is not type(None)]


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)
