"""The lines that the nodes' launchers exchange: JSON, bounded in size and time.

Nothing that arrives is ever run or imported.
"""

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

GREETING = "allranks rendezvous 5"
MAX_LINE_BYTES = 4 * 2**20  # a config with some thousand keys is far below
STRANGERS_BYTES = 64 * 2**10
"""The longest line from somebody of whom nothing is known: who it is and its proof take some hundred bytes."""
CHUNK_BYTES = 64 * 2**10
PULSE_SECONDS = 1.0
CLOSED = "the connection was closed"
HANDSHAKE_SECONDS = 10.0


class WireError(Exception):
    """The other side speaks something else, said too much, or has gone."""


async def send(writer: asyncio.StreamWriter, message: Mapping[str, Any]) -> None:
    writer.write(json.dumps(message).encode() + b"\n")
    await writer.drain()


class Clock:
    """Whether a talking thread came round in time. If not, others only seem silent: what they said was not read yet."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def on_time(self) -> bool:
        late = time.monotonic() - self._last > 3 * PULSE_SECONDS
        self._last = time.monotonic()
        return not late


class Lines:
    """The lines of a stream, none longer than `limit`, which may grow once it is known who speaks."""

    def __init__(self, reader: asyncio.StreamReader, limit: int = STRANGERS_BYTES) -> None:
        self.limit = limit
        self._reader = reader
        self._buffer = bytearray()

    async def next(self) -> bytes:
        """The next line without its end. Raises WireError for a longer one and at the end of the stream."""
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > self.limit:
                break
            chunk = await self._reader.read(CHUNK_BYTES)
            if not chunk:
                raise WireError(CLOSED)
            self._buffer += chunk
        if end < 0 or end > self.limit:
            raise WireError(f"sent a line of more than {self.limit // 1024} KiB")
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line


async def receive(lines: Lines, seconds: float | None = None) -> dict[str, Any]:
    """The next message. Raises WireError at the end of the stream, after `seconds` of silence, and for nonsense."""
    return read(await receive_line(lines, seconds))


async def receive_line(lines: Lines, seconds: float | None = None) -> bytes:
    """The next line. Raises WireError at the end of the stream and after `seconds` of silence."""
    try:
        async with asyncio.timeout(seconds) as limit:
            return await lines.next()
    except ConnectionResetError:
        raise WireError(CLOSED) from None
    except OSError as error:  # the kernel's own time-out is a TimeoutError too, whatever we have set
        if isinstance(error, TimeoutError) and limit.expired():
            raise WireError(f"no sign of life for {seconds:.0f} s") from None
        raise WireError(error.strerror or str(error) or type(error).__name__) from None


def read(line: bytes) -> dict[str, Any]:
    """The message of a line. Raises WireError for nonsense."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise WireError("does not speak allranks' language") from None
    if not isinstance(message, dict):
        raise WireError("does not speak allranks' language")
    return message
