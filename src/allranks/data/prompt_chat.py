"""Instruction records as conversations: `type: alpaca:tokenizer_default` sends them through a chat template.

The prompt's own words (Alpaca's "Below is an instruction …") are left out: the template says how the model is asked.
"""

from typing import Any

from allranks.config.dataset_types import PROMPT_STYLES, template_of
from allranks.data.chat import ChatEncoder
from allranks.data.conversations import Conversation
from allranks.data.prompts import PromptSpec, answer_of, prompt_of, text_field
from allranks.errors import DataError


def prompt_chat_encoder(spec: Any, data: Any, tokenizer: Any) -> ChatEncoder:
    """The encoder of instruction records that go through the template which `template_of` names."""
    name = template_of(spec)
    jinja = (spec.chat_template_jinja or data.chat_template_jinja) if name == "jinja" else None
    through = spec.model_copy(update={"chat_template": name, "chat_template_jinja": jinja})
    own = spec.type if not isinstance(spec.type, str) else None
    system = (own and own.system_prompt) or data.default_system_message
    has_format = own is not None and (own.format or own.no_input_format) is not None
    reader = InstructionReader(prompt_of(spec.type), system, format_given=has_format)
    try:
        return ChatEncoder(through, data, tokenizer, reader=reader)
    except DataError as error:
        if name == "jinja" or ":" not in str(spec.type):
            raise
        raise DataError(
            f"data set {spec.path}: type {spec.type}: {name!r} is none of the prompt styles "
            f"{', '.join(PROMPT_STYLES)}, and as a chat template: {error}"
        ) from error


class InstructionReader:
    """Reads an instruction record as a conversation: system text, if there is one, question, answer.

    default_system_message: for records without a system text. format_given: the prompt is a format of the user's own,
    and makes the question.
    """

    def __init__(self, prompt: PromptSpec, default_system_message: str | None, *, format_given: bool):
        self.prompt = prompt
        self.default_system_message = default_system_message
        self.format_given = format_given

    def read(self, record: Any) -> Conversation:
        """Errors: `RecordError` naming the field, what was expected and what was found."""
        prompt = self.prompt
        answer = answer_of(prompt, record)
        asked = text_field(record, prompt.instruction)
        given = text_field(record, prompt.input, required=False) if prompt.input else ""
        if self.format_given:
            asked = prompt.question(asked, given)
        elif given:
            asked = f"{asked}\n{given}"
        system = text_field(record, prompt.system, required=False) if prompt.system else ""
        system = system or self.default_system_message or ""
        said = [("system", system)] if system else []
        said += [("user", asked), ("assistant", answer)]
        messages = [{"role": role, "content": text} for role, text in said]
        nothing = [None] * len(said)
        return Conversation(messages, None, [role for role, _ in said], list(nothing), list(nothing))
