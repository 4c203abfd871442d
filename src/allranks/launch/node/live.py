"""This node's part in watching the run while it goes on: what its ranks do is told to node 0, which keeps the table.

Threads of their own do it, one for each thing that may block: the ranks' events and the table lie on disks, and a disk
that hangs must keep nobody from saying that it does. None of them can hold or fail the launcher.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Sequence

import psutil

from allranks.findings import Finding
from allranks.launch.node.live_evidence import EvidenceOfNode
from allranks.launch.node.live_stacks import StacksRequests, stacks_of_node
from allranks.launch.node.live_table import STATE, AfterHang, LiveTableKeeper
from allranks.launch.node.stopped_ranks import rank_number
from allranks.launch.peers import Peers
from allranks.live.collect import NodeCollector
from allranks.live.deadlines import Limits
from allranks.live.gpu_use import GpuUse
from allranks.live.silence import Silence
from allranks.live.state import NodeState

_EVERY_SECONDS = 1.0
_CLOSE_SECONDS = 2.0


class LiveNode:
    """Use as a context manager; within, `seen` is to be told the processes of this node's ranks.

    `limits`: after how long ranks hang; None where that is not looked for. `ends`: a hang ends the run. `interfaces`:
    over which the ranks talk with those of other nodes; where they are not known, all of the node's are counted.
    `num_restarts`: how often all ranks have been started again before; `after_hang`: whether they are to be after one.
    """

    def __init__(
        self,
        peers: Peers,
        *,
        limits: Limits | Silence | None,
        ends: bool,
        num_gpus: int,
        say: Callable[[str], None],
        interfaces: Sequence[str] = (),
        num_restarts: int = 0,
        after_hang: AfterHang | None = None,
    ) -> None:
        node = peers.node
        self._rendezvous = peers.rendezvous
        self._gpus = GpuUse() if num_gpus else None
        self._collector = NodeCollector(
            node.run,
            node.run_id,
            node.name,
            socket.gethostname(),
            interfaces=interfaces,
            gpus=self._gpus,
            num_restarts=num_restarts,
        )
        self._keeper: LiveTableKeeper | None = None
        if peers.keeps_the_record:
            self._keeper = LiveTableKeeper(peers, limits=limits, ends=ends, say=say, after_hang=after_hang)
        self._say, self._told_of_fault = say, False
        self._processes: dict[int, psutil.Process] = {}
        self._numbers: dict[int, int] = {}
        self._state: NodeState | None = None
        self._steps: dict[int, int | None] = {}  # the last that each rank has done
        self._on_request: list[EvidenceOfNode | StacksRequests] = [EvidenceOfNode(peers), stacks_of_node(peers)]
        if peers.keeps_the_record:
            self._on_request.append(StacksRequests(peers))
        self._parts = [_EachSecond(self._collect, self._fault), _EachSecond(self._talk, self._fault)]

    def seen(self, ranks: Sequence[psutil.Process]) -> None:
        """The ranks of this node that are alive now."""
        processes = {}
        for rank in ranks:
            with contextlib.suppress(psutil.Error, OSError, ValueError):
                processes[rank_number(rank, self._numbers)] = rank
        self._processes = processes

    def hang(self) -> Finding | None:
        """Why the run is to end, where it hangs and no rendezvous says so to all nodes."""
        return self._keeper.hang if self._keeper is not None else None

    def __enter__(self) -> LiveNode:
        for part in (*self._parts, *self._on_request):
            part.start()
        return self

    def __exit__(self, *exc: object) -> None:
        for part in self._parts:  # what was collected last is told last
            part.close()
        for thread in self._on_request:
            thread.close()
        if self._gpus is not None:
            self._gpus.close()
        if self._keeper is not None:
            self._keeper.close()

    def _fault(self, error: Exception) -> None:
        """A fault of ours must not cost the run its view for good, nor the run itself."""
        if not self._told_of_fault:
            self._told_of_fault = True
            self._say(f"warning: what the ranks do is not shown for now: {error!r}")

    def _collect(self) -> None:
        state = self._collector.collect(self._processes, os.getpid())
        steps = {one.rank: one.step for one in state.ranks}
        if self._rendezvous is not None:
            for rank in state.ranks:
                # A step of a rank's ends when its collectives have: all nodes had a part in it.
                if rank.step is not None and rank.step != self._steps.get(rank.rank) and rank.since is not None:
                    self._rendezvous.signs_of_life.step_done(state.t - rank.since)
        self._steps = steps
        self._state = state

    def _talk(self) -> None:
        state, self._state = self._state, None
        if state is not None and self._rendezvous is not None:
            self._rendezvous.tell(STATE, state.to_message())
        if self._keeper is not None:
            self._keeper.look({} if self._rendezvous is not None or state is None else {0: state})


class _EachSecond(threading.Thread):
    """Calls `work` each second, and once more at the end; what it raises goes to `fault`."""

    def __init__(self, work: Callable[[], None], fault: Callable[[Exception], None]) -> None:
        super().__init__(name=f"live {work.__name__}", daemon=True)
        self._work, self._fault = work, fault
        self._over = threading.Event()

    def run(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._over.wait(_EVERY_SECONDS)
            try:
                self._work()
            except Exception as error:
                self._fault(error)

    def close(self) -> None:
        """Does not wait for work that is blocked."""
        self._over.set()
        self.join(_CLOSE_SECONDS)
