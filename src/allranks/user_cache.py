"""What is kept for this user beside all runs: where, and how two processes change it one after the other."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from allranks.errors import RefusedError


def user_cache(name: str, environment: Mapping[str, str] = os.environ) -> Path:
    """Our folder `name` in the user's cache: $XDG_CACHE_HOME, else ~/.cache. A relative path counts as none, as the XDG
    Base Directory Specification 0.8 has it: each working directory would have a cache of its own.

    Raises RefusedError for a user without a home, as in a container that is run by number.
    """
    given = environment.get("XDG_CACHE_HOME") or ""
    if Path(given).is_absolute():
        return Path(given) / "allranks" / name
    try:
        return Path.home() / ".cache" / "allranks" / name
    except RuntimeError:
        raise RefusedError(
            f"XDG_CACHE_HOME: user {os.getuid()} has no home folder and no cache; set it to the whole path of a folder "
            "that this user may write"
        ) from None


@contextlib.contextmanager
def one_at_a_time(lock: Path) -> Iterator[None]:
    """Wait for another process that holds the file `lock`, which stays; where there are no locks, nobody waits."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            lock.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(stack.enter_context(lock.open("a")), fcntl.LOCK_EX)
        yield
