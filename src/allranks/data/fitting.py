"""Which type of data set a record is of, by its fields."""

from itertools import product
from typing import Any

from allranks.data.prompts import PROMPT_TYPES, named_prompt

_MESSAGES = ("messages", "conversations", "conversation")
# Fields that are those of one type, the most telling first.
_FIELDS = [
    *(((name,), "type: chat_template") for name in _MESSAGES),
    (("segments",), "type: input_output"),
    (("system_prompt", "question", "response"), "type: alpaca_w_system.load_open_orca"),
    (("instruction", "output"), "type: alpaca"),
    (("instruction", "response"), "type: gpteacher"),
    (("INSTRUCTION", "RESPONSE"), "type: oasst"),
    (("question", "answer"), "type: alpaca_chat.load_qa"),
    (("message_1", "message_2"), "type: alpaca_chat.load_camel_ai"),
]
_QUESTIONS = ("prompt", "question", "query", "instruction", "input")
_ANSWERS = ("completion", "response", "answer", "output", "chosen")


def way_out(record: Any, spec: Any) -> str | None:
    """What to set in a `DatasetSpec` whose type does not fit a record; None if its fields are there, or none fits."""
    if not isinstance(record, dict) or _has_fields(record, spec):
        return None
    setting = _setting(record)
    return setting and f"For these fields use {setting}"


def _setting(record: dict) -> str | None:
    """The keys of a data set that take this record."""
    for fields, setting in _FIELDS:
        if all(record.get(field) is not None for field in fields):
            return setting
    for name, value in record.items():
        if _is_conversation(value):
            return f"type: chat_template with field_messages: {name}"
    texts = [name for name, value in record.items() if isinstance(value, str) and value]
    for question, answer in product(_QUESTIONS, _ANSWERS):
        if question in texts and answer in texts:
            return f"type: {{field_instruction: {question}, field_output: {answer}}}"
    if "text" in texts:
        return "type: completion"
    if isinstance(record.get("input_ids"), list) and "labels" in record:
        return "no type"
    return f"type: completion with field: {texts[0]}" if len(texts) == 1 else None


def _has_fields(record: dict, spec: Any) -> bool:
    """Whether the fields that the type reads are there, whatever is in them."""
    if not spec.type:
        wanted: tuple[str, ...] = ("input_ids",)
    elif not isinstance(spec.type, str):
        wanted = (spec.type.field_instruction or "instruction", spec.type.field_output or "output")
    elif spec.type.partition(":")[0] in PROMPT_TYPES:
        prompt = named_prompt(spec.type.partition(":")[0])
        wanted = (prompt.instruction, prompt.output)
    elif spec.type in ("completion", "input_output"):
        wanted = (spec.field or {"completion": "text", "input_output": "segments"}[spec.type],)
    else:
        names = (spec.field_messages,) if spec.field_messages else _MESSAGES
        return any(record.get(name) is not None for name in names)
    return all(name in record for name in wanted)


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) and _turn(item) for item in value)


def _turn(item: dict) -> bool:
    return ("role" in item and "content" in item) or ("from" in item and "value" in item)
