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
        name, options["min_lr_rate"] = "cosine_with_min_lr", settings.cosine_min_lr_ratio
    if settings.cosine_constant_lr_ratio is not None:
        options["constant_after"] = settings.cosine_constant_lr_ratio
    try:
        build = _SCHEDULES[name]
    except KeyError:
        raise ConfigError(f"lr_scheduler: {name!r} is unknown; one of {', '.join(sorted(_SCHEDULES))}") from None
    try:
        decay = build(Span(max(num_steps - warmup, 1), warmup, num_steps), base=settings.learning_rate, **options)
    except TypeError:
        raise ConfigError(f"lr_scheduler_kwargs: {sorted(options)} do not fit lr_scheduler: {name}") from None

    def multiplier(step: int) -> float:
        if step < warmup:
            return step / warmup
        return decay(step - warmup)

    return multiplier


def num_warmup_steps(cfg: RunConfig, num_steps: int) -> int:
    """Warm-up steps out of `num_steps`; a `warmup_steps` below 1 is a share of them, as in transformers 5."""
    settings = cfg.optimizer
    share = settings.warmup_ratio or 0.0
    if settings.warmup_steps is not None:
        if settings.warmup_steps >= 1:
            return int(settings.warmup_steps)
        share = settings.warmup_steps
    return math.ceil(share * num_steps)


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
}
