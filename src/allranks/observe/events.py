"""The kinds of events: what a rank did and when. A dataclass each; event_lines.py reads them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

_HEAD = ("t", "rank", "run", "other")


@dataclass(frozen=True, kw_only=True)
class Event:
    """What all events have. The writer fills in the head: `t` (unix seconds), `rank`, and the run id of this start.

    Every field has a default, for lines of an older version; what a newer one wrote besides, or wrote otherwise, is in
    `other`. A field that is None is not written.
    """

    kind: ClassVar[str] = ""
    t: float = 0.0
    """Unix seconds by the node's clock."""
    rank: int = 0
    """That wrote it, counted over all nodes."""
    run: str | None = None
    """The run id of this start; a resumed run appends to the same file."""
    other: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def own_fields(self) -> dict[str, Any]:
        """What the writer writes after the head: the fields that have a value."""
        named = ((each.name, getattr(self, each.name)) for each in fields(self) if each.name not in _HEAD)
        return {name: value for name, value in named if value is not None}


@dataclass(frozen=True, kw_only=True)
class PhaseEvent(Event):
    """A phase was entered: data, rendezvous, mesh, model, train, evaluation, checkpoint, export, done."""

    kind: ClassVar[str] = "phase"
    phase: str = ""
    """data, rendezvous, mesh, model, train, evaluation, checkpoint, export or done."""
    pid: int | None = None
    """The rank's process."""
    step: int | None = None
    """Of a checkpoint or an evaluation: after how many steps."""
    num_steps: int | None = None
    """Of train: how many steps there are to be."""
    full_speed: float | None = None
    """Of train: tokens per second of all ranks at their devices' peak, where that is known."""


@dataclass(frozen=True, kw_only=True)
class StepEvent(Event):
    """One optimizer step; loss, tokens and target tokens are those of the global batch."""

    kind: ClassVar[str] = "step"
    step: int = 0
    """From 1."""
    epoch: float = math.nan
    """Of the training data, as a fraction, when the step was done."""
    loss: float = math.nan
    """What was minimised: the mean over the target tokens, and the router's loss times its coefficient."""
    grad_norm: float = math.nan
    """Before clipping."""
    seconds: float = 0.0
    """The step took, without evaluations and saves."""
    memory_bytes: int = 0
    """Of this rank, the peak so far: of its GPU; on a CPU of its process, since its model was there."""
    learning_rate: float = math.nan
    """That the step was made with, of the first group of parameters."""
    tokens: int = 0
    """That the model read, without padding."""
    target_tokens: int = 0
    """Of these, that count in the loss."""
    data_seconds: float = 0.0
    """This rank waited for data."""
    gc_seconds: float = 0.0
    """This rank collected Python's garbage."""
    compute_seconds: float | None = None
    """This rank worked itself, without waiting for others; on a GPU in layers' forward passes. None: not known."""
    router_loss: float | None = None
    """Of a mixture of experts, without its coefficient."""


@dataclass(frozen=True, kw_only=True)
class EvalEvent(Event):
    """An evaluation after `step` steps, which took `seconds`."""

    kind: ClassVar[str] = "eval"
    step: int = 0
    """After how many steps."""
    eval_loss: float = math.nan
    """Mean cross entropy over the evaluation data's target tokens."""
    seconds: float = 0.0
    """It took."""


@dataclass(frozen=True, kw_only=True)
class CheckpointEvent(Event):
    """`state`: started (training waited `blocked_seconds` for it) or committed."""

    kind: ClassVar[str] = "checkpoint"
    step: int = 0
    """After how many steps."""
    state: str = ""
    """`started` or `committed`."""
    path: str = ""
    """Its folder."""
    blocked_seconds: float | None = None
    """Training waited for it."""


@dataclass(frozen=True, kw_only=True)
class CommunicationEvent(Event):
    """What one step sends: by all nodes together, by each node, and this rank's collectives of each kind.

    `counted`: whether nothing was missed.
    """

    kind: ClassVar[str] = "communication"
    step: int = 0
    """Which was counted."""
    counted: bool = False
    """Whether nothing was missed."""
    between_nodes_bytes: int = 0
    """All nodes together send to other nodes."""
    node_sends_bytes: tuple[int, ...] = ()
    """Each node sends to other nodes, by node."""
    collectives: tuple[Mapping[str, Any], ...] = ()
    """Of this rank: kind, number and bytes of each."""


