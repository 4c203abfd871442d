"""Load a config: file and command line -> draft -> sections -> rules, with all problems in one report."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from allranks.config.draft import Draft, dotted, flag_name
from allranks.config.explain import explain, shown
from allranks.config.foreign.deepspeed import deepspeed_warnings, read_into
from allranks.config.names import known_keys, nearest_key
from allranks.config.rules import broken_rules, finish, idle_keys
from allranks.config.run import SECTION_OF, SECTIONS, RunConfig
from allranks.config.screening import screen
from allranks.config.sections.section import Section
from allranks.config.spellings import ATTENTION
from allranks.config.yaml_lines import KeyPath, read_yaml
from allranks.errors import ConfigError

# An error must fit on one screen.
MAX_PROBLEMS = 15


def load_config(
    path: str | Path, overrides: Mapping[str, str] | None = None, *, ignore_unsupported: bool = False
) -> RunConfig:
    """Read a YAML config, apply overrides, check everything, and return it resolved and frozen.

    `overrides` maps dotted keys to YAML text: `{"fsdp_config.offload_params": "true", "datasets.0.path": "x.jsonl"}`;
    `-` and `_` are the same. Environment variables are not expanded. With `ignore_unsupported`, keys that are known
    but not supported yet are left out, each with a line in `RunConfig.warnings`, instead of being errors.
    Raises ConfigError with one line for each problem.
    """
    data, lines = read_yaml(path)
    draft = Draft(str(path))
    draft.add_file(data, lines)
    for key, text in (overrides or {}).items():
        draft.add_override(key, text)
    return _resolve(draft, ignore_unsupported)


def resolve_mapping(
    flat: Mapping[str, Any],
    source: str = "<dict>",
    overrides: Mapping[str, str] | None = None,
    *,
    flags: Mapping[str, str] | None = None,
    ignore_unsupported: bool = False,
) -> RunConfig:
    """The same for a mapping that was never a file. `flags`: key of an override -> how it was written, for errors."""
    draft = Draft(source)
    draft.add_file(flat, {})
    for key, text in (overrides or {}).items():
        draft.add_override(key, text, (flags or {}).get(key))
    return _resolve(draft, ignore_unsupported)


def _resolve(draft: Draft, ignore_unsupported: bool) -> RunConfig:
    try:
        read_into(draft)
    except ConfigError as error:
        draft.problems.append(str(error))
        draft.replace("deepspeed", None, str)
    warnings = screen(draft, ignore_unsupported=ignore_unsupported)
    dealt: dict[str, dict[str, Any]] = {name: {} for name in SECTIONS}
    for key, value in draft.values.items():
        if key in SECTION_OF:
            dealt[SECTION_OF[key]][key] = value
        elif key in ATTENTION:
            draft.problems.append(f"{draft.label((key,))}: expected true or false, got {shown(value)}")
        else:
            draft.problems.append(_unknown(draft, (key,), known_keys()))
    sections: dict[str, Section] = {}
    for name, section_type in SECTIONS.items():
        try:
            sections[name] = section_type.model_validate(dealt[name])
        except ValidationError as error:
            draft.problems += _invalid(draft, section_type, error)
    if not draft.problems:
        config = RunConfig(**sections, source=draft.source)  # type: ignore[arg-type]
        draft.problems += broken_rules(config, draft)
    if draft.problems:
        raise ConfigError(_report(draft))
    warnings += [*idle_keys(config, draft), *deepspeed_warnings(config, draft)]
    return replace(finish(config, draft), warnings=tuple(warnings))


def _invalid(draft: Draft, section_type: type[Section], error: ValidationError) -> list[str]:
    problems = []
    for path, message, siblings in explain(section_type, error):
        problems.append(_unknown(draft, path, siblings) if siblings is not None else f"{draft.label(path)}: {message}")
    return problems


def _unknown(draft: Draft, path: KeyPath, siblings: Iterable[str]) -> str:
    label = draft.label(path)
    name = nearest_key(str(path[-1]), siblings)
    if name is None:
        return f"{label}: unknown key; `allranks config schema` lists all"
    full = dotted((*path[:-1], name))
    return f"{label}: unknown key; did you mean {flag_name(full) if label.startswith('--') else full}?"


def _report(draft: Draft) -> str:
    """All problems by line, those without a line first."""

    def line(problem: str) -> int:
        number = problem.removeprefix(f"{draft.source}:").partition(":")[0]
        return int(number) if number.isdecimal() else 0

    problems = sorted(dict.fromkeys(draft.problems), key=line)
    if len(problems) == 1:
        return problems[0]
    shown = problems[:MAX_PROBLEMS]
    if len(problems) > len(shown):
        shown.append(f"… and {len(problems) - len(shown)} more")
    return "\n".join([f"{draft.source}: {len(problems)} problems", *(f"  {problem}" for problem in shown)])
