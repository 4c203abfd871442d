import pytest

from allranks.data import BlockSet, collate

BLOCKS = BlockSet.from_documents(
    [([10, 11, 12], [0, 1, 1]), ([20, 21], [0, 1]), ([30, 31, 32, 33], [0, 0, 1, 0])], sequence_len=4, packing=False
)


def test_a_row_by_hand():
    batch = collate(BLOCKS, [2, 0], pad_to=8, pad_token_id=99)
    assert batch.input_ids.tolist() == [[30, 31, 32, 33, 10, 11, 12, 99]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0]]
    assert batch.lengths == (4, 3, 1)
    assert batch.label_positions.tolist() == [1, 4, 5] and batch.labels.tolist() == [32, 11, 12]
    assert batch.num_tokens == 7 and batch.block_lengths == (4, 3)
    assert {a.dtype.name for a in (batch.input_ids, batch.position_ids, batch.label_positions, batch.labels)} == {
        "int64"
    }


def test_no_padding_unless_asked():
    batch = collate(BLOCKS, [0, -1], pad_to=None)
    assert batch.input_ids.tolist() == [[10, 11, 12]] and batch.lengths == (3,)


def test_padding_blocks_have_no_labels_and_a_row_to_run():
    for pad_to, length in ((None, 1), (6, 6)):
        batch = collate(BLOCKS, [-1, -1], pad_to=pad_to)
        assert batch.input_ids.shape == (1, length) and batch.lengths == (length,)
        assert len(batch.labels) == len(batch.label_positions) == batch.num_tokens == len(batch.block_lengths) == 0


def test_a_packed_block_restarts_positions_at_each_document():
    packed = BlockSet.from_documents([([1, 2, 3], [0, 0, 1]), ([4, 5], [0, 1])], sequence_len=8)
    batch = collate(packed, [0], pad_to=None)
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1]] and batch.lengths == (3, 2)
    assert batch.block_lengths == (5,)
    assert batch.label_positions.tolist() == [1, 3]  # never across the border of two documents


def test_too_many_tokens_for_the_row():
    with pytest.raises(ValueError, match="7 tokens"):
        collate(BLOCKS, [0, 2], pad_to=4)
