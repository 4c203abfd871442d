"""Who comes to node 0: what each says of itself, and whether there is a place for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from allranks.listing import printable
from allranks.rendezvous import wire
from allranks.rendezvous.channel import Channel, new_nonce, proves
from allranks.rendezvous.participant import Participant
from allranks.rendezvous.terms import Terms
from allranks.rendezvous.wire import WireError


@dataclass(frozen=True)
class Introduced:
    """A node that has proved that it knows the token. `refuses`: why it will not take part, if it will not."""

    node: Participant
    channel: Channel
    refuses: str | None = None


async def hear_introduction(
    lines: wire.Lines,
    writer: asyncio.StreamWriter,
    terms: Terms,
    run_id: str,
    check: Callable[[Mapping[str, Any]], None],
) -> Introduced:
    """Node 0's side of `channel.introduce`. Raises WireError for whoever is no node of the run.

    `check` raises ValueError for what is no account.
    """
    nonce = new_nonce()
    await wire.send(writer, {"greeting": wire.GREETING, "nonce": nonce, "run": run_id})
    message = await wire.receive(lines, wire.HANDSHAKE_SECONDS)
    hello = message.get("hello")
    if not isinstance(hello, dict):
        raise WireError("did not say who it is")
    if not proves(message.get("proof"), terms.token, nonce, hello):
        text = "its ALLRANKS_TOKEN is not the one of node 0: set the same on all nodes, or on none"
        await wire.send(writer, {"refused": text})
        raise WireError("another ALLRANKS_TOKEN")
    channel = Channel(lines, writer, "node 0", terms.token, (nonce, str(message.get("nonce", ""))))
    try:
        Participant.from_message(hello)
        lines.limit = wire.MAX_LINE_BYTES
        await channel.send({"welcome": True})
        try:
            told = await channel.receive(wire.HANDSHAKE_SECONDS)
        except WireError as error:
            text = (
                f"it said who it is, but what it has did not come whole ({error}): do large packets get through? "
                "Compare the MTU of the interfaces and switches in between"
            )
            # That much fits into a small packet.
            await channel.send({"trouble": text})
            raise WireError(text) from None
        refuses = printable(told["refuses"]) if "refuses" in told else None
        node = Participant.from_message({**hello, "account": told.get("account", {})})
        if refuses is None:
            check(node.account)
    except (ValueError, TypeError) as error:
        raise WireError(f"its account is incomplete: {error}") from None
    return Introduced(node, channel, refuses)


def no_place_for(node: Participant, host: Participant, taken: Mapping[int, Participant]) -> str | None:
    """Why a node cannot take part, of which `host` is node 0 and `taken` are the others by rank; None if it can."""
    rank = node.node_rank
    if node.has_rank != host.has_rank:
        ways = {True: "--node-rank and --master-addr", False: "--rdzv-backend c10d"}
        return f"it was started with {ways[node.has_rank]}, {host.host} with {ways[host.has_rank]}"
    if not node.has_rank:
        is_full = len(taken) == host.nnodes - 1
        return f"all {host.nnodes} nodes (--nnodes) are here already" if is_full else None
    if (other := host if rank == 0 else taken.get(rank)) is not None:
        return f"--node-rank {rank} is taken by {other.host} (pid {other.pid}): give every node its own"
    if not 0 < rank < host.nnodes:
        return f"--node-rank {rank}: node 0 ({host.host}) was started with --nnodes {host.nnodes}"
    return None
