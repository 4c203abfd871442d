from pathlib import Path

import numpy as np

from allranks.data import BlockSet
from allranks.data import blocks as blocks_module

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


def test_arranging_a_file_maps_none_of_it(tmp_path):
    """What is mapped and touched counts as this process's memory: ten million documents were 16 GB."""
    rng = np.random.default_rng(7)
    lengths = rng.integers(1, 40, 5000)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    tokens = rng.integers(0, 2**31, offsets[-1]).astype(np.uint32)
    tokens.tofile(tmp_path / "collected")
    on_disk = np.memmap(tmp_path / "collected", np.uint32, "r")
    order = rng.permutation(5000)[:3000]
    starts = np.concatenate(([0], np.cumsum(lengths[order])))
    expected = np.concatenate([tokens[offsets[d] : offsets[d + 1]] for d in order])
    found = blocks_module._gather(on_disk, offsets, order, starts, tmp_path / "tokens.npy")
    assert np.array_equal(found, expected) and isinstance(found, np.memmap)
    assert np.array_equal(np.load(tmp_path / "tokens.npy"), expected)
    assert _resident_bytes(tmp_path / "collected") == 0


def _resident_bytes(path):
    """Bytes of a mapped file that this process has touched (Linux)."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.endswith(str(path)))
    return int(next(line for line in lines[at:] if line.startswith("Rss:")).split()[1])
