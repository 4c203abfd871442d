"""Records of conversations, in any of their common spellings, as the messages and tools a chat template takes."""

import json
from dataclasses import dataclass
from typing import Any

from allranks.data.records import RecordError, excerpt

_MESSAGE_FIELDS = ("messages", "conversations", "conversation")
_ROLE_KEYS = ("role", "from")
_CONTENT_KEYS = ("content", "value")
_FUNCTION_CALL = "function_call"
_ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function": "tool",
    _FUNCTION_CALL: _FUNCTION_CALL,
}
_THINKING = ("<think>", "</think>")


@dataclass(frozen=True)
class Conversation:
    """Messages as a chat template takes them, and what the record says about training each."""

    messages: list[dict]
    tools: list[dict] | None
    train: list[bool | None]  # the record's own word; None: by role
    details: list[list[tuple[int, int]] | None]  # character ranges [start, stop) of the content to train; None: all


class ConversationFormat:
    """How to read the records of one data set. Fields that the `DatasetSpec` does not name are found by themselves."""

    def __init__(self, spec: Any, default_system_message: str | None = None):
        mappings = dict(spec.message_property_mappings or {})
        self._messages = (spec.field_messages,) if spec.field_messages else _MESSAGE_FIELDS
        self._role = (mappings.pop("role"),) if "role" in mappings else _ROLE_KEYS
        self._content = (mappings.pop("content"),) if "content" in mappings else _CONTENT_KEYS
        self._properties = mappings  # template name -> name in the data
        self._thinking_key = spec.template_thinking_key or "reasoning_content"
        if spec.field_thinking:
            self._properties[self._thinking_key] = spec.field_thinking
        own_roles = {name: role for role, names in (spec.roles or {}).items() for name in names}
        self._roles = _ROLES | {role: role for role in spec.roles or {}} | own_roles
        self._tools = spec.field_tools or "tools"
        self._system = spec.field_system or "system"
        self._spec = spec
        self._default_system_message = default_system_message

    def read(self, record: Any) -> Conversation:
        """Errors: `RecordError` naming the field, what was expected and what was found."""
        if not isinstance(record, dict):
            raise RecordError(f"expected an object with a list of messages, found {excerpt(record)}")
        field = next((name for name in self._messages if record.get(name) is not None), None)
        if field is None:
            raise RecordError(
                f"no field {' or '.join(self._messages)}; it has {_names(record)}. Name the field of the messages with "
                "field_messages"
            )
        raw = record[field]
        if isinstance(raw, str):  # in CSV, and in some JSON, a list is written as text
            raw = _parsed(raw, field)
        if not isinstance(raw, list) or not raw:
            raise RecordError(f"field {field}: expected a list of messages with at least one, found {excerpt(raw)}")

        train: list[bool | None] = []
        details: list[list[tuple[int, int]] | None] = []
        messages = []
        for i, item in enumerate(raw):
            place = f"field {field}, message {i}"
            if not isinstance(item, dict):
                raise RecordError(f"{place}: expected an object, found {excerpt(item)}")
            message = self._message(item, place)
            if message["role"] == "system" and self._spec.drop_system_message:
                continue
            messages.append(message)
            train.append(self._training(item, place))
            details.append(self._detail(item, message, place))
        if not messages:
            raise RecordError(f"field {field}: nothing is left without the system message")

        system = self._system_message(record)
        if system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": system})
            train.insert(0, None)
            details.insert(0, None)
        return Conversation(messages, _tools(record.get(self._tools), self._tools), train, details)

    def _system_message(self, record: dict) -> str | None:
        if self._spec.drop_system_message:
            return None
        system = record.get(self._system)
        if system is None or system == "":
            if self._spec.field_system and self._spec.field_system not in record:
                raise RecordError(f"no field {self._system} (field_system); it has {_names(record)}")
            return self._default_system_message
        if not isinstance(system, str):
            raise RecordError(f"field {self._system}: expected text, found {excerpt(system)}")
        return system

    def _message(self, item: dict, place: str) -> dict:
        role_key = next((key for key in self._role if item.get(key) is not None), None)
        if role_key is None:
            raise RecordError(f"{place}: no property {' or '.join(self._role)} for the role; it has {_names(item)}")
        role = self._roles.get(item[role_key]) if isinstance(item[role_key], str) else None
        if role is None:
            raise RecordError(
                f"{place}: role {excerpt(item[role_key])} is not known; known are {', '.join(self._roles)}. Add it "
                "with roles, such as roles: {assistant: [NAME]}"
            )
        content_key = next((key for key in self._content if item.get(key) is not None), None)
        taken = {role_key, content_key, *self._properties.values()}
        taken |= {self._spec.message_field_training, self._spec.message_field_training_detail}
        message: dict = {"role": role}
        extra = {key: value for key, value in item.items() if key not in taken and value is not None}
        extra |= {ours: item[theirs] for ours, theirs in self._properties.items() if item.get(theirs) is not None}
        if extra.get("tool_calls"):
            extra["tool_calls"] = _calls(extra["tool_calls"], f"{place}, tool_calls")
        else:
            extra.pop("tool_calls", None)

        if content_key is None:
            if "tool_calls" not in extra:
                raise RecordError(f"{place}: no property {' or '.join(self._content)}; it has {_names(item)}")
            message["content"] = ""
        else:
            message["content"] = _text(item[content_key], f"{place}, {content_key}")
        if role == _FUNCTION_CALL:
            extra["tool_calls"] = _calls(_parsed(message["content"], f"{place}, {content_key}"), place)
            message |= {"role": "assistant", "content": ""}
        if self._spec.split_thinking and message["role"] == "assistant":
            _split_thinking(message, self._thinking_key)
        for key in ("role", "content"):
            extra.pop(key, None)
        return message | extra

    def _training(self, item: dict, place: str) -> bool | None:
        name = self._spec.message_field_training
        if name is None or item.get(name) is None:
            return None
        if item[name] not in (True, False):  # 0 and 1 are equal to these
            raise RecordError(f"{place}, {name}: expected true or false, found {excerpt(item[name])}")
        return bool(item[name])

    def _detail(self, item: dict, message: dict, place: str) -> list[tuple[int, int]] | None:
        name = self._spec.message_field_training_detail
        if name is None or item.get(name) is None:
            return None
        ranges = []
        for entry in item[name] if isinstance(item[name], list) else [item[name]]:
            try:
                start, stop, trained = int(entry["begin_offset"]), int(entry["end_offset"]) + 1, bool(entry["train"])
            except (TypeError, KeyError, ValueError) as error:
                raise RecordError(
                    f"{place}, {name}: expected a list of {{begin_offset, end_offset, train}}, found {excerpt(entry)}"
                ) from error
            if not 0 <= start < stop <= len(message["content"]):
                raise RecordError(
                    f"{place}, {name}: characters {start} to {stop - 1} are not within the text, which has "
                    f"{len(message['content'])}"
                )
            if trained:
                ranges.append((start, stop))
        return ranges


