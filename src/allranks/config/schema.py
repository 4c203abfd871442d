"""JSON schema of a config file (draft 2020-12): for an editor it accepts each key that `config show` accepts.

What keys say about each other is checked by `config show` alone, but for pairs that exclude each other.
"""

import json
import re
from collections.abc import Iterable, Mapping
from fnmatch import translate
from pathlib import Path
from typing import Any

from allranks import durable
from allranks.config.dataset_types import PROMPT_TYPES, TYPES
from allranks.config.rules import EXCLUSIVE
from allranks.config.run import SECTION_OF, SECTIONS
from allranks.config.sections.adapter import BnbConfig
from allranks.config.sections.data import DatasetSpec, PromptFormat
from allranks.config.sections.live import HangTimeouts
from allranks.config.sections.model import QuantizationKwargs, SpecialTokens
from allranks.config.sections.network import NetworkSettings
from allranks.config.sections.optimizer import LrGroup
from allranks.config.sections.parallel import DdpCommStateOption, FsdpConfig, GradientCheckpointingKwargs
from allranks.config.sections.preflight import PreflightSettings
from allranks.config.sections.section import Section, key_help
from allranks.config.spellings import ATTENTION, LISTS_AS_TEXT, NO_OF_YAML, OFF, ON_OFF_OF_YAML, RENAMED, VALUES
from allranks.config.unsupported import LATER, NO_EFFECT, OUT_OF_SCOPE, secret_variable
from allranks.config.unsupported_values import FSDP1, FSDP1_SAME, REFUSED_VALUES, SAME_RESULT

NESTED: dict[str, type[Section]] = {
    "special_tokens": SpecialTokens,
    "datasets.N": DatasetSpec,
    "datasets.N.type": PromptFormat,
    "fsdp_config": FsdpConfig,
    "bnb_config_kwargs": BnbConfig,
    "model_quantization_config_kwargs": QuantizationKwargs,
    "gradient_checkpointing_kwargs": GradientCheckpointingKwargs,
    "ddp_comm_state_option": DdpCommStateOption,
    "lr_groups.N": LrGroup,
    "network": NetworkSettings,
    "preflight": PreflightSettings,
    "hang_timeout": HangTimeouts,
}

Schema = dict[str, Any]

SCHEMA_FILE = "allranks.schema.json"
EDITOR_LINE = f"# yaml-language-server: $schema={SCHEMA_FILE}"
"""The first line of a config, by which editors find the schema in the file beside it."""

_SAYS_NOTHING: Schema = {"enum": [None, False, 0, "", [], {}]}
_NO_TEXT: Schema = {"not": {"type": "string", "minLength": 1}}
_LEFT_OUT: Schema = {"enum": [None, {}]}  # as if the line were not there
# A key that is unknown is one that is left out, if it is empty.
_UNKNOWN: Schema = {**_LEFT_OUT, "errorMessage": "unknown key; `allranks config show` names the nearest"}
# Values that are written otherwise than they are named: path of a key -> a schema of them.
_OTHER_FORMS: dict[str, Schema] = {
    "fsdp": {"type": "string", "pattern": r"^((full_shard|auto_wrap)([ ,]+|$))*$"},
    "optim_args": {"type": "string", "pattern": "^[^=,]+=[^=,]*(,[^=,]+=[^=,]*)*$"},
    "network.buffer_size": {"type": "string", "pattern": "^[0-9]+ ?[KMG]iB$"},
    "network.debug": {"type": "string", "pattern": "^([Vv][Ee]|[Ww][Aa]|[Ii][Nn]|[Tt][Rr])"},
    "tokens": {
        "type": "object",
        "properties": {
            key: {"anyOf": [{"type": "string"}, _LEFT_OUT]}
            for key in ("bos_token", "eos_token", "pad_token", "unk_token")
        },
        "additionalProperties": False,
    },
    **{key: {"const": False} for key in NO_OF_YAML},
    **{".".join(map(str, path)): {"type": "boolean"} for path in ON_OFF_OF_YAML},
    **{".".join(map(str, path)): {"type": "string"} for path in LISTS_AS_TEXT},
}


