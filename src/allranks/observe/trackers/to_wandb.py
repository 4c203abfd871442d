"""Weights & Biases, online or offline (then in OUTPUT_DIR/trackers/wandb, for `wandb sync`)."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from typing import Any

import wandb

from allranks.exit_codes import PREEMPTED
from allranks.observe.trackers.forward import Memory


class WeightsAndBiases:
    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, step: int, values: Mapping[str, float], seconds: float) -> None:
        self._run.log(dict(values), step=step)

    def note(self, kind: str, text: str, step: int, seconds: float) -> None:
        self._run.summary[f"run/{kind}"] = text

    def flush(self) -> None:
        pass  # it sends by itself

    def finish(self, code: int | None, reason: str) -> None:
        self._run.summary["run/exit"] = reason
        if code == PREEMPTED:
            self._run.mark_preempting()
        self._run.finish(exit_code=1 if code is None else code)


def open_tracker(spec: dict[str, Any], memory: Memory) -> WeightsAndBiases:
    settings = spec["settings"]
    memory.id = settings["wandb_run_id"] or memory.id or secrets.token_hex(4)
    run = wandb.init(
        project=settings["wandb_project"],
        entity=settings["wandb_entity"],
        name=settings["wandb_name"] or settings["wandb_run_id"],
        id=memory.id,
        resume="allow",
        mode=settings["wandb_mode"],
        dir=os.environ.get("WANDB_DIR") or spec["folder"],
        config=spec["config"],
        # This process has no output worth keeping; rank 0's is in the run directory.
        settings=wandb.Settings(console="off", disable_git=True, disable_code=True),
    )
    memory.name = run.name
    return WeightsAndBiases(run)
