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


def test_steps_of_one_length_in_an_order_of_their_own_every_epoch():
    lengths = np.random.default_rng(0).integers(1, 1000, 1003)
    order = BlockOrder(1003, 7, lengths=lengths, step=10)
    stream = order.block_ids(0, 3 * 1003)
    spread = [np.ptp(lengths[stream[k : k + 10]]) for k in range(0, 3 * 1003 - 10, 10)]
    # A step that holds the end of one epoch and the beginning of the next, or the end of a window, is mixed.
    assert np.median(spread) < 30
    assert sum(width > 200 for width in spread) <= 3 * 3
    epochs = [stream[e * 1003 : (e + 1) * 1003] for e in range(3)]
    assert all(sorted(epoch) == list(range(1003)) for epoch in epochs)
    assert epochs[0].tolist() != epochs[1].tolist()
    # Lengths must not tell where in the epoch one is.
    means = lengths[epochs[0][:1000]].reshape(100, 10).mean(axis=1)
    assert abs(np.corrcoef(means, np.arange(100))[0, 1]) < 0.3
    # Position p is known without those before it: this is what a resume relies on.
    np.testing.assert_array_equal(
        BlockOrder(1003, 7, lengths=lengths, step=10).block_ids(1500, 1600), stream[1500:1600]
    )
