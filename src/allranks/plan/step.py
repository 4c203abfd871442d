"""What a step will be under one strategy: bytes that leave a node, operations, memory that it takes at least."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PlannedStep:
    """`name`: the strategy, as people call it. `is_own`: the config's own.

    `node_sends_bytes` are those of each node in one step, `flops` a rank's operations in it, where all blocks are full;
    None where that is not known. `state_bytes`: what a rank holds at least of weights, gradients and optimizer.
    """

    name: str
    is_own: bool
    node_sends_bytes: float
    flops: float | None
    state_bytes: float


def communication_share(communication_seconds: float, compute_seconds: float) -> tuple[float, float]:
    """The part of a step that communication takes: where nothing of it goes on beside computing, and where computing
    hides as much of it as it can."""
    together, longer = communication_seconds + compute_seconds, max(communication_seconds, compute_seconds)
    if not together:
        return 0.0, 0.0
    return communication_seconds / together, max(0.0, communication_seconds - compute_seconds) / longer
