"""Whether a text that a chat template wrote holds what a message says, however the template spells it."""

import html
import json
import re
from collections.abc import Iterator
from typing import Any

from allranks.data.records import excerpt

_THINK_TAG = re.compile(r"</?think>")


def is_written(part: str, text: str) -> bool:
    """Whether `text` holds `part`: as it is, with other white space or capitals, or escaped for JSON, Python or XML."""
    if part in text:
        return True
    squeezed = _squeeze(text)
    if _squeeze(part) in squeezed:
        return True
    as_json = json.dumps(part, ensure_ascii=False)[1:-1]
    spellings = (
        as_json,
        json.dumps(as_json, ensure_ascii=False)[1:-1],  # an object with text in it, written as text
        json.dumps(part)[1:-1],
        json.dumps(json.dumps(part)[1:-1])[1:-1],
        repr(part)[1:-1],
        html.escape(part),
        html.escape(part, quote=False),
        html.escape(part).replace("&quot;", "&#34;").replace("&#x27;", "&#39;"),  # as Jinja's filter does
    )
    if any(_squeeze(spelling) in squeezed for spelling in spellings):
        return True
    return _squeeze(part).casefold() in squeezed.casefold()


def not_written(message: dict, text: str, thinking_keys: tuple[str, ...]) -> str | None:
    """What of a message `text` lacks, in words; None if nothing."""
    content = message.get("content")
    if len(message) == 2 and isinstance(content, str) and content in text:
        return None  # as most are
    for part in _texts(content):
        # Templates write reasoning between tags of their own, and some of these belong to the generation prompt.
        parts = _THINK_TAG.split(part) if "think>" in part and message["role"] == "assistant" else [part]
        if not all(is_written(one, text) for one in parts):
            return f"a part of {excerpt(part)}"
    for key in thinking_keys:
        for part in _texts(message.get(key)):
            if not is_written(part, text):
                return f"its reasoning ({key}) {excerpt(part)}"
    for call in message.get("tool_calls") or []:
        name = function_of(call).get("name", "")
        if not is_written(str(name), text):
            return f"its call of {name}"
    return None


def spellings(content: str) -> Iterator[str]:
    """How templates write a text: as it is, without white space around it, or escaped for JSON."""
    yield content
    yield content.strip()
    yield json.dumps(content, ensure_ascii=False)[1:-1]
    yield json.dumps(content)[1:-1]


def function_of(call: dict) -> dict:
    """The function of a call or of a tool's definition, which may be wrapped: {type: function, function: {name, …}}."""
    inner = call.get("function")
    return inner if isinstance(inner, dict) else call


def has_parts(message: dict) -> bool:
    """Whether a message's content is a list of texts: [{type: text, text}, …]."""
    content = message.get("content")
    return isinstance(content, list) and bool(content) and all(_is_text_part(part) for part in content)


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _texts(value: Any) -> Iterator[str]:
    """The texts in a message's content: itself, the text of its parts, or the values of an object."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        if _is_text_part(value):
            yield value["text"]
        else:
            for item in value.values():
                yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield json.dumps(value)


def _squeeze(text: str) -> str:
    return "".join(text.split())
