"""The training loop of one rank."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import torch

from allranks.checkpoint.state import RunState
from allranks.data import BatchPlan, StepPlan
from allranks.model.train_model import TrainModel
from allranks.observe import EventLog, Progress
from allranks.observe.slow_steps import SlowSteps
from allranks.train.best_loss import evaluate_and_compare, measure
from allranks.train.checkpoint import Checkpointer
from allranks.train.feed import feed
from allranks.train.garbage import Garbage
from allranks.train.own_work import CpuWork, OwnWork
from allranks.train.pace import Pace
from allranks.train.proof import Proving
from allranks.train.record_steps import record_steps
from allranks.train.saving import finish_saving, is_saved, save, save_before_leaving
from allranks.train.schedule import Multiplier
from allranks.train.signals import StopRequest
from allranks.train.stats import StatsReader
from allranks.train.step_schedule import StepSchedule
from allranks.train.strategies import Strategy
from allranks.train.time_limit import TimeLimit
from allranks.train.traffic import TrafficCounter


@dataclass(frozen=True)
class Limits:
    """When to give up: `loss_threshold` exceeded `loss_patience` steps running; evaluations without improvement."""

    loss_threshold: float | None
    loss_patience: int
    eval_patience: int | None


@dataclass
class Loop:
    """All that the loop works on. `step` counts optimizer steps done, so the next one is `step` + 1.

    `pad_blocks_to`: tokens that each block of a micro-batch is padded to, or None for no padding.

    `saves`: False where nothing is to be kept, not even when a signal ends the run.

    `after_step`: called with the number of steps done, before the first one and after each.

    `full_speed`: tokens per second of all ranks at their devices' peak; None where that is not known.

    `base_rates`: the configured learning rate of each of the optimizer's groups, which the schedule scales.
    """

    model: TrainModel
    strategy: Strategy
    base_rates: list[float]
    schedule: Multiplier
    plan: BatchPlan
    eval_plan: BatchPlan | None
    step_schedule: StepSchedule
    checkpointer: Checkpointer
    stats: StatsReader
    events: EventLog
    progress: Progress | None
    limits: Limits
    time_limit: TimeLimit
    stop_request: StopRequest
    describe_state: Callable[[Loop], RunState]
    seed: int
    pad_blocks_to: int | None
    pad_token_id: int
    save_best: bool = False
    after_step: Sequence[Callable[[int], None]] = ()
    garbage: Garbage = field(default_factory=Garbage)
    slow_steps: SlowSteps = field(default_factory=SlowSteps)
    memory_bytes: Callable[[], int] = lambda: 0
    full_speed: float | None = None
    traffic: TrafficCounter | None = None
    proof: Proving | None = None
    saves: bool = True
    own_work: OwnWork = field(default_factory=CpuWork)
    pace: Pace = field(default_factory=Pace)
    # What changes from step to step.
    step: int = 0
    tokens: int = 0
    best_loss: float | None = None
    best_checkpoint: str | None = None
    last_loss: float = math.nan
    stopping: bool = False
    evals_without_improvement: int = 0
    high_losses: int = 0
    # Of steps whose losses are not read yet: what else their events will say; and when the last ones were read.
    records: dict[int, dict[str, Any]] = field(default_factory=dict)
    last_read: float = 0.0


@dataclass(frozen=True)
class TrainingEnd:
    """Why the loop ended: "done", "preempted" (by `signal`) or "early" (no improvement)."""

    reason: str
    signal: str | None = None


def train(loop: Loop) -> TrainingEnd:
    """Train from step `loop.step` to the last step, or until a signal or a limit ends it.

    Raises AllranksError when the loss is not finite or stays above the watchdog's threshold; no checkpoint is made
    of such a state.
    """
    model, strategy, plan = loop.model, loop.strategy, loop.plan
    device = model.placement.device
    model.module.train()
    if loop.proof is not None:
        loop.proof.before_first_step()
    steps = feed(
        plan,
        start=loop.step,
        pad_blocks_to=loop.pad_blocks_to,
        pad_token_id=loop.pad_token_id,
        device=device,
        taken=loop.proof.taken if loop.proof is not None else None,
    )
    if loop.step == 0 and 0 in loop.step_schedule.eval_at:
        measure(loop)
    loop.last_read = time.perf_counter()
    for call in loop.after_step:
        call(loop.step)

    with closing(steps), loop.garbage.held_back():
        for todo in steps:
            step = loop.step + 1
            loop.own_work.begin()
            seed_step(loop.seed, step, plan.rank)
            if loop.traffic is not None:
                loop.traffic.begin(step)
            factor = loop.schedule(step - 1)
            for group, rate in zip(strategy.optimizer.param_groups, loop.base_rates, strict=True):
                group["lr"] = rate * factor

            # Every strategy averages gradients over the ranks; with this factor the sum over ranks and micro-batches
            # becomes the mean over the target tokens of the global batch.
            to_mean = plan.world_size / max(todo.plan.num_target_tokens, 1)
            loss_sums = torch.zeros(2, device=device)
            data_seconds = 0.0
            num_micro_batches = len(todo.plan.micro_batches)
            for index in range(num_micro_batches):
                waiting_since = time.perf_counter()
                batch = next(todo.batches)
                data_seconds += time.perf_counter() - waiting_since
                with strategy.micro_batch(last=index == num_micro_batches - 1):
                    losses = model.forward_losses(batch)
                    loss = losses.cross_entropy * to_mean
                    if model.router is not None and losses.router is not None:
                        # Likewise the mean over the blocks of the global batch.
                        weight = model.router.coefficient * plan.world_size / todo.plan.num_blocks
                        loss = loss + losses.router * weight
                        loss_sums[1] += losses.router.detach()
                    strategy.backward(loss)
                loss_sums[0] += losses.cross_entropy.detach()
                if loop.traffic is not None:
                    loop.traffic.read()
            grad_norm = strategy.step()
            loop.own_work.end(step)

            loop.step = step
            loop.tokens += todo.plan.num_tokens
            loop.records[step] = {
                "learning_rate": loop.base_rates[0] * factor,
                "tokens": todo.plan.num_tokens,
                "target_tokens": todo.plan.num_target_tokens,
                "data_seconds": round(data_seconds, 6),
                "gc_seconds": round(loop.garbage.after_step(step), 6),
            }
            saved, save_failed = loop.checkpointer.progress
            read = loop.stats.push(
                step,
                loss_sums,
                grad_norm,
                num_target_tokens=todo.plan.num_target_tokens,
                num_blocks=todo.plan.num_blocks,
                stop=loop.stop_request.name is not None,
                saved=saved,
                save_failed=save_failed,
                data_seconds=data_seconds,
            )
            if loop.traffic is not None:
                loop.traffic.end(step)
            record_steps(loop, read)
            if any(stats.saved for stats in read):
                finish_saving(loop)  # also with its error: on all ranks, one step later at most
            for call in loop.after_step:
                call(step)
            if loop.proof is not None and step == loop.proof.step:
                _prove(loop, todo.plan, loss_sums)
            early = step in loop.step_schedule.eval_at and evaluate_and_compare(loop)
            if step in loop.step_schedule.save_at and not is_saved(loop):
                save(loop)
            if loop.stopping and step < loop.step_schedule.num_steps:
                save_before_leaving(loop)
                return TrainingEnd("preempted", loop.stop_request.name or "a signal to another rank")
            if early:
                save_before_leaving(loop)
                return TrainingEnd("early")
        record_steps(loop, loop.stats.flush())
        finish_saving(loop)
    return TrainingEnd("done")


def _prove(loop: Loop, plan: StepPlan, loss_sums: torch.Tensor) -> None:
    """Let every rank say what it is and did in this step, the first one."""
    assert loop.proof is not None
    record_steps(loop, loop.stats.flush())
    micro_batch = loop.plan.micro_batch_size
    pad_to = micro_batch * loop.pad_blocks_to if loop.pad_blocks_to else None
    loop.proof.after_first_step(loop.plan, plan, loss_sums, loop.last_loss, pad_to=pad_to, pad_id=loop.pad_token_id)
    loop.last_read = time.perf_counter()  # none of this is part of the next step's time


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed dropout by (seed, step, rank): the same numbers after a resume, with no generator state to save."""
    mixed = (seed * 1_000_003 + step) * 1_000_003 + rank
    torch.manual_seed(mixed % (1 << 63))
