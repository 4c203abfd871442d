"""Can this node be reached at a port, and can it reach another? Asked of both before anything is started."""

import asyncio
import contextlib
import errno
import secrets
import socket
from typing import Any

from allranks.cluster.not_reached import why_not_reached

_BACKLOG = 4096
_TOKEN_BYTES = 16


class PortTaken(Exception):
    """Why the port could not be opened."""


class Listener:
    """Listens on a port of all addresses of this node and shows a token to whoever connects, so that they know that
    they reached this node and not another one behind the same address (docker0 has the same one everywhere)."""

    def __init__(self, server: asyncio.Server, token: str) -> None:
        self._server = server
        self.token = token

    @classmethod
    async def open(cls, port: int) -> "Listener":
        """Raises PortTaken."""
        token = secrets.token_hex(_TOKEN_BYTES)

        async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, TimeoutError):
                writer.write(token.encode())
                # Whoever connected closes first: the side that does so keeps the port in TIME_WAIT for a minute.
                await asyncio.wait_for(reader.read(), timeout=10)
            writer.close()

        try:
            server = await asyncio.start_server(greet, host=None, port=port, backlog=_BACKLOG, limit=1024)
        except OSError as error:
            raise PortTaken(_reason(error)) from None
        return cls(server, token)

    async def close(self) -> None:
        self._server.close()


async def reach(addresses: list[str], port: int, token: str, timeout_seconds: float) -> dict[str, dict[str, Any]]:
    """Connect to `port` of each address at once. By address: `{"ok": True, "from": own address}` or
    `{"ok": False, "reason": …}`."""
    results = await asyncio.gather(*(_reach_one(address, port, token, timeout_seconds) for address in addresses))
    return dict(zip(addresses, results, strict=True))


async def _reach_one(address: str, port: int, token: str, timeout_seconds: float) -> dict[str, Any]:
    try:
        async with asyncio.timeout(timeout_seconds):
            reader, writer = await asyncio.open_connection(address, port)
            try:
                said = await reader.readexactly(len(token))
                if said.decode("ascii", "replace") != token:
                    return {"ok": False, "reason": "something else listens there"}
                return {"ok": True, "from": writer.get_extra_info("sockname")[0]}
            finally:
                writer.close()
    except TimeoutError:
        return {"ok": False, "reason": "timed out"}
    except asyncio.IncompleteReadError:
        return {"ok": False, "reason": "something else listens there"}
    except (OSError, UnicodeError) as error:
        return {"ok": False, "reason": _reason(error)}


def _reason(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return "the name is not known there"
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return "already in use"
    return why_not_reached(error)
