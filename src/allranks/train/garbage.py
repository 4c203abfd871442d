"""Python's garbage collector, off while steps are made and run after the same step on every rank.

By itself it starts after so many allocations, on each rank at another moment; every other rank then waits for that one
in the next collective, so a run of many ranks pays for nearly every rank's pauses.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from allranks.config import RunConfig
from allranks.train.step_schedule import StepSchedule

EVERY = 50
"""Steps between collections where the config names none: torchtitan's number. A step leaves next to no cycles behind;
what one collection costs after `gc.freeze` is a few milliseconds."""


class Garbage:
    """When to collect. `due`: whether to after a step, from 1; `empties_cache`: free the GPU's cached memory too."""

    def __init__(self, due: Callable[[int], bool] = lambda step: step % EVERY == 0, *, empties_cache: bool = False):
        self.due = due
        self.empties_cache = empties_cache and torch.cuda.is_available()

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """While steps are made in it, nothing is collected but by `after_step`. What is there before counts as needed
        (`gc.freeze`), so that a collection looks only at what the steps have made."""
        was_on = gc.isenabled()
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            yield
        finally:
            gc.unfreeze()
            if was_on:
                gc.enable()

    @contextmanager
    def let_go(self) -> Iterator[None]:
        """Collected whenever Python likes, also within `held_back`: for what is no step and may take long."""
        was_on = gc.isenabled()
        gc.enable()
        try:
            yield
        finally:
            if not was_on:
                gc.disable()

    def after_step(self, step: int) -> float:
        """Collect if it is time; the seconds that it took."""
        if not self.due(step):
            return 0.0
        started = time.perf_counter()
        gc.collect()
        if self.empties_cache:
            torch.cuda.empty_cache()
        return time.perf_counter() - started


def keep_imports() -> None:
    """Of a rank that has imported everything: all of it counts as needed. The collection before the first step, which
    would look through it, took 0.3 s."""
    gc.freeze()


def garbage(cfg: RunConfig, step_schedule: StepSchedule) -> Garbage:
    """As `gc_steps` asks, with Axolotl's meanings: N, every N steps; -1, at the end of each epoch and before each
    evaluation; the GPU's cache is emptied as well. 0 or none: every `EVERY` steps, and the cache is left alone."""
    asked = cfg.tracking.gc_steps
    if not asked:
        return Garbage()
    if asked > 0:
        return Garbage(lambda step: step % asked == 0, empties_cache=True)

    def ends_epoch(step: int) -> bool:
        return math.floor(step_schedule.epoch(step)) > math.floor(step_schedule.epoch(step - 1))

    return Garbage(lambda step: ends_epoch(step) or step in step_schedule.eval_at, empties_cache=True)
