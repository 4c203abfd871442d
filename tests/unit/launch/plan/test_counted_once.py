"""Micro-batches and steps: what a plan counts is what training deals out and lays out."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from allranks.config.load import resolve_mapping
from allranks.data import BatchPlan, BlockOrder, BlockSet
from allranks.launch.plan.source import schedule
from allranks.plan.lengths import Lengths
from allranks.plan.workloads import workloads
from allranks.train.resume import global_batch_size
from allranks.train.step_schedule import lay_out
from tests.planned import MODEL, SMALL, TINY_CONFIG

BATCHES = [
    {"gradient_accumulation_steps": 1},
    {"gradient_accumulation_steps": 3},
    {"gradient_accumulation_steps": None, "batch_size": 7},
    {"gradient_accumulation_steps": None, "batch_size": 12},
]
RUNS = [{"num_epochs": 1}, {"num_epochs": 2.5}, {"num_epochs": 0.1}, {"max_steps": 4, "num_epochs": 3}]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_a_plan_counts_micro_batches_and_steps_as_training_does(packing, batch):
    generator = np.random.default_rng(0)
    documents = [(generator.integers(1, 99, n), generator.integers(0, 2, n)) for n in generator.integers(2, 40, 61)]
    blocks = BlockSet.from_documents(documents, sequence_len=40, packing=packing)
    lengths = Lengths(40, 40, 40.0, num_blocks=len(blocks))
    for micro_batch_size, (nodes, ranks), run in product((1, 2, 5), ((1, 1), (2, 2), (3, 1)), RUNS):
        keys = {**TINY_CONFIG, "micro_batch_size": micro_batch_size, "sample_packing": packing, **batch, **run}
        cfg = resolve_mapping({key: value for key, value in keys.items() if value is not None})
        whole = global_batch_size(cfg, nodes * ranks, None, pytest.fail)
        laid_out = lay_out(cfg, num_blocks=len(blocks), global_batch=whole, has_eval=False)
        planned = workloads(cfg, {**MODEL, **SMALL}, num_nodes=nodes, gpus_per_node=ranks)
        for size, counted in {(one.micro_batch_size, one.num_micro_batches) for one in planned}:
            dealt = BatchPlan(
                blocks,
                BlockOrder(len(blocks), seed=5),
                global_batch=whole,
                micro_batch_size=size,
                rank=0,
                world_size=nodes * ranks,
                total_blocks=max(whole, laid_out.total_blocks),  # so that the first step is a whole one
            )
            assert len(dealt.step(0).micro_batches) == counted
        assert schedule(cfg, whole, lengths) == laid_out


@pytest.mark.parametrize(
    ("saving", "num_saved"),
    [
        ({"save_steps": 10}, 4),
        ({"save_steps": 0.25}, 4),
        ({"saves_per_epoch": 1}, 2),
        ({"save_strategy": "no", "adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True}, 1),
    ],
    ids=str,
)
def test_a_plan_knows_how_often_a_run_saves_also_before_there_is_data(saving, num_saved):
    cfg = resolve_mapping({**TINY_CONFIG, "max_steps": 40, "num_epochs": 2, **saving})
    assert len(schedule(cfg, 8, Lengths(512, 512, 512.0)).save_at) == num_saved
