"""Load a config: file and command line -> source -> sections -> rules, with all problems in one report."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from allranks.config.config_source import ConfigSource, dotted, flag_name
from allranks.config.differences import differences
from allranks.config.explain import as_yaml, explain
from allranks.config.following import finish
from allranks.config.foreign.deepspeed import deepspeed_warnings, read_into
from allranks.config.names import known_keys, meant_key, nearest_key
from allranks.config.rules import broken_rules
from allranks.config.run import SECTION_OF, SECTIONS, RunConfig
from allranks.config.screening import screen
from allranks.config.sections.section import Section
from allranks.config.spellings import ATTENTION
from allranks.config.unused import unused_keys
from allranks.config.yaml_lines import KeyPath, read_yaml
from allranks.errors import ConfigError
from allranks.listing import few

# An error must fit on one screen.
MAX_PROBLEMS = 15


def load_config(
    config: str | os.PathLike[str] | Mapping[str, Any] | RunConfig,
    overrides: Mapping[str, str] | None = None,
    *,
    flags: Mapping[str, str] | None = None,
    ignore_unsupported: bool = False,
) -> RunConfig:
    """Read a YAML config, apply overrides, check everything, and return it resolved and frozen.

    `config` is its path, its keys as a mapping, or one that is resolved already.
    `overrides` maps dotted keys to YAML text: `{"fsdp_config.offload_params": "true", "datasets.0.path": "x.jsonl"}`;
    `-` and `_` are the same. Environment variables are not expanded. With `ignore_unsupported`, keys that are known
    but not supported yet are left out, each with a line in `RunConfig.warnings`, instead of being errors.
    `flags`: key of an override -> the option that was written, where it is not named after the key.
    Raises ConfigError with one line for each problem.
    """
    if isinstance(config, RunConfig):
        if not overrides:
            return config
        return resolve_mapping(
            config.flat(), config.source, overrides, flags=flags, ignore_unsupported=ignore_unsupported
        )
    if isinstance(config, Mapping):
        return resolve_mapping(config, overrides=overrides, flags=flags, ignore_unsupported=ignore_unsupported)
    if not isinstance(config, str | os.PathLike):
        raise TypeError(f"a config is a path, a mapping or what load_config returned, not {type(config).__name__}")
    data, lines = read_yaml(Path(config))
    config_source = ConfigSource(str(config))
    config_source.add_file(data, lines)
    for key, text in (overrides or {}).items():
        config_source.add_override(key, text, (flags or {}).get(key))
    return _resolve(config_source, ignore_unsupported)


def resolve_mapping(
    flat: Mapping[str, Any],
    source: str = "<dict>",
    overrides: Mapping[str, str] | None = None,
    *,
    flags: Mapping[str, str] | None = None,
    ignore_unsupported: bool = False,
) -> RunConfig:
    """The same for a mapping that was never a file. `flags`: key of an override -> how it was written, for errors."""
    config_source = ConfigSource(source)
    config_source.add_file(flat, {})
    for key, text in (overrides or {}).items():
        config_source.add_override(key, text, (flags or {}).get(key))
    return _resolve(config_source, ignore_unsupported)


def _resolve(config_source: ConfigSource, ignore_unsupported: bool) -> RunConfig:
    try:
        read_into(config_source)
    except ConfigError as error:
        config_source.problems.append(str(error))
        config_source.replace("deepspeed", None, str)
    warnings = screen(config_source, ignore_unsupported=ignore_unsupported)
    by_section: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    for key, value in config_source.values.items():
        if key in SECTION_OF:
            by_section[SECTION_OF[key]][key] = value
        elif key in ATTENTION:
            config_source.problems.append(
                f"{config_source.label((key,))}: expected true or false, got {as_yaml(value)}"
            )
        else:
            config_source.problems.append(_unknown(config_source, (key,), known_keys()))
    sections = {
        name: _section(config_source, section_type, by_section[name]) for name, section_type in SECTIONS.items()
    }
    config = RunConfig(**sections, source=config_source.source)  # type: ignore[arg-type]
    config_source.problems += _beside(config_source, broken_rules(config, config_source))
    if config_source.problems:
        raise ConfigError(_report(config_source))
    warnings += [*unused_keys(config, config_source), *deepspeed_warnings(config, config_source)]
    notes = tuple(differences(config, config_source))
    return replace(finish(config, config_source), warnings=tuple(warnings), notes=notes)


def _section(config_source: ConfigSource, section_type: type[Section], values: dict[str, Any]) -> Section:
    """The section of these keys; without those that are wrong, which is told, so that the others can be judged."""
    try:
        return section_type.model_validate(values)
    except ValidationError as error:
        config_source.problems += _invalid(config_source, section_type, error)
        wrong = {str(detail["loc"][0]) for detail in error.errors(include_url=False, include_context=False)}
    kept = {key: value for key, value in values.items() if key not in wrong}
    return section_type.model_validate({**_REQUIRED.get(section_type.__name__, {}), **kept})


_REQUIRED: dict[str, dict[str, Any]] = {
    "ModelConfig": {"base_model": "?"},
    "DataConfig": {"datasets": [{"path": "?", "type": "completion"}]},
    "OptimizerConfig": {"learning_rate": 1.0},
}
"""A value of each key that has no default: the rest is judged although it is missing or wrong."""


def _beside(config_source: ConfigSource, broken: list[str]) -> list[str]:
    """The broken rules that do not follow from a problem before them: those that name none of its keys."""
    keys = {key for problem in config_source.problems for key in _named(_placeless(config_source, problem))}
    return [line for line in broken if not keys & {*re.findall(r"\w+", _placeless(config_source, line))}]


def _placeless(config_source: ConfigSource, problem: str) -> str:
    """A problem without the names of files, whose words may be those of keys."""
    problem = re.sub(rf"{re.escape(config_source.source)}(:\d+)?: ", "", problem)
    return re.sub(r"^\S+?:\d+: ", "", problem)  # that of DeepSpeed's settings


def _named(problem: str) -> set[str]:
    """The key that a problem is about, as a whole and its last part, and the one that was probably meant."""
    label, _, message = problem.partition(": ")
    meant = re.search(r"did you mean ([\w.-]+)\?", message)
    names = [label, *([meant[1]] if meant else [])]
    paths = [name.removeprefix("--").replace("-", "_").split(".") for name in names]
    return {part for path in paths for part in (path[0], path[-1]) if not part.isdecimal()}


def _invalid(config_source: ConfigSource, section_type: type[Section], error: ValidationError) -> list[str]:
    problems = []
    for path, message, siblings in explain(section_type, error):
        problems.append(
            _unknown(config_source, path, siblings)
            if siblings is not None
            else f"{config_source.label(path)}: {message}"
        )
    return problems


def _unknown(config_source: ConfigSource, path: KeyPath, siblings: Iterable[str]) -> str:
    label = config_source.label(path)
    if len(path) == 1:
        meant = meant_key(str(path[0]), flag=flag_name if label.startswith("--") else str)
        return f"{label}: unknown key{meant}"
    name = nearest_key(str(path[-1]), siblings)
    if name is None:
        return f"{label}: unknown key; `allranks config schema` lists all"
    full = dotted((*path[:-1], name))
    return f"{label}: unknown key; did you mean {flag_name(full) if label.startswith('--') else full}?"


def _report(config_source: ConfigSource) -> str:
    """All problems by line, those without a line first."""

    def line(problem: str) -> int:
        number = problem.removeprefix(f"{config_source.source}:").partition(":")[0]
        return int(number) if number.isdecimal() else 0

    problems = sorted(dict.fromkeys(config_source.problems), key=line)
    if len(problems) == 1:
        return problems[0]
    listed = few(problems, MAX_PROBLEMS, between="\n  ", rest="\n  … and {:,} more")
    source, keys = config_source.source, config_source.values.keys()
    comes = keys & _MODEL_ELSEWHERE and "base_model" not in keys and not source.startswith("<")
    other = f"\n{_COMING.format(source)}" if comes else ""
    return f"{source}: {len(problems)} problems\n  {listed}{other}"


_MODEL_ELSEWHERE = {"model_name_or_path", "model"}
"""What other trainers call `base_model`."""
_COMING = "a config of LLaMA-Factory, TRL or ms-swift is made one of allranks by `allranks config import {}`"
