"""What a check is, what it is given, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeVar
from weakref import WeakKeyDictionary

from allranks.cluster.measure.values import Measurements
from allranks.cluster.node_report import NodeReport
from allranks.cluster.pairs import Unreached
from allranks.doctor.pairs import Place
from allranks.plan.fit import Expected
from allranks.plan.step import PlannedStep
from allranks.preflight.folding import natural

Severity = Literal["error", "warning", "note"]
"""An error makes a run wrong, hang or die; a warning makes it slow or fragile; a note is worth knowing."""
Outcome = Literal["ok", "found", "skipped", "unknown"]


@dataclass(frozen=True)
class Wanted:
    """What the config and the command ask for. None is not known, and what needs it is then not checked."""

    nproc_per_node: int | None = None
    device: Literal["cuda", "cpu"] | None = None
    """cuda stands for AMD's GPUs, too, as in PyTorch."""
    backend: Literal["nccl", "gloo"] | None = None
    master_addr: str | None = None
    interface: str | None = None
    """`network.interface`, as the config has it."""
    infiniband: Literal["auto", "on", "off", "required"] = "auto"
    hcas: Sequence[str] = ()
    gid_index: int | None = None
    checkpoint_bytes: int | None = None
    """One checkpoint, all nodes' parts together."""
    num_checkpoints: int = 1
    """How many will be there at once that are not there yet."""
    checkpoint_files: int | None = None
    """How many files and folders those are."""
    result_bytes: int = 0
    """The adapter or model that the run ends with; rank 0 writes it."""
    load_bytes: int | None = None
    """Memory of the host that the ranks of one node need at once to load the model."""
    steps: Sequence[PlannedStep] = ()
    """What a step will be, under the config's strategy and under others."""
    expected: Expected | None = None
    """What a rank will do, under the config's strategy."""
    output_shared: bool | None = None
    """Whether the nodes' output directories must be one (True), must not be (False), or may be either (None)."""
    packages: Collection[str] = ("allranks", "torch")
    """Without these nothing starts."""

    @property
    def uses_nccl(self) -> bool:
        return self.backend == "nccl" or (self.backend is None and self.device == "cuda")


@dataclass(frozen=True)
class Pairs:
    """Which nodes tried to reach which. `places` are the nodes in the order of the reports, as they offer themselves.

    `unreached`: (who tried, what it did not reach), by place. `tried`: the pairs of places that were tried, (from, to);
    None for all of them.
    """

    places: Sequence[Place]
    unreached: Sequence[tuple[int, Unreached]] = ()
    tried: Collection[tuple[int, int]] | None = None


@dataclass(frozen=True)
class ClockOffset:
    """By how many seconds a node's clock is ahead of the gatherer's, give or take `within`."""

    seconds: float
    within: float


@dataclass(frozen=True, eq=False)
class Subject:
    """All that is known of the nodes: checks are pure functions of it. Keys are the nodes' names throughout.

    `reports`: what each node reported, None for one that did not; `absent` says why, as far as that is known.
    `starting`: the node at whose terminal this is. `refusals`: why a node would not start its ranks, in its own words.
    `num_processes`: how many each starts. `have_met`: whether all have met, so that one without a report is there.
    `must_match` and `network`: those fields of the nodes' accounts. `earlier`: an earlier reading of the same nodes,
    for what counts up. `clocks`: None where nobody compared them, `measured` where nothing was. It is itself and no
    other, so that what several checks need of it can be kept (`kept`).
    """

    reports: Mapping[str, NodeReport | None]
    starting: str = ""
    wanted: Wanted = Wanted()
    absent: Mapping[str, str] = field(default_factory=dict)
    refusals: Mapping[str, Sequence[str]] = field(default_factory=dict)
    num_processes: Mapping[str, int] = field(default_factory=dict)
    have_met: bool = False
    must_match: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    network: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    pairs: Pairs | None = None
    clocks: Mapping[str, ClockOffset] | None = None
    earlier: Mapping[str, NodeReport | None] = field(default_factory=dict)
    measured: Measurements | None = None

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """All names, in natural order: nothing depends on the order in which they came."""
        return tuple(sorted(self.reports, key=natural))

    @cached_property
    def reported(self) -> tuple[tuple[str, NodeReport], ...]:
        """The nodes that did report."""
        return tuple((node, report) for node in self.nodes if (report := self.reports[node]) is not None)

    @cached_property
    def silent(self) -> tuple[str, ...]:
        """The nodes that did not."""
        return tuple(node for node in self.nodes if self.reports[node] is None)


@dataclass(frozen=True)
class Answer:
    """What a check says of some nodes. `text`: what was found of them, or why they were skipped or are not known.

    `remedy` and `severity` are the check's, where they are empty.
    """

    nodes: tuple[str, ...]
    outcome: Outcome
    text: str = ""
    evidence: tuple[str, ...] = ()
    remedy: str = ""
    severity: Severity | None = None


@dataclass(frozen=True)
class Check:
    """One thing that is looked at on every node. `what`, `why`, `remedy` and `false_alarm` are sentences for users.

    `severity` is the worst that it finds. `false_alarm` says what it does not count, so that healthy nodes pass.
    `recorded`: its behaviour on real hardware is known from recorded input only.
    """

    id: str
    what: str
    why: str
    remedy: str
    severity: Severity
    false_alarm: str
    look: Callable[[Subject], Iterable[Answer]]
    quick: bool = True
    recorded: bool = False

    @property
    def family(self) -> str:
        return self.id.partition(".")[0]


def ok(*nodes: str) -> Answer:
    return Answer(nodes, "ok")


def found(
    nodes: str | Iterable[str],
    text: str,
    *,
    evidence: Iterable[str] = (),
    remedy: str = "",
    severity: Severity | None = None,
) -> Answer:
    """Something that should not be, on one node or several."""
    names = (nodes,) if isinstance(nodes, str) else tuple(nodes)
    return Answer(names, "found", text, tuple(evidence), remedy, severity)


def skipped(nodes: str | Iterable[str], reason: str) -> Answer:
    """It does not apply, which is no failure."""
    return Answer((nodes,) if isinstance(nodes, str) else tuple(nodes), "skipped", reason)


def unknown(nodes: str | Iterable[str], reason: str) -> Answer:
    """It applies and could not be seen, which is not ok."""
    return Answer((nodes,) if isinstance(nodes, str) else tuple(nodes), "unknown", reason)


_T = TypeVar("_T")


def kept(make: Callable[[Subject], _T]) -> Callable[[Subject], _T]:
    """`make`, once for each subject: for what several checks need."""
    known: WeakKeyDictionary[Subject, _T] = WeakKeyDictionary()

    def of(subject: Subject) -> _T:
        if subject not in known:
            known[subject] = make(subject)
        return known[subject]

    return of
