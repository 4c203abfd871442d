"""A node that refuses its own config or options says so to those that would wait for it until their join time-out."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace

from allranks.errors import AllranksError
from allranks.exit_codes import FAILED
from allranks.rendezvous import wire
from allranks.rendezvous.channel import introduce
from allranks.rendezvous.head import Head
from allranks.rendezvous.participant import Agreement, Participant
from allranks.rendezvous.terms import Terms

PATIENCE_SECONDS = 5.0
"""Nodes that are started together come some seconds apart; the user here waits for his message meanwhile."""
_RETRY_SECONDS = 0.3


def tell_node_0(own: Participant, terms: Terms, reason: str) -> bool:
    """Tell node 0 that this node will not come, and why; returns whether it was heard. Raises nothing."""
    with contextlib.suppress(OSError, TimeoutError, RuntimeError):
        return asyncio.run(_tell(own, terms, reason))
    return False


def tell_all(own: Participant, terms: Terms, agreement: Agreement, reason: str) -> None:
    """The same of node 0: tell the nodes that come, for so long as they may take that were started at the same moment.

    Raises nothing but what interrupts.
    """
    try:
        head = Head(own if own.has_rank else replace(own, node_rank=0), terms, agreement, say=lambda text: None)
    except (OSError, AllranksError):
        return  # nobody can come
    try:
        head.turn_away(reason, PATIENCE_SECONDS)
    finally:
        head.leave(FAILED)


async def _tell(own: Participant, terms: Terms, reason: str) -> bool:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, TimeoutError, wire.WireError):
            async with asyncio.timeout(deadline - time.monotonic()):
                reader, writer = await asyncio.open_connection(terms.address, terms.port)
                try:
                    return await _say(wire.Lines(reader), writer, own, terms, reason)
                finally:
                    writer.close()
        await asyncio.sleep(_RETRY_SECONDS)
    return False


async def _say(lines: wire.Lines, writer: asyncio.StreamWriter, own: Participant, terms: Terms, reason: str) -> bool:
    channel, first = await introduce(lines, writer, own.hello(), terms)
    if "welcome" not in first:
        return False
    await channel.send({"refuses": reason})
    await channel.receive()  # what node 0 says to all: it has heard
    return True
