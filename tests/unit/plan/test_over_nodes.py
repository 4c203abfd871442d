"""The same run on fewer nodes, and what would make one fit."""

from __future__ import annotations

import pytest

from allranks.config.batch import global_batch, num_micro_batches
from allranks.config.load import resolve_mapping
from allranks.plan.config_lines import changed
from allranks.plan.hardware import find_device, find_link
from allranks.plan.lengths import full
from allranks.plan.memory import rank_memory
from allranks.plan.over_nodes import on_nodes, over_nodes
from allranks.plan.remedies import remedies
from allranks.plan.table import Machines
from allranks.plan.workloads import workloads
from tests.planned import CONFIG, FSDP2, MODEL
from tests.unit.plan.test_plan_table import made


def planned(num_nodes=2, gpu="h100-80gb", **keys):
    cfg = resolve_mapping({**CONFIG, **keys})
    return workloads(cfg, MODEL, num_nodes=num_nodes, gpus_per_node=8)


def test_nodes_double_up_to_those_there_are_and_the_batch_is_kept_or_grows():
    machines = Machines(6, 8, find_device("h100-80gb"), find_link("8xib-ndr"))
    best = next(one for one in made(6, **FSDP2) if one.is_own)
    found = over_nodes(best, machines, full(4096))
    assert [one.num_nodes for one in found] == [1, 2, 4, 6]
    assert {one.same.batch.effective for one in found} == {192}
    assert [one.grown.batch.effective for one in found] == [32, 64, 128, 192]
    fitting = [one for one in found if one.same.fits]
    assert fitting[0].speedup == fitting[0].efficiency == 1.0
    for one in fitting:
        assert one.efficiency == pytest.approx(one.speedup * fitting[0].num_nodes / one.num_nodes)


@pytest.mark.parametrize("of_config", [{}, {"batch_size": 90, "gradient_accumulation_steps": None}])
def test_the_changes_of_a_row_make_its_batch_on_its_nodes(of_config):
    machines = Machines(6, 8, find_device("h100-80gb"), find_link("8xib-ndr"))
    given = {key: value for key, value in {**CONFIG, **FSDP2, **of_config}.items() if value is not None}
    found = over_nodes(next(one for one in made(6, **FSDP2, **of_config) if one.is_own), machines, full(4096))
    assert len({one.same.batch.accumulation for one in found}) > 1
    for one in found:
        for row in (one.same, one.grown):
            settings = resolve_mapping(changed(given, row.workload.changes)).optimizer
            assert global_batch(settings, 8 * one.num_nodes) == row.batch.effective
            accumulation = num_micro_batches(row.batch.effective, settings.micro_batch_size, 8 * one.num_nodes)
            assert accumulation == row.batch.accumulation


def test_what_is_sharded_over_all_ranks_stays_so_and_a_nodes_shards_stay_in_the_node():
    own, *others = planned(**FSDP2)
    assert on_nodes(own, 4).layout.num_shards == on_nodes(own, 4).num_ranks == 32
    hybrid = next(one for one in others if one.name.startswith("HSDP"))
    assert on_nodes(hybrid, 4).layout.num_shards == 8


def test_what_does_not_fit_is_told_what_would():
    own, *others = planned(gpu="l40s", num_nodes=1, sequence_len=16384, **FSDP2)
    device = find_device("l40s")
    assert rank_memory(own, device).total > device.memory_bytes
    found = remedies(own, [own, *others], device, own.tokens, 1)
    sizes = [one.memory.total for one in found if one.workload.method == "full" and one.workload.num_ranks == 8]
    assert sizes == sorted(sizes, reverse=True), "each change is made on top of those before"
    assert found[0].keys == {"gradient_checkpointing": True}
    assert any(one.is_enough for one in found)
    assert {one.workload.method for one in found} == {"full", "lora", "qlora"}
    for one in found:
        assert one.is_enough == (rank_memory(one.workload, device).total <= device.memory_bytes)
