"""What this run's steps took, beside what a plan says of them: kept with the run, and for later plans."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

from allranks.config import RunConfig
from allranks.data import BatchPlan
from allranks.errors import AllranksError
from allranks.observe.events import PlanEvent
from allranks.plan.config_workload import own_workload
from allranks.plan.hardware import Device, find_reported
from allranks.plan.kept_calibration import load, record_run
from allranks.plan.lengths import Lengths, of_blocks
from allranks.plan.memory import rank_memory
from allranks.plan.this_cpu import CPU, this_cpu
from allranks.plan.time import step_time

_FIRST_STEPS = 3  # warm caches, compile and start what is started once
_LEAST_STEPS = 5
_KEPT_STEPS = 10_000  # the newest, 80 kB: a run of months has millions


@dataclass
class Pace:
    """What the steps of a run took; on a CPU without the seconds in which other programs had it."""

    num_steps: int = 0
    memory_bytes: int = 0
    seconds_a_token: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT_STEPS))
    """Of the newest steps that had any tokens, but for the run's first."""

    def add(self, seconds: float, *, waited: float, tokens: int, memory_bytes: int) -> None:
        self.num_steps += 1
        self.memory_bytes = max(self.memory_bytes, memory_bytes)
        if tokens and self.num_steps > _FIRST_STEPS:
            self.seconds_a_token.append(max(seconds - waited, 0.0) / tokens)

    @property
    def is_enough(self) -> bool:
        return self.num_steps >= _FIRST_STEPS + _LEAST_STEPS and bool(self.seconds_a_token)

    def step_seconds(self, tokens: float) -> float:
        """Of a step of so many tokens, the usual one."""
        return tokens * statistics.median(self.seconds_a_token)


def lengths_of(plan: BatchPlan, *, padded_to: int | None) -> Lengths:
    """Of all that the run is given, as a plan before it would have them."""
    blocks = plan.blocks
    return of_blocks(
        blocks.token_counts.tolist(),
        int(blocks.target_counts.sum()),
        blocks.document_counts(),
        plan.micro_batch_size,
        padded_to=padded_to,
    )


def beside_plan(
    cfg: RunConfig,
    pace: Pace,
    model_config: dict[str, Any],
    lengths: Lengths,
    *,
    nodes: tuple[int, ...],
    gpu: str | None,
) -> PlanEvent | None:
    """What was predicted of this run and what it took, added to what later plans know of this machine; None where the
    run was too short, or its model or GPU is none that can be planned.

    `lengths`: of what it was trained on; `nodes`: of each rank; `gpu`: its name as torch gives it, None on a CPU.
    """
    num_nodes, per_node = len(set(nodes)), nodes.count(nodes[0])
    device = this_cpu(per_node) if gpu is None else find_reported(gpu)
    if device is None or not pace.is_enough:
        return None
    try:
        own = own_workload(cfg, model_config, num_nodes=num_nodes, gpus_per_node=per_node, on_cpu=gpu is None)
    except AllranksError:
        return None
    known = load(device.name)
    slowest = lengths.slowest_of(own)
    raw = step_time(slowest, device, None, known.without_runs() if known is not None else None).total
    memory = rank_memory(replace(own, tokens=lengths.longest), device if gpu is not None else None)
    held = known.corrected_memory(memory, slowest) if known is not None else memory
    measured = pace.step_seconds(own.micro_batch_size * lengths.mean * own.num_micro_batches * own.num_ranks)
    predicted = known.step_seconds(slowest, raw) if known is not None else raw
    told = PlanEvent(
        predicted_seconds=round(predicted, 6),
        measured_seconds=round(measured, 6),
        predicted_memory_bytes=round(held.total),
        measured_memory_bytes=pace.memory_bytes,
        device=_name(device),
        calibrated=known is not None and known.is_measured,
        earlier_runs=known.num_runs(slowest) if known is not None else 0,
    )
    record_run(
        slowest,
        device.name,
        num_nodes=num_nodes,
        predicted=raw,
        measured=measured,
        predicted_memory=memory.total,
        measured_memory=pace.memory_bytes,
        steps=pace.num_steps,
    )
    return told


def _name(device: Device) -> str:
    return CPU if device.name == CPU else device.title
