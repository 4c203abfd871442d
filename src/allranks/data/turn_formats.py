"""Chat templates that say the same of every turn: a table of their texts, and the Jinja that is made of it.

The texts are the formats that these models were trained with, as their model cards and tokenizers give them.
"""

import json
from dataclasses import dataclass

_END_OF_SEQUENCE = "{eos}"
_TEXT = "{text}"


@dataclass(frozen=True)
class TurnFormat:
    """`user`, `system`: a turn with {text} in it. Without `system`, its text goes before the first question; with
    `empty_system`, there is such a turn even where there is nothing to say in it.

    `header` is what asks for an answer; the model writes `lead`, the answer and `end` ({eos}: the tokenizer's
    end-of-sequence token); `after` follows. `begin`: whether the tokenizer's beginning-of-sequence token comes first.
    """

    user: str
    header: str
    end: str
    after: str = ""
    lead: str = ""
    system: str | None = None
    empty_system: bool = False
    begin: bool = True


# The characters of these tokens look like others: a full-width bar, and the mark of a space.
_USER, _ASSISTANT, _DEEPSEEK_END = (
    "<\uff5cUser\uff5c>",
    "<\uff5cAssistant\uff5c>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)
_COHERE = TurnFormat(
    system="<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{text}<|END_OF_TURN_TOKEN|>",
    user="<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{text}<|END_OF_TURN_TOKEN|>",
    header="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
    end="<|END_OF_TURN_TOKEN|>",
)
TURN_FORMATS = {
    "aya": _COHERE,
    "cohere": _COHERE,
    "deepseek_v2": TurnFormat(system="{text}\n\n", user=_USER + _TEXT, header=_ASSISTANT, end=_END_OF_SEQUENCE),
    "deepseek_v3": TurnFormat(system=_TEXT, user=_USER + _TEXT, header=_ASSISTANT, end=_DEEPSEEK_END),
    "exaone": TurnFormat(
        system="[|system|]{text}[|endofturn|]\n",
        user="[|user|]{text}\n",
        header="[|assistant|]",
        end="[|endofturn|]",
        after="\n",
        empty_system=True,
        begin=False,
    ),
    "falcon_h1": TurnFormat(
        system="<|im_start|>system\n{text}<|im_end|>\n",
        user="<|im_start|>user\n{text}<|im_end|>\n",
        header="<|im_start|>assistant\n",
        end="<|im_end|>",
        after="\n",
    ),
    "jamba": TurnFormat(
        system="<|bom|><|system|> {text}<|eom|>",
        user="<|bom|><|user|> {text}<|eom|>",
        header="<|bom|><|assistant|>",
        lead=" ",
        end="<|eom|>",
        empty_system=True,
    ),
    "llama4": TurnFormat(
        system="<|header_start|>system<|header_end|>\n\n{text}<|eot|>",
        user="<|header_start|>user<|header_end|>\n\n{text}<|eot|>",
        header="<|header_start|>assistant<|header_end|>\n\n",
        end="<|eot|>",
    ),
    "mistral_v1": TurnFormat(user=" [INST] {text} [/INST]", header="", lead=" ", end=_END_OF_SEQUENCE),
    "mistral_v2v3": TurnFormat(user="[INST] {text}[/INST]", header="", lead=" ", end=_END_OF_SEQUENCE),
    "mistral_v3_tekken": TurnFormat(user="[INST]{text}[/INST]", header="", end=_END_OF_SEQUENCE),
    "mistral_v7_tekken": TurnFormat(
        system="[SYSTEM_PROMPT]{text}[/SYSTEM_PROMPT]", user="[INST]{text}[/INST]", header="", end=_END_OF_SEQUENCE
    ),
    "phi_35": TurnFormat(
        system="<|system|>\n{text}<|end|>\n",
        user="<|user|>\n{text}<|end|>\n",
        header="<|assistant|>\n",
        end="<|end|>",
        after="\n",
        begin=False,
    ),
    "phi_4": TurnFormat(
        system="<|im_start|>system<|im_sep|>{text}<|im_end|>",
        user="<|im_start|>user<|im_sep|>{text}<|im_end|>",
        header="<|im_start|>assistant<|im_sep|>",
        end="<|im_end|>",
        begin=False,
    ),
}


def jinja_of(turns: TurnFormat) -> str:
    """The chat template of a format, with the answers marked."""
    question, system_turn = _written(turns.user, "question"), _written(turns.system or "", "message.content")
    system = "messages[0].content" if turns.system is None else "none"
    nobody = _written(turns.system or "", _quoted("")) if turns.empty_system else _quoted("")
    lines = [
        '{{- bos_token or "" }}' if turns.begin else "",
        f'{{%- set system = {system} if messages and messages[0].role == "system" else none %}}',
        f'{{{{- {nobody} if not messages or messages[0].role != "system" else "" }}}}',
        "{%- set seen = namespace(question=false) %}",
        "{%- for message in messages %}",
        '{%- if message.role == "assistant" %}',
        f"{{{{- {_quoted(turns.header)} }}}}",
        "{%- generation %}",
        f"{{{{- {_written(turns.lead + _TEXT + turns.end, 'message.content')} }}}}",
        "{%- endgeneration %}",
        f"{{{{- {_quoted(turns.after)} }}}}",
        '{%- elif message.role == "user" %}',
        '{%- set question = (system + "\\n\\n" if system and not seen.question else "") + message.content %}',
        "{%- set seen.question = true %}",
        f"{{{{- {question} }}}}",
        '{%- elif message.role == "system" and (loop.first or system is none) %}',
        f"{{{{- {system_turn} }}}}" if turns.system is not None else "",
        "{%- else %}",
        '{{- raise_exception("this template knows system (first), user and assistant, not " + message.role) }}',
        "{%- endif %}",
        "{%- endfor %}",
        "{%- if add_generation_prompt %}",
        f"{{{{- {_quoted(turns.header)} }}}}",
        "{%- endif %}",
    ]
    return "\n".join(line for line in lines if line)


def _written(text: str, variable: str) -> str:
    """A Jinja expression for a text with {text} and {eos} in it."""
    parts = []
    for piece in text.replace(_TEXT, f"\0{_TEXT}\0").replace(_END_OF_SEQUENCE, f"\0{_END_OF_SEQUENCE}\0").split("\0"):
        if piece:
            parts.append({_TEXT: variable, _END_OF_SEQUENCE: "eos_token"}.get(piece) or _quoted(piece))
    return " + ".join(parts) or '""'


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
