"""What becomes of a step's figures once they are read: an event, a line of progress, or the end of the run."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from allranks.errors import AllranksError
from allranks.listing import few
from allranks.observe.events import StepEvent, WarningEvent
from allranks.train.stats import StepStats

if TYPE_CHECKING:
    from allranks.train.loop import Loop


def record_steps(loop: Loop, read: list[StepStats]) -> None:
    """Record what `read` says: the step's event and progress, and whether some rank was asked to stop.

    Raises AllranksError for a bad loss.
    """
    for stats in read:
        now = time.perf_counter()
        seconds, loop.last_read = now - loop.last_read, now
        loop.time_limit.after_step(seconds)
        record = loop.records.pop(stats.step)
        record["compute_seconds"] = loop.own_work.seconds(stats.step)
        loop.last_loss = stats.loss
        memory = loop.memory_bytes()
        loop.events.write(
            StepEvent(
                step=stats.step,
                epoch=round(loop.step_schedule.epoch(stats.step), 6),
                loss=stats.loss,
                grad_norm=stats.grad_norm,
                seconds=round(seconds, 6),
                memory_bytes=memory,
                router_loss=stats.router_loss,
                **record,
            )
        )
        loop.pace.add(
            seconds,
            waited=stats.cpu_seconds[loop.plan.rank] if loop.model.placement.device.type == "cpu" else 0.0,
            tokens=record["tokens"],
            memory_bytes=memory,
        )
        if loop.progress is not None:
            slow = loop.slow_steps.read(
                stats.step,
                seconds,
                data_seconds=stats.data_seconds,
                cpu_seconds=stats.cpu_seconds,
                between_nodes_bytes=loop.traffic.between_nodes_bytes if loop.traffic else None,
            )
            if slow:
                loop.events.write(WarningEvent(step=stats.step, message=slow))
                loop.progress.note(slow)
            loop.progress.update(
                stats.step,
                loss=stats.loss,
                learning_rate=record["learning_rate"],
                tokens=record["tokens"],
                seconds=seconds,
                memory_bytes=memory,
                router_loss=stats.router_loss,
            )
        _refuse_bad_loss(loop, stats)
        loop.stopping = loop.stopping or bool(stats.stop_ranks)


def _refuse_bad_loss(loop: Loop, stats: StepStats) -> None:
    """Raise AllranksError for a loss that is not finite, or that the watchdog has seen too high for too long."""
    if stats.bad_ranks:
        ranks = few(stats.bad_ranks)
        error = AllranksError(
            f"step {stats.step}: the loss is not finite ({stats.loss}) on "
            f"rank{'s' if len(stats.bad_ranks) > 1 else ''} {ranks}; stopped before a checkpoint could be made of it. "
            "Resume from the last checkpoint with a lower learning_rate or more warmup_steps"
        )
        error.ranks = stats.bad_ranks
        raise error
    if not math.isfinite(stats.grad_norm) and not loop.strategy.skips_overflows:
        raise AllranksError(
            f"step {stats.step}: the gradient's norm is {stats.grad_norm} although the loss ({stats.loss:.4f}) is "
            "finite on every rank; stopped before a checkpoint could be made of it. Lower learning_rate, or use bf16"
        )
    threshold = loop.limits.loss_threshold
    if threshold is None or math.isnan(stats.loss):  # of a step without a target token
        return
    loop.high_losses = loop.high_losses + 1 if stats.loss > threshold else 0
    if loop.high_losses >= loop.limits.loss_patience:
        raise AllranksError(
            f"step {stats.step}: the loss ({stats.loss:.4f}) has been above loss_watchdog_threshold ({threshold}) for "
            f"{loop.high_losses} steps running; stopped. The last checkpoint is untouched"
        )
