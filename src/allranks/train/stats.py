"""What a step says about itself, without making the device wait: summed over ranks, read one step late."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

_SCHEDSTAT = Path("/proc/self/schedstat")


@dataclass(frozen=True)
class StepStats:
    """Of one step, the same on every rank: what was minimised (mean cross entropy over the global batch's target
    tokens, and the router loss times its coefficient), norm of the gradient before clipping, which ranks computed a
    loss that is not finite, and which were asked to stop. `router_loss`: mean over the blocks, None if not trained.
    `saved`: whether the save under way is over, on every rank or with an error on one of them.
    `data_seconds`, `cpu_seconds`: of each rank, how long it waited for data, and for a CPU to run on."""

    step: int
    loss: float
    router_loss: float | None
    grad_norm: float
    bad_ranks: tuple[int, ...]
    stop_ranks: tuple[int, ...]
    saved: bool
    data_seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]


class StatsReader:
    """Sums the ranks' stats with one small all-reduce a step and hands them out without a device sync.

    On a GPU a step's numbers are read when the next step has been enqueued, so the device always has work; on CPU
    there is nothing to wait for and they are read at once. Every rank reads the same numbers after the same step,
    so decisions made from them (stop, save) need no further communication.
    """

    def __init__(
        self, *, rank: int, world_size: int, device: torch.device, router_coefficient: float | None = None
    ) -> None:
        self.rank = rank
        self.world_size = world_size
        self.device = device
        self.router_coefficient = router_coefficient
        self._run_delay = _run_delay()
        self.lag = 1 if device.type == "cuda" else 0
        self._pending: list[tuple[int, int, int, torch.Tensor, torch.cuda.Event | None]] = []

    def push(
        self,
        step: int,
        loss_sums: torch.Tensor,
        grad_norm: torch.Tensor,
        *,
        num_target_tokens: int,
        num_blocks: int,
        stop: bool,
        saved: bool = False,
        save_failed: bool = False,
        data_seconds: float = 0.0,
    ) -> list[StepStats]:
        """Enqueue the stats of `step`; returns those that are ready to be read, oldest first.

        loss_sums: float32 [2], this rank's sum of cross entropy over its targets and of the router loss over its
        blocks; grad_norm: the global norm. The two counts are the global batch's; data_seconds is this rank's.
        saved, save_failed: this rank has done its part of the save under way, or it failed here.
        """
        bad, *known = (2 + part * self.world_size + self.rank for part in range(5))
        host = torch.zeros(2 + 5 * self.world_size, pin_memory=self.device.type == "cuda")
        # One failure outweighs all that are not done.
        save = float(self.world_size) if save_failed else float(saved)
        for place, number in zip(known, (float(stop), save, data_seconds, self._waited_for_cpu()), strict=True):
            host[place] = number
        row = host.to(self.device, non_blocking=True)
        row[:2] = loss_sums
        row[bad] = (~torch.isfinite(loss_sums)).any().float()
        if self.world_size > 1:
            dist.all_reduce(row)
        row = torch.cat([row, grad_norm.detach().reshape(1).to(row)])
        event = None
        if self.device.type == "cuda":
            row = torch.empty(row.shape, pin_memory=True).copy_(row, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._pending.append((step, num_target_tokens, num_blocks, row, event))
        return self._take(self.lag)

    def flush(self) -> list[StepStats]:
        """All stats not read yet; waits for the device."""
        return self._take(0)

    def _waited_for_cpu(self) -> float:
        """Seconds that this process could have run since the last step, had it been given a CPU."""
        now = _run_delay()
        waited, self._run_delay = now - self._run_delay, now
        return waited

    def _take(self, leave: int) -> list[StepStats]:
        ready = []
        while len(self._pending) > leave:
            step, targets, blocks, row, event = self._pending.pop(0)
            if event is not None:
                event.synchronize()
            values = row.tolist()
            bad, stop, save, data, cpu = _parts(values[2:-1], self.world_size)
            loss, router_loss = values[0] / targets if targets else math.nan, None
            if self.router_coefficient is not None:
                router_loss = values[1] / blocks if blocks else math.nan
                loss += self.router_coefficient * router_loss
            ready.append(
                StepStats(
                    step=step,
                    loss=loss,
                    router_loss=router_loss,
                    grad_norm=values[-1],
                    bad_ranks=tuple(rank for rank, count in enumerate(bad) if count > 0),
                    stop_ranks=tuple(rank for rank, count in enumerate(stop) if count > 0),
                    saved=sum(save) >= self.world_size,
                    data_seconds=data,
                    cpu_seconds=cpu,
                )
            )
        return ready


def _parts(values: list[float], length: int) -> list[tuple[float, ...]]:
    return [tuple(values[first : first + length]) for first in range(0, len(values), length)]


def _run_delay() -> float:
    """Seconds that the main thread has waited in a CPU's queue; 0 where the kernel does not tell (schedstat)."""
    try:
        return int(_SCHEDSTAT.read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0
