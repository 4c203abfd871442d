"""Can two nodes talk on a port that the kernel chose? Tried with a message of many packets, both ways.

Whoever cannot prove that it knows the listener's secret gets no answer. Neither side reads more than it expects, and
nobody looks at what it reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from allranks.cluster.not_reached import why_not_reached

MESSAGE_BYTES = 96 * 2**10
"""More than ten packets of 9,000 bytes, the largest usual ones: what fits into one says nothing of large ones."""
PAIR_SECONDS = 6.0
"""For one connection and its messages. A lost SYN is sent again after 1 and 3 s."""
AT_ONCE = 64
"""Connections that a node opens at a time, so that a run of any size keeps below the usual 1,024 descriptors."""
_MOST_UNPROVED = 256
_BACKLOG = 4096
PROOF_BYTES = 64  # SHA-256, in hexadecimal digits
_RECEIPT = b"."


@dataclass(frozen=True)
class Target:
    """An address where another node listens; who knows its `secret` belongs to the run."""

    node: int
    address: str
    port: int
    secret: bytes


@dataclass(frozen=True)
class Unreached:
    """A target that was not reached, and why. `stage`: "connect", "greet" (it is not that node) or "message"."""

    node: int
    address: str
    port: int
    stage: str
    reason: str


class Listener:
    """Listens on a port of each of `addresses`; `ports` has them. Raises OSError for one that is not this node's."""

    def __init__(self, addresses: Sequence[str], secret: bytes) -> None:
        self._secret = secret
        self._num_unproved = 0
        self._servers: list[asyncio.Server] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sockets, self.ports = open_ports(addresses)

    async def start(self) -> None:
        """Answer from now on. Who came before waits in the kernel."""
        self._loop = asyncio.get_running_loop()
        self._servers = [await asyncio.start_server(self._answer, sock=opened) for opened in self._sockets]

    def close(self) -> None:
        """May be called from any thread."""
        if self._loop is None:
            for opened in self._sockets:
                opened.close()
            return
        with contextlib.suppress(RuntimeError):  # it has ended, and all that it had
            for server in self._servers:
                self._loop.call_soon_threadsafe(server.close)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._num_unproved >= _MOST_UNPROVED:
            writer.transport.abort()
            return
        try:
            # Both ends have the time of one: a stranger stays no longer than a node may.
            with contextlib.suppress(OSError, EOFError):
                async with asyncio.timeout(PAIR_SECONDS):
                    if await self._is_proved(reader):
                        writer.write(proof(self._secret, b"listens"))
                        writer.write(bytes(MESSAGE_BYTES))
                        await reader.readexactly(MESSAGE_BYTES)
                        writer.write(_RECEIPT)
                        await reader.read(1)  # who connected closes first: the port is then not kept in TIME_WAIT here
        finally:
            writer.transport.abort()

    async def _is_proved(self, reader: asyncio.StreamReader) -> bool:
        self._num_unproved += 1
        try:
            said = await reader.readexactly(PROOF_BYTES)
        finally:
            self._num_unproved -= 1
        return hmac.compare_digest(said, proof(self._secret, b"connects"))


async def unreached(targets: Sequence[Target]) -> list[Unreached]:
    """Connect to all targets, and exchange a message with each; those where that failed."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def attempt(target: Target) -> Unreached | None:
        async with gate:
            return await _attempt(target)

    return [found for found in await asyncio.gather(*map(attempt, targets)) if found is not None]


async def _attempt(target: Target) -> Unreached | None:
    stage, writer = "connect", None
    try:
        async with asyncio.timeout(PAIR_SECONDS):
            reader, writer = await asyncio.open_connection(target.address, target.port)
            stage = "greet"
            writer.write(proof(target.secret, b"connects"))
            said = await reader.readexactly(PROOF_BYTES)
            if not hmac.compare_digest(said, proof(target.secret, b"listens")):
                raise EOFError
            stage = "message"
            writer.write(bytes(MESSAGE_BYTES))
            await reader.readexactly(MESSAGE_BYTES)
            await reader.readexactly(len(_RECEIPT))
            return None
    except EOFError:  # asyncio's IncompleteReadError is one
        reason = "the connection was closed"
    except OSError as error:
        reason = why_not_reached(error)
    finally:
        if writer is not None:
            writer.transport.abort()
    return Unreached(target.node, target.address, target.port, stage, reason)


def open_ports(addresses: Sequence[str]) -> tuple[list[socket.socket], dict[str, int]]:
    """Listen at each address, on a port that the kernel chooses: the sockets, and the ports by address.

    Raises OSError for an address that is not this node's; then none is left open.
    """
    sockets: list[socket.socket] = []
    try:
        for address in addresses:
            sockets.append(_open(address))
    except OSError:
        for opened in sockets:
            opened.close()
        raise
    return sockets, {address: opened.getsockname()[1] for address, opened in zip(addresses, sockets, strict=True)}


def _open(address: str) -> socket.socket:
    family, kind, protocol, _, target = socket.getaddrinfo(
        address, 0, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
    )[0]
    opened = socket.socket(family, kind, protocol)
    try:
        opened.bind(target)
        opened.listen(_BACKLOG)
        opened.setblocking(False)
    except OSError:
        opened.close()
        raise
    return opened


def proof(secret: bytes, role: bytes) -> bytes:
    return hmac.new(secret, role, "sha256").hexdigest().encode()
