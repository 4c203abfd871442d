"""A profile of some of the steps, where the user wants one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from allranks.config import RunConfig
from allranks.config.sections.tracking import TrackingConfig

AfterStep = Callable[[int], None]


def between_steps(cfg: RunConfig, folder: Path, rank: int, device: torch.device) -> list[AfterStep]:
    """What to call with the number of steps done: before the first one, and after each."""
    calls: list[AfterStep] = []
    tracking = cfg.tracking
    if tracking.profiler_steps:
        calls.append(Profile(folder / f"rank-{rank:05d}.json.gz", tracking, device))
    return calls


class Profile:
    """Records steps `profiler_steps_start` + 1 … + `profiler_steps` with torch's profiler, into a Chrome trace."""

    def __init__(self, path: Path, tracking: TrackingConfig, device: torch.device) -> None:
        self.path = path
        self.start = tracking.profiler_steps_start
        self.steps = tracking.profiler_steps or 0
        gpu = [ProfilerActivity.CUDA] if device.type == "cuda" else []
        self._profile = profile(activities=[ProfilerActivity.CPU, *gpu], record_shapes=True, profile_memory=True)
        self._running = False

    def __call__(self, step: int) -> None:
        if step == self.start:
            self._profile.start()
            self._running = True
        elif self._running and step == self.start + self.steps:
            self._profile.stop()
            self._running = False
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._profile.export_chrome_trace(str(self.path))
