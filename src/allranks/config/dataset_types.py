"""Which types of a data set there are, and which keys of it each one reads: known before any library is loaded."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from allranks.config.sections.data import DatasetSpec

PROMPT_TYPES = (
    "alpaca",
    "alpaca_instruct",
    "alpaca_instruct.load",
    "gpteacher",
    "oasst",
    "alpaca_chat",
    "alpaca_chat.load_default",
    "alpaca_chat.load_qa",
    "alpaca_chat.load_camel_ai",
    "alpaca_w_system",
    "alpaca_w_system.load",
    "alpaca_w_system.load_instruct",
    "alpaca_w_system.load_chat",
    "alpaca_w_system.load_open_orca",
)
"""Records with an instruction and an answer; such a type may have a style (`alpaca:chat`) or a chat template."""
PROMPT_STYLES = ("instruct", "chat", "chatml")

# What says where the records are, whatever their type.
_SOURCE_KEYS = {"path", "type", "ds_type", "data_files", "name", "split", "revision", "shards", "shards_idx", "weight"}
# type -> the keys of a data set that it reads besides; types that are not here are prompts.
_KEYS: dict[str, set[str]] = {
    "chat_template": {
        *("chat_template", "chat_template_jinja", "field_messages", "message_property_mappings", "field_tools"),
        *("field_system", "field_thinking", "template_thinking_key", "roles", "roles_to_train", "train_on_eos"),
        *("train_on_eot", "message_field_training", "message_field_training_detail", "drop_system_message"),
        "split_thinking",
    },
    "completion": {"field", "overlap", "train_on_eos"},
    "input_output": {"field"},
    "qwen": {"field_messages"},
    "tokenized": set(),
}
_PROMPT_KEYS = {"train_on_eos"}
_TEMPLATE_KEYS = {"chat_template", "chat_template_jinja", "roles_to_train", "train_on_eos", "train_on_eot"}

TYPES = (*(name for name in _KEYS if name != "tokenized"), *PROMPT_TYPES)
"""All values of `type`; a mapping is a prompt format of the user's own, and none means tokenized records."""


def wrong_type(spec: DatasetSpec) -> tuple[str, str] | None:
    """(key, why) of what in a data set cannot be: a type that is not known, or a key that its type does not read."""
    if not spec.type:
        return _without_effect(spec, "tokenized")
    if not isinstance(spec.type, str):
        return _wrong_prompt(spec, "a prompt format of your own")
    name = spec.type.partition(":")[0]
    if name.partition(".")[0] == "sharegpt":
        return "type", (
            f"{spec.type} is the old name; use type: chat_template, which finds the fields conversations, from and "
            "value by itself"
        )
    if name not in TYPES:
        near = get_close_matches(name.lower().replace("-", "_"), TYPES, n=1)
        return "type", (
            f"{spec.type!r} is not known{f'; did you mean {near[0]}?' if near else '.'} Types: {', '.join(TYPES)}, a "
            "mapping for a prompt format of your own, or none for tokenized records"
        )
    if ":" in spec.type and name not in PROMPT_TYPES:
        return "type", f"{spec.type!r}: only prompt types such as alpaca have a style after ':'"
    return _wrong_prompt(spec, name) if name in PROMPT_TYPES else _without_effect(spec, name)


def is_prompt(spec: DatasetSpec) -> bool:
    """Whether the records of a known type are instructions: a prompt and its answer."""
    return bool(spec.type) and (not isinstance(spec.type, str) or spec.type.partition(":")[0] in PROMPT_TYPES)


def template_of(spec: DatasetSpec) -> str | None:
    """The chat template that an instruction data set names, behind its type's colon or as `chat_template`."""
    behind = spec.type.partition(":")[2] if isinstance(spec.type, str) else ""
    beside = spec.chat_template or ("jinja" if spec.chat_template_jinja else None)
    return beside if behind in ("", *PROMPT_STYLES) else behind


def to_template(prompt_type: str | None, template: str) -> str:
    """What to write in a data set so that its instructions go through a template. None: a format of one's own."""
    if prompt_type is None or template in PROMPT_STYLES:  # alpaca:chatml is a style
        return f"chat_template: {template}"
    return f"type: {prompt_type.partition(':')[0]}:{template}"


def _wrong_prompt(spec: DatasetSpec, type_name: str) -> tuple[str, str] | None:
    template = template_of(spec)
    if template is None:
        return _without_effect(spec, type_name)
    behind = spec.type.partition(":")[2] if isinstance(spec.type, str) else ""
    beside = spec.chat_template or ("jinja" if spec.chat_template_jinja else behind)
    if behind and beside != behind:
        return "chat_template", f"{beside} and type {spec.type} name two; remove one of them"
    return _without_effect(spec, f"{type_name} through a chat template", _TEMPLATE_KEYS)


def _without_effect(
    spec: DatasetSpec, type_name: str, keys_of_prompts: set[str] = _PROMPT_KEYS
) -> tuple[str, str] | None:
    """No key is ignored: one that the type does not read is an error, unless it is false or empty."""
    given = {key for key in spec.model_fields_set if getattr(spec, key)}
    without_effect = sorted(given - _SOURCE_KEYS - _KEYS.get(type_name, keys_of_prompts))
    if not without_effect:
        return None
    key = without_effect[0]
    readers = [name for name, keys in _KEYS.items() if key in keys]
    return key, (
        f"has no effect with type {type_name}"
        f"{f'; it is for {chr(32).join(readers)}' if readers else ''}. Remove it, or choose another type"
    )
