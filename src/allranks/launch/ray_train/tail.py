"""What rank 0's events say that Ray should hear: metrics and committed checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from allranks.observe import new_events

_METRICS = ("step", "epoch", "loss", "grad_norm", "learning_rate", "tokens", "target_tokens", "seconds", "memory_bytes")


@dataclass(frozen=True)
class Report:
    """Metrics, and the checkpoint that they belong to, if it is one's."""

    metrics: dict[str, Any]
    checkpoint: str | None = None


@dataclass
class Tail:
    """Follows the file of a rank's events from byte `offset` on."""

    path: Path
    offset: int
    _metrics: dict[str, Any] = field(default_factory=dict)
    _being_saved: dict[int, dict[str, Any]] = field(default_factory=dict)

    def read(self) -> list[Report]:
        """What is to be reported since the last call: the last committed checkpoint, with the metrics of its own step,
        and the metrics of the last step. All others in between Ray could take too slowly."""
        checkpoint = None
        told = self._metrics.copy()
        events, self.offset = new_events(self.path, self.offset)
        for event in events:
            kind, state = event["kind"], event.get("state")
            if kind == "step":
                self._metrics |= {name: event[name] for name in _METRICS if name in event}
            elif kind == "eval":
                self._metrics["eval_loss"] = event["eval_loss"]
            elif kind == "checkpoint" and state == "started":
                self._being_saved[event["step"]] = self._metrics.copy()
            elif kind == "checkpoint" and state == "committed":
                told = self._being_saved.pop(event["step"], self._metrics.copy())
                checkpoint = Report(told, event["path"])
        reports = [checkpoint] if checkpoint else []
        if self._metrics != told:
            reports.append(Report(self._metrics.copy()))
        return reports
