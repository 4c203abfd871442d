"""Which rank takes which block at which step."""

from dataclasses import dataclass

import numpy as np

from allranks.config.batch import num_micro_batches
from allranks.data.blocks import BlockSet
from allranks.data.order import BlockOrder


@dataclass(frozen=True)
class StepPlan:
    """One optimizer step, seen from one rank. The counts are over the *global* batch."""

    micro_batches: list[np.ndarray]  # int64[micro_batch_size] block ids; -1 = zero-weight padding
    num_target_tokens: int
    num_tokens: int
    num_blocks: int


class BatchPlan:
    """Deals the stream of blocks out to steps, ranks and micro-batches.

    Step k takes positions k*global_batch.. of `order`, whatever the world size, so what a step trains on is the same
    on any topology. Every rank gets the same number of micro-batches; where blocks run short they hold -1.

    global_batch: blocks per step over all ranks. total_blocks: length of the run in blocks (default: one epoch); the
    last step may hold fewer.
    """

    def __init__(
        self,
        blocks: BlockSet,
        order: BlockOrder,
        *,
        global_batch: int,
        micro_batch_size: int,
        rank: int,
        world_size: int,
        total_blocks: int | None = None,
    ):
        if global_batch < 1 or micro_batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"{global_batch=}, {micro_batch_size=}, {rank=}, {world_size=} make no plan")
        self.blocks = blocks
        self.order = order
        self.global_batch = global_batch
        self.micro_batch_size = micro_batch_size
        self.rank = rank
        self.world_size = world_size
        self.total_blocks = len(blocks) if total_blocks is None else total_blocks
        self.num_steps = -(-self.total_blocks // global_batch)

    def step(self, k: int) -> StepPlan:
        """The plan of step k, 0-based."""
        if not 0 <= k < self.num_steps:
            raise IndexError(f"step {k} of {self.num_steps}")
        start = k * self.global_batch
        ids = self.order.block_ids(start, min(start + self.global_batch, self.total_blocks))
        token_counts = self.blocks.token_counts[ids]
        # Longest first, dealt like cards: at each micro-batch all ranks hold about as many tokens, so none waits
        # long for another. The padding falls into the last micro-batch.
        dealt = ids[np.argsort(-token_counts, kind="stable")]
        num_rounds = num_micro_batches(len(ids), self.micro_batch_size, self.world_size)
        slots = np.full(num_rounds * self.micro_batch_size * self.world_size, -1, np.int64)
        slots[: len(ids)] = dealt
        mine = slots.reshape(num_rounds, self.micro_batch_size, self.world_size)[:, :, self.rank]
        return StepPlan(
            micro_batches=[np.ascontiguousarray(row) for row in mine],
            num_target_tokens=int(self.blocks.target_counts[ids].sum(dtype=np.int64)),
            num_tokens=int(token_counts.sum(dtype=np.int64)),
            num_blocks=len(ids),
        )
