import numpy as np
import pytest

from allranks.data.packing import pack, pack_in_order


def random_lengths(count, limit, seed=0):
    return np.clip(np.random.default_rng(seed).lognormal(4, 1, count).astype(int), 1, limit)


@pytest.mark.parametrize(("count", "limit"), [(1, 7), (50, 8), (3000, 512), (3000, 10_000)])
def test_every_document_is_in_one_block_and_no_block_is_too_long(count, limit):
    lengths = random_lengths(count, limit)
    order, blocks = pack(lengths, limit)
    assert sorted(order) == list(range(count))
    assert blocks[0] == 0 and blocks[-1] == count and (np.diff(blocks) > 0).all()
    assert np.add.reduceat(lengths[order], blocks[:-1]).max() <= limit


def one_by_one(lengths, limit):
    """Best-fit decreasing, literally: each document into the fullest block that has room for it."""
    rooms = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting, key=lambda i: rooms[i])] -= length
        else:
            rooms.append(limit - length)
    return sorted(rooms)


@pytest.mark.parametrize("seed", range(20))
def test_the_blocks_are_those_of_best_fit_decreasing_one_document_at_a_time(seed):
    lengths = random_lengths(300, 100, seed)
    order, blocks = pack(lengths, 100)
    rooms = sorted((100 - np.add.reduceat(lengths[order], blocks[:-1])).tolist())
    assert rooms == one_by_one(lengths.tolist(), 100)


def test_documents_of_a_block_keep_their_order():
    order, blocks = pack(np.array([3, 4, 3, 3, 2]), 100)
    assert order.tolist() == [0, 1, 2, 3, 4] and blocks.tolist() == [0, 5]


def test_many_short_documents_fill_blocks_to_the_brim():
    lengths = random_lengths(20_000, 1000)
    _, blocks = pack(lengths, 1000)
    assert lengths.sum() / ((len(blocks) - 1) * 1000) > 0.99


def test_nothing_to_pack():
    order, blocks = pack(np.array([], dtype=int), 10)
    assert len(order) == 0 and blocks.tolist() == [0]


def test_a_document_that_fits_no_block_is_refused():
    with pytest.raises(ValueError, match=r"1\.\.10"):
        pack(np.array([4, 11]), 10)


def test_in_order_a_block_ends_where_the_next_document_does_not_fit():
    order, blocks = pack_in_order([4, 6, 1, 9, 10, 3, 3, 3], 10)
    assert order.tolist() == list(range(8))
    assert blocks.tolist() == [0, 2, 4, 5, 8]
    assert pack_in_order([], 10)[1].tolist() == [0]
    with pytest.raises(ValueError, match=r"1\.\.10"):
        pack_in_order([11], 10)
