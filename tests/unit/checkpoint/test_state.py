"""state.json: what is written is read, by later versions too, whatever keys came or went between them."""

import json
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from allranks.checkpoint.state import VERSION, RunState, parse_state
from allranks.errors import CheckpointError

# As allranks 0.1 wrote it after the demo's third step, before states had a version.
OLD = json.loads((Path(__file__).parent / "state-0.1.json").read_text())
REQUIRED = {"step", "config"}
WITH_DEFAULTS = sorted(set(OLD) - REQUIRED)


def parse(**keys):
    return parse_state(json.dumps(keys), "step-00000003/state.json")


def test_a_state_without_a_version_is_read():
    state = parse(**OLD)
    assert {key: getattr(state, key) for key in OLD} == OLD
    assert state.other == {}


def test_what_is_written_is_what_is_read():
    state = RunState(4, {"base_model": "m"}, tokens=7, loss=1.5, adapter=False, scaler={"scale": 2.0})
    assert parse_state(state.to_json(), "here") == state


@pytest.mark.parametrize("chosen", range(1, 2 ** len(WITH_DEFAULTS), 37))
def test_any_keys_with_defaults_may_be_missing(chosen):
    left_out = {key for bit, key in enumerate(WITH_DEFAULTS) if chosen >> bit & 1}
    state = parse(**{key: value for key, value in OLD.items() if key not in left_out})
    defaults = {each.name: each.default for each in fields(RunState) if each.default is not MISSING}
    for key in OLD:
        assert getattr(state, key) == (defaults[key] if key in left_out else OLD[key])


@pytest.mark.parametrize("key", sorted(REQUIRED))
def test_a_key_that_every_version_writes_must_be_there(key):
    with pytest.raises(CheckpointError, match=rf"step-00000003/state.json does not say {key}"):
        parse(**{other: value for other, value in OLD.items() if other != key})


def test_keys_of_a_later_version_are_kept():
    state = parse(**OLD, version=VERSION, curriculum={"stage": 2})
    assert state.other == {"curriculum": {"stage": 2}}
    assert json.loads(state.to_json())["curriculum"] == {"stage": 2}


@pytest.mark.parametrize("version", [VERSION + 1, "2", True, None, 1.5])
def test_a_state_whose_keys_may_mean_something_else_is_refused(version):
    with pytest.raises(CheckpointError, match="use the allranks that wrote it"):
        parse(**{**OLD, "version": version})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", "3"),
        ("step", True),
        ("loss", "nan"),
        ("config", []),
        ("only_model", 1),
        ("scaler", [1]),
        ("tokens", None),
    ],
)
def test_a_value_of_another_type_is_named(key, value):
    with pytest.raises(CheckpointError, match=rf"state.json: {key} is "):
        parse(**{**OLD, key: value})


@pytest.mark.parametrize("text", ["", "[]", "{", '"step"', "[" * 100_000])
def test_what_is_no_state_is_refused_in_words(text):
    with pytest.raises(CheckpointError, match=r"step-00000003/state\.json"):
        parse_state(text, "step-00000003/state.json")


def test_whether_an_adapter_was_trained_follows_from_the_config_where_the_state_does_not_say():
    assert RunState(1, {"adapter": "lora"}).is_adapter and not RunState(1, {}).is_adapter
    assert not RunState(1, {"adapter": "lora"}, adapter=False).is_adapter
