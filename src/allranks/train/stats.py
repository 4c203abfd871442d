"""What a step says about itself, without making the device wait: summed over ranks, read one step late."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class StepStats:
    """Of one step, the same on every rank: mean loss over the global batch's target tokens, norm of the gradient
    before clipping, which ranks computed a loss that is not finite, and which were asked to stop."""

    step: int
    loss: float
    grad_norm: float
    bad_ranks: tuple[int, ...]
    stop_ranks: tuple[int, ...]


class StatsReader:
    """Sums the ranks' stats with one small all-reduce a step and hands them out without a device sync.

    On a GPU a step's numbers are read when the next step has been enqueued, so the device always has work; on CPU
    there is nothing to wait for and they are read at once. Every rank reads the same numbers after the same step,
    so decisions made from them (stop, save) need no further communication.
    """

    def __init__(self, *, rank: int, world_size: int, device: torch.device) -> None:
        self.rank = rank
        self.world_size = world_size
        self.device = device
        self.lag = 1 if device.type == "cuda" else 0
        self._pending: list[tuple[int, int, torch.Tensor, torch.cuda.Event | None]] = []

    def push(
        self, step: int, loss_sum: torch.Tensor, grad_norm: torch.Tensor, *, num_target_tokens: int, stop: bool
    ) -> list[StepStats]:
        """Enqueue the stats of `step`; returns those that are ready to be read, oldest first.

        loss_sum: this rank's float32 sum of cross entropy over its targets; grad_norm: the global norm.
        """
        row = torch.zeros(1 + 2 * self.world_size, device=self.device)
        row[0] = loss_sum
        row[1 + self.rank] = (~torch.isfinite(loss_sum)).float()
        row[1 + self.world_size + self.rank].fill_(float(stop))
        if self.world_size > 1:
            dist.all_reduce(row)
        row = torch.cat([row, grad_norm.detach().reshape(1).to(row)])
        event = None
        if self.device.type == "cuda":
            row = torch.empty(row.shape, pin_memory=True).copy_(row, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._pending.append((step, num_target_tokens, row, event))
        return self._take(self.lag)

    def flush(self) -> list[StepStats]:
        """All stats not read yet; waits for the device."""
        return self._take(0)

    def _take(self, leave: int) -> list[StepStats]:
        ready = []
        while len(self._pending) > leave:
            step, targets, row, event = self._pending.pop(0)
            if event is not None:
                event.synchronize()
            values = row.tolist()
            ranks = range(self.world_size)
            ready.append(
                StepStats(
                    step=step,
                    loss=values[0] / targets if targets else math.nan,
                    grad_norm=values[-1],
                    bad_ranks=tuple(rank for rank in ranks if values[1 + rank] > 0),
                    stop_ranks=tuple(rank for rank in ranks if values[1 + self.world_size + rank] > 0),
                )
            )
        return ready
