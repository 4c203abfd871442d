"""The config described: JSON schema, and the page docs/config.md (`python -m allranks.config.reference`)."""

from typing import Any

from pydantic_core import PydanticUndefined

from allranks.config.explain import allowed, as_yaml
from allranks.config.run import SECTIONS
from allranks.config.sections.adapter import BnbConfig
from allranks.config.sections.data import DatasetSpec, PromptFormat
from allranks.config.sections.model import SpecialTokens
from allranks.config.sections.network import NetworkSettings
from allranks.config.sections.optimizer import LrGroup
from allranks.config.sections.parallel import DdpCommStateOption, FsdpConfig, GradientCheckpointingKwargs
from allranks.config.sections.section import Section, key_help
from allranks.config.spellings import ATTENTION, RENAMED, VALUES
from allranks.config.unsupported import LATER, NO_EFFECT, OUT_OF_SCOPE
from allranks.config.unsupported_values import FSDP1, SAME_RESULT

NESTED: dict[str, type[Section]] = {
    "special_tokens": SpecialTokens,
    "datasets.N": DatasetSpec,
    "datasets.N.type": PromptFormat,
    "fsdp_config": FsdpConfig,
    "bnb_config_kwargs": BnbConfig,
    "gradient_checkpointing_kwargs": GradientCheckpointingKwargs,
    "ddp_comm_state_option": DdpCommStateOption,
    "lr_groups.N": LrGroup,
    "network": NetworkSettings,
}

INTRODUCTION = """\
# The config

One YAML file with flat keys, named as in Axolotl. This page is made from the code, by
`python -m allranks.config.reference > docs/config.md`.

- `allranks config show CONFIG` prints the config with every default filled in; `allranks config schema` prints a JSON
  schema that editors understand.
- Any key is an option of `allranks train` and `allranks config show`: `--learning-rate 1e-4`, `--sample-packing`,
  `--no-sample-packing`, `--fsdp-config.offload-params true`, `--datasets.0.path other.jsonl`. Options win over the
  file; `--key null` takes a key out of it. `-` and `_` are the same.
- An empty value (`key:`) is the same as no such line: the default holds.
- Types are strict: `"512"` in quotes is text, not a number. `1e-5` is a number.
- Environment variables are not expanded, and secrets are refused: set HF_TOKEN and the like in the environment.
- Unknown keys, keys given twice and keys that exclude each other are errors that name file and line.
"""


def json_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a config file: the flat keys of all sections, and the old spellings."""
    properties: dict[str, Any] = {}
    definitions: dict[str, Any] = {}
    required: list[str] = []
    for section in SECTIONS.values():
        schema = section.model_json_schema()
        definitions |= schema.get("$defs", {})
        required += schema.get("required", [])
        properties |= _described(section, schema["properties"])
    for nested in NESTED.values():
        _described(nested, definitions[nested.__name__]["properties"])
    for old, new in _old_keys().items():
        properties[old] = {"description": f"Old spelling of {new}.", "deprecated": True}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "allranks config",
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
        "$defs": definitions,
    }


def markdown() -> str:
    """The reference page of every key."""
    parts = [INTRODUCTION]
    for name, section in SECTIONS.items():
        parts.append(f"## {name}\n\n{_first_line(section)}\n\n{_table(section)}")
        fields = section.model_fields
        for path, nested in NESTED.items():
            if path.partition(".")[0] in fields:
                parts.append(f"### {path}\n\n{_first_line(nested)}\n\n{_table(nested)}")
    old = [f"| `{old}` | {new} |" for old, new in _old_keys().items()]
    old += [f"| `{old}` | `{new}` |".replace("*", "N") for old, new in RENAMED.items() if "." in old]
    old += [f"| `{key}: {old}` | `{key}: {new}` |" for key, values in VALUES.items() for old, new in values.items()]
    parts.append(
        "## Old spellings\n\nUnderstood, and shown under their present name.\n\n| old | now |\n|---|---|\n"
        + "\n".join(old)
    )
    parts.append(
        "## Not supported yet\n\nErrors when switched on; `--ignore-unsupported` goes on without them. "
        "A value that switches nothing on (`false`, empty) is fine.\n\n" + _meanings(LATER)
    )
    parts.append("## Settings of FSDP1\n\nErrors when switched on.\n\n" + _meanings(FSDP1))
    parts.append("## Out of scope\n\nErrors when switched on.\n\n" + _meanings(OUT_OF_SCOPE))
    same = {
        f"{key}: {as_yaml(value) if isinstance(value, bool) else value}": why
        for key, values in SAME_RESULT.items()
        for value, why in values.items()
    }
    parts.append("## Without effect\n\nAccepted with a warning.\n\n" + _meanings({**NO_EFFECT, **same}))
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _described(section: type[Section], properties: dict[str, Any]) -> dict[str, Any]:
    """The properties of a pydantic schema, with our sentences instead of pydantic's titles."""
    for key, schema in properties.items():
        schema.pop("title", None)
        schema["description"] = key_help(section)[key]
    return properties


def _old_keys() -> dict[str, str]:
    attention = {old: f"`attn_implementation: {new}`" for old, new in ATTENTION.items()}
    return {**{old: f"`{new}`" for old, new in RENAMED.items() if "." not in old}, **attention}


def _table(section: type[Section]) -> str:
    rows = ["| key | allowed | default | meaning |", "|---|---|---|---|"]
    for key, field in section.model_fields.items():
        if key in LATER:
            continue
        default = field.get_default()
        if default is PydanticUndefined:
            text = "required"
        else:
            text = "" if default is None else f"`{as_yaml(default) if not isinstance(default, str) else default}`"
        meaning = key_help(section)[key].replace("|", r"\|")
        rows.append(f"| `{key}` | {allowed(field)} | {text} | {meaning} |")
    return "\n".join(rows)


def _meanings(table: dict[str, str]) -> str:
    rows = [f"| `{key.replace('datasets.*', 'datasets.N')}` | {text} |" for key, text in table.items()]
    return "| key | |\n|---|---|\n" + "\n".join(rows)


def _first_line(section: type[Section]) -> str:
    return (section.__doc__ or "").strip().partition("\n")[0]


if __name__ == "__main__":
    print(markdown(), end="")
