"""Which steps save, evaluate and log: the whole run laid out before its first step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from allranks.config import RunConfig


@dataclass(frozen=True)
class StepSchedule:
    """Steps count from 1 here: step k is due after the k-th optimizer step. The last step always is.

    0 in `eval_at`: before the first step. Bests are saved when they are found, which no schedule knows.
    """

    num_steps: int
    total_blocks: int
    steps_per_epoch: float
    log_every: int
    save_at: frozenset[int]
    eval_at: frozenset[int]

    def epoch(self, step: int) -> float:
        return step / self.steps_per_epoch

    def logs(self, step: int) -> bool:
        return step % self.log_every == 0 or step == 1 or step == self.num_steps


def lay_out(cfg: RunConfig, *, num_blocks: int, global_batch: int, has_eval: bool) -> StepSchedule:
    """The steps of a run over `num_blocks` training blocks with `global_batch` blocks a step.

    The last step of the last epoch holds what is left. Every run has a step.
    """
    steps_per_epoch = num_blocks / global_batch
    if cfg.optimizer.max_steps:
        total_blocks = cfg.optimizer.max_steps * global_batch
    else:
        # Less a hair, so that 0.1 x 30, which is 3.0000000000000004, makes 3 blocks.
        total_blocks = max(1, math.ceil(cfg.optimizer.num_epochs * num_blocks - 1e-6))
    num_steps = math.ceil(total_blocks / global_batch)
    save, evaluation = cfg.checkpoint, cfg.evaluation
    epoch_ends = _epoch_ends(num_steps, steps_per_epoch)
    every_save = _interval(save.save_steps, save.saves_per_epoch, num_steps, steps_per_epoch)
    every_eval = _interval(evaluation.eval_steps, evaluation.evals_per_epoch, num_steps, steps_per_epoch)

    eval_at: set[int] = set()
    if has_eval and evaluation.eval_strategy != "no":
        # Without any word on when, an evaluation set is used at the end of each epoch, as Axolotl does.
        by_steps = every_eval or (500.0 if evaluation.eval_strategy == "steps" else None)
        eval_at = set(_multiples(by_steps, num_steps)) if by_steps else set(epoch_ends)
        eval_at.add(num_steps)
        if evaluation.eval_on_start:
            eval_at.add(0)

    save_at: set[int] = set()
    if save.save_strategy == "epoch" or (save.save_strategy is None and every_save is None):
        save_at = set(epoch_ends)
    elif save.save_strategy not in ("no", "best"):
        save_at = set(_multiples(every_save or 500.0, num_steps))
    if save.save_first_step:
        save_at.add(1)
    if save.save_strategy not in ("no", "best") or (save.save_strategy == "no" and wants_result(cfg)):
        save_at.add(num_steps)
    return StepSchedule(
        num_steps=num_steps,
        total_blocks=total_blocks,
        steps_per_epoch=steps_per_epoch,
        log_every=max(1, cfg.tracking.logging_steps),
        save_at=frozenset(save_at),
        eval_at=frozenset(eval_at),
    )


def wants_result(cfg: RunConfig) -> bool:
    """Whether the run ends with an adapter or a Hugging Face model, which is made from a checkpoint."""
    return bool(cfg.adapter.adapter) or cfg.parallel.fsdp_settings.state_dict_type == "FULL_STATE_DICT"


def _interval(steps: float | None, per_epoch: float | None, num_steps: int, steps_per_epoch: float) -> float | None:
    """Steps between two events; `steps` below 1 is a share of the run, as in transformers."""
    if per_epoch:
        return steps_per_epoch / per_epoch
    if steps:
        return steps if steps >= 1 else steps * num_steps
    return None


def _multiples(interval: float, num_steps: int) -> list[int]:
    interval = max(1.0, interval)
    return [min(math.ceil(k * interval), num_steps) for k in range(1, math.floor(num_steps / interval) + 1)]


def _epoch_ends(num_steps: int, steps_per_epoch: float) -> list[int]:
    return [math.ceil(epoch * steps_per_epoch) for epoch in range(1, math.floor(num_steps / steps_per_epoch) + 1)]
