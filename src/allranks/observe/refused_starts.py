"""What starts that were refused leave for the others in one run directory.

Nodes that share a disk hear of each other there, where the network does not carry it: two that both were given one
node rank, one that cannot reach node 0, two that were told of no other node. A word is a line in the lock of whom it is
for. That file is opened by name each time: a network file system then asks its server (`man 5 nfs`, close-to-open).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from allranks.listing import printable

_LOOK_SECONDS = 1.0
_LISTENS_SECONDS = 900.0
"""More than nodes wait for each other (--join-timeout); later words find a run that goes on."""
_MOST_BYTES = 2**16


@dataclass(frozen=True)
class RefusedStart:
    """Of which host, and what it says."""

    host: str
    text: str


def leave_word(lock: Path, text: str) -> None:
    """Tell whoever holds the lock at `lock` that this start was refused. Raises nothing."""
    line = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "text": text[:10_000]}) + "\n"
    with contextlib.suppress(OSError):
        fd = os.open(lock, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(fd, line.encode())
        finally:
            os.close(fd)


def leave_words(logs: Path, own: Path, text: str) -> None:
    """The same to all nodes that have a lock in the run's folder of logs, but for the one at `own`. Raises nothing."""
    with contextlib.suppress(OSError):
        for lock in sorted(logs.glob("node-*/lock")):
            if lock.parent != own:
                leave_word(lock, text)


def words_left(lock: Path) -> list[RefusedStart]:
    """What others have left since the lock was taken: whoever takes it empties it. Raises OSError."""
    with lock.open("rb") as file:
        lines = file.read(_MOST_BYTES).split(b"\n")
    return list(_read(lines[1:]))


def _read(lines: list[bytes]) -> Iterator[RefusedStart]:
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            said = json.loads(line)
            yield RefusedStart(printable(said["host"], 256), printable(said["text"]))


class Listening:
    """Listens at this node's lock, by a thread that nobody waits for: the disk may hang. `heard` is told each word."""

    def __init__(self, lock: Path, heard: Callable[[RefusedStart], None]) -> None:
        self._over = threading.Event()
        threading.Thread(target=self._listen, args=(lock, heard), name="refused starts", daemon=True).start()

    def end(self) -> None:
        self._over.set()

    def _listen(self, lock: Path, heard: Callable[[RefusedStart], None]) -> None:
        num_heard = 0
        end = time.monotonic() + _LISTENS_SECONDS
        while not self._over.wait(_LOOK_SECONDS) and time.monotonic() < end:
            with contextlib.suppress(OSError):
                words = words_left(lock)
                for word in words[num_heard:]:
                    heard(word)
                num_heard = len(words)
