"""The tokens a tokenizer puts around a text."""

from dataclasses import dataclass
from typing import Any

from allranks.errors import DataError


def begin_ids(tokenizer: Any) -> tuple[int, ...]:
    """The ids that the tokenizer puts before a text by itself, such as <s>; often none."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return tuple(full[:start])
    return ()


@dataclass(frozen=True)
class Edges:
    """The ids that a sample begins and ends with, and how they are spelt in texts that bring them along.

    A text that begins or ends with them has them once, not twice.
    """

    begin: tuple[int, ...]
    end: tuple[int, ...]
    begin_text: str
    end_text: str

    def without_begin(self, text: str) -> tuple[tuple[int, ...], str]:
        """The ids to put before a text, and the text without them."""
        if not self.begin or not self.begin_text:
            return self.begin, text
        if text.startswith(self.begin_text):
            return self.begin, text.removeprefix(self.begin_text)
        return (() if text.lstrip().startswith(self.begin_text) else self.begin), text

    def without_end(self, text: str) -> tuple[str, tuple[int, ...]]:
        """A text without its end, and the ids to put behind it."""
        if text.endswith(self.end_text):
            return text.removesuffix(self.end_text), self.end
        return text, (() if text.rstrip().endswith(self.end_text) else self.end)


def edges(tokenizer: Any, needed_by: str) -> Edges:
    """What the tokenizer puts before a text, and its end-of-sequence token, which teaches the model to stop."""
    if tokenizer.eos_token_id is None:
        raise DataError(f"{needed_by} ends samples with the tokenizer's eos_token, and it has none: set special_tokens")
    begin = begin_ids(tokenizer)
    added = {index: text for text, index in tokenizer.get_added_vocab().items()}
    begin_text = "".join(added.get(index, "") for index in begin)
    return Edges(begin, (tokenizer.eos_token_id,), begin_text, tokenizer.eos_token)
