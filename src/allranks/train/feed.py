"""Micro-batches on their way to the device, made one ahead of the step that needs them."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from allranks.data import BatchPlan, StepPlan, collate
from allranks.model.batch import TorchBatch, to_device
from allranks.train.taken import Taken

AHEAD = 2
"""Micro-batches in the making: one being used, one ready."""


@dataclass(frozen=True)
class StepFeed:
    """A step's plan and its micro-batches for this rank, in order."""

    plan: StepPlan
    batches: Iterator[TorchBatch]


def feed(
    plan: BatchPlan,
    *,
    start: int,
    pad_blocks_to: int | None,
    pad_token_id: int,
    device: torch.device,
    taken: Taken | None = None,
) -> Generator[StepFeed, None, None]:
    """The steps `start`, `start` + 1, … (from 0) of `plan`; take all micro-batches of one before the next.

    pad_blocks_to: tokens of each block after padding, or None for none. `taken` notes what its step is made of.
    """
    pad_to = plan.micro_batch_size * pad_blocks_to if pad_blocks_to else None

    def make(k: int, ids: np.ndarray) -> TorchBatch:
        micro_batch = collate(plan.blocks, ids, pad_to=pad_to, pad_token_id=pad_token_id)
        if taken is not None:
            taken.note(k, ids, micro_batch)
        return to_device(micro_batch, device)

    # One thread: reading and index building release little of the GIL, and order matters.
    with ThreadPoolExecutor(1, thread_name_prefix="feed") as pool:
        steps: deque[StepPlan] = deque()  # planned, and not handed out yet
        waiting: deque[Future[TorchBatch]] = deque()

        def jobs() -> Iterator[tuple[int, np.ndarray]]:
            for k in range(start, plan.num_steps):
                steps.append(plan.step(k))
                yield from ((k, ids) for ids in steps[-1].micro_batches)

        coming = jobs()

        def order_next() -> None:
            job = next(coming, None)
            if job is not None:
                waiting.append(pool.submit(make, *job))

        def batches_of(count: int) -> Iterator[TorchBatch]:
            for _ in range(count):
                order_next()
                yield waiting.popleft().result()

        for _ in range(AHEAD - 1):
            order_next()
        try:
            # A step is planned when its first micro-batch is ordered, which is before it is handed out.
            while steps:
                step = steps.popleft()
                yield StepFeed(step, batches_of(len(step.micro_batches)))
        finally:
            for future in waiting:
                future.cancel()