def json_schema() -> Schema:
    """The schema: all keys, those with an old spelling, and those that are known and do nothing here."""
    top: Schema = {}
    definitions: Schema = {}
    required: list[str] = []
    for section in SECTIONS.values():
        schema = section.model_json_schema()
        definitions |= schema.get("$defs", {})
        required += schema.get("required", [])
        top |= _described(section, schema["properties"])
    holders = {"": top}
    for path, nested in NESTED.items():
        properties = _described(nested, definitions[nested.__name__]["properties"])
        holders[path.replace(".N", ".*") + "."] = properties
    kind = holders["datasets.*."]["type"]
    styled = {"type": "string", "pattern": f"^({'|'.join(map(re.escape, PROMPT_TYPES))}):.+$"}
    holders["datasets.*."]["type"] = {
        "anyOf": [{"enum": [*TYPES, ""]}, styled, {"$ref": "#/$defs/PromptFormat"}, {"type": "null"}],
        "description": kind["description"],
    }
    for prefix, properties in holders.items():
        needed = required if not prefix else definitions[NESTED[_path(prefix)].__name__].get("required", [])
        for key in properties:
            _widen(properties, key, f"{prefix}{key}", needed=key in needed)
    for nested in NESTED.values():
        definitions[nested.__name__]["additionalProperties"] = _UNKNOWN
    patterns = _known(holders)
    _old_spellings(holders)
    _prefixed(holders["fsdp_config."])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "allranks config",
        "type": "object",
        "properties": top,
        "patternProperties": patterns,
        "required": required,
        "additionalProperties": _UNKNOWN,
        "allOf": [_not_both(first, second) for first, second, _ in EXCLUSIVE],
        "$defs": definitions,
    }


def write_schema(folder: Path) -> None:
    """Put the schema beside a config whose first line is EDITOR_LINE."""
    durable.write(folder / SCHEMA_FILE, json.dumps(json_schema(), indent=1) + "\n")


def old_keys() -> dict[str, str]:
    """Old spellings of top-level keys -> what they are now, for a page."""
    attention = {old: f"`attn_implementation: {new}`" for old, new in ATTENTION.items()}
    return {**{old: f"`{new}`" for old, new in RENAMED.items() if "." not in old}, **attention}


def _described(section: type[Section], properties: Schema) -> Schema:
    """The properties of a pydantic schema, with our sentences instead of pydantic's titles."""
    for key, schema in properties.items():
        schema.pop("title", None)
        schema["description"] = key_help(section)[key]
    return properties


def _path(prefix: str) -> str:
    return prefix.removesuffix(".").replace(".*", ".N")


def _widen(properties: Schema, key: str, path: str, *, needed: bool) -> None:
    """Let a key be empty, and have its values by their other names and those that make no difference."""
    if path in LATER:
        properties[key] = _about(_SAYS_NOTHING, properties[key]["description"])
        return
    others: list[Schema] = [] if needed else [_LEFT_OUT]
    if path in _OTHER_FORMS:
        others.append(_OTHER_FORMS[path])
    values = [*VALUES.get(path, {}), *SAME_RESULT.get(path, {}), *([OFF[path]] if path in OFF else [])]
    if values:
        others.append({"enum": values})
    if path == "plugins":
        items = _any_of(_items(properties[key]), {"enum": [*SAME_RESULT["plugins.*"]]})
        others.append({"type": "array", "items": items})
    # To Python, and so to the tool, 0 is equal to false and 1 to true.
    choices = [choice.get("const") for choice in (properties[key], *properties[key].get("anyOf", []))]
    equal = [int(value) if isinstance(value, bool) else bool(value) for value in choices if value in (False, 1)]
    if equal:
        others.append({"enum": equal})
    refused = [value for value in REFUSED_VALUES.get(path, {}) if isinstance(value, str) and "*" not in value]
    widened = _any_of(properties[key], *others) if others else properties[key]
    properties[key] = _about(widened, properties[key]["description"])
    if refused:
        properties[key]["not"] = {"enum": refused}


