"""The table: every strategy and method once at its best, in an order that can be explained, with lines that make it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import yaml

from allranks.config.load import load_config, resolve_mapping
from allranks.plan.config_lines import as_yaml, changed
from allranks.plan.config_workload import own_workload
from allranks.plan.hardware import find_device, find_link
from allranks.plan.lengths import full
from allranks.plan.table import Machines, Row, best_of_each, out_of, rows
from allranks.plan.workloads import workloads
from tests.planned import CONFIG, FSDP2, LORA, MODEL


def config(**keys: Any) -> dict[str, Any]:
    """`batch_size` takes the place of the accumulation."""
    return {key: value for key, value in {**CONFIG, **keys}.items() if "batch_size" not in keys or "accum" not in key}


def made(num_nodes: int = 2, gpu: str = "h100-80gb", **keys: Any) -> list[Row]:
    cfg = resolve_mapping(config(**keys))
    machines = Machines(num_nodes, 8, find_device(gpu), find_link("100gbit"))
    found = workloads(cfg, MODEL, num_nodes=num_nodes, gpus_per_node=8)
    wanted = cfg.optimizer.batch_size or cfg.optimizer.micro_batch_size * 4 * machines.num_ranks
    return rows(found, machines, wanted, full(cfg.data.sequence_len))


@pytest.mark.parametrize("keys", [FSDP2, {}, {**FSDP2, **LORA}])
def test_what_fits_comes_first_then_the_method_asked_for_then_the_fastest(keys):
    found = made(**keys)
    own = next(one for one in found if one.is_own)
    assert [one.fits for one in found] == sorted((one.fits for one in found), reverse=True)
    fitting = [one for one in found if one.fits]
    is_asked = [one.workload.method == own.workload.method for one in fitting]
    assert is_asked == sorted(is_asked, reverse=True)
    times = [one.time.total for one in fitting if one.workload.method == own.workload.method]
    assert all(later > before / 1.02 for before, later in pairwise(times)), "but for what is as good as equal"


def test_every_strategy_and_method_is_shown_once_and_the_configs_own():
    shown = best_of_each(made(**FSDP2))
    named = [(one.workload.name, one.workload.method) for one in shown]
    strategies = {"DDP", "FSDP2", "FSDP2 with reshard_after_forward: false", "HSDP (dp_shard_size: node)"}
    strategies |= {"ZeRO-2", "ZeRO-3"}
    assert {name for name, _ in named} == strategies
    assert {method for _, method in named} == {"full", "lora", "qlora"}
    assert len(set(named)) >= len(named) - 1 and sum(one.is_own for one in shown) == 1


@pytest.mark.parametrize("keys", [FSDP2, {"fsdp_version": 2, "dp_shard_size": "node", **LORA}, {"batch_size": 96}])
def test_the_lines_of_every_row_are_a_config_that_is_that_row(keys):
    for one in best_of_each(made(**keys)):
        cfg = resolve_mapping(changed(config(**keys), one.workload.changes))
        again = own_workload(cfg, MODEL, num_nodes=2, gpus_per_node=8, on_cpu=False)
        for name in (
            "method",
            "layout",
            "micro_batch_size",
            "num_micro_batches",
            "recomputes",
            "lora_rank",
            "optimizer",
        ):
            assert getattr(again, name) == getattr(one.workload, name), (one.workload.name, name)


def test_the_lines_can_be_copied_into_a_file(tmp_path):
    one = next(one for one in made(**FSDP2) if one.workload.name == "ZeRO-2" and one.workload.method == "lora")
    left = {key: value for key, value in {**CONFIG, **FSDP2}.items() if key not in one.workload.changes}
    lines = as_yaml({key: value for key, value in one.workload.changes.items() if value is not None})
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(left) + lines)
    cfg = load_config(path)
    assert (cfg.deepspeed.stage, cfg.adapter.adapter, cfg.parallel.uses_fsdp) == (2, "lora", False)


def test_limits_are_told_in_words():
    small = made(gpu="l40s")
    too_large = next(one for one in small if one.workload.name == "DDP" and one.workload.method == "full")
    assert not too_large.fits and too_large.limit.startswith("memory: ") and too_large.limit.endswith(" of 48 GB")
    slow = next(one for one in made(gpu="h100-80gb") if one.workload.name == "ZeRO-3" and one.workload.method == "full")
    assert slow.limit.endswith(" % of a step")


def test_sizes_are_told_apart():
    assert out_of(93.4e9, 80e9) == "93 of 80 GB"
    assert out_of(85.2e9, 84.9e9) == "85.2 of 84.9 GB"