@dataclass(frozen=True, kw_only=True)
class PlanEvent(Event):
    """At the end of a run, what a plan says of it beside what it was; of rank 0."""

    kind: ClassVar[str] = "plan"
    predicted_seconds: float = 0.0
    """Of a step of usual rows, by the calibration and the earlier runs that were known when it began."""
    measured_seconds: float = 0.0
    """The median; on a CPU without what other programs took of it."""
    predicted_memory_bytes: int = 0
    """Of this rank at its fullest."""
    measured_memory_bytes: int = 0
    """The largest of the steps."""
    device: str = ""
    """Of `plan/hardware.toml` by its full name, or `cpu`."""
    calibrated: bool = False
    """By `allranks plan --calibrate` on this machine."""
    earlier_runs: int = 0
    """Of the same workload on this machine, which the prediction knew."""


@dataclass(frozen=True, kw_only=True)
class MemoryEvent(Event):
    """What this rank will hold in the host's memory once the first step is done; on a GPU that is what is offloaded."""

    kind: ClassVar[str] = "memory"
    device: str = ""
    """`cuda` or `cpu`."""
    parameters_bytes: int = 0
    """Of its part of the model."""
    gradients_bytes: int = 0
    """Of the gradients of what is trained."""
    optimizer_bytes: int = 0
    """Of the optimizer's state."""


@dataclass(frozen=True, kw_only=True)
class TimeLimitEvent(Event):
    """From now on a collective of this rank fails after `seconds`."""

    kind: ClassVar[str] = "time_limit"
    seconds: int = 0
    """After which it does."""


@dataclass(frozen=True, kw_only=True)
class ProofEvent(Event):
    """What this rank says of itself after the first step of a start, and of its parameters at each checkpoint."""

    kind: ClassVar[str] = "proof"
    step: int = 0
    """After which it is said."""
    host: str | None = None
    """The rank's node, by name."""
    pid: int | None = None
    """The rank's process."""
    gpu: str | None = None
    """The UUID of its GPU; nothing on a CPU."""
    num_blocks: int | None = None
    """That it trained on in the step."""
    parameters: str = ""
    """Digest of the checksums of all that it holds of the model."""
    different: tuple[str, ...] = ()
    """Parameters that are not alike on the ranks that hold the same ones."""


@dataclass(frozen=True, kw_only=True)
class WarningEvent(Event):
    """Something that the user should know of."""

    kind: ClassVar[str] = "warning"
    message: str = ""
    """The line that the terminal shows."""
    step: int | None = None
    """At which it was found, where it is about one."""


@dataclass(frozen=True, kw_only=True)
class StragglerEvent(Event):
    """A rank needs longer for its own part of the steps than the others, or keeps up again. Node 0's launcher writes
    it, into rank 0's file."""

    kind: ClassVar[str] = "straggler"
    of_rank: int = 0
    """Which rank it is."""
    is_slow: bool = True
    """False once it keeps up again."""
    node: int | str | None = None
    """The rank's node: its rank, or its host where the rendezvous deals ranks out."""
    host: str | None = None
    """The rank's node, by name."""
    step: int | None = None
    """The last step that was done."""
    message: str = ""
    """What the terminal shows."""


@dataclass(frozen=True, kw_only=True)
class ErrorEvent(Event):
    """Why the rank fails. `code`, `evidence` and `remedy` are the finding's, where there was one."""

    kind: ClassVar[str] = "error"
    message: str = "no message"
    """What the terminal shows."""
    type: str = ""
    """The exception's class."""
    host: str | None = None
    """The rank's node, by name."""
    node: int | None = None
    """The node's rank, where the rank knows it."""
    log: str | None = None
    """The rank's log."""
    code: str | None = None
    """The kind of failure, where it is known."""
    evidence: tuple[str, ...] | None = None
    """Lines that show it."""
    remedy: str | None = None
    """What to do."""
    traceback: str | None = None
    """Python's, where the message alone does not tell."""


@dataclass(frozen=True, kw_only=True)
class ExitEvent(Event):
    """The rank ends with the exit code `code`."""

    kind: ClassVar[str] = "exit"
    code: int = 1
    """The rank's exit code."""
    reason: str = ""
    """In a few words."""


@dataclass(frozen=True, kw_only=True)
class UnknownEvent(Event):
    """Of a kind that a newer version writes; all its fields are in `other`."""

    name: str = ""


KINDS: dict[str, type[Event]] = {
    each.kind: each
    for each in (
        PhaseEvent,
        StepEvent,
        EvalEvent,
        CheckpointEvent,
        CommunicationEvent,
        MemoryEvent,
        PlanEvent,
        TimeLimitEvent,
        ProofEvent,
        WarningEvent,
        StragglerEvent,
        ErrorEvent,
        ExitEvent,
    )
}
