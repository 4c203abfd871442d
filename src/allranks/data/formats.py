"""The types of a data set: which encoder reads its records."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from allranks.data.chat import ChatEncoder
from allranks.data.drafts import Draft
from allranks.data.plain import CompletionEncoder, SegmentEncoder, TokenEncoder
from allranks.data.prompts import PROMPT_TYPES, PromptEncoder
from allranks.data.qwen import QwenEncoder
from allranks.errors import DataError

# What says where the records are, whatever their type.
_SOURCE_KEYS = {"path", "type", "ds_type", "data_files", "name", "split", "revision", "shards", "shards_idx", "weight"}
# type -> the keys of a data set that it reads besides; types that are not here are prompts.
_KEYS = {
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

Encoder = Callable[[Any], list[Draft]]  # record -> drafts; raises RecordError

_TYPES: dict[str, Callable[[Any, Any, Any], Encoder]] = {
    "chat_template": ChatEncoder,
    "completion": CompletionEncoder,
    "input_output": SegmentEncoder,
    "qwen": QwenEncoder,
    **dict.fromkeys(PROMPT_TYPES, PromptEncoder),
}


def encoder_for(spec: Any, data: Any, tokenizer: Any) -> Encoder:
    """The encoder of a `DatasetSpec`, under the settings of `cfg.data`.

    Errors: `DataError` for an unknown type, naming the nearest.
    """
    if spec.type is None or spec.type == "":
        _check_keys(spec, "tokenized")
        return TokenEncoder(spec, data, tokenizer)
    if not isinstance(spec.type, str):
        _check_keys(spec, "a prompt format of your own")
        return PromptEncoder(spec, data, tokenizer)
    name = spec.type.partition(":")[0]
    if name.partition(".")[0] == "sharegpt":
        raise DataError(
            f"data set {spec.path}: type sharegpt is the old name; use type: chat_template, which finds the fields "
            "conversations, from and value by itself"
        )
    if name not in _TYPES:
        near = get_close_matches(name, _TYPES, n=1)
        raise DataError(
            f"data set {spec.path}: type {spec.type!r} is not known{f'; did you mean {near[0]}?' if near else '.'} "
            f"Types: {', '.join(_TYPES)}, a mapping for a prompt format of your own, or none for tokenized records"
        )
    if ":" in spec.type and name not in PROMPT_TYPES:
        raise DataError(
            f"data set {spec.path}: type {spec.type!r}: only prompt types such as alpaca have a style after ':'"
        )
    _check_keys(spec, name)
    return _TYPES[name](spec, data, tokenizer)


def _check_keys(spec: Any, type_name: str) -> None:
    """No key is ignored: one that the type does not read is an error, unless it is false or empty."""
    given = {key for key in spec.model_fields_set if getattr(spec, key)}
    without_effect = sorted(given - _SOURCE_KEYS - _KEYS.get(type_name, _PROMPT_KEYS))
    if without_effect:
        key = without_effect[0]
        readers = [name for name, keys in _KEYS.items() if key in keys]
        raise DataError(
            f"data set {spec.path}: {key} has no effect with type {type_name}"
            f"{f'; it is for {chr(32).join(readers)}' if readers else ''}. Remove it, or choose another type"
        )
