"""The generation_config.json of a trained model: the base model's own, made valid, with what now stops a turn."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig

_FILE = "generation_config.json"
# How transformers lists what is wrong in a generation config: one line a key.
_NAMED = re.compile(r"^- `(\w+)`:", re.MULTILINE)


def generation_config(
    base: Path, config: PreTrainedConfig, *, stops: Sequence[int] = (), pad: int | None = None
) -> tuple[GenerationConfig, list[str]]:
    """The base model's generation config with the tokens `stops` first among its ends; and what was changed in it.

    Whatever the base model's file holds, the result is one that transformers writes and reads: sampling values without
    `do_sample` are taken as a wish to sample, and values that transformers refuses are left out.
    """
    values, changes = _read(base / _FILE)
    if values is None:
        made = GenerationConfig.from_model_config(config)
        values = {key: value for key, value in made.to_diff_dict().items() if not key.startswith("_")}
    for key in [key for key in values if key.endswith("_token_id") and not _is_token(values[key])]:
        value = values.pop(key)
        changes += [f"{key} {json.dumps(value)} is left out: it is no token's number"] if value is not None else []
    ends = values.get("eos_token_id")
    others = [end for end in (ends if isinstance(ends, list) else [ends]) if end is not None and end not in stops]
    if stops:
        values["eos_token_id"] = [*stops, *others] if len(stops) + len(others) > 1 else stops[0]
    if values.get("pad_token_id") is None and pad is not None:
        values["pad_token_id"] = pad
    made, told = _valid(values)
    return made, [f"{base / _FILE}: {line}; the exported model has it so" for line in (*changes, *told)]


def _read(file: Path) -> tuple[dict[str, Any] | None, list[str]]:
    if not file.is_file():
        return None, []
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return None, [f"not used, because it cannot be read ({error})"]
    if not isinstance(values, dict):
        return None, ["not used, because it is no object"]
    return values, []


def _is_token(value: Any) -> bool:
    numbers = value if isinstance(value, list) else [value]
    return bool(numbers) and all(type(number) is int and number >= 0 for number in numbers)


def _valid(values: dict[str, Any]) -> tuple[GenerationConfig, list[str]]:
    """A config of as many of the `values` as transformers takes, and what was changed for that."""
    refused = _refused(values)
    if refused and "do_sample" not in values and values.get("temperature") != 0:
        sampling = {**values, "do_sample": True}
        found = _refused(sampling)
        if len(found) < len(refused):
            cured = ", ".join(sorted(refused.keys() - found.keys())) or "its values"
            return _without_refused(sampling, [f"do_sample is not set, which {cured} need: it is set to true"])
    return _without_refused(values, [])


def _without_refused(values: dict[str, Any], told: list[str]) -> tuple[GenerationConfig, list[str]]:
    while refused := _refused(values):
        # What names no key of the file: only the tokens are sure.
        names = [key for key in refused if key in values] or [key for key in values if not key.endswith("_token_id")]
        told.append(f"{', '.join(names)} left out: {next(iter(refused.values()))}")
        values = {key: value for key, value in values.items() if key not in names}
        if not names:
            break
    return GenerationConfig(**values), told


def _refused(values: dict[str, Any]) -> dict[str, str]:
    """What transformers has against these values, by key ("" where it names none)."""
    try:
        GenerationConfig(**values).validate(strict=True)
    except Exception as error:  # ValueError by rule, but a value of another type trips it in other ways
        text = str(error)
        lines = {line.group(1): text[line.end() :].split("\n")[0].strip() for line in _NAMED.finditer(text)}
        if lines:
            return lines
        reason = text.strip().split("\n")[0]
        # Single complaints name their key in passing.
        return {key: reason for key in values if f"`{key}`" in text} or {"": reason}
    return {}
