"""How long rows are: what a step waits for is the rank that is dealt the longest."""

import math
from dataclasses import replace

import numpy as np
import pytest

from allranks.data import BatchPlan, BlockOrder, BlockSet
from allranks.plan.lengths import full, of_blocks
from tests.unit.plan.test_calibration import TINY


@pytest.fixture(scope="module", params=[False, True], ids=["a document a row", "packed"])
def blocks(request):
    """Conversations, of which a few are long."""
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(math.log(60), 0.8, 12_000), 4, 512).astype(int)
    documents = [(np.ones(length, np.int64), np.ones(length, np.int64)) for length in lengths]
    return BlockSet.from_documents(documents, sequence_len=512, packing=request.param)


def lengths_of(blocks, micro_batch_size, padded_to=None):
    counts, documents = blocks.token_counts.tolist(), blocks.document_counts()
    return of_blocks(counts, int(blocks.target_counts.sum()), documents, micro_batch_size, padded_to=padded_to)


def dealt(blocks, ranks, micro_batch_size, accumulation):
    """Tokens of a block of each rank, in the mean over an epoch's full steps."""
    global_batch = ranks * micro_batch_size * accumulation
    held = np.zeros(ranks)
    for rank in range(ranks):
        order = BlockOrder(len(blocks), seed=3)
        plan = BatchPlan(
            blocks, order, global_batch=global_batch, micro_batch_size=micro_batch_size, rank=rank, world_size=ranks
        )
        steps = range(len(blocks) // global_batch)
        held[rank] = np.mean([blocks.token_counts[np.concatenate(plan.step(k).micro_batches)].mean() for k in steps])
    return held


@pytest.mark.parametrize("shape", [(2, 1, 1), (2, 4, 1), (8, 1, 1), (8, 2, 4), (64, 1, 2)])
def test_the_slowest_rank_holds_what_training_deals_to_it(blocks, shape):
    ranks, micro_batch_size, accumulation = shape
    workload = replace(TINY, num_ranks=ranks, micro_batch_size=micro_batch_size, num_micro_batches=accumulation)
    lengths = lengths_of(blocks, micro_batch_size)
    held = dealt(blocks, ranks, micro_batch_size, accumulation)
    slowest = lengths.slowest_of(workload)
    assert held.argmax() == 0
    assert slowest.tokens == pytest.approx(held[0], rel=0.04)
    assert slowest.tokens >= 0.99 * lengths.usual_of(workload).tokens
    assert sum(tokens * number for tokens, number in slowest.documents) == pytest.approx(slowest.tokens, rel=0.03)


def test_one_rank_waits_for_none_and_nobody_for_rows_of_one_length(blocks):
    one, eight = replace(TINY, num_ranks=1), replace(TINY, num_ranks=8)
    assert lengths_of(blocks, 1).slowest_of(one) == lengths_of(blocks, 1).usual_of(one)
    padded = lengths_of(blocks, 1, padded_to=512)
    assert padded.slowest_of(eight) == padded.usual_of(eight)
    assert full(512).slowest_of(eight) == full(512).usual_of(eight)
