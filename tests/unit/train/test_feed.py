"""Micro-batches made ahead: the plan's own, in order, each step planned once."""

import threading
from collections import Counter

import pytest
import torch

from allranks.data import BatchPlan, BlockOrder, collate
from allranks.train.feed import feed
from tests.unit.data.test_batches import blocks  # noqa: F401

CPU = torch.device("cpu")


@pytest.fixture
def plan(blocks):  # noqa: F811
    plan = BatchPlan(
        blocks, BlockOrder(len(blocks), 5), global_batch=4, micro_batch_size=1, rank=0, world_size=2, total_blocks=18
    )
    plan_step, plan.planned = plan.step, Counter()

    def counted(k):
        plan.planned[k] += 1
        return plan_step(k)

    plan.step = counted
    return plan


@pytest.mark.parametrize("start", [0, 3])
def test_every_step_comes_in_order_and_is_planned_once(plan, start):
    seen = []
    for step in feed(plan, start=start, pad_blocks_to=None, pad_token_id=0, device=CPU):
        seen.append((step.plan.num_tokens, [batch.input_ids.tolist() for batch in step.batches]))
    assert plan.planned == dict.fromkeys(range(start, plan.num_steps), 1)
    expected = [BatchPlan.step(plan, k) for k in range(start, plan.num_steps)]
    for (num_tokens, rows), step in zip(seen, expected, strict=True):
        assert num_tokens == step.num_tokens
        assert rows == [collate(plan.blocks, ids, pad_to=None).input_ids.tolist() for ids in step.micro_batches]


def test_the_next_micro_batch_is_made_while_one_is_used(plan, monkeypatch):
    made = threading.Semaphore(0)

    def counted(*args, **kwargs):
        try:
            return collate(*args, **kwargs)
        finally:
            made.release()

    monkeypatch.setattr("allranks.train.feed.collate", counted)
    steps = feed(plan, start=0, pad_blocks_to=None, pad_token_id=0, device=CPU)
    next(next(steps).batches)
    # Without another word from the loop, the second one comes.
    assert made.acquire(timeout=30) and made.acquire(timeout=30)
    steps.close()


def test_nothing_is_left_to_do(plan):
    assert list(feed(plan, start=plan.num_steps, pad_blocks_to=None, pad_token_id=0, device=CPU)) == []
