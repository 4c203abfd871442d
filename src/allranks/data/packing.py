"""Pack documents into blocks: best-fit decreasing or in their order, whole documents only, deterministic."""

from bisect import bisect_left, insort

import numpy as np


def pack(lengths: np.ndarray, sequence_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Assign documents to blocks of at most `sequence_len` tokens.

    lengths: int[D], tokens of each document, 1 <= length <= sequence_len.
    Returns (document_order int64[D], block_documents int64[B+1]): block b holds the documents
    document_order[block_documents[b]:block_documents[b+1]], in their original order.

    Best-fit decreasing (Johnson 1973; at most 11/9 of the optimal number of blocks). Documents of one length are
    placed together: the fullest block with room r >= length takes r // length of them, since after each one it
    remains the best fit. So a million documents cost some thousand array operations instead of a million searches.
    """
    if lengths.size == 0:
        return np.empty(0, np.int64), np.zeros(1, np.int64)
    if lengths.min() < 1 or lengths.max() > sequence_len:
        raise ValueError(f"document lengths must be in 1..{sequence_len}, got {lengths.min()}..{lengths.max()}")

    # Small numbers in small arrays: with 64 bits everywhere, ten million documents take 3 GB.
    room = (sequence_len - lengths).astype(np.uint16 if sequence_len < 2**16 else np.uint32)
    by_length = np.argsort(room, kind="stable")
    counts = np.bincount(room)
    del room
    ends = np.cumsum(counts)
    block_of = np.empty(lengths.size, np.uint32)
    rooms = _Rooms(sequence_len)
    for value in np.flatnonzero(counts).tolist():
        length, count = sequence_len - value, int(counts[value])
        same_length = by_length[ends[value] - count : ends[value]]
        placed = 0
        while placed < count:
            blocks, each = rooms.take(length, count - placed)
            fill = np.repeat(blocks, each)
            block_of[same_length[placed : placed + fill.size]] = fill
            placed += fill.size

    del by_length
    document_order = np.argsort(block_of, kind="stable")
    block_documents = np.zeros(rooms.num_blocks + 1, np.int64)
    np.cumsum(np.bincount(block_of, minlength=rooms.num_blocks), out=block_documents[1:])
    return document_order, block_documents


def pack_in_order(lengths: np.ndarray, sequence_len: int) -> tuple[np.ndarray, np.ndarray]:
    """The same with the documents in their order: a block ends where the next document does not fit (next-fit)."""
    lengths = np.asarray(lengths, dtype=np.int64)
    if lengths.size and (lengths.min() < 1 or lengths.max() > sequence_len):
        raise ValueError(f"document lengths must be in 1..{sequence_len}, got {lengths.min()}..{lengths.max()}")
    ends = np.cumsum(lengths)
    block_documents = [0]
    while block_documents[-1] < lengths.size:
        before = int(ends[block_documents[-1] - 1]) if block_documents[-1] else 0
        block_documents.append(int(np.searchsorted(ends, before + sequence_len, side="right")))
    return np.arange(lengths.size), np.array(block_documents, np.int64)


class _Rooms:
    """The open blocks, grouped by the room they have left."""

    def __init__(self, sequence_len: int):
        self.sequence_len = sequence_len
        self.num_blocks = 0
        self.groups: dict[int, list[np.ndarray]] = {}  # room -> arrays of block ids
        self.sizes: list[int] = []  # rooms with an open block, ascending

    def take(self, length: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Place up to `count` documents of `length` tokens into the blocks they fit best.

        Returns (block ids, documents placed into each).
        """
        at = bisect_left(self.sizes, length)
        if at < len(self.sizes):
            room = self.sizes[at]
            blocks = self.groups[room].pop()
            if not self.groups[room]:
                del self.groups[room]
                self.sizes.pop(at)
        else:
            room = self.sequence_len
            num_new = -(-count // (room // length))
            blocks = np.arange(self.num_blocks, self.num_blocks + num_new)
            self.num_blocks += num_new

        per_block = room // length
        num_used = min(blocks.size, -(-count // per_block))
        used, left = blocks[:num_used], blocks[num_used:]
        each = np.full(num_used, per_block)
        each[-1] = min(per_block, count - per_block * (num_used - 1))
        self._put(left, room)
        self._put(used[:-1], room - per_block * length)
        self._put(used[-1:], room - int(each[-1]) * length)
        return used, each

    def _put(self, blocks: np.ndarray, room: int) -> None:
        if blocks.size == 0 or room == 0:
            return
        if room not in self.groups:
            self.groups[room] = []
            insort(self.sizes, room)
        self.groups[room].append(blocks)
