"""What rank 0's events say that Ray should hear: metrics and committed checkpoints."""

from __future__ import annotations

from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Any

from allranks.observe import EventFollower
from allranks.observe.events import CheckpointEvent, EvalEvent, StepEvent

METRICS = ("step", "epoch", "loss", "grad_norm", "learning_rate", "tokens", "target_tokens", "seconds", "memory_bytes")


@dataclass(frozen=True)
class Report:
    """Metrics, and the checkpoint that they belong to, if it is one's."""

    metrics: dict[str, Any]
    checkpoint: str | None = None


@dataclass
class Tail:
    """Follows the file of a rank's events from byte `offset` on."""

    path: Path
    offset: InitVar[int]
    _metrics: dict[str, Any] = field(default_factory=dict)
    _being_saved: dict[int, dict[str, Any]] = field(default_factory=dict)
    _following: EventFollower = field(init=False)

    def __post_init__(self, offset: int) -> None:
        self._following = EventFollower(self.path, offset)

    def read(self) -> list[Report]:
        """What is to be reported since the last call: the last committed checkpoint, with the metrics of its own step,
        and the metrics of the last step. All others in between Ray could take too slowly."""
        checkpoint = None
        told = self._metrics.copy()
        for event in self._following.read():
            if isinstance(event, StepEvent):
                self._metrics |= {name: getattr(event, name) for name in METRICS}
            elif isinstance(event, EvalEvent):
                self._metrics["eval_loss"] = event.eval_loss
            elif isinstance(event, CheckpointEvent) and event.state == "started":
                self._being_saved[event.step] = self._metrics.copy()
            elif isinstance(event, CheckpointEvent) and event.state == "committed":
                told = self._being_saved.pop(event.step, self._metrics.copy())
                checkpoint = Report(told, event.path)
        reports = [checkpoint] if checkpoint else []
        if self._metrics != told:
            reports.append(Report(self._metrics.copy()))
        return reports
