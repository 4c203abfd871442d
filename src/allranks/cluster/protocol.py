"""What an agent and its head say to each other: one JSON object a line, never a pickle, never more than a bound.

From the head: `{"do": NAME, "to": NODE, "re": NUMBER, …}`, and `{"do": "ping"}` every two seconds. To the head: a
hello, one answer for each request (`{"re": NUMBER, "from": NODE, …}` or `… "error": TEXT`), lines of output in between,
and news of nodes: `joined`, `unreachable`, `lost`.
"""

import asyncio
import json
from typing import Any

VERSION = 1
HELLO = b'{"allranks_agent":'
"""How an agent's first line begins: what the remote account's shell prints before it is no part of the protocol."""

PING_SECONDS = 2.0
SILENCE_SECONDS = 7.0
"""Either side takes the other for lost after so long without a word. With GRACE_SECONDS it stays below 15 s."""
GRACE_SECONDS = 5.0
"""From SIGTERM to SIGKILL for a job whose head is lost."""

FINDING_FD = "ALLRANKS_FINDING_FD"
"""Tells a command the descriptor on which it may leave one JSON object about its end, in FINDING_BYTES; the answer to
`run` carries it as `finding`, unread."""
FINDING_BYTES = 60_000
"""Less than a pipe holds, so that nobody need read while the command runs."""

REQUEST_BYTES = 8 * 2**20
"""The longest line that an agent reads. Linux bounds arguments and environment together at a quarter of the stack
limit, 2 MiB by default; JSON's escapes may take more than twice that."""
ANSWER_BYTES = 2**20
"""The longest line that a head reads, and half of what it holds for each connection. Output comes 128 KiB at a time at
most, of which JSON may make six times as much."""


class Malformed(Exception):
    """A line that no agent of ours writes."""


async def read_message(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """The next message; None at the end of the stream. Raises Malformed."""
    try:
        line = await reader.readline()
    except ValueError:
        raise Malformed("a line that is too long") from None
    except OSError:
        return None
    if not line.endswith(b"\n"):
        return None  # cut off in the middle: the other side has died
    return decode(line)


def decode(line: bytes) -> dict[str, Any]:
    """Raises Malformed."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise Malformed(f"not a message: {line[:200]!r}")
    return message


def encode(message: dict[str, Any]) -> bytes:
    """ASCII only: names that are not UTF-8 (lone surrogates of os.fsdecode) arrive as they were."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"
