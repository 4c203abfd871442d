"""Two nodes were started as node 0: the one that the others do not go to asks the other."""

from __future__ import annotations

import asyncio
import contextlib

from allranks.listing import printable
from allranks.rendezvous import wire
from allranks.rendezvous.channel import introduce
from allranks.rendezvous.participant import Participant
from allranks.rendezvous.terms import Terms

_SECONDS = 4.0
"""A lost SYN is sent again after 1 and 3 s."""


async def refused_by_another(own: Participant, terms: Terms) -> str | None:
    """What a node 0 at the address of `terms` has against this one; None where none is there. Raises nothing."""
    with contextlib.suppress(OSError, TimeoutError, wire.WireError):
        async with asyncio.timeout(_SECONDS):
            reader, writer = await asyncio.open_connection(terms.address, terms.port, limit=wire.CHUNK_BYTES)
            try:
                return await _ask(wire.Lines(reader), writer, own, terms)
            finally:
                writer.close()
    return None


async def _ask(lines: wire.Lines, writer: asyncio.StreamWriter, own: Participant, terms: Terms) -> str | None:
    channel, first = await introduce(lines, writer, own.hello(), terms)
    if "welcome" in first:
        await channel.send({"account": dict(own.account)})
        first = await channel.receive()
    return printable(first["refused"]) if "refused" in first else None
