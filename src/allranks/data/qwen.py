"""`type: qwen`: the conversations of Qwen's own fine-tuning script, with the labels it gives them.

ChatML, each part tokenized alone. Trained: what the assistant says with its <|im_end|> and newline, and also the
<|im_start|>, <|im_end|> and last newline of every turn. Masked: role names, the newline after them, and what system and
user say. Source: finetune.py, github.com/QwenLM/Qwen.
"""

from typing import Any

from allranks.data.drafts import Draft, Piece
from allranks.data.records import RecordError, excerpt
from allranks.errors import DataError

END = "<|im_end|>"
_START = "<|im_start|>"
_SYSTEM = "You are a helpful assistant."


class QwenEncoder:
    """Turns `{"conversations": [{"from": "user"|"assistant", "value"}]}` into drafts."""

    def __init__(self, spec: Any, data: Any, tokenizer: Any):
        self.field = spec.field_messages or "conversations"
        self.train_on_inputs = data.train_on_inputs
        self.system = data.default_system_message or _SYSTEM
        for token in (_START, END):
            if len(tokenizer(token, add_special_tokens=False)["input_ids"]) != 1:
                raise DataError(f"type qwen: the tokenizer has no token {token}; add it with tokens: ['{token}']")

    def __call__(self, record: Any) -> list[Draft]:
        turns = record.get(self.field) if isinstance(record, dict) else None
        if not isinstance(turns, list) or not turns:
            raise RecordError(f"field {self.field}: expected a list of {{from, value}}, found {excerpt(turns)}")
        for i, turn in enumerate(turns):
            if not isinstance(turn, dict) or turn.get("from") not in ("user", "assistant"):
                role = turn.get("from") if isinstance(turn, dict) else turn
                raise RecordError(
                    f"field {self.field}, turn {i}: from must be user or assistant, found {excerpt(role)}"
                )
            if not isinstance(turn.get("value"), str):
                raise RecordError(
                    f"field {self.field}, turn {i}, value: expected text, found {excerpt(turn.get('value'))}"
                )
        if turns[0]["from"] != "user":
            turns = turns[1:]
        if not any(turn["from"] == "assistant" for turn in turns):
            raise RecordError(f"field {self.field}: no turn of the assistant after a user's")
        draft = self._turn("system", self.system)
        for turn in turns:
            draft += self._turn(turn["from"], turn["value"])
        return [draft]

    def _turn(self, role: str, text: str) -> Draft:
        return [
            Piece(_START, trained=True),
            Piece(role, trained=self.train_on_inputs),
            Piece("\n", trained=self.train_on_inputs),
            Piece(text, trained=role == "assistant" or self.train_on_inputs),
            Piece(END, trained=True),
            Piece("\n", trained=True),
        ]
