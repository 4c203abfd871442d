"""The token by which the nodes of a run know each other: made where one command starts all of them, else the user's."""

import os
import secrets
from collections.abc import MutableMapping

from allranks.errors import UsageError

TOKEN = "ALLRANKS_TOKEN"
_BYTES = 32


def make_token() -> str:
    """One that nobody guesses."""
    return secrets.token_hex(_BYTES)


def take_token(env: MutableMapping[str, str] = os.environ) -> str:
    """What this process was given, "" for nothing. It is taken out: neither ranks nor what they start need it.

    Raises UsageError, which does not show it.
    """
    token = env.pop(TOKEN, "")
    if not (token.isascii() and token.isprintable()):
        raise UsageError(f"{TOKEN}: expected printable ASCII characters, such as `openssl rand -hex 32` makes")
    return token
