"""The generation_config.json of a trained model: the base model's own, made valid, with what now stops a turn."""

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig

_FILE = "generation_config.json"
# How transformers lists what is wrong in a generation config: one line a key.
_NAMED = re.compile(r"^- `(\w+)`:", re.MULTILINE)

# What a value must be for an answer to be made with it. transformers looks only when it makes one: it writes and reads
# others without a word.
_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "temperature": ("a positive number", lambda value: value > 0),
    "top_p": ("a number from 0 to 1", lambda value: 0 <= value <= 1),
    "min_p": ("a number from 0 to 1", lambda value: 0 <= value <= 1),
    "top_k": ("a whole number of at least 0", lambda value: value >= 0 and value == int(value)),
    "repetition_penalty": ("a positive number", lambda value: value > 0),
}
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "typical_p")


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
    num_rows = getattr(config.get_text_config(), "vocab_size", None) or math.inf
    for key in [key for key in values if key.endswith("_token_id") and values[key] is not None]:
        changes += _keep_tokens(values, key, num_rows)
    changes += _leave_out_what_no_answer_takes(values)
    ends = values.get("eos_token_id")
    ends = list(dict.fromkeys(ends)) if isinstance(ends, list) else [ends]
    others = [end for end in ends if end is not None and end not in stops]
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
    except (OSError, ValueError, RecursionError) as error:
        return None, [f"not used, because it cannot be read ({error})"]
    if not isinstance(values, dict):
        return None, ["not used, because it is no object"]
    return values, []


def _keep_tokens(values: dict[str, Any], key: str, num_rows: float) -> list[str]:
    """Take out of `values[key]` what is no row of the embedding, for it ends generation in an error; say what was."""
    there = values.pop(key)
    numbers = there if isinstance(there, list) else [there]
    tokens = [number for number in numbers if type(number) is int and 0 <= number < num_rows]
    if tokens:
        values[key] = tokens if isinstance(there, list) else tokens[0]
    others = [number for number in numbers if number not in tokens or isinstance(number, bool)]
    if tokens and not others:
        return []
    return [f"{key} {json.dumps(others if tokens else there)} is left out: it is no token's number"]


def _leave_out_what_no_answer_takes(values: dict[str, Any]) -> list[str]:
    """Take sampling values out with which transformers makes no answer; say what was. Temperature 0: not to sample."""
    told = []
    if values.get("temperature") == 0:
        left_out = [key for key in _SAMPLING if values.pop(key, None) is not None]
        told.append(f"{', '.join(left_out)} left out: temperature 0 is no sampling")
        if values.get("do_sample"):
            values["do_sample"] = False
    for key, (wanted, fits) in _RANGES.items():
        value = values.get(key)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if value is not None and not (is_number and fits(value)):
            told.append(f"{key} {json.dumps(values.pop(key))} is left out: it takes {wanted}")
    return told


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
