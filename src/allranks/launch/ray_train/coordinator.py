"""What the driver and the workers of a run tell each other: an actor that lives as long as the driver does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from allranks.findings import Finding

NAMESPACE = "allranks"
FINAL_CODES = (2, 3)
"""Exit codes of what the next attempt would meet again: wrong usage, config or data; a refusal."""
# Lines of output that wait for the driver to fetch them; of more, the oldest are lost.
_MOST_LINES = 10_000


def coordinator_name(run_id: str) -> str:
    """The name under which the actor of a run is found in the namespace."""
    return f"coordinator-{run_id}"


@dataclass(frozen=True)
class RankSpec:
    """What every worker does. `environment` may hold secrets: it goes from process to process, and is shown nowhere."""

    run_id: str
    world_size: int
    config: str
    output_dir: str
    directory: str
    environment: Mapping[str, str] = field(repr=False)
    ray_directory: str
    version: str
    attempt: int = 0
    master_addr: str = ""
    master_port: int = 0


@dataclass(frozen=True)
class Placement:
    """Where a rank runs."""

    host: str
    node_rank: int
    local_rank: int


@dataclass(frozen=True)
class RankExit:
    """How a rank's engine ended: exit code, or the negative number of the signal that killed it."""

    attempt: int
    rank: int
    host: str
    code: int
    message: str = ""
    log: str = ""
    cause: str = ""
    """The kind of its error, where the rank itself knows it."""
    is_shown: bool = False
    """Whether the user has read the message: rank 0 prints its own."""


@dataclass(frozen=True)
class Command:
    """What a worker hears at each beat: whether to save and stop; how many reports rank 0 has made, and no more;
    whether the ranks hang, and are to end for Ray to start them again."""

    stop: bool
    num_reports: int
    closed: bool
    hangs: bool = False


@dataclass(frozen=True)
class Status:
    """The state of the run for the driver. `ends` are in the order in which the ranks ended; `failures` are Ray's own
    words on each worker that failed, by attempt."""

    attempt: int
    placements: Mapping[int, Placement]
    exits: list[RankExit]
    failures: Mapping[int, Mapping[int, str]]
    lines: list[str]
    committed: int
    stopped: tuple[Finding, ...] = ()
    """Ranks of the newest attempt that do not run, as their workers saw them last."""
    states: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """What the workers have said of their ranks since the last call (see live/state.py)."""


@dataclass
class Coordinator:
    """The actor itself; every method is called remotely, one at a time."""

    spec: RankSpec
    attempt: int = 0
    hung_attempt: int = 0
    stopping: bool = False
    num_reports: int = 0
    closed: bool = False
    committed: int = 0
    placements: dict[int, Placement] = field(default_factory=dict)
    exits: list[RankExit] = field(default_factory=list)
    failures: dict[int, dict[int, str]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    stopped: dict[int, tuple[Finding, ...]] = field(default_factory=dict)
    states: dict[int, Mapping[str, Any]] = field(default_factory=dict)

    def is_up(self) -> bool:
        """Answers once the actor's process has started."""
        return True

    def begin(self, master_addr: str, master_port: int) -> None:
        """Ray has started a new group of workers, whose ranks meet at this address."""
        self.attempt += 1
        self.placements, self.stopped, self.states = {}, {}, {}
        self.num_reports, self.closed = 0, False
        self.spec = replace(self.spec, attempt=self.attempt, master_addr=master_addr, master_port=master_port)

    def enlist(self, rank: int, placement: Placement) -> RankSpec:
        self.placements[rank] = placement
        return self.spec

    def beat(
        self, rank: int, lines: list[str], stopped: tuple[Finding, ...] = (), state: Mapping[str, Any] | None = None
    ) -> Command:
        self.stopped[rank] = stopped
        if state is not None:
            self.states[rank] = state
        self.lines = [*self.lines, *lines][-_MOST_LINES:]
        return Command(self.stopping, self.num_reports, self.closed, 0 < self.attempt == self.hung_attempt)

    def announce(self, num_reports: int, closed: bool, committed: int) -> None:
        """Rank 0 is about to report to Ray for the `num_reports`th time, which every rank must do with it."""
        self.num_reports, self.closed = num_reports, closed
        self.committed = max(self.committed, committed)

    def exited(self, rank_exit: RankExit) -> None:
        self.exits.append(rank_exit)

    def fail(self, errors: dict[int, str]) -> bool:
        """Ray has seen these workers fail; returns whether it may try again."""
        self.failures[self.attempt] = {rank: self._lost(rank, text) for rank, text in errors.items()}
        self.placements = {}
        return not any(end.attempt == self.attempt and end.code in FINAL_CODES for end in self.exits)

    def _lost(self, rank: int, text: str) -> str:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        host = f" on {self.placements[rank].host}" if rank in self.placements else ""
        return f"the worker of rank {rank}{host} was lost: {lines[0] if lines else 'Ray does not say why'}"

    def stop(self) -> None:
        self.stopping = True

    def end_hung(self, attempt: int) -> None:
        """The ranks of this attempt hang: they are to end, for Ray to start them again."""
        self.hung_attempt = attempt

    def status(self) -> Status:
        lines, self.lines = self.lines, []
        states, self.states = self.states, {}
        failures = {attempt: dict(errors) for attempt, errors in self.failures.items()}
        return Status(
            self.attempt,
            dict(self.placements),
            list(self.exits),
            failures,
            lines,
            self.committed,
            tuple(one for _, of_rank in sorted(self.stopped.items()) for one in of_rank),
            states,
        )
