"""This node among the others of the run: they get ready together, and hear of each other's end."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from allranks.cluster.account import NodeAccount, NodeStart
from allranks.doctor.attempt import Ended, Started
from allranks.doctor.first_failure import goes_before
from allranks.doctor.verdict import Verdict, cut_off, failed, left_by, with_elsewhere
from allranks.errors import RefusedError
from allranks.exit_codes import DONE, FAILED, PREEMPTED
from allranks.findings import Finding
from allranks.launch.node.other_starts import OtherStarts
from allranks.launch.node.this_node import Node
from allranks.launch.preflight.together import Judged
from allranks.launch.stopped_ranks import StoppedRanks
from allranks.rendezvous import Participant, Rendezvous

_RESTART, _END = "restart", "all ranks to end"


@dataclass
class Peers:
    """`node` carries the run id that all agreed on. Without a rendezvous (one node, or an elastic c10d) it is alone."""

    node: Node
    rendezvous: Rendezvous | None = None
    account: NodeAccount = field(default_factory=NodeAccount)
    code: int = FAILED
    others: OtherStarts | None = None
    finding: Finding | None = None
    """How it ended here, for the other nodes."""
    judged: Judged | None = None
    """What came of the checks before the start, where they were made."""

    def __post_init__(self) -> None:
        self.stopped = StoppedRanks(self.rendezvous)
        self._restarts: int | None = None

    @property
    def nodes(self) -> list[Participant]:
        """All nodes by rank; empty where they do not meet."""
        return self.rendezvous.nodes if self.rendezvous else []

    @property
    def world_size(self) -> int | None:
        """Ranks of all nodes together; None where this node cannot know."""
        return self.rendezvous.world_size if self.rendezvous else None

    @property
    def ranks(self) -> range | None:
        """The ranks of this node: torchrun numbers them node by node. None where this node cannot know."""
        if self.rendezvous is None or not self.rendezvous.own.has_rank:
            return None
        own = self.rendezvous.own
        first = sum(node.num_processes for node in self.rendezvous.nodes[: own.node_rank])
        return range(first, first + own.num_processes)

    def ready(self, must_match: Mapping[str, str], start: NodeStart) -> dict[str, NodeAccount]:
        """Wait until all nodes are ready to start their ranks, with equal `must_match`. Raises RefusedError.

        `start` is what this node is about to start; returns the accounts that this node knows, by the nodes' names.
        """
        account = replace(self.account, must_match=must_match, network={}, checkpoints=None, start=start)
        if self.rendezvous is None:
            return {str(self.node.name): account}
        self.rendezvous.ready(account.to_message())
        accounts = {rank: NodeAccount.from_message(said) for rank, said in self.rendezvous.accounts.items()}
        known = sorted(accounts.items())
        hosts = [node.host for node in self.nodes]
        names = [host if hosts.count(host) == 1 else node.name for node, host in zip(self.nodes, hosts, strict=True)]
        return {str(rank) if self.rendezvous.own.has_rank else names[rank]: one for rank, one in known}

    @property
    def keeps_the_record(self) -> bool:
        """Whether it is this node that writes the run's manifest; several do where none knows of the others."""
        return self.node.writes_the_manifest if self.rendezvous is None else self.rendezvous.own.node_rank == 0

    def restart_all(self, restarts: int) -> None:
        """On node 0, before it ends the run: have all nodes start their ranks again after that, for the `restarts`th
        time."""
        if self.rendezvous is None:
            self._restarts = restarts
        else:
            self.rendezvous.ask_all(_RESTART, restarts)

    @property
    def restarts(self) -> int | None:
        """How often all ranks will have been started again, where node 0 has said that they are to be."""
        for said in self.rendezvous.asked(_RESTART) if self.rendezvous is not None else ():
            if isinstance(said, int) and not isinstance(said, bool) and said > 0:
                self._restarts = said
        return self._restarts

    def lost(self) -> Finding | None:
        """Why the run cannot go on, if another node failed or was lost."""
        if self.rendezvous is not None:
            return self.rendezvous.stop_finding()
        return self.others.finding() if self.others is not None else None

    def first_failure(self) -> Finding | None:
        """What this node's end follows from, as far as it knows once it has told the others."""
        known = self.lost()
        return known if known is not None and goes_before(known, self.finding) else self.finding

    def tell_cause(self, finding: Finding) -> None:
        """Tell the others what began here, where another node has failed of it first."""
        if self.rendezvous is not None:
            self.rendezvous.tell_cause(finding)

    @property
    def own_host(self) -> str:
        return self.rendezvous.own.host if self.rendezvous else socket.gethostname()

    def parting(self) -> bool:
        """Whether another node has said good-bye: its launcher, and all that it started, has ended."""
        return self.rendezvous.parting if self.rendezvous else False

    def asked(self) -> None:
        """This node was asked to stop the run."""
        if self.rendezvous is not None:
            self.rendezvous.tell_stopping()

    def stopping(self) -> bool:
        """Whether another node was asked to stop the run."""
        return self.rendezvous.stopping if self.rendezvous else False

    def with_others_end(self, how: Ended) -> Ended:
        """`how` the ranks of this node ended, which is well, with why those of another one did not.

        Where torchrun's agent of another node has failed, that of this one ends well, and first: its ranks have.
        """
        if self.rendezvous is None or how.returncode != 0 or how.signal is not None or how.lost is not None:
            return how
        with contextlib.suppress(RefusedError):  # it is of a failure, which is asked for next
            self.rendezvous.round(_END, None)
        return replace(how, lost=self.rendezvous.stop_finding())

    def concluded_anew(self, verdict: Verdict) -> Verdict:
        """`verdict`, which knows more of the same failure than the one that the others were told by `ended`."""
        if self.finding is not None:
            self.finding = verdict.reason
        return verdict

    def ended(self, verdict: Verdict, started: Started, how: Ended) -> Verdict:
        """Tell the others how it ended here; returns the verdict with what they say of theirs.

        `how.lost` is what another node had said before. Where the verdict has another reason, it began here all the
        same: a rank that is killed shows first as a broken connection elsewhere.
        """
        left, lost = left_by(started), how.lost
        if cause := self.stopped.cause(verdict.reason, how.stopped):
            verdict, lost = failed(verdict.exit_code, cause, left), None
        elif how.killed and lost is None and (still := self.stopped.known(how.stopped)):
            verdict = replace(verdict, message="\n  ".join([verdict.message, *(one.what for one in still)]))
        if self.rendezvous is not None and lost is not None and verdict.reason is lost:
            self.code = DONE  # nothing began here
            settled = self.rendezvous.settled_finding(lost)
            return verdict if settled is lost else cut_off(verdict.exit_code, settled, left)
        self.code, self.finding = verdict.exit_code, verdict.reason
        if self.rendezvous is None or verdict.reason is None or verdict.exit_code in (DONE, PREEMPTED):
            return verdict
        elsewhere = self.rendezvous.fail(verdict.reason) if lost is None else None
        return verdict if elsewhere is None else with_elsewhere(verdict, elsewhere, left)
