"""What a whole run takes: steps, hours, money, and its checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass

from allranks.plan.counted import num_parameters
from allranks.plan.workload import StepTime, Workload

_DISK_BYTES_PER_SECOND = 1e9
"""Where nothing was measured: of one node to its disk, as a good NVMe disk or parallel file system takes it."""


@dataclass(frozen=True)
class RunCost:
    """`hours` are of the clock, saving included where it stops training. `cost`: in the currency of the price; None
    where none was given."""

    num_steps: int
    hours: float
    gpu_hours: float
    checkpoint_bytes: float
    checkpoint_seconds: float
    cost: float | None = None


def run_cost(
    workload: Workload,
    time: StepTime,
    *,
    num_steps: int,
    num_checkpoints: int = 0,
    saves_beside: bool = True,
    price_per_gpu_hour: float | None = None,
    disk_bytes_per_second: float = _DISK_BYTES_PER_SECOND,
    shared_disk: bool = False,
) -> RunCost:
    """Of `num_steps` steps. `disk_bytes_per_second`: what one node writes, or where they share one disk, all of them.

    `saves_beside`: checkpoints are written while training goes on.
    """
    nodes = math.ceil(workload.num_ranks / workload.ranks_per_node)
    num_bytes = checkpoint_bytes(workload)
    seconds = num_bytes / (disk_bytes_per_second * (1 if shared_disk else nodes))
    hours = (num_steps * time.total + (0.0 if saves_beside else num_checkpoints * seconds)) / 3600
    gpu_hours = hours * workload.num_ranks
    cost = None if price_per_gpu_hour is None else gpu_hours * price_per_gpu_hour
    return RunCost(num_steps, hours, gpu_hours, num_bytes, seconds, cost)


def checkpoint_bytes(workload: Workload) -> float:
    """Of one checkpoint on all nodes together: what is trained, with its optimizer's state; all weights where the whole
    model is trained, whose frozen ones are saved, too."""
    element = workload.element
    of_trained = element.trained + element.master + element.state
    frozen = num_parameters(workload.shape) - workload.num_trained if workload.method == "full" else 0
    return workload.num_trained * of_trained + frozen * element.frozen
