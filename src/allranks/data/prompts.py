"""Instruction records (alpaca and its relatives, or a format of the user's own): a prompt and the answer to it.

Prompt and answer are tokenized apart, as they are when the model is used: the prompt is there before the answer is.
"""

from dataclasses import dataclass, replace
from typing import Any

from allranks.data.drafts import Draft, Piece
from allranks.data.records import RecordError, excerpt
from allranks.data.special import edges
from allranks.errors import DataError


@dataclass(frozen=True)
class PromptSpec:
    """Where the texts of a record are, and how they become a prompt."""

    instruction: str = "instruction"
    input: str | None = "input"
    output: str = "output"
    system: str | None = None  # field of the system text
    with_input: str = ""
    without_input: str = ""
    system_format: str = "{system}\n\n"
    system_with_input: str = ""
    system_without_input: str = ""

    def question(self, instruction: str, given: str) -> str:
        """The prompt of an instruction and its input, without a system text."""
        return _filled(self.with_input if given else self.without_input, instruction=instruction, input=given)


# The prompt that Stanford Alpaca was trained with (Taori et al. 2023, github.com/tatsu-lab/stanford_alpaca); models and
# their users expect it to the letter.
_TASK = "Below is an instruction that describes a task"
_INSTRUCT = PromptSpec(
    with_input="### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n",
    without_input="### Instruction:\n{instruction}\n\n### Response:\n",
    system_with_input=f"{_TASK}, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.",
    system_without_input=f"{_TASK}. Write a response that appropriately completes the request.",
)
_CHAT = replace(
    _INSTRUCT,
    with_input="USER: {instruction}\n{input}\nASSISTANT:",
    without_input="USER: {instruction}\nASSISTANT:",
    system_format="SYSTEM: {system}\n",
)
_CHATML = replace(
    _INSTRUCT,
    with_input="<|im_start|>user\n{instruction}\n{input}<|im_end|>\n<|im_start|>assistant\n",
    without_input="<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n",
    system_format="<|im_start|>system\n{system}<|im_end|>\n",
)
STYLES = {"instruct": _INSTRUCT, "chat": _CHAT, "chatml": _CHATML}

# type -> (style, changes to the fields)
PROMPT_TYPES: dict[str, tuple[str, dict[str, Any]]] = {
    "alpaca": ("instruct", {}),
    "alpaca_instruct": ("instruct", {}),
    "alpaca_instruct.load": ("instruct", {}),
    "gpteacher": ("instruct", {"output": "response"}),
    "oasst": ("instruct", {"instruction": "INSTRUCTION", "input": None, "output": "RESPONSE"}),
    "alpaca_chat": ("chat", {}),
    "alpaca_chat.load_default": ("chat", {}),
    "alpaca_chat.load_qa": ("chat", {"instruction": "question", "input": None, "output": "answer"}),
    "alpaca_chat.load_camel_ai": ("chat", {"instruction": "message_1", "input": None, "output": "message_2"}),
    "alpaca_w_system": ("instruct", {"system": "system"}),
    "alpaca_w_system.load": ("instruct", {"system": "system"}),
    "alpaca_w_system.load_instruct": ("instruct", {"system": "system"}),
    "alpaca_w_system.load_chat": ("chat", {"system": "system"}),
    "alpaca_w_system.load_open_orca": (
        "instruct",
        {"instruction": "question", "input": None, "output": "response", "system": "system_prompt"},
    ),
}


def answer_of(prompt: PromptSpec, record: Any) -> str:
    """What an instruction record trains. Errors: `RecordError` where it is no object, or its answer is empty."""
    if not isinstance(record, dict):
        raise RecordError(f"expected an object with {prompt.instruction} and {prompt.output}, found {excerpt(record)}")
    answer = text_field(record, prompt.output)
    if not answer.strip():
        raise RecordError(f"field {prompt.output}: empty, so that there is nothing to train")
    return answer


class PromptEncoder:
    """Turns instruction records into drafts."""

    def __init__(self, spec: Any, data: Any, tokenizer: Any):
        self.prompt = prompt_of(spec.type)
        self.train_on_inputs = data.train_on_inputs
        self.edges = edges(tokenizer, f"type {spec.type if isinstance(spec.type, str) else '(your own format)'}")
        self.train_end = (spec.train_on_eos or data.train_on_eos) != "none"

    def __call__(self, record: Any) -> list[Draft]:
        answer = answer_of(self.prompt, record)
        begin, asked = self.edges.without_begin(self._prompt_text(record))
        answer, end = self.edges.without_end(answer)
        return [
            [
                Piece(ids=begin, trained=self.train_on_inputs),
                Piece(asked, trained=self.train_on_inputs),
                Piece(answer, trained=True),
                Piece(ids=end, trained=self.train_end),
            ]
        ]

    def _prompt_text(self, record: dict) -> str:
        prompt = self.prompt
        instruction = text_field(record, prompt.instruction)
        given = text_field(record, prompt.input, required=False) if prompt.input else ""
        system = text_field(record, prompt.system, required=False) if prompt.system else ""
        system = system or (prompt.system_with_input if given else prompt.system_without_input)
        return (_filled(prompt.system_format, system=system) if system else "") + prompt.question(instruction, given)


def prompt_of(spec_type: Any) -> PromptSpec:
    """The prompt of a data set's `type`: a name, or a format of the user's own."""
    return named_prompt(spec_type) if isinstance(spec_type, str) else _own_format(spec_type)


def named_prompt(type_name: str) -> PromptSpec:
    """The prompt of a type such as `alpaca`, `alpaca:chatml` or `alpaca_chat.load_qa`."""
    name, _, style = type_name.partition(":")
    default_style, fields = PROMPT_TYPES[name]
    return replace(STYLES.get(style) or STYLES[default_style], **fields)


def text_field(record: dict, name: str, required: bool = True) -> str:
    """The text in a field of a record; null is empty. Errors: `RecordError`."""
    if name not in record:
        if not required:
            return ""
        raise RecordError(f"no field {name}; it has {', '.join(map(str, record)) or 'no fields'}")
    value = record[name]
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RecordError(f"field {name}: expected text, found {excerpt(value)}")
    return value


def _own_format(own: Any) -> PromptSpec:
    """A prompt format given as a mapping under `type`."""
    with_input = own.format or "{instruction} {input}"
    for key, text, names in (
        ("format", with_input, ("instruction", "input")),
        ("no_input_format", own.no_input_format or "", ("instruction",)),
        ("system_format", own.system_format or "", ("system",)),
    ):
        try:
            text.format(**dict.fromkeys(("instruction", "input", "system", *names), ""))
        except (KeyError, IndexError, ValueError) as error:
            raise DataError(
                f"type: {key}: {text!r} can hold {' and '.join(f'{{{n}}}' for n in names)}: {error!r}"
            ) from error
    return PromptSpec(
        instruction=own.field_instruction or "instruction",
        input=own.field_input or "input",
        output=own.field_output or "output",
        system=own.field_system or "system",
        with_input=with_input,
        without_input=own.no_input_format or own.format or "{instruction}",
        system_format=own.system_format or "{system}",
        system_with_input=own.system_prompt or "",
        system_without_input=own.system_prompt or "",
    )


def _filled(template: str, **values: str) -> str:
    return template.format(**{"instruction": "", "input": "", "system": "", **values})
