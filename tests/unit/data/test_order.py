import numpy as np
import pytest

from allranks.data import BlockOrder

PINNED = [4, 8, 1, 9, 3, 6, 0, 7, 2, 5, 1, 2, 8, 5, 3, 9, 6, 0, 4, 7]


def test_each_epoch_is_its_own_permutation():
    order = BlockOrder(100, seed=1)
    epochs = [order.block_ids(e * 100, (e + 1) * 100).tolist() for e in range(3)]
    assert all(sorted(epoch) == list(range(100)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_any_stretch_of_the_stream_is_known_without_what_came_before():
    whole = BlockOrder(7, seed=3).block_ids(0, 50)
    for start, stop in [(0, 3), (5, 9), (6, 36), (49, 50), (20, 20)]:
        np.testing.assert_array_equal(BlockOrder(7, seed=3).block_ids(start, stop), whole[start:stop])


def test_the_order_never_changes_between_versions():
    # Pinned: a run that is resumed with a newer allranks or numpy must go on with the same data.
    assert BlockOrder(10, seed=42).block_ids(0, 20).tolist() == PINNED


def test_seeds_differ():
    assert BlockOrder(50, 1).block_ids(0, 50).tolist() != BlockOrder(50, 2).block_ids(0, 50).tolist()


def test_no_seed_keeps_the_order():
    assert BlockOrder(3, None).block_ids(1, 5).tolist() == [1, 2, 0, 1]


def test_no_blocks_no_order():
    with pytest.raises(ValueError, match="at least one"):
        BlockOrder(0, 1)
