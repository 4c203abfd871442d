"""The folder of a run as it was when the run began.

Where a mount goes away in its middle, an empty folder of the same name is left on the disk below: what is then saved
there is missed as soon as the mount is back, and may fill a disk that was never meant.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from pathlib import Path

from allranks.errors import DiskError


class Home:
    """Remembers `folder` by its device and inode. `has_traces` says whether what this run wrote in it is there."""

    def __init__(self, folder: Path, has_traces: Callable[[], bool]) -> None:
        self.folder, self._has_traces = folder, has_traces
        self._identity = _identity(folder)

    def refuse_another(self) -> None:
        """Raise DiskError where `folder` is not what it was, before anything is made in it."""
        now = _identity(self.folder)
        # Some network file systems number a folder anew after a while: then what this run has written tells.
        if now is not None and (now == self._identity or self._has_traces()):
            return
        how = "it is gone" if now is None else "another folder of its name is there"
        if now is not None and self._identity is not None and now[0] != self._identity[0]:
            how = "another file system is there"
        host = socket.gethostname()
        raise DiskError(
            f"output_dir {self.folder} on {host} is no longer the folder that this run began in: {how}. Its mount was "
            "lost, or somebody moved or removed it. Nothing is saved there; bring the folder back, then start the same "
            "command with --auto-resume-from-checkpoints true",
            errno.ESTALE,
            host,
        )


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
