"""Blocks -> one flattened row for the model, with its labels listed apart."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from allranks.data.blocks import BlockSet


@dataclass(frozen=True)
class MicroBatch:
    """One row of T tokens holding several documents, which must not see each other.

    input_ids       int64[1,T]
    position_ids    int64[1,T]  restart at 0 with each document
    lengths         tokens of each document, in order; padding, if any, is a last document
    label_positions int64[L]    position whose output predicts the label (one before the label's token)
    labels          int64[L]
    num_tokens      tokens without padding
    block_lengths   tokens of each block, in order, without padding
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    lengths: tuple[int, ...]
    label_positions: np.ndarray
    labels: np.ndarray
    num_tokens: int
    block_lengths: tuple[int, ...]


def collate(blocks: BlockSet, ids: Iterable[int], *, pad_to: int | None, pad_token_id: int = 0) -> MicroBatch:
    """Flatten the blocks `ids` into one row, in order; -1 contributes nothing.

    pad_to: total length to pad to (micro_batch_size * sequence_len), or None for no padding. A row without any block
    still holds one padding token, so that a rank with nothing to do can run the model and its collectives.
    """
    tokens, masks, lengths = [np.empty(0, np.uint32)], [np.empty(0, np.uint8)], [np.empty(0, np.int64)]
    for block in ids:
        if block < 0:
            continue
        first, last = int(blocks.block_documents[block]), int(blocks.block_documents[block + 1])
        offsets = blocks.document_offsets[first : last + 1]
        tokens.append(blocks.tokens[offsets[0] : offsets[-1]])
        masks.append(blocks.mask[offsets[0] : offsets[-1]])
        lengths.append(np.diff(offsets))
    block_lengths = tuple(map(len, tokens[1:]))
    num_tokens = sum(block_lengths)
    padding = max(pad_to or 1, num_tokens) - num_tokens
    if padding:
        tokens.append(np.full(padding, pad_token_id, np.uint32))
        lengths.append(np.array([padding]))
    if pad_to is not None and num_tokens > pad_to:
        raise ValueError(f"{num_tokens} tokens do not fit into {pad_to}")

    input_ids = np.concatenate(tokens).astype(np.int64)
    document_lengths = np.concatenate(lengths)
    starts = np.cumsum(document_lengths) - document_lengths
    targets = np.flatnonzero(np.concatenate(masks))
    return MicroBatch(
        input_ids=input_ids[None],
        position_ids=(np.arange(len(input_ids)) - np.repeat(starts, document_lengths))[None],
        lengths=tuple(document_lengths.tolist()),
        label_positions=targets - 1,
        labels=input_ids[targets],
        num_tokens=num_tokens,
        block_lengths=block_lengths,
    )
