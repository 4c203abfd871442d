"""Rename tokens that a tokenizer has in reserve (`added_tokens_overrides`)."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from allranks.errors import ConfigError


def rename_added_tokens(tokenizer: Any, names: Mapping[str, str]) -> Any:
    """The tokenizer with the added tokens of these numbers under their new names. Nothing gets another number.

    Done in its files, because a name stands in several of them. Errors: `ConfigError` for a number that is no added
    token, or a name that another token has.
    """
    added = tokenizer.added_tokens_decoder
    renamed: dict[str, str] = {}
    for number, name in names.items():
        if int(number) not in added:
            raise ConfigError(
                f"added_tokens_overrides.{number}: the tokenizer has no added token of this number; its added tokens "
                f"are {min(added)} to {max(added)}"
                if added
                else "added_tokens_overrides: the tokenizer has no added tokens"
            )
        before = added[int(number)].content
        if name != before and name in tokenizer.get_vocab():
            raise ConfigError(
                f"added_tokens_overrides.{number}: the tokenizer has a token {name} already, number "
                f"{tokenizer.convert_tokens_to_ids(name)}"
            )
        renamed[before] = name
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in Path(folder).glob("*.json"):
            contents = json.loads(file.read_text(encoding="utf-8"))
            file.write_text(json.dumps(_renamed(contents, renamed), ensure_ascii=False), encoding="utf-8")
        return type(tokenizer).from_pretrained(folder)


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """Every text and every key that is one of the old names, under its new one."""
    if isinstance(value, dict):
        return {names.get(key, key): _renamed(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value
