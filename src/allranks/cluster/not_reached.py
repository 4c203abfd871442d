"""Why a connection did not come about, in the operating system's words."""

from __future__ import annotations

import os
import re
import socket

_NUMBER = re.compile(r"\[Errno (\d+)\]")


def why_not_reached(error: Exception) -> str:
    """Such as "connection refused", "no route to host" or, of a deadline of ours, "timed out".

    asyncio has words of its own for it ("Connect call failed"), and puts the errors of a name with several addresses
    into one text without a number (asyncio/base_events.py, create_connection).
    """
    if isinstance(error, socket.gaierror):
        return "the name is not known"
    if isinstance(error, OSError):
        numbers = [error.errno] if error.errno else [int(found) for found in _NUMBER.findall(str(error))]
        if numbers:
            return " and ".join(dict.fromkeys(os.strerror(number).lower() for number in numbers))
    if isinstance(error, TimeoutError):
        return "timed out"
    return str(error) or type(error).__name__
