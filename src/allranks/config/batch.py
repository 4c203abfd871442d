"""How many blocks a step takes, and how many micro-batches of them each rank."""

from __future__ import annotations

from allranks.config.sections.optimizer import OptimizerConfig


def global_batch(settings: OptimizerConfig, num_ranks: int) -> int:
    """Blocks of one optimizer step on all ranks."""
    return settings.batch_size or settings.micro_batch_size * settings.gradient_accumulation_steps * num_ranks


def num_micro_batches(global_batch: int, micro_batch_size: int, num_ranks: int) -> int:
    """Of each rank in a step of so many blocks: all ranks take as many, and the last ones may have empty places."""
    return -(-global_batch // (micro_batch_size * num_ranks))
