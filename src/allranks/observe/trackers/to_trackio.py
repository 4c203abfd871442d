"""Trackio: on this machine (`trackio show`), or in a Space of the Hugging Face Hub."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import trackio

from allranks.observe.trackers.forward import Memory


class Trackio:
    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, step: int, values: Mapping[str, float], seconds: float) -> None:
        self._run.log(dict(values), step=step)

    def note(self, kind: str, text: str, step: int, seconds: float) -> None:
        if kind in ("warning", "error"):
            level = trackio.AlertLevel.ERROR if kind == "error" else trackio.AlertLevel.WARN
            trackio.alert(kind, text, level=level)

    def flush(self) -> None:
        pass  # it sends by itself

    def finish(self, code: int | None, reason: str) -> None:
        if code:
            trackio.alert("exit", reason, level=trackio.AlertLevel.ERROR)
        trackio.finish()


def open_tracker(spec: dict[str, Any], memory: Memory) -> Trackio:
    settings = spec["settings"]
    # Trackio finds a run again by its name.
    named = settings["trackio_run_name"] or f"{spec['run_name']}-{time.strftime('%Y%m%d-%H%M%S')}"
    memory.id = memory.name = memory.name or named
    run = trackio.init(
        project=settings["trackio_project_name"] or "allranks",
        name=memory.name,
        space_id=settings["trackio_space_id"],
        config=spec["config"],
        resume="allow",
        embed=False,
        auto_log_cpu=False,
    )
    return Trackio(run)