def _items(schema: Schema) -> Schema:
    return next(choice["items"] for choice in schema["anyOf"] if choice.get("type") == "array")


def _any_of(schema: Schema, *others: Schema) -> Schema:
    bare = {name: value for name, value in schema.items() if name not in ("description", "default", "deprecated")}
    return {"anyOf": [bare, *others]}


def _about(schema: Schema, description: str) -> Schema:
    return {**schema, "description": description}


def _known(holders: Mapping[str, Schema]) -> Schema:
    """Put in the keys that are known and do nothing; returns those that a pattern names."""
    same = {key: {"enum": [*_SAYS_NOTHING["enum"], value]} for key, value in FSDP1_SAME.items()}
    for key, values in SAME_RESULT.items():
        if key in FSDP1 or key in FSDP1_SAME:
            same[key] = {"enum": [*same.get(key, _SAYS_NOTHING)["enum"], *values]}
    tables: list[tuple[Mapping[str, str], str, Schema]] = [
        (NO_EFFECT, "Without effect", {}),
        (LATER, "Not supported yet", _SAYS_NOTHING),
        (OUT_OF_SCOPE, "Out of scope", _SAYS_NOTHING),
        ({**dict.fromkeys(FSDP1_SAME, "what FSDP2 does anyway"), **FSDP1}, "Of FSDP1", _SAYS_NOTHING),
    ]
    exact = {key for table, _, _ in tables for key in table if "*" not in key.rpartition(".")[2]}
    patterns: Schema = {}
    for table, head, schema in tables:
        for path, reason in table.items():
            prefix, _, key = path.rpartition(".")
            holder = holders[f"{prefix}." if prefix else ""]
            taken: Schema = same.get(path, schema)
            if not taken and secret_variable(path):
                taken = _NO_TEXT
            entry = _about(taken, f"{head}: {reason}.")
            if "*" in key:
                named = [one for one in {*SECTION_OF, *RENAMED, *ATTENTION, *exact} if "." not in one]
                apart = [one for one in named if re.fullmatch(translate(key), one)]
                lookahead = f"(?!({'|'.join(sorted(apart))})$)" if apart else ""
                patterns[f"^{lookahead}{re.escape(key).replace(chr(92) + '*', '.*')}$"] = entry
            elif key not in holder:
                holder[key] = entry
    return patterns


def _old_spellings(holders: Mapping[str, Schema]) -> None:
    for old, new in RENAMED.items():
        if old.startswith(("deepspeed.", "tokens.")):
            continue
        prefix, _, key = old.rpartition(".")
        target = _target(holders, new)
        note = {"description": f"Old spelling of `{new.replace('*', 'N')}`.", "deprecated": True}
        holders[f"{prefix}." if prefix else ""].setdefault(key, {**target, **note})
    for old, new in ATTENTION.items():
        note = {"description": f"Old spelling of `attn_implementation: {new}`.", "deprecated": True}
        holders[""][old] = {"anyOf": [{"type": "boolean"}, _LEFT_OUT], **note}


def _target(holders: Mapping[str, Schema], path: str) -> Schema:
    """The schema of a key, or of an entry of one that holds any."""
    prefix, _, key = path.rpartition(".")
    holder = holders.get(f"{prefix}." if prefix else "")
    if holder is not None and key in holder:
        return holder[key]
    return _any_of({"type": "string"}, _LEFT_OUT) if "message_property_mappings" in path else {}


def _prefixed(fsdp: Schema) -> None:
    """The settings of FSDP in their old form, such as `fsdp_offload_params`."""
    for key in [key for key in fsdp if not key.startswith("fsdp_")]:
        note = {"description": f"Old spelling of `{key}`.", "deprecated": True}
        fsdp[f"fsdp_{key}"] = {**fsdp[key], **note}


def _not_both(first: str, second: str) -> Schema:
    on: Schema = {"not": _SAYS_NOTHING}
    both: Iterable[str] = (first, second)
    return {"not": {"required": [*both], "properties": dict.fromkeys(both, on)}}
