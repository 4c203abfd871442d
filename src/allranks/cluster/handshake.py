"""Both ends of a connection prove that they know a token, which itself never crosses it (challenge and response)."""

import asyncio
import hashlib
import hmac
import secrets
from typing import Literal

_NONCE_BYTES = 32
_SECONDS = 10.0

Role = Literal["head", "agent"]


class NotProven(Exception):
    """The other end does not know the token, or has gone."""


async def shake_hands(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str, role: Role) -> None:
    """Raises NotProven, after which nothing that this end says may be believed."""
    own = secrets.token_bytes(_NONCE_BYTES)
    other: Role = "agent" if role == "head" else "head"
    try:
        async with asyncio.timeout(_SECONDS):
            writer.write(own)
            theirs = await reader.readexactly(_NONCE_BYTES)
            writer.write(_proof(token, role, own, theirs))
            shown = await reader.readexactly(hashlib.sha256().digest_size)
    except (TimeoutError, OSError, asyncio.IncompleteReadError):
        raise NotProven("the connection ended before both sides had proven themselves") from None
    if not hmac.compare_digest(shown, _proof(token, other, theirs, own)):
        raise NotProven("the other side does not know the token")


def _proof(token: str, role: Role, own: bytes, theirs: bytes) -> bytes:
    # With the role in it a proof cannot be handed back to the one who made it.
    return hmac.digest(token.encode(), role.encode() + own + theirs, "sha256")
