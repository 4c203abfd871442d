"""Keys of evaluation."""

from typing import Literal

from pydantic import Field

from allranks.config.sections.section import Interval, Section


class EvaluationConfig(Section):
    """When the loss on held-out data is measured."""

    eval_strategy: Literal["steps", "epoch", "no"] | None = None
    """When to evaluate; with evaluation data `steps` if `eval_steps` or `evals_per_epoch` is given, else `epoch`."""
    eval_steps: Interval | None = None
    """Evaluate every so many steps; below 1, after every such fraction of the run."""
    evals_per_epoch: int | None = Field(None, ge=1)
    """Evaluate so many times an epoch, evenly."""
    eval_on_start: bool = False
    """Evaluate before the first step too, to compare with; it counts neither as the best nor for early stopping."""
    eval_batch_size: int | None = Field(None, ge=1)
    """Blocks that a rank evaluates at once; follows `micro_batch_size`."""
    early_stopping_patience: int | None = Field(None, ge=1)
    """Stop after this many evaluations without a better metric."""
