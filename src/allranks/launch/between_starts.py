"""The nodes between two starts of all ranks: they hear of each other until they have met again, so that one that is
gone meanwhile is named at once, and not waited for."""

from __future__ import annotations

from types import TracebackType

from allranks.doctor.attempt import Started
from allranks.doctor.failures import seen_before
from allranks.doctor.node_errors import node_error
from allranks.doctor.verdict import Verdict, failed, left_by
from allranks.exit_codes import DONE, FAILED
from allranks.findings import Finding, told
from allranks.launch.finding_to_head import tell_head
from allranks.live.live_file import write_end, write_own_end
from allranks.rendezvous import Rendezvous


class BetweenStarts:
    """Use as a context manager around all starts of a run. Holds the rendezvous of the start before, as long as the
    nodes have not met for the next one."""

    def __init__(self) -> None:
        self._before: Rendezvous | None = None
        self._started: Started | None = None

    def __enter__(self) -> BetweenStarts:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._before is None:
            return
        node = self._before.own.id
        self._before.leave(FAILED, self._before.gone or (node_error(error, node) if error is not None else None))

    def keep(self, rendezvous: Rendezvous | None, started: Started) -> None:
        """Of a start that has ended, after which all nodes start their ranks again."""
        self._before, self._started = rendezvous, started

    def keeps(self, rendezvous: Rendezvous) -> bool:
        return rendezvous is self._before

    def have_met(self) -> None:
        """All nodes have met for the next start."""
        if self._before is not None:
            self._before.leave(DONE)
        self._before = None

    def why(self) -> str | None:
        """Why the nodes will not meet again: one of them is gone. None while nothing is known."""
        return None if self._gone is None else told(self._gone)

    def verdict(self) -> Verdict | None:
        """How the run ends for that, kept in its record; None where no node is gone."""
        if self._gone is None or self._before is None or self._started is None:
            return None
        started, gone = self._started, self._gone
        verdict = failed(FAILED, gone, left_by(started))
        tell_head(gone)
        if self._before.own.node_rank == 0:
            verdict = seen_before(verdict, started)
            write_end(started.run, started.run_id, FAILED, gone)
        else:
            write_own_end(started.run, started.node, started.run_id, FAILED, gone)
        return verdict

    @property
    def _gone(self) -> Finding | None:
        return None if self._before is None else self._before.gone
