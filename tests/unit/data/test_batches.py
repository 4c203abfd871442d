import numpy as np
import pytest

from allranks.data import BatchPlan, BlockOrder, BlockSet


@pytest.fixture
def blocks():
    generator = np.random.default_rng(0)
    documents = [(generator.integers(1, 99, n), generator.integers(0, 2, n)) for n in generator.integers(2, 40, 23)]
    return BlockSet.from_documents(documents, sequence_len=40, packing=False)


def plans(blocks, world_size, micro_batch_size, global_batch=7, total_blocks=None):
    return [
        BatchPlan(
            blocks,
            BlockOrder(len(blocks), seed=5),
            global_batch=global_batch,
            micro_batch_size=micro_batch_size,
            rank=rank,
            world_size=world_size,
            total_blocks=total_blocks,
        )
        for rank in range(world_size)
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8, 16])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 5])
def test_a_step_takes_the_same_blocks_on_any_topology(blocks, world_size, micro_batch_size):
    ranks = plans(blocks, world_size, micro_batch_size, total_blocks=50)
    order = BlockOrder(len(blocks), seed=5)
    assert ranks[0].num_steps == 8
    for k in range(8):
        steps = [plan.step(k) for plan in ranks]
        expected = order.block_ids(7 * k, min(7 * k + 7, 50))
        taken = np.concatenate([ids for step in steps for ids in step.micro_batches])
        assert sorted(taken[taken >= 0]) == sorted(expected)
        assert len({len(step.micro_batches) for step in steps}) == 1
        assert all(ids.shape == (micro_batch_size,) and ids.dtype == np.int64 for s in steps for ids in s.micro_batches)
        for step in steps:
            assert step.num_blocks == len(expected)
            assert step.num_target_tokens == blocks.target_counts[expected].sum()
            assert step.num_tokens == blocks.token_counts[expected].sum()


def test_no_rank_has_two_blocks_more_than_another(blocks):
    for k in range(3):
        counts = [sum((ids >= 0).sum() for ids in plan.step(k).micro_batches) for plan in plans(blocks, 3, 2)]
        assert max(counts) - min(counts) <= 1


def test_no_more_micro_batches_than_needed(blocks):
    assert len(plans(blocks, 2, 2, global_batch=8)[0].step(0).micro_batches) == 2
    assert len(plans(blocks, 2, 2, global_batch=9)[0].step(0).micro_batches) == 3


def test_one_epoch_is_the_default(blocks):
    plan = plans(blocks, 1, 1)[0]
    assert plan.num_steps == 4 and plan.step(3).num_blocks == 2


@pytest.mark.parametrize("step", [-1, 4])
def test_steps_outside_the_run_are_refused(blocks, step):
    with pytest.raises(IndexError):
        plans(blocks, 1, 1)[0].step(step)
