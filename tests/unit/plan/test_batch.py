"""The effective batch, and what keeps a wanted one."""

from __future__ import annotations

import pytest

from allranks.plan.batch import batch


def test_the_documents_own_example():
    """2 nodes, 4 GPUs each, 2 of a device at once, 4 times: 2 x 4 x 4 x 2 = 64."""
    found = batch(64, 2, num_nodes=2, ranks_per_node=4)
    assert (found.accumulation, found.effective, found.is_exact) == (4, 64, True)
    assert found.told() == "64 = 2 (micro_batch_size) x 4 (accumulation) x 2 (nodes) x 4 (ranks a node)"
    assert found.keys == {"micro_batch_size": 2, "gradient_accumulation_steps": 4}


@pytest.mark.parametrize("num_nodes", [1, 2, 4, 8, 16])
def test_the_wanted_batch_is_kept_on_any_number_of_nodes_that_divides_it(num_nodes):
    found = batch(256, 2, num_nodes, 8)
    assert found.effective == 256 and found.accumulation == 16 // num_nodes


def test_where_it_cannot_be_kept_exactly_it_is_said_what_can():
    found = batch(100, 2, num_nodes=2, ranks_per_node=8)
    assert (found.accumulation, found.effective, found.is_exact) == (4, 128, False)
    assert "100 cannot be kept exactly by accumulation" in found.told()
    assert "make 96 or 128. `batch_size: 100` keeps it, and leaves 28 of 128 places of a step empty" in found.told()
    assert found.keys == {"micro_batch_size": 2, "batch_size": 100}


def test_a_smaller_micro_batch_that_keeps_it_is_named():
    found = batch(8, 4, num_nodes=2, ranks_per_node=2)
    assert found.effective == 16
    assert found.told().endswith("micro_batch_size: 2 with an accumulation of 1 makes it exactly")


def test_more_ranks_than_blocks_leave_places_empty():
    found = batch(4, 1, num_nodes=2, ranks_per_node=8)
    assert (found.accumulation, found.effective) == (1, 16)
    assert "make 16, the least there can be" in found.told()
