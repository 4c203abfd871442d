"""Forward events to a tracker, each once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from allranks import durable


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


def forward(tracker: Tracker, event: Mapping[str, Any], memory: Memory, *, log_every: int, num_steps: int) -> None:
    """Tell `tracker` of one event, if it is of a kind that trackers show and not one that it was told before."""
    kind, step = event["kind"], event.get("step", 0)
    if kind in ("step", "eval"):
        if step <= memory.last_step.get(kind, 0):
            return
        memory.last_step[kind] = step
        if kind == "eval" or step % log_every == 0 or step in (1, num_steps):
            tracker.log(step, measurements(event), event["t"])
    elif kind == "checkpoint" and event.get("state") == "committed":
        tracker.note("checkpoint", event["path"], step, event["t"])
    elif kind in ("warning", "error"):
        tracker.note(kind, event.get("message", ""), step, event["t"])


def measurements(event: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a `step` or `eval` event, named as by Hugging Face's Trainer where it has them."""
    if event["kind"] == "eval":
        values = {"eval/loss": event["eval_loss"], "eval/runtime": event["seconds"]}
    else:
        values = {
            "train/loss": event["loss"],
            "train/router_loss": event.get("router_loss"),
            "train/grad_norm": event["grad_norm"],
            "train/learning_rate": event["learning_rate"],
            "train/epoch": event["epoch"],
            "train/tokens_per_second": event["tokens"] / event["seconds"] if event["seconds"] else None,
            "train/seconds_per_step": event["seconds"],
            "train/memory_gib": event["memory_bytes"] / 2**30,
        }
    # Events hold numbers that are not finite as text.
    return {name: float(value) for name, value in values.items() if value is not None}
