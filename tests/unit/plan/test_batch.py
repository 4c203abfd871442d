"""The effective batch, and what keeps a wanted one."""

from __future__ import annotations

import numpy
import pytest

from allranks.data import BatchPlan
from allranks.data.blocks import BlockSet
from allranks.data.order import BlockOrder
from allranks.plan.batch import batch


def test_the_documents_own_example():
    """2 nodes, 4 GPUs each, 2 of a device at once, 4 times: 2 x 4 x 4 x 2 = 64."""
    found = batch(64, 2, num_nodes=2, ranks_per_node=4)
    assert (found.accumulation, found.effective, found.empty_places) == (4, 64, 0)
    assert found.told() == "64 = 2 (micro_batch_size) x 4 (accumulation) x 2 (nodes) x 4 (ranks a node)"
    assert found.keys == {"micro_batch_size": 2, "gradient_accumulation_steps": 4}


@pytest.mark.parametrize("num_nodes", [1, 2, 4, 8, 16])
def test_the_wanted_batch_is_kept_on_any_number_of_nodes_that_divides_it(num_nodes):
    found = batch(256, 2, num_nodes, 8)
    assert found.effective == 256 and found.accumulation == 16 // num_nodes


def test_where_it_cannot_be_kept_exactly_it_is_said_what_can():
    found = batch(100, 2, num_nodes=2, ranks_per_node=8)
    assert (found.accumulation, found.effective, found.empty_places) == (4, 100, 28)
    assert found.told() == (
        "100 (`batch_size: 100`) in 128 places = 2 (micro_batch_size) x 4 (accumulation) x 2 (nodes) x 8 (ranks a "
        "node), of which a step leaves 28 empty; whole micro-batches make 96 or 128"
    )
    assert found.keys == {"micro_batch_size": 2, "batch_size": 100}


def test_a_smaller_micro_batch_that_keeps_it_is_named():
    found = batch(8, 4, num_nodes=2, ranks_per_node=2)
    assert (found.effective, found.places) == (8, 16)
    assert found.told().endswith("; micro_batch_size: 2 with an accumulation of 1 leaves none")


def test_more_ranks_than_blocks_leave_places_empty():
    found = batch(4, 1, num_nodes=2, ranks_per_node=8)
    assert (found.accumulation, found.effective, found.places) == (1, 4, 16)
    assert found.told().endswith("; whole micro-batches make 16 at least")


@pytest.mark.parametrize("wanted", [1, 7, 10, 12, 100])
@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("num_nodes", [1, 3])
def test_a_step_trains_on_the_effective_batch_and_leaves_so_many_places_empty(wanted, size, num_nodes):
    ones = numpy.ones(1, numpy.int64)
    blocks = BlockSet.from_documents([(ones, ones)] * wanted, sequence_len=1, packing=False)
    found = batch(wanted, size, num_nodes, 2)
    ids = [
        BatchPlan(
            blocks,
            BlockOrder(wanted, seed=5),
            global_batch=wanted,
            micro_batch_size=size,
            rank=rank,
            world_size=2 * num_nodes,
        )
        .step(0)
        .micro_batches
        for rank in range(2 * num_nodes)
    ]
    assert numpy.shape(ids) == (2 * num_nodes, found.accumulation, size)
    assert (numpy.sum(numpy.array(ids) >= 0), numpy.sum(numpy.array(ids) < 0)) == (found.effective, found.empty_places)
