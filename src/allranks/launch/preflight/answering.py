"""Paths whose file system hangs: whoever touches one never comes back, and says nothing."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from allranks.errors import RefusedError
from allranks.launch.preflight.deadline import Beside

_SECONDS = 5.0
"""A disk that sleeps or an automounter takes a second or two."""


def refuse_what_does_not_answer(paths: Iterable[Mapping[str, str]]) -> None:
    """Raises RefusedError that names those of `paths` (tables of `path` and `purpose`) that nobody can look at."""
    looking = [(one, Beside(partial(_is_there, one["path"]))) for one in paths]
    deadline = time.monotonic() + _SECONDS
    silent = [one for one, look in looking if look.result(deadline - time.monotonic()) is None]
    if silent:
        named = ", ".join(f"{one['purpose']} {one['path']}" for one in silent)
        raise RefusedError(
            f"{named}: no answer in {_SECONDS:.0f} s on {socket.gethostname()}: the file system there hangs. If `ls` "
            "hangs, too, mount it anew (`umount -l`) or wait for its server, or choose another path"
        )


def _is_there(path: str) -> bool:
    return Path(path).exists()
