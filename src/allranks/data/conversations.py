"""Records of conversations, in any of their common spellings, as the messages and tools a chat template takes."""

import json
from dataclasses import dataclass
from typing import Any

from allranks.data.records import RecordError, excerpt
from allranks.data.roles import FUNCTION_CALL, role_map
from allranks.data.written import function_of

_MESSAGE_FIELDS = ("messages", "conversations", "conversation")
_ROLE_KEYS = ("role", "from")
_CONTENT_KEYS = ("content", "value")
_WEIGHT = "weight"
_MEDIA = {"image", "image_url", "input_image", "audio", "input_audio", "audio_url", "video", "video_url", "file"}
_THINKING = ("<think>", "</think>")
THINKING_KEYS = ("reasoning_content", "thinking", "reasoning")
"""By which messages and templates know the reasoning; transformers takes any of them for each other."""


@dataclass(frozen=True)
class Conversation:
    """Messages as a chat template takes them, and what the record says about training each."""

    messages: list[dict]
    tools: list[dict] | None
    roles: list[str]  # of the messages; a call that is a message of its own is a "function_call"
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
        self.thinking_keys = tuple(dict.fromkeys((*THINKING_KEYS, self._thinking_key)))
        if spec.field_thinking:
            self._properties[self._thinking_key] = spec.field_thinking
        self.roles = role_map(spec)
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
        messages: list[dict] = []
        roles: list[str] = []
        for i, item in enumerate(raw):
            place = f"field {field}, message {i}"
            if not isinstance(item, dict):
                raise RecordError(f"{place}: expected an object, found {excerpt(item)}")
            role, message = self._message(item, place)
            if role == "system" and self._spec.drop_system_message:
                continue
            messages.append(message)
            roles.append(role)
            train.append(self._training(item, roles[-1], place))
            details.append(self._detail(item, message, place))
        if not messages:
            raise RecordError(f"field {field}: nothing is left without the system message")

        system = self._system_message(record)
        if system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": system})
            roles.insert(0, "system")
            train.insert(0, None)
            details.insert(0, None)
        return Conversation(messages, _tools(record.get(self._tools), self._tools), roles, train, details)

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

    def _message(self, item: dict, place: str) -> tuple[str, dict]:
        role_key = next((key for key in self._role if item.get(key) is not None), None)
        if role_key is None:
            raise RecordError(f"{place}: no property {' or '.join(self._role)} for the role; it has {_names(item)}")
        role = self.roles.get(item[role_key]) if isinstance(item[role_key], str) else None
        if role is None:
            raise RecordError(
                f"{place}: role {excerpt(item[role_key])} is not known; known are {', '.join(self.roles)}. Add it "
                "with roles, such as roles: {assistant: [NAME]}; roles: {NAME: [NAME]} leaves it as it is"
            )
        content_key = next((key for key in self._content if item.get(key) is not None), None)
        message = self._properties_of(item, role, role_key, content_key, place)
        if (calls := message.get("tool_calls")) is not None:
            message["tool_calls"] = _calls(calls, f"{place}, tool_calls") if calls else []
        if content_key is None and not any(message.get(key) for key in ("tool_calls", *self.thinking_keys)):
            raise RecordError(f"{place}: no property {' or '.join(self._content)}; it has {_names(item)}")
        if role == FUNCTION_CALL:
            text = _text(message.get("content", ""), f"{place}, {content_key}")
            called = _calls(_parsed(text, f"{place}, {content_key}"), place)
            message |= {"role": "assistant", "content": "", "tool_calls": [wrapped_call(call) for call in called]}
        if self._spec.split_thinking and message["role"] == "assistant" and isinstance(message.get("content"), str):
            _split_thinking(message, self._thinking_key)
        return role, message

    def _properties_of(self, item: dict, role: str, role_key: str, content_key: str | None, place: str) -> dict:
        """The message under the names that templates know, in its own order. Nulls say nothing, as in transformers."""
        names: dict[str, list[str]] = {}
        for ours, theirs in self._properties.items():
            names.setdefault(theirs, []).append(ours)
        controls = {self._spec.message_field_training, self._spec.message_field_training_detail}
        message: dict = {}
        for key, value in item.items():
            if key == role_key:
                message["role"] = role
            elif key == content_key:
                message["content"] = _content(value, role, f"{place}, {key}")
            elif value is not None and key not in controls and key not in ("role", "content"):
                message |= dict.fromkeys(names.get(key, [key]), value)
        return message

    def _training(self, item: dict, role: str, place: str) -> bool | None:
        name = self._spec.message_field_training
        if name is None:
            return self._weight(item, role, place)
        if item.get(name) is None:
            return None
        if item[name] not in (True, False):  # 0 and 1 are equal to these
            raise RecordError(f"{place}, {name}: expected true or false, found {excerpt(item[name])}")
        return bool(item[name])

    def _weight(self, item: dict, role: str, place: str) -> bool | None:
        """OpenAI's and Mistral's word on a message: 0 leaves its turn out, 1 is as without it."""
        weight = item.get(_WEIGHT)
        if weight is None or _WEIGHT in self._properties.values():
            return None
        if weight in (0, 1):
            return None if weight else False
        if role not in ("assistant", FUNCTION_CALL):
            return None
        raise RecordError(
            f"{place}, {_WEIGHT}: a turn is trained (1) or not (0), found {excerpt(weight)}; where it means something "
            "else, name the property that says what is trained with message_field_training"
        )

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
            text = message.get("content")
            if not isinstance(text, str):
                raise RecordError(f"{place}, {name}: characters are given, but the message is no single text")
            if not 0 <= start < stop <= len(text):
                raise RecordError(
                    f"{place}, {name}: characters {start} to {stop - 1} are not within the text, which has {len(text)}"
                )
            if trained:
                ranges.append((start, stop))
        return ranges


