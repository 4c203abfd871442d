"""Node 0's part: one table of all ranks, written for whoever looks, and the run that hangs ended."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from allranks.findings import Finding, printed
from allranks.launch.node.live_evidence import explained
from allranks.launch.peers import Peers
from allranks.live.deadlines import Limits, overdue
from allranks.live.live_file import LiveFile
from allranks.live.silence import Silence
from allranks.live.slow_links import SlowLinks
from allranks.live.state import LiveTable, NodeState
from allranks.live.stragglers import Stragglers
from allranks.live.table import at_our_clock, table_of_nodes
from allranks.observe.events import WarningEvent

STATE = "state"
"""What a node tells of its ranks each second."""

# Nodes tell of their ranks each second.
_LOOK_AGAIN_SECONDS, _POLL_SECONDS = 3.0, 0.1

Explain = Callable[[Peers, Sequence[Finding], Callable[[], bool]], Finding]
"""Makes the finding of a hang out of what the deadlines say; the last argument tells whether it still hangs."""
AfterHang = Callable[[Finding, LiveTable], int | None]
"""How often all ranks will have been started again, if they are to be after this hang; None if they are not."""


class LiveTableKeeper:
    """Keeps the newest state of each node, and in `hang` why the run is to end, once it hangs.

    `after_hang`: asked of a hang before the run ends for it; without an answer it only ends.
    """

    def __init__(
        self,
        peers: Peers,
        *,
        limits: Limits | Silence | None,
        ends: bool,
        say: Callable[[str], None],
        explain: Explain = explained,
        after_hang: AfterHang | None = None,
    ) -> None:
        self._peers, self._limits, self._ends, self._say, self._explained = peers, limits, ends, say, explain
        self._after_hang, self._table = after_hang, LiveTable()
        self.hang: Finding | None = None
        self.restarts: int | None = None
        """How often all ranks will have been started again, where they are to be after this hang."""
        self._nodes: dict[int, NodeState] = {}  # by the node's rank among the peers, whoever it says it is
        self._overdue: tuple[Finding, ...] = ()
        self._explanation: Finding | None = None  # of what is overdue
        self._num_looks = 0
        self._stragglers, self._slow_links = Stragglers(), SlowLinks()
        self._file = LiveFile(peers.node.run, say)

    def _look_again(self) -> None:
        """Wait until what the ranks do after they were looked at is known: a signal that asks for stacks also ends a
        call of the system that would have waited on."""
        seen, until = self._num_looks, time.monotonic() + _LOOK_AGAIN_SECONDS
        while self._overdue and self._num_looks < seen + 2 and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)

    def look(self, own: Mapping[int, NodeState]) -> None:
        """Take in what the nodes have said; where they do not meet, `own` has what has been heard since the last call,
        by who said it."""
        now = time.time()
        self._num_looks += 1
        for node, state in [*own.items(), *self._told()]:
            self._nodes[node] = at_our_clock(state, now)
        if not self._nodes:
            return
        table = table_of_nodes(self._peers.node.run_id, now, self._nodes.values(), overdue=self._overdue)
        self._table = table
        for event in self._stragglers.read(table):
            self._say(event.message)
            self._file.note(event, table.run_id)
        for finding in self._slow_links.read(table):
            self._say(printed(finding))
            self._file.note(WarningEvent(step=table.step, message=printed(finding)), table.run_id)
        table = replace(table, stragglers=(*self._stragglers.found, *self._slow_links.found))
        self._file.write(self._with_overdue(table, now))

    def forget(self) -> None:
        """All ranks are started again: what was said of those before does not count."""
        self._nodes, self._overdue, self._explanation = {}, (), None
        self.hang, self.restarts = None, None

    def close(self) -> None:
        self._file.close()

    def _told(self) -> list[tuple[int, NodeState]]:
        rendezvous = self._peers.rendezvous
        states = []
        for node, message in rendezvous.take(STATE) if rendezvous is not None else ():
            with contextlib.suppress(ValueError):
                state = NodeState.from_message(message)
                has_rank = rendezvous is not None and rendezvous.own.has_rank
                states.append((node, replace(state, node=node) if has_rank else state))
        return states

    def _with_overdue(self, table: LiveTable, now: float) -> LiveTable:
        if self._limits is None or self.hang is not None:
            return replace(table, overdue=self._overdue)
        before, self._overdue = self._overdue, tuple(overdue(table, self._limits, now))
        if not self._overdue:
            self._explanation = None
        if self._overdue and not before:
            threading.Thread(target=self._explain, args=(self._overdue,), name="live hang", daemon=True).start()
        elif before and not self._overdue:
            self._say("the ranks that seemed to hang go on")
        # What the deadlines say is less than what the looks of all nodes at their ranks have shown since.
        known = self._explanation
        return replace(table, overdue=self._overdue if known is None else (known,))

    def _explain(self, found: Sequence[Finding]) -> None:
        """Look at what hangs while it hangs; then say so, or end the run for it. A thread of its own: it takes seconds,
        in which the ranks may go on."""
        try:
            explanation = self._explained(self._peers, found, lambda: not self._overdue)
        except Exception as error:  # a fault of ours must not leave the run hanging
            self._say(f"warning: what the ranks do while they hang could not be looked at: {error!r}")
            explanation = found[0]
        self._look_again()
        if not self._overdue:
            return
        self._explanation = explanation
        if not self._ends:
            self._say(printed(explanation))
            return
        rendezvous = self._peers.rendezvous
        fails = rendezvous is not None and rendezvous.stop_finding() is not None  # for another reason, already
        if self._after_hang is not None and not fails:
            self.restarts = self._after_hang(explanation, self._table)
        if self.restarts is not None:
            self._peers.restart_all(self.restarts)
        self.hang = explanation
        self._overdue = (explanation,)
        if rendezvous is not None:
            rendezvous.end_all(explanation)
