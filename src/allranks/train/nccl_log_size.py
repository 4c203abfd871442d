"""NCCL's log of a rank kept small: a few starts of it, and of each its beginning and its end."""

from __future__ import annotations

import ctypes
import os
import time
from contextlib import suppress
from pathlib import Path

KEPT_STARTS = 5
"""Logs of a rank that are kept, the newest."""
MOST_BYTES = 64 * 2**20
# Where ranks meet and connect is some hundred kilobytes of 1,024 ranks; where they fail is at the end.
_ENDS_BYTES = 8 * 2**20
_EVERY_SECONDS = 60.0
# fallocate(2): FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE.
_PUNCH_HOLE = 0x01 | 0x02


def remove_old_logs(log: Path, kept: int = KEPT_STARTS - 1) -> None:
    """Before a start: of the logs `log`.PID.log, remove all but the newest `kept`."""
    with suppress(OSError):
        found = sorted(log.parent.glob(f"{log.name}.*.log"), key=lambda path: path.stat().st_mtime)
        for path in found[: max(0, len(found) - kept)]:
            path.unlink(missing_ok=True)


class BoundedLog:
    """Called between steps; once a minute it looks at the file, and frees the middle of one that has grown too large.

    NCCL writes on where it was, so the file cannot be cut: its middle becomes a hole, which takes no room on the disk
    and which readers see as zeros. Where the file system makes no holes it stays as it is.
    """

    def __init__(self, path: Path, *, most_bytes: int = MOST_BYTES, ends_bytes: int = _ENDS_BYTES) -> None:
        self.path = path
        self._most, self._ends = most_bytes, ends_bytes
        self._next = time.monotonic() + _EVERY_SECONDS

    def __call__(self, step: int) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _EVERY_SECONDS
            self.bound()

    def bound(self) -> None:
        """Free the middle, if there is too much of it."""
        with suppress(OSError):
            state = self.path.stat()
            if state.st_blocks * 512 <= self._most:
                return
            file = os.open(self.path, os.O_WRONLY)
            try:
                length = state.st_size - 2 * self._ends
                libc = ctypes.CDLL(None, use_errno=True)
                libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
                libc.fallocate(file, _PUNCH_HOLE, self._ends, length)
            finally:
                os.close(file)
