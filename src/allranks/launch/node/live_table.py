"""Node 0's part: one table of all ranks, written for whoever looks, and the run that hangs ended."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from allranks.findings import Finding, printed
from allranks.launch.peers import Peers
from allranks.live.deadlines import Limits, overdue
from allranks.live.live_file import LiveFile
from allranks.live.state import LiveTable, NodeState
from allranks.live.table import at_our_clock, table_of_nodes

STATE = "state"
"""What a node tells of its ranks each second."""


class LiveTableKeeper:
    """Keeps the newest state of each node, and in `hang` why the run is to end, once it hangs."""

    def __init__(self, peers: Peers, *, limits: Limits | None, ends: bool, say: Callable[[str], None]) -> None:
        self._peers, self._limits, self._ends, self._say = peers, limits, ends, say
        self.hang: Finding | None = None
        self._nodes: dict[int, NodeState] = {}  # by the node's rank among the peers, whoever it says it is
        self._overdue: tuple[Finding, ...] = ()
        self._file = LiveFile(peers.node.run, say)

    def look(self, own: Sequence[NodeState]) -> None:
        """Take in what the nodes have said, or, where they do not meet, what this one says of itself."""
        now = time.time()
        for node, state in [*((0, one) for one in own), *self._told()]:
            self._nodes[node] = at_our_clock(state, now)
        if not self._nodes:
            return
        table = table_of_nodes(self._peers.node.run_id, now, self._nodes.values(), overdue=self._overdue)
        self._file.write(self._with_overdue(table, now))

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
            return table
        found = overdue(table, self._limits, now)
        if found and not self._overdue:
            self._hangs(found[0])
        elif self._overdue and not found:
            self._say("the ranks that seemed to hang go on")
        self._overdue = tuple(found)
        return table_of_nodes(table.run_id, table.t, table.nodes, overdue=found)

    def _hangs(self, finding: Finding) -> None:
        """Say so at once; what is to be looked at while it hangs is looked at before the run is ended."""
        if not self._ends:
            self._say(printed(finding))
            return
        self.hang = finding
        if (rendezvous := self._peers.rendezvous) is not None:
            rendezvous.end_all(finding)
