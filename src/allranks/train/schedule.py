"""Learning-rate schedules: pure functions of the step, so that there is no scheduler state to save or to resume."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from allranks.config import RunConfig
from allranks.errors import ConfigError


@dataclass(frozen=True)
class Span:
    """Steps of a run: `after` the `warmup`, and in all (`total`)."""

    after: int
    warmup: int
    total: int


Multiplier = Callable[[int], float]
"""From the number of steps done to the factor on the configured learning rate."""


def learning_rate_schedule(cfg: RunConfig, num_steps: int) -> Multiplier:
    """The schedule that the config asks for over `num_steps` optimizer steps, warm-up included.

    Shapes follow transformers.optimization.get_scheduler, so that a run with the same keys has the same rates there.
    Raises ConfigError for an unknown name or an option that the schedule does not have.
    """
    settings = cfg.optimizer
    warmup = num_warmup_steps(cfg, num_steps)
    name = settings.lr_scheduler or "cosine"
    options = dict(settings.lr_scheduler_kwargs or {})
    if settings.cosine_min_lr_ratio is not None:
        options["min_lr_rate"] = settings.cosine_min_lr_ratio
    if settings.cosine_constant_lr_ratio is not None:
        options["constant_after"] = settings.cosine_constant_lr_ratio
    if settings.lr_div_factor is not None:
        options["div_factor"] = settings.lr_div_factor
    try:
        build = _SCHEDULES.get(name) or _WITH_OWN_WARMUP[name]
    except KeyError:
        known = sorted({**_SCHEDULES, **_WITH_OWN_WARMUP})
        raise ConfigError(f"lr_scheduler: {name!r} is unknown; one of {', '.join(known)}") from None
    try:
        decay = build(Span(max(num_steps - warmup, 1), warmup, num_steps), base=settings.learning_rate, **options)
    except TypeError:
        raise ConfigError(f"lr_scheduler_kwargs: {sorted(options)} do not fit lr_scheduler: {name}") from None

    if name in _WITH_OWN_WARMUP:
        return decay
    power = 2 if settings.lr_quadratic_warmup else 1

    def multiplier(step: int) -> float:
        if step < warmup:
            return (step / warmup) ** power
        return decay(step - warmup)

    return multiplier


def num_warmup_steps(cfg: RunConfig, num_steps: int) -> int:
    """Warm-up steps out of `num_steps`; a `warmup_steps` below 1 is a share of them, as in transformers 5.

    Where neither key is given it is as in Axolotl: 3 % of the steps, at most 100.
    """
    settings = cfg.optimizer
    if settings.warmup_steps is None and settings.warmup_ratio is None:
        return 0 if settings.lr_scheduler == "constant" else min(num_steps * 3 // 100, 100)
    share = settings.warmup_ratio or 0.0
    if settings.warmup_steps is not None:
        if settings.warmup_steps >= 1:
            return int(settings.warmup_steps)
        share = settings.warmup_steps
    return math.ceil(share * num_steps)


def warmup_warning(cfg: RunConfig, num_steps: int) -> str | None:
    """What to tell of a warm-up that the run does not outlast, as in a trial of a few steps."""
    warmup = num_warmup_steps(cfg, num_steps)
    if warmup < num_steps or warmup <= 1 or cfg.optimizer.lr_scheduler in _WITH_OWN_WARMUP:
        return None
    key = "warmup_ratio" if cfg.optimizer.warmup_steps is None else "warmup_steps"
    last = learning_rate_schedule(cfg, num_steps)(num_steps - 1)
    return (
        f"{key}: the warm-up takes {warmup} steps and the run has {num_steps}, so the learning rate gets no further "
        f"than {last:.0%} of learning_rate; lower {key}, unless this is a trial"
    )


def _constant(steps: Span, *, base: float) -> Multiplier:
    return lambda step: 1.0


def _linear(steps: Span, *, base: float) -> Multiplier:
    return lambda step: max(0.0, 1.0 - step / steps.after)


def _cosine(
    steps: Span, *, base: float, num_cycles: float = 0.5, min_lr_rate: float | None = None, min_lr: float | None = None,
    constant_after: float | None = None,
) -> Multiplier:  # fmt: skip
    floor = min_lr_rate if min_lr_rate is not None else (min_lr or 0.0) / base
    decaying = steps.after
    if constant_after is not None:
        # A share of all steps, warm-up included, after which the rate stays at the floor (Axolotl's meaning).
        decaying = max(1, int(steps.total * constant_after) - steps.warmup)

    def multiplier(step: int) -> float:
        progress = min(step / decaying, 1.0)
        return floor + (1 - floor) * max(0.0, 0.5 * (1.0 + math.cos(math.pi * num_cycles * 2.0 * progress)))

    return multiplier


def _cosine_with_restarts(steps: Span, *, base: float, num_cycles: int = 1) -> Multiplier:
    def multiplier(step: int) -> float:
        progress = step / steps.after
        if progress >= 1.0:
            return 0.0
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((num_cycles * progress) % 1.0))))

    return multiplier


def _polynomial(steps: Span, *, base: float, lr_end: float = 1e-7, power: float = 1.0) -> Multiplier:
    end = lr_end / base
    return lambda step: end + (1.0 - end) * max(0.0, 1.0 - step / steps.after) ** power


def _inverse_sqrt(steps: Span, *, base: float, timescale: int | None = None) -> Multiplier:
    scale = timescale or steps.warmup or 10_000
    return lambda step: 1.0 / math.sqrt((step + scale) / scale)


def _warmup_stable_decay(
    steps: Span, *, base: float, num_decay_steps: int | None = None, min_lr_ratio: float = 0.0
) -> Multiplier:
    # Without a number of decay steps: the last tenth (Hägele et al. 2024, arXiv 2405.18392, find 10-20 % enough).
    decay = num_decay_steps if num_decay_steps is not None else max(1, steps.after // 10)

    def multiplier(step: int) -> float:
        left = max(0, steps.after - step)
        if left >= decay:
            return 1.0
        return min_lr_ratio + (1.0 - min_lr_ratio) * 0.5 * (1.0 - math.cos(math.pi * left / decay))

    return multiplier


def _rex(steps: Span, *, base: float, min_lr_rate: float = 0.0) -> Multiplier:
    """Reflected exponential (https://arxiv.org/abs/2107.04197), with the weight 0.9 that Axolotl's has."""

    def multiplier(step: int) -> float:
        left = max(0.0, 1.0 - step / steps.after)
        return min_lr_rate + (1.0 - min_lr_rate) * left / (0.1 + 0.9 * left)

    return multiplier


def _one_cycle(
    steps: Span, *, base: float, pct_start: float | None = None, anneal_strategy: str = "cos", div_factor: float = 25.0,
    final_div_factor: float = 1e4,
) -> Multiplier:  # fmt: skip
    """One cycle (https://arxiv.org/abs/1708.07120) of the rate, as torch's OneCycleLR; the momentum stays as it is.

    The rise is the warm-up, or torch's 30 % of the steps without one.
    """
    if anneal_strategy not in ("cos", "linear"):
        raise ConfigError(f"lr_scheduler_kwargs: anneal_strategy is cos or linear, not {anneal_strategy!r}")
    share = pct_start if pct_start is not None else (steps.warmup / steps.total or 0.3)
    top, last = share * steps.total - 1, steps.total - 1
    first, end = 1 / div_factor, 1 / div_factor / final_div_factor

    def between(one: float, other: float, part: float) -> float:
        if anneal_strategy == "linear":
            return one + (other - one) * part
        return other + (one - other) / 2 * (1 + math.cos(math.pi * part))

    def multiplier(step: int) -> float:
        if step <= top:
            return between(first, 1.0, step / top if top > 0 else 1.0)
        return between(1.0, end, min(1.0, (step - top) / max(last - top, 1)))

    return multiplier


def _cosine_warmup_with_min_lr(
    steps: Span, *, base: float, num_cycles: float = 0.5, min_lr: float | None = None, min_lr_rate: float | None = None,
    warmup_lr_rate: float | None = None,
) -> Multiplier:  # fmt: skip
    """Cosine down to a floor, after a warm-up that starts at `warmup_lr_rate`, or at its first step, not at 0."""
    floor = min_lr_rate if min_lr_rate is not None else (min_lr or 0.0) / base

    def multiplier(step: int) -> float:
        if step < steps.warmup:
            if warmup_lr_rate is None:
                return (step + 1) / steps.warmup
            return warmup_lr_rate + (1.0 - warmup_lr_rate) * step / max(1, steps.warmup - 1)
        progress = (step - steps.warmup + 1) / max(1, steps.total - steps.warmup)
        return max(0.0, floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * num_cycles * 2.0 * progress)))

    return multiplier


_SCHEDULES: dict[str, Callable[..., Multiplier]] = {
    "constant": _constant,
    "constant_with_warmup": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_min_lr": _cosine,
    "cosine_with_restarts": _cosine_with_restarts,
    "polynomial": _polynomial,
    "inverse_sqrt": _inverse_sqrt,
    "warmup_stable_decay": _warmup_stable_decay,
    "rex": _rex,
}
_WITH_OWN_WARMUP: dict[str, Callable[..., Multiplier]] = {
    "one_cycle": _one_cycle,
    "cosine_warmup_with_min_lr": _cosine_warmup_with_min_lr,
}
