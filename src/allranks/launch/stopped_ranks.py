"""Ranks that do not run, on whichever node: told to the others and, once each, to the user."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

from allranks.doctor import causes
from allranks.doctor.first_failure import first_failure, goes_before
from allranks.doctor.stopped import waited_in_vain
from allranks.findings import Finding, printed
from allranks.observe import say as _say
from allranks.rendezvous import Rendezvous


class StoppedRanks:
    """What this node knows of them; without a rendezvous, of its own alone."""

    def __init__(self, rendezvous: Rendezvous | None, say: Callable[[str], None] | None = None) -> None:
        self._rendezvous, self._say = rendezvous, say or partial(_say, file=sys.stderr)
        self._own: tuple[Finding, ...] = ()
        self._shown: dict[tuple[object, object], float] = {}  # by node and rank: since when

    def update(self, own: tuple[Finding, ...]) -> None:
        """Take in what this node sees of its ranks now, tell the others what is new, and say what has changed."""
        if self._rendezvous is not None and [one.who for one in own] != [one.who for one in self._own]:
            self._rendezvous.tell_stopped(own)
        self._own = own
        known = {(one.who.node, one.who.rank): one for one in self.known(own)}
        for key, finding in known.items():
            if key not in self._shown:
                self._shown[key] = time.monotonic()
                self._say(printed(finding))
        for node, rank in self._shown.keys() - known.keys():
            seconds = time.monotonic() - self._shown.pop((node, rank))
            self._say(f"rank {rank} (node {node}) runs again, after {seconds:.0f} s")

    def known(self, own: Sequence[Finding]) -> list[Finding]:
        """All that do not run: `own` of this node, and what the other nodes say of theirs."""
        if self._rendezvous is None:
            return list(own)
        others = self._rendezvous.stopped.items()
        return [*own, *(one for node, told in others if node != self._rendezvous.own.node_rank for one in told)]

    def cause(self, failure: Finding | None, own: Sequence[Finding]) -> Finding | None:
        """The rank that all others waited for, if that is what `failure` follows from."""
        first = first_failure(self.known(own))
        if first is None or failure is None or failure.code == causes.RANK_STOPPED or not goes_before(first, failure):
            return None
        return waited_in_vain(first, failure)
