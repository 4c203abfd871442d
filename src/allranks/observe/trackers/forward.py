"""Forward events to a tracker, each once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from allranks import durable
from allranks.observe.events import CheckpointEvent, ErrorEvent, EvalEvent, Event, StepEvent, WarningEvent


class Tracker(Protocol):
    """One service. Any method may raise: the process ends then, and the run goes on."""

    def log(self, step: int, values: Mapping[str, float], seconds: float) -> None:
        """Numbers of one step; `seconds` is unix time."""

    def note(self, kind: str, text: str, step: int, seconds: float) -> None:
        """A checkpoint, warning or error."""

    def flush(self) -> None:
        """Everything told so far may be shown."""

    def finish(self, code: int | None, reason: str) -> None:
        """The run has ended with this exit code; None: it was killed."""


class Memory:
    """What a tracker must remember from one start of a run to the next: its own run, and what it has been told.

    A resumed run repeats the steps since its checkpoint, with the same numbers: `last_step` keeps them from being told
    twice. A tracker that was killed with the run may not have been told everything: it goes on reading at `offset`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        stored = json.loads(path.read_text())
        self.id: str | None = stored.get("id")
        self.name: str | None = stored.get("name")
        self.offset: int = stored["offset"]
        self.last_step: dict[str, int] = stored.get("last_step", {})

    def write(self) -> None:
        fields = {"id": self.id, "name": self.name, "offset": self.offset, "last_step": self.last_step}
        durable.write(self.path, json.dumps(fields))


def begin_memory(path: Path, offset: int) -> None:
    """For a tracker that is told of a run from `offset` in the events on, in a run of its own."""
    durable.write(path, json.dumps({"offset": offset}))


def forward(tracker: Tracker, event: Event, memory: Memory, *, log_every: int, num_steps: int) -> None:
    """Tell `tracker` of one event, if it is of a kind that trackers show and not one that it was told before."""
    if isinstance(event, StepEvent | EvalEvent):
        if event.step <= memory.last_step.get(event.kind, 0):
            return
        memory.last_step[event.kind] = event.step
        if isinstance(event, EvalEvent) or event.step % log_every == 0 or event.step in (1, num_steps):
            tracker.log(event.step, measurements(event), event.t)
    elif isinstance(event, CheckpointEvent) and event.state == "committed":
        tracker.note(event.kind, event.path, event.step, event.t)
    elif isinstance(event, WarningEvent):
        tracker.note(event.kind, event.message, event.step or 0, event.t)
    elif isinstance(event, ErrorEvent):
        tracker.note(event.kind, event.message, 0, event.t)


def measurements(event: StepEvent | EvalEvent) -> dict[str, float]:
    """The numbers of an event, named as by Hugging Face's Trainer where it has them."""
    if isinstance(event, EvalEvent):
        return {"eval/loss": event.eval_loss, "eval/runtime": event.seconds}
    values = {
        "train/loss": event.loss,
        "train/router_loss": event.router_loss,
        "train/grad_norm": event.grad_norm,
        "train/learning_rate": event.learning_rate,
        "train/epoch": event.epoch,
        "train/tokens_per_second": event.tokens / event.seconds if event.seconds else None,
        "train/seconds_per_step": event.seconds,
        "train/memory_gib": event.memory_bytes / 2**30,
    }
    return {name: value for name, value in values.items() if value is not None}
