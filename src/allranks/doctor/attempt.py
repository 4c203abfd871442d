"""One node's part in an attempt, as its end is judged: what was started, and how its launcher ended."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from allranks.doctor.of_rank import OfRank
from allranks.findings import Finding
from allranks.observe import RunDir


@dataclass(frozen=True)
class Started:
    """What this node, `node` by name, started as its part. `log_starts`: the sizes that its logs had before.

    `ranks` are those of this node, where it is known which. `told_of_none` says, for a launcher that started no rank,
    what the nodes were to do first.
    """

    run: RunDir
    run_id: str
    node: int | str
    launcher: str
    num_local_ranks: int
    world_size: int
    num_nodes: int = 1
    ranks: range | None = None
    log_starts: Mapping[Path, int] = field(default_factory=dict)
    told_of_none: str = "no rank reported anything before it ended"
    is_ours: bool = True
    """Whether it is our own engine, whose checkpoints we know."""
    others: tuple[OfRank, ...] = ()
    """What other nodes told of their ranks at the end, where this one does not see their logs."""

    def log_start(self, log: Path) -> int:
        """The size that a log had before."""
        return self.log_starts.get(log, 0)

    def has_written(self, path: Path) -> bool:
        """Whether a file in the run directory is of this start, and no earlier one: newer than its launch.json."""
        return _written(path) >= _written(self.run.started(self.node))


@dataclass(frozen=True)
class Ended:
    """How the launcher ended, the first signal that asked us to stop, and whether we had to kill.

    `returncode` is the launcher's exit code, or 128 + the number of the signal that ended it. `lost` is why the run
    could not go on, where that is not in the hands of this node. `memory` says what ran out of memory while it ran, by
    what the kernel killed for that: "" if nothing did, None where the kernel does not tell.
    """

    returncode: int
    signal: signal.Signals | None
    killed: bool
    lost: Finding | None = None
    memory: str | None = None
    stopped: tuple[Finding, ...] = ()
    """Of its ranks that did not run."""
    ranks: Mapping[int, int] = field(default_factory=dict)
    """The ranks that were seen, by their process ids."""
    alive: frozenset[int] = frozenset()
    """Those of the process ids that still ran when the run was ended from here."""


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
