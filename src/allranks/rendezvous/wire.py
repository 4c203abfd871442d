"""The lines that the nodes' launchers exchange: JSON, bounded in size and time, signed where a token is set.

Nothing that arrives is ever run or imported.
"""

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from typing import Any

GREETING = "allranks rendezvous 1"
MAX_LINE_BYTES = 4 * 2**20  # a config with some thousand keys is far below
PULSE_SECONDS = 1.0
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


async def receive(reader: asyncio.StreamReader, seconds: float | None = None) -> dict[str, Any]:
    """The next message. Raises WireError at the end of the stream, after `seconds` of silence, and for nonsense."""
    try:
        async with asyncio.timeout(seconds):
            line = await reader.readline()
    except TimeoutError:
        raise WireError(f"no sign of life for {seconds:.0f} s") from None
    except (ValueError, asyncio.LimitOverrunError):
        raise WireError("sent a line of more than 4 MiB") from None
    except ConnectionResetError:
        raise WireError("the connection was closed") from None
    except OSError as error:
        raise WireError(error.strerror or str(error)) from None
    if not line.endswith(b"\n"):
        raise WireError("the connection was closed")
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise WireError("does not speak allranks' language") from None
    if not isinstance(message, dict):
        raise WireError("does not speak allranks' language")
    return message


def proof(token: str, nonce: str, message: Mapping[str, Any]) -> str:
    """HMAC-SHA256 over the challenge and the message: only who knows the token can make it. Without token it is ''."""
    if not token:
        return ""
    text = json.dumps([nonce, message], sort_keys=True)
    return hmac.new(token.encode(), text.encode(), hashlib.sha256).hexdigest()


def proves(given: object, token: str, nonce: str, message: Mapping[str, Any]) -> bool:
    return isinstance(given, str) and hmac.compare_digest(given, proof(token, nonce, message))
