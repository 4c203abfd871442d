"""What a start on one node says of the memory of its ranks, on this machine's CPU."""

import json

import pytest

from allranks.config.load import resolve_mapping
from allranks.errors import RefusedError
from allranks.launch.preflight.alone import refuse_too_large
from allranks.launch.spec.options import LaunchOptions, resolve
from tests.planned import CONFIG, MODEL, SMALL


@pytest.fixture
def start(tmp_path, capsys):
    """Makes a config, asks as a start does, and gives what was said."""

    def said(model=None, ranks=64, **keys):
        (tmp_path / "config.json").write_text(json.dumps({**MODEL, **(model or {})}))
        cfg = resolve_mapping({**CONFIG, "base_model": str(tmp_path), **keys})
        refuse_too_large(cfg, resolve(LaunchOptions(nproc_per_node=ranks), num_gpus=0))
        return capsys.readouterr().err

    return said


def test_what_is_too_large_is_warned_of_on_a_cpu_whose_memory_may_be_swapped(start):
    said = start(model={"num_hidden_layers": 200})
    assert said.startswith("warning: ") and "[plan.memory]" in said and "a rank will hold " in said
    assert "allranks plan CONFIG" in said


@pytest.mark.parametrize(
    "keys",
    [
        {"plan": "off"},
        {"preflight": {"skip": ["plan.memory"]}},
        {"preflight": {"skip": True}},
        {"model": {"model_type": "no_such_family"}},
    ],
)
def test_nothing_is_said_where_nothing_is_asked_or_known(start, keys):
    keys = {"model": {"num_hidden_layers": 200}, **keys}
    assert start(**keys) == ""


def test_what_is_small_enough_is_not_mentioned(start):
    small = {
        **SMALL,
        "num_hidden_layers": 1,
        "hidden_size": 64,
        "intermediate_size": 64,
        "head_dim": 8,
        "vocab_size": 99,
    }
    assert start(model=small, ranks=1, sequence_len=64) == ""


def test_a_warning_can_be_made_an_error(start):
    with pytest.raises(RefusedError, match=r"plan\.memory"):
        start(model={"num_hidden_layers": 200}, preflight={"strict": ["plan.memory"]})
