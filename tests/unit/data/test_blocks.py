import numpy as np

from allranks.data import BlockSet

DOCUMENTS = [([1, 2, 3], [0, 1, 1]), ([4, 5], [1, 1]), ([6, 7, 8, 9], [0, 0, 0, 1])]


def by_document(blocks):
    return sorted(
        (tokens.tolist(), mask.tolist()) for tokens, mask in map(blocks.document, range(blocks.num_documents))
    )


def test_packed_blocks_hold_each_document_whole_with_its_mask():
    blocks = BlockSet.from_documents(DOCUMENTS, sequence_len=6)
    assert len(blocks) == 2
    assert by_document(blocks) == [([1, 2, 3], [0, 1, 1]), ([4, 5], [0, 1]), ([6, 7, 8, 9], [0, 0, 0, 1])]
    assert sorted(zip(blocks.token_counts.tolist(), blocks.target_counts.tolist(), strict=True)) == [(3, 2), (6, 2)]


def test_without_packing_each_document_is_a_block_in_its_order():
    blocks = BlockSet.from_documents(DOCUMENTS, sequence_len=6, packing=False)
    assert blocks.token_counts.tolist() == [3, 2, 4] and blocks.target_counts.tolist() == [2, 1, 1]
    assert blocks.tokens.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_the_first_token_of_a_document_is_never_a_target():
    blocks = BlockSet.from_documents([([1, 2], [1, 1])] * 3, sequence_len=6)
    assert not blocks.mask[blocks.document_offsets[:-1]].any()


def test_saved_blocks_are_opened_by_memory_map(tmp_path):
    blocks = BlockSet.from_documents(DOCUMENTS, sequence_len=6)
    blocks.save(tmp_path / "train")
    opened = BlockSet.open(tmp_path / "train", 6)
    assert isinstance(opened.tokens, np.memmap) and opened.tokens.dtype == np.uint32
    assert by_document(opened) == by_document(blocks)
    assert opened.target_counts.tolist() == blocks.target_counts.tolist()
