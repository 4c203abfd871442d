"""What the plan expects of more nodes, from the measured step of fewer."""

import math

import pytest

from allranks.config.load import resolve_mapping
from allranks.demo import write_files
from allranks.plan.hardware import find_link
from allranks.scaling.planned import planned
from tests.unit.scaling.test_scaling_measured import size

GIGABIT = find_link("1gbit")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("plan"), num_records=1, vocab_size=400, hidden_size=64, num_layers=2)


def configs(files, sizes, **keys):
    flat = {"base_model": str(files.model), "datasets": [{"path": str(files.data), "type": "chat_template"}]}
    cfg = resolve_mapping(flat | {"learning_rate": 1e-4, "sequence_len": 64, "micro_batch_size": 1} | keys)
    return {one.nodes: cfg for one in sizes}


def test_a_slow_link_adds_what_the_gradients_take_on_it(files):
    sizes = [size(1, 1.0), size(2, 9.0), size(3, 9.0)]
    seconds, told = planned(configs(files, sizes), sizes, GIGABIT)
    message = 4 * files.num_parameters / (GIGABIT.bytes_per_second * GIGABIT.achieved)
    # A ring sends 2 (n - 1) / n of the gradients; they are one bucket, which nothing hides.
    for nodes in (2, 3):
        assert seconds[nodes] - 1.0 == pytest.approx(2 * (nodes - 1) / nodes * message, rel=0.05)
    assert seconds[1] == 1.0 and "1 node" in told and "1 GBIT/S" in told.upper()


def test_a_model_that_the_config_changes_is_planned_as_changed(files):
    sizes = [size(1, 1.0), size(2, 9.0)]
    deeper = {"overrides_of_model_config": {"num_hidden_layers": 12}}
    stored, _ = planned(configs(files, sizes), sizes, GIGABIT)
    changed, _ = planned(configs(files, sizes, **deeper), sizes, GIGABIT)
    assert changed[2] - 1.0 > 1.5 * (stored[2] - 1.0)


def test_a_rank_with_more_tokens_computes_longer(files):
    sizes = [size(1, 1.0), size(2, 9.0, tokens=4000.0)]
    seconds, _ = planned(configs(files, sizes), sizes, GIGABIT)
    assert seconds[2] == pytest.approx(2.0, rel=0.05)


def test_what_the_smallest_size_sent_itself_is_not_computing(files):
    sizes = [size(2, 1.0), size(4, 9.0)]
    slow = find_link("1mbit")
    seconds, _ = planned(configs(files, sizes), sizes, slow)
    message = 4 * files.num_parameters / (slow.bytes_per_second * slow.achieved)
    # The link alone takes longer than the step was measured at: nothing is left for computing, and no less than that.
    assert seconds[2] >= message > 1.0 and math.isfinite(seconds[4])
    quick, _ = planned(configs(files, sizes), sizes, find_link("100gbit"))
    assert quick[2] == pytest.approx(1.0) and quick[4] == pytest.approx(1.0, rel=0.01)


def test_why_there_is_no_plan_is_said(files):
    sizes = [size(1, 1.0), size(2, 1.5)]
    assert planned(configs(files, sizes), sizes[:1], GIGABIT) == ({}, "")
    assert "--link" in planned(configs(files, sizes), sizes, None)[1]
    seconds, told = planned(configs(files, sizes, base_model="/no/where"), sizes, GIGABIT)
    assert not seconds and "/no/where has no config.json" in told
