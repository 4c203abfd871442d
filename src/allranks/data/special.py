"""The tokens a tokenizer puts around a text."""

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


def end_ids(tokenizer: Any, needed_by: str) -> tuple[int, ...]:
    """The id of the end-of-sequence token, which teaches the model to stop."""
    if tokenizer.eos_token_id is None:
        raise DataError(f"{needed_by} ends samples with the tokenizer's eos_token, and it has none: set special_tokens")
    return (tokenizer.eos_token_id,)
