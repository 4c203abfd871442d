"""What a step was made of on this rank, noted as its micro-batches are made: no block is lost or doubled."""

from __future__ import annotations

import hashlib

import numpy as np

from allranks.data import BatchPlan, collate
from allranks.data.collate import MicroBatch


class Taken:
    """Of step `k` (from 0): the numbers of the blocks, in order, and a digest of what was made of them."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.ids: list[int] = []
        self.num_target_tokens = 0
        self._hash = hashlib.blake2b(digest_size=16)

    @property
    def content(self) -> str:
        """Digest of tokens and labels."""
        return self._hash.hexdigest()

    def note(self, k: int, ids: np.ndarray, micro_batch: MicroBatch) -> None:
        """Take in a micro-batch, if it is one of the step's."""
        if k != self.k:
            return
        self.ids += [int(block) for block in ids if block >= 0]
        self.num_target_tokens += len(micro_batch.labels)
        for array in (micro_batch.input_ids, micro_batch.position_ids, micro_batch.label_positions, micro_batch.labels):
            self._hash.update(np.ascontiguousarray(array, dtype=np.int64).tobytes())


def planned_for_next(plan: BatchPlan, k: int, *, pad_to: int | None, pad_token_id: int) -> Taken:
    """What the rank after this one should take in step `k`, made of this rank's own copy of the data."""
    following = BatchPlan(
        plan.blocks,
        plan.order,
        global_batch=plan.global_batch,
        micro_batch_size=plan.micro_batch_size,
        rank=(plan.rank + 1) % plan.world_size,
        world_size=plan.world_size,
        total_blocks=plan.total_blocks,
    )
    taken = Taken(k)
    for ids in following.step(k).micro_batches:
        taken.note(k, ids, collate(plan.blocks, ids, pad_to=pad_to, pad_token_id=pad_token_id))
    return taken