def _text(value: Any, place: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):  # a list of parts, as multimodal templates have it
        kinds = {part.get("type") if isinstance(part, dict) else type(part).__name__ for part in value}
        if kinds <= {"text"}:
            return "".join(_text(part.get("text"), place) for part in value)
        raise RecordError(f"{place}: only text can be trained, found parts of type {', '.join(map(str, kinds))}")
    raise RecordError(f"{place}: expected text, found {excerpt(value)}")


def _calls(value: Any, place: str) -> list[dict]:
    """Tool calls as {type: function, function: {name, arguments: object}}."""
    calls = []
    for call in value if isinstance(value, list) else [value]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RecordError(f"{place}: expected a call as {{name, arguments}}, found {excerpt(call)}")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            arguments = _parsed(arguments, f"{place}, arguments of {function['name']}")
        identity = {"id": call["id"]} if call.get("id") is not None else {}
        named = {"name": function["name"], "arguments": _without_nulls(arguments)}
        calls.append({"type": "function", **identity, "function": named})
    return calls


def _tools(value: Any, field: str) -> list[dict] | None:
    """Tool definitions as {type: function, function: schema}; None if there are none."""
    if isinstance(value, str):
        value = _parsed(value, f"field {field}") if value.strip() else None
    if not value:
        return None
    tools = []
    for tool in value if isinstance(value, list) else [value]:
        if isinstance(tool, str):
            tool = _parsed(tool, f"field {field}")
        if isinstance(tool, dict) and isinstance(tool.get("function"), dict):
            tools.append(_without_nulls(tool))
        elif isinstance(tool, dict) and "name" in tool:
            tools.append({"type": "function", "function": _without_nulls(tool)})
        else:
            raise RecordError(f"field {field}: expected function schemas with a name, found {excerpt(tool)}")
    return tools


def _without_nulls(value: Any) -> Any:
    """Columnar files give every row the keys of all rows, filled with null; the templates would write them."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _split_thinking(message: dict, key: str) -> None:
    opening, closing = _THINKING
    text = message["content"].lstrip()
    if text.startswith(opening) and closing in text:
        thought, _, answer = text.removeprefix(opening).partition(closing)
        message |= {key: thought.strip(), "content": answer.lstrip()}


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise RecordError(f"{place}: not valid JSON ({error}): {excerpt(text)}") from error


def _names(record: dict) -> str:
    return ", ".join(map(str, record)) or "no fields"
