"""The lines between node 0 and another node, from the moment at which each has said who it is.

With a token every line carries a proof, keyed by the token and by a number of each side's own, made anew for every
connection. It is over who speaks, the line's number and its text: a line that was changed, left out, said twice, sent
back to its speaker or recorded from another connection proves nothing, and the connection ends there.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import secrets
from collections.abc import Mapping
from typing import Any, Literal

from allranks.rendezvous import wire
from allranks.rendezvous.terms import Terms
from allranks.rendezvous.wire import WireError

Side = Literal["node 0", "other"]
_SEAL_BYTES = 2 * hashlib.sha256().digest_size  # in hexadecimal
_NONCE_BYTES = 16


class NotProven(WireError):
    """What came was not said by somebody who knows the token."""


class Channel:
    """One connection, from one of its sides. `nonces`: node 0's, then the other's."""

    def __init__(
        self, lines: wire.Lines, writer: asyncio.StreamWriter, side: Side, token: str, nonces: tuple[str, str]
    ) -> None:
        self.lines, self.writer = lines, writer
        self._key = hmac.digest(token.encode(), json.dumps(["channel", *nonces]).encode(), "sha256") if token else b""
        self._own = side
        self._their: Side = "other" if side == "node 0" else "node 0"
        self._num_sent = self._num_received = 0

    async def send(self, message: Mapping[str, Any]) -> None:
        text = json.dumps(message).encode()
        # Written before anything is awaited: lines go in the order of their numbers.
        self.writer.write(self._seal(self._own, self._num_sent, text) + text + b"\n")
        self._num_sent += 1
        await self.writer.drain()

    async def receive(self, seconds: float | None = None) -> dict[str, Any]:
        """The next message. Raises WireError as `wire.receive` does, and NotProven for a line without its proof."""
        line = await wire.receive_line(self.lines, seconds)
        if self._key:
            seal, line = line[:_SEAL_BYTES], line[_SEAL_BYTES:]
            if not hmac.compare_digest(seal, self._seal(self._their, self._num_received, line)):
                raise NotProven("sent a line that the token does not prove")
            self._num_received += 1
        return wire.read(line)

    def _seal(self, side: Side, number: int, text: bytes) -> bytes:
        if not self._key:
            return b""
        return hmac.new(self._key, f"{side} {number} ".encode() + text, hashlib.sha256).hexdigest().encode()


async def introduce(
    lines: wire.Lines, writer: asyncio.StreamWriter, hello: Mapping[str, Any], terms: Terms
) -> tuple[Channel, dict[str, Any]]:
    """Say to node 0 who this node is; the channel, and node 0's first word on it.

    Raises WireError where no node 0 listens, and NotProven where it does not know the token.
    """
    try:
        greeting = await wire.receive(lines, wire.HANDSHAKE_SECONDS)
    except WireError as error:
        raise WireError(f"{foreign(terms)} ({error})") from None
    if greeting.get("greeting") != wire.GREETING:
        raise WireError(foreign(terms))
    challenge, nonce = str(greeting.get("nonce", "")), new_nonce()
    await wire.send(writer, {"hello": hello, "proof": proof(terms.token, challenge, hello), "nonce": nonce})
    channel = Channel(lines, writer, "other", terms.token, (challenge, nonce))
    return channel, await channel.receive(wire.HANDSHAKE_SECONDS)


def foreign(terms: Terms) -> str:
    """What to say of a port on which no node 0 listens."""
    return f"something else than this version of allranks listens there: take another {terms.port_option} on all nodes"


def new_nonce() -> str:
    """A number that is used once: what is proven with it was said after it was made."""
    return secrets.token_hex(_NONCE_BYTES)


def proof(token: str, challenge: str, hello: Mapping[str, Any]) -> str:
    """HMAC-SHA256 over node 0's challenge and what answers it: only who knows the token makes it. Without one, ''."""
    if not token:
        return ""
    text = json.dumps([challenge, hello], sort_keys=True)
    return hmac.new(token.encode(), text.encode(), hashlib.sha256).hexdigest()


def proves(given: object, token: str, challenge: str, hello: Mapping[str, Any]) -> bool:
    # As bytes: of texts compare_digest takes ASCII only.
    wanted = proof(token, challenge, hello).encode()
    return isinstance(given, str) and hmac.compare_digest(given.encode(errors="replace"), wanted)
