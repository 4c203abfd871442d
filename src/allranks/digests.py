"""SHA-256 of files, each read once: by one process of this machine, and again only when the file has changed.

Kept in the user's cache by host, path, device, inode, size and the times of the last changes, to the nanosecond. The
time of a change cannot be set by hand, so a file that is as it says there is the one that was read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import time
from pathlib import Path

from allranks import durable
from allranks.errors import RefusedError
from allranks.user_cache import one_at_a_time, user_cache

_SMALL_BYTES = 2**20
"""Read in a millisecond: not worth an entry in the cache."""

_SETTLED_NS = 2 * 10**9
"""A file that was changed within the clock's smallest step could change again unseen (git's "racily clean")."""


def file_sha256(file: Path) -> str:
    """Hex SHA-256 of all bytes of a file. Raises OSError where it cannot be read."""
    status = _status(file)
    if status.st_size <= _SMALL_BYTES:
        return _read(file)
    try:
        cache = user_cache("sha256")
    except RefusedError:
        return _read(file)
    entry = cache / hashlib.sha256(json.dumps(_identity(file, status)).encode()).hexdigest()
    if (known := _known(entry)) is not None:
        return known
    # A name for all: what is locked is never removed, and a lock for each file would be left for each.
    with one_at_a_time(cache / f"lock-{entry.name[:2]}"):
        if (known := _known(entry)) is not None:  # another rank of this node has read it meanwhile
            return known
        digest = _read(file)
        after = _status(file)
        is_settled = max(after.st_mtime_ns, after.st_ctime_ns) < time.time_ns() - _SETTLED_NS
        if is_settled and _identity(file, after) == _identity(file, status):
            with contextlib.suppress(OSError):  # a home that cannot be written costs this again, no more
                durable.write(entry, digest, make_parents=True)
    return digest


def _status(file: Path) -> os.stat_result:
    with file.open("rb") as opened:  # NFS asks its server on opening; else it answers from up to a minute ago
        return os.fstat(opened.fileno())


def _read(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _known(entry: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError):
        known = entry.read_text(encoding="ascii").strip()
        if len(known) == 64:
            return known
    return None


def _identity(file: Path, status: os.stat_result) -> list[str | int]:
    times = (status.st_mtime_ns, status.st_ctime_ns)
    # Homes are shared by nodes that each have a disk of their own.
    return [socket.gethostname(), str(file.resolve()), status.st_dev, status.st_ino, status.st_size, *times]
