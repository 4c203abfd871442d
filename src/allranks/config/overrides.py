"""Config keys on the command line: `--key value`, `--key=value`, and a bare `--key` for switches."""

from collections.abc import Sequence

from allranks.config.config_source import flag_name
from allranks.config.names import known_keys, meant_key
from allranks.config.run import SECTION_OF, SECTIONS
from allranks.config.unsupported import is_known
from allranks.errors import UsageError


def parse_overrides(args: Sequence[str]) -> dict[str, str]:
    """Dotted key -> YAML text, from arguments such as `--learning-rate 1e-4 --fsdp-config.offload-params`.

    `-` and `_` are equal in keys. A switch without a value is `true`; `--no-KEY` is `false`. Values are not looked at
    here: `load_config` does that, and names the option in its errors. Raises UsageError for an unknown key (with the
    nearest), a missing value, an argument that is no option, or a key given twice with different values.
    """
    overrides: dict[str, str] = {}
    rest = list(args)
    while rest:
        argument = rest.pop(0)
        if not argument.startswith("--") or argument == "--":
            raise UsageError(f"unexpected argument {argument!r}; config keys are given as --key value")
        name, equals, value = argument[2:].partition("=")
        key = name.replace("-", "_")
        negated = key.removeprefix("no_")
        if negated != key and _is_switch(negated) and not equals:
            key, value = negated, "false"
        else:
            _check_known(key)
            if not equals:
                value = _next_value(key, rest)
        if overrides.setdefault(key, value) != value:
            raise UsageError(f"{flag_name(key)} is given twice: {overrides[key]!r} and {value!r}; keep one")
    return overrides


def _next_value(key: str, rest: list[str]) -> str:
    # A negative number is a value: `--` starts the next option, `-` does not.
    if rest and not rest[0].startswith("--"):
        return rest.pop(0)
    if "." in key or _is_switch(key):
        return "true"
    raise UsageError(f"{flag_name(key)} needs a value, as in `{flag_name(key)} VALUE`")


def _check_known(key: str) -> None:
    """Keys below the first level are checked by `load_config`, which knows what they are part of."""
    top = key.partition(".")[0]
    if top in known_keys() or is_known(top):
        return
    raise UsageError(f"{flag_name(key)}: unknown option or config key{meant_key(top, flag=flag_name)}")


def _is_switch(key: str) -> bool:
    """Whether a key can be `true`; keys of features that come later count, so that these are refused by name."""
    section = SECTION_OF.get(key)
    if section is None:
        return key in known_keys() or is_known(key)
    return "bool" in str(SECTIONS[section].model_fields[key].annotation) or key == "save_safetensors"
