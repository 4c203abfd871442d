"""The types of a data set: which encoder reads its records."""

from collections.abc import Callable
from typing import Any

from allranks.config.dataset_types import is_prompt, template_of, wrong_type
from allranks.data.chat import ChatEncoder
from allranks.data.drafts import Draft
from allranks.data.plain import CompletionEncoder, SegmentEncoder, TokenEncoder
from allranks.data.prompt_chat import prompt_chat_encoder
from allranks.data.prompts import PromptEncoder
from allranks.data.qwen import QwenEncoder
from allranks.errors import DataError

Encoder = Callable[[Any], list[Draft]]  # record -> drafts; raises RecordError

_TYPES: dict[str, Callable[[Any, Any, Any], Encoder]] = {
    "chat_template": ChatEncoder,
    "completion": CompletionEncoder,
    "input_output": SegmentEncoder,
    "qwen": QwenEncoder,
}


def encoder_for(spec: Any, data: Any, tokenizer: Any) -> Encoder:
    """The encoder of a `DatasetSpec`, under the settings of `cfg.data`.

    Errors: `DataError` for an unknown type, naming the nearest.
    """
    wrong = wrong_type(spec)
    if wrong:
        raise DataError(f"data set {spec.path}: {wrong[0]} {wrong[1]}")
    if not spec.type:
        return TokenEncoder(spec, data, tokenizer)
    if is_prompt(spec):
        make = PromptEncoder if template_of(spec) is None else prompt_chat_encoder
        return make(spec, data, tokenizer)
    return _TYPES[spec.type.partition(":")[0]](spec, data, tokenizer)
