"""The schema accepts what the tool accepts and refuses what it refuses: every key, with values of all kinds."""

from pathlib import Path

import jsonschema
import pytest
import yaml

from allranks.config.load import resolve_mapping
from allranks.config.names import known_keys
from allranks.config.rules import EXCLUSIVE
from allranks.config.schema import EDITOR_LINE, NESTED, json_schema
from allranks.config.spellings import RENAMED, VALUES
from allranks.config.unsupported import LATER, NO_EFFECT, OUT_OF_SCOPE
from allranks.config.unsupported_values import FSDP1, FSDP1_SAME, REFUSED_VALUES, SAME_RESULT
from allranks.config.yaml_lines import read_yaml
from allranks.errors import ConfigError
from tests.unit.config.axolotl.test_axolotl_keys import KEYS, MINIMAL, with_key

ROOT = Path(__file__).parents[3]
VALIDATOR = jsonschema.Draft202012Validator(json_schema())
TABLES = {**RENAMED, **LATER, **NO_EFFECT, **OUT_OF_SCOPE, **FSDP1, **FSDP1_SAME, **SAME_RESULT, **REFUSED_VALUES}
OTHERS = ["no_such_key", "datasets.0.no_such_key", "fsdp_config.no_such_key", "fsdp_config.fsdp_offload_params"]
ALL = sorted(
    {key for key in (*KEYS, *known_keys(), *OTHERS) if not key.startswith("deepspeed.")}
    | {key.replace("*", "0") for key in TABLES if not key.endswith("*") and not key.startswith("deepspeed.")}
)
KINDS = [None, False, True, 0, 3, -1, 0.5, "", "text", "2024", [], ["a"], {}, {"a": 1}]


def accepts(config: dict) -> bool:
    try:
        resolve_mapping(config)
    except ConfigError:
        return False
    return True


@pytest.fixture(scope="module", autouse=True)
def each_key_by_itself():
    """Rules between keys are not the schema's, but for pairs that exclude each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("allranks.config.load.broken_rules", lambda config, given: [])
        yield


@pytest.mark.parametrize("part", range(8))
def test_every_key_with_values_of_every_kind(part):
    wrong = []
    for key in ALL[part::8]:
        last = key.rpartition(".")[2]
        if last in ("base_model", "learning_rate", "path") or key in ("datasets", "datasets.0.type", "deepspeed"):
            continue
        special = [value for table in (VALUES, SAME_RESULT, REFUSED_VALUES) for value in table.get(key, {})]
        for value in [*KINDS, *special, *VALUES.get(key, {}).values()]:
            config = with_key(key, value)
            if accepts(config) != VALIDATOR.is_valid(config):
                wrong.append((key, value, "accepted" if accepts(config) else "refused"))
    assert wrong == []


@pytest.mark.parametrize("key", ["base_model", "learning_rate", "datasets"])
def test_what_is_required_is_required(key):
    assert not VALIDATOR.is_valid({name: value for name, value in MINIMAL.items() if name != key})
    assert not VALIDATOR.is_valid({**MINIMAL, key: None})


@pytest.mark.parametrize(
    ("kind", "accepted"),
    [
        *((name, True) for name in ("alpaca", "chat_template", "alpaca:chat", "", None)),
        *((name, False) for name in ("alpca", "sharegpt", "completion:chat", 3, ["alpaca"])),
        ({"field_output": "x"}, True),
        ({"field_outptu": "x"}, False),
    ],
)
def test_the_type_of_a_data_set(kind, accepted):
    assert VALIDATOR.is_valid({**MINIMAL, "datasets": [{"path": "d", "type": kind}]}) is accepted


def test_pairs_that_exclude_each_other():
    for first, second, _ in EXCLUSIVE:
        assert not VALIDATOR.is_valid({**MINIMAL, first: 1, second: 1}), (first, second)
    assert VALIDATOR.is_valid({**MINIMAL, "bf16": True, "fp16": False})


def test_other_forms_of_values():
    for keys in (
        {"fsdp": "full_shard auto_wrap", "optim_args": "a=1,b=2", "max_steps": -1, "save_strategy": False},
        {"network": {"infiniband": False, "hcas": "mlx5_0,mlx5_1", "buffer_size": "4MiB", "debug": "info"}},
        {"tokens": {"eos_token": "</s>"}, "gradient_checkpointing": "unsloth", "dataloader_num_workers": 4},
        {"attn_implementation": "xformers", "plugins": ["axolotl.integrations.kernels.KernelsPlugin"]},
    ):
        assert accepts({**MINIMAL, **keys}) and VALIDATOR.is_valid({**MINIMAL, **keys}), keys


CONFIGS = sorted((ROOT / "tests/unit/config/axolotl/configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_that_run_are_not_red(path):
    config, _ = read_yaml(path)
    assert [error.message for error in VALIDATOR.iter_errors(config)] == []


def test_what_is_shown_is_accepted():
    assert VALIDATOR.is_valid(yaml.safe_load(resolve_mapping(MINIMAL).yaml()))


def test_every_key_is_described_and_the_schema_is_one():
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert known_keys() <= set(schema["properties"])
    assert schema["required"] == ["base_model", "datasets", "learning_rate"]
    assert all(entry["description"] for entry in schema["properties"].values())
    assert set(schema["$defs"]) == {nested.__name__ for nested in NESTED.values()}
    for page in ("docs/config.md", "docs/axolotl.md"):
        assert EDITOR_LINE in (ROOT / page).read_text()