def _content(value: Any, role: str, place: str) -> Any:
    """What a template takes as content: text, parts of text (as multimodal templates have them), a tool's result."""
    if isinstance(value, str):
        return value
    if role == "tool" and not (isinstance(value, list) and any(_is_medium(part) for part in value)):
        return value
    _text(value, place)
    return value


def _is_medium(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in _MEDIA


def _text(value: Any, place: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        kinds = {part.get("type") if isinstance(part, dict) else type(part).__name__ for part in value}
        if kinds <= {"text"}:
            return "".join(_text(part.get("text"), place) for part in value)
        raise RecordError(f"{place}: only text can be trained, found parts of type {', '.join(map(str, kinds))}")
    raise RecordError(f"{place}: expected text, found {excerpt(value)}")


def _calls(value: Any, place: str) -> list[dict]:
    """Tool calls as the record has them: {name, arguments}, or {type: function, function: {name, arguments}}."""
    if isinstance(value, str):
        value = _parsed(value, place)
    calls = []
    for call in value if isinstance(value, list) else [value]:
        if isinstance(call, str):
            call = _parsed(call, place)
        function = function_of(call) if isinstance(call, dict) else None
        if function is None or not isinstance(function.get("name"), str):
            raise RecordError(f"{place}: expected a call as {{name, arguments}}, found {excerpt(call)}")
        calls.append(call)
    return calls


def wrapped_call(call: dict) -> dict:
    """A call as most templates take it: {type: function, function: {name, arguments}}, and its id if it has one."""
    function = function_of(call)
    identity = {"id": call["id"]} if call.get("id") is not None else {}
    named = {"name": function["name"], "arguments": function.get("arguments", {})}
    return {"type": "function", **identity, "function": named}


def _tools(value: Any, field: str) -> list[dict] | None:
    """Tool definitions as the record has them, with a name each; None if it says nothing of tools."""
    if isinstance(value, str):
        value = _parsed(value, f"field {field}") if value.strip() else None
    if value is None:
        return None
    tools = []
    for tool in value if isinstance(value, list) else [value]:
        if isinstance(tool, str):
            tool = _parsed(tool, f"field {field}")
        if not isinstance(tool, dict) or not isinstance(function_of(tool).get("name"), str):
            raise RecordError(f"field {field}: expected function schemas with a name, found {excerpt(tool)}")
        tools.append(tool)
    return tools


def _split_thinking(message: dict, key: str) -> None:
    opening, closing = _THINKING
    text = message["content"].lstrip()
    if text.startswith(opening) and closing in text:
        thought, _, answer = text.removeprefix(opening).partition(closing)
        message |= {key: thought.strip(), "content": answer.lstrip()}


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{place}: not valid JSON ({error}): {excerpt(text)}") from error


def _names(record: dict) -> str:
    return ", ".join(map(str, record)) or "no fields"
