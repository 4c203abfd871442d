"""Take the keys out of a config that are known and cannot be used, telling the user."""

from typing import Any

from allranks.config.config_source import ConfigSource
from allranks.config.explain import as_yaml
from allranks.config.run import SECTION_OF
from allranks.config.unsupported import LATER, NO_EFFECT, OUT_OF_SCOPE, lookup, secret_variable
from allranks.config.unsupported_values import FSDP1, FSDP1_SAME, SAME_RESULT, refused_value
from allranks.config.yaml_lines import KeyPath


def screen(config_source: ConfigSource, *, ignore_unsupported: bool) -> list[str]:
    """Remove such keys from `config_source.values`; adds to `config_source.problems` and returns the warnings.

    A value that switches nothing on (false, null, 0, empty) is removed without a word.
    """
    warnings: list[str] = []
    config_source.values = _screened(config_source, (), config_source.values, ignore_unsupported, warnings)
    return warnings


def _screened(config_source: ConfigSource, path: KeyPath, value: Any, ignore: bool, warnings: list[str]) -> Any:
    if isinstance(value, list):
        items = [
            (index, item)
            for index, item in enumerate(value)
            if not _is_same(config_source, (*path, index), item, warnings)
        ]
        return [_screened(config_source, (*path, index), item, ignore, warnings) for index, item in items]
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, item in value.items():
        here = (*path, key)
        if not _is_taken_out(config_source, here, item, ignore, warnings):
            screened = _screened(config_source, here, item, ignore, warnings)
            # Like null, an empty mapping says nothing, but one with what FSDP2 does anyway asks for FSDP.
            if screened != {} or (here == ("fsdp_config",) and any(item.values())):
                kept[key] = screened
    return kept


def _is_taken_out(config_source: ConfigSource, path: KeyPath, value: Any, ignore: bool, warnings: list[str]) -> bool:
    key = _generic(path)
    if _is_same(config_source, path, value, warnings):
        return True
    refusal = _refusal(path, key, value)
    is_ours = key in SECTION_OF and key not in LATER
    if refusal:
        config_source.problems.append(f"{config_source.label(path)}: {refusal}")
    elif is_ours:
        return False
    elif later := lookup(LATER, key):
        if value and ignore:
            warnings.append(f"{config_source.label(path)}: ignored on request; not supported yet: {later}")
        elif value:
            config_source.problems.append(
                f"{config_source.label(path)}: not supported yet: {later}; remove it, or add --ignore-unsupported"
            )
    elif reason := lookup(NO_EFFECT, key):
        if value:
            warnings.append(f"{config_source.label(path)}: has no effect: {reason}")
    elif not (lookup(OUT_OF_SCOPE, key) or key in {*FSDP1, *FSDP1_SAME}):
        return False
    return True


def _generic(path: KeyPath) -> str:
    """A path as the tables write it: `datasets.*.type`, for `test_datasets` too."""
    return ".".join("*" if isinstance(part, int) else part for part in path).removeprefix("test_")


def _is_same(config_source: ConfigSource, path: KeyPath, value: Any, warnings: list[str]) -> bool:
    """Whether a value is one that makes no difference here, which the user is told."""
    known = SAME_RESULT.get(_generic(path), {})
    # Not `in`: 1 is equal to True.
    reason = next((why for same, why in known.items() if same == value and type(same) is type(value)), None)
    if reason:
        text = as_yaml(value) if isinstance(value, bool) else value
        warnings.append(f"{config_source.label(path)}: {text} has no effect: {reason}")
    return reason is not None


def _refusal(path: KeyPath, key: str, value: Any) -> str | None:
    """Why a value cannot be used at all."""
    if isinstance(value, list):
        of_an_item = next((text for item in value if (text := _refusal((*path, 0), f"{key}.*", item))), None)
        if of_an_item:
            return of_an_item
    elif isinstance(value, str | int) and (answer := refused_value(key, value)):
        return f"{as_yaml(value) if isinstance(value, bool) else value}: {answer}"
    if not value or (key in SECTION_OF and key not in LATER):
        return None
    variable = secret_variable(key)
    if variable and len(path) == 1 and isinstance(value, str):
        return (
            "a secret does not belong in a config, which is copied into the run directory; "
            f"remove it and set the environment variable {variable}"
        )
    if topic := lookup(OUT_OF_SCOPE, key):
        return f"{topic}: out of scope; allranks does supervised fine-tuning"
    if key in FSDP1_SAME and value != FSDP1_SAME[key]:
        same = f"expected {as_yaml(FSDP1_SAME[key])}, which is what FSDP2 does anyway; remove it"
        return FSDP1.get(key, f"an FSDP1 setting; {same}")
    return None if key in FSDP1_SAME else FSDP1.get(key)
