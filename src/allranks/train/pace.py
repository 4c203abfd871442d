"""What this run's steps took, beside what a plan says of them: kept with the run, and for later plans."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from allranks.config import RunConfig
from allranks.errors import AllranksError
from allranks.observe.events import PlanEvent
from allranks.plan.calibrate import CPU, this_cpu
from allranks.plan.calibration import load, record_run
from allranks.plan.config_workload import own_workload
from allranks.plan.hardware import Device, find_reported
from allranks.plan.memory import rank_memory
from allranks.plan.time import step_time

_FIRST_STEPS = 3  # warm caches, compile and start what is started once
_LEAST_STEPS = 5


@dataclass
class Pace:
    """Seconds and tokens of each step; on a CPU without the seconds in which other programs had it."""

    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    target_tokens: list[int] = field(default_factory=list)
    memory_bytes: int = 0

    def add(self, seconds: float, *, waited: float, tokens: int, target_tokens: int, memory_bytes: int) -> None:
        self.seconds.append(max(seconds - waited, 0.0))
        self.tokens.append(tokens)
        self.target_tokens.append(target_tokens)
        self.memory_bytes = max(self.memory_bytes, memory_bytes)

    @property
    def is_enough(self) -> bool:
        return len(self.seconds) >= _FIRST_STEPS + _LEAST_STEPS

    def step_seconds(self, tokens: float) -> float:
        """Of a step of so many tokens, the usual one."""
        of_token = [
            seconds / number
            for seconds, number in zip(self.seconds[_FIRST_STEPS:], self.tokens[_FIRST_STEPS:], strict=True)
            if number
        ]
        return tokens * statistics.median(of_token)


def beside_plan(
    cfg: RunConfig, pace: Pace, model_config: dict[str, Any], *, nodes: tuple[int, ...], gpu: str | None
) -> PlanEvent | None:
    """What was predicted of this run and what it took, added to what later plans know of this machine; None where the
    run was too short, or its model or GPU is none that can be planned.

    `nodes`: of each rank; `gpu`: its name as torch gives it, None on a CPU.
    """
    num_nodes, per_node = len(set(nodes)), nodes.count(nodes[0])
    device = this_cpu(per_node) if gpu is None else find_reported(gpu)
    if device is None or not pace.is_enough or not sum(pace.tokens):
        return None
    labelled = sum(pace.target_tokens) / sum(pace.tokens)
    try:
        own = own_workload(
            cfg,
            model_config,
            num_nodes=num_nodes,
            gpus_per_node=per_node,
            on_cpu=gpu is None,
            labelled=labelled,
        )
    except AllranksError:
        return None
    known = load(device.name)
    raw = step_time(own, device, None, known.without_runs() if known is not None else None).total
    memory = rank_memory(own, device if gpu is not None else None).total
    of_step = own.micro_batch_size * own.tokens * own.num_micro_batches * own.num_ranks
    measured = pace.step_seconds(of_step)
    predicted = known.step_seconds(own, raw) if known is not None else raw
    told = PlanEvent(
        predicted_seconds=round(predicted, 6),
        measured_seconds=round(measured, 6),
        predicted_memory_bytes=round(memory if known is None else memory * known.memory_factor(own)),
        measured_memory_bytes=pace.memory_bytes,
        device=_name(device),
        calibrated=known is not None and known.is_measured,
        earlier_runs=known.num_runs(own) if known is not None else 0,
    )
    record_run(
        own,
        device.name,
        num_nodes=num_nodes,
        predicted=raw,
        measured=measured,
        predicted_memory=memory,
        measured_memory=pace.memory_bytes,
    )
    return told


def _name(device: Device) -> str:
    return CPU if device.name == CPU else device.title
