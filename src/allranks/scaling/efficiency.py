"""From what each size was measured at to how well it scales, and in which part of a step the rest is lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from allranks.scaling.measured import Measured


@dataclass(frozen=True)
class Lost:
    """Where efficiency is lost, in fractions of the ideal speed, which together are 1 - efficiency: a part may be below
    zero, where more nodes do better. `compute` and `stragglers` are None where the ranks' own work is not known, and
    then part of `communication`."""

    compute: float | None
    communication: float
    data: float
    stragglers: float | None


@dataclass(frozen=True)
class Scaled:
    """`speedup` and `efficiency` (1 is ideal) are against the smallest size, rank by rank. `planned_efficiency`: what
    the plan expects, None where it does not tell."""

    measured: Measured
    speedup: float
    efficiency: float
    planned_efficiency: float | None
    lost: Lost


def scaled(
    sizes: Sequence[Measured], *, work_per_forward: float = 1.0, planned_seconds: Mapping[int, float] | None = None
) -> list[Scaled]:
    """Each size against the first of `sizes`.

    `work_per_forward`: a rank's work of a step, as a multiple of what `Measured.compute` has of it. `planned_seconds`:
    nodes -> a step's seconds there, by the plan.

    Each part of a step is compared with what it would be, were the first size's shared out ideally: a rank's tokens
    of a step decide that. What is over is lost, so the parts add up to 1 - efficiency.
    """
    if not sizes:
        return []
    base, planned = sizes[0], planned_seconds or {}
    found = []
    for one in sizes:
        share = (one.tokens / one.ranks) / (base.tokens / base.ranks)
        efficiency = share * base.seconds / one.seconds
        expected = None
        if one.nodes in planned and base.nodes in planned:
            expected = share * planned[base.nodes] / planned[one.nodes]
        speedup = one.tokens_per_second / base.tokens_per_second
        found.append(Scaled(one, speedup, efficiency, expected, _lost(base, one, share, work_per_forward)))
    return found


def _lost(base: Measured, one: Measured, share: float, factor: float) -> Lost:
    def over(now: float, before: float) -> float:
        return (now - share * before) / one.seconds

    data = over(one.data, base.data)
    total = over(one.seconds, base.seconds)
    if one.compute is None or base.compute is None or one.stragglers is None or base.stragglers is None:
        return Lost(None, total - data, data, None)
    compute = factor * over(one.compute, base.compute)
    stragglers = factor * over(one.stragglers, base.stragglers)
    return Lost(compute, total - data - compute - stragglers, data, stragglers)


def work_per_forward(*, on_gpu: bool, trains_all: bool, recomputes: bool) -> float:
    """On a GPU only forward passes are timed. A backward pass takes as many operations for the activations' gradients,
    and again as many for the weights' where all are trained; recomputing is another forward pass (Korthikanti et al.
    2022, "Reducing Activation Recomputation in Large Transformer Models", appendix A)."""
    return 1.0 if not on_gpu else 2.0 + trains_all + recomputes
