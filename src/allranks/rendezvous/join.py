"""`join`: this node goes to the others, or waits for them where it is the one that they come to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import replace

from allranks.doctor.node_errors import node_error
from allranks.exit_codes import FAILED
from allranks.observe import say
from allranks.rendezvous.another_node_0 import refused_by_another
from allranks.rendezvous.head import Head
from allranks.rendezvous.listen import PortInUse
from allranks.rendezvous.member import Member
from allranks.rendezvous.participant import Agreement, Participant
from allranks.rendezvous.rendezvous import Rendezvous
from allranks.rendezvous.terms import Terms


def join(
    own: Participant,
    terms: Terms,
    agreement: Agreement,
    *,
    say: Callable[[str], None] = say,
    refused_elsewhere: Callable[[], str | None] = lambda: None,
) -> Rendezvous:
    """Wait until all nodes are there and agree, as `agreement` sees it.

    Raises RefusedError that names who is missing, or what differs. `refused_elsewhere` is asked all the while: why
    another node of the run was refused, where that is heard by another way than the nodes' own.
    """
    rendezvous: Rendezvous | None = None
    if own.node_rank == 0:
        try:
            rendezvous = Head(own, terms, agreement, say)
        except PortInUse:
            asyncio.run(refused_by_another(own, terms))  # if it is a node 0, its user reads of this one, too
            raise
    elif not own.has_rank and terms.is_host:
        # Of several launchers on the machine that c10d's endpoint names, the first is the host.
        with contextlib.suppress(PortInUse):
            rendezvous = Head(replace(own, node_rank=0), terms, agreement, say)
    rendezvous = rendezvous or Member(own, terms, agreement, say)
    rendezvous.refused_elsewhere = refused_elsewhere
    try:
        rendezvous.gather()
    except BaseException as error:
        # A refusal that another node has told goes on with that one's reason.
        rendezvous.leave(FAILED, rendezvous.stop_finding() or node_error(error, rendezvous.own.id))
        raise
    return rendezvous
