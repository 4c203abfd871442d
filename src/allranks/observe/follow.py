"""Read the events of ranks: a file as it is, or files as they grow."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from allranks.observe.event_lines import parse_event
from allranks.observe.events import Event
from allranks.observe.rundir import RunDir

# Of a file's first line, which has a time and a run id: no two files begin alike.
_HEAD_BYTES = 256


def read_events(path: str | Path, *, last_bytes: int | None = None) -> Iterator[Event]:
    """The events in a file, oldest first. Lines torn by a kill are skipped; a missing file has no events.

    `last_bytes` reads only the end of the file: a long run's has hundreds of megabytes.
    """
    if not Path(path).is_file():  # a FIFO would be waited for
        return
    with Path(path).open("rb") as file:
        if last_bytes is not None:
            # The line that this cuts in two is skipped as a torn one.
            file.seek(max(0, file.seek(0, os.SEEK_END) - last_bytes))
        yield from _events(file)


class EventFollower:
    """Reads one rank's file from byte `offset` on, each event once.

    A line that is being written is awaited. A file that another one took the place of is read from its start. One
    that lost its end, as after a power cut, is read on from there. A look at a file that has not changed costs one
    system call.
    """

    def __init__(self, path: str | Path, offset: int = 0) -> None:
        self.path = Path(path)
        self.offset = offset
        """Where the next call of `read` begins; a later follower may be given it."""
        self._inode: int | None = None
        self._head = b""
        self._looked_at: tuple[int, int, int] | None = None

    def read(self) -> list[Event]:
        """What was written since the last call; nothing while there is no file."""
        try:
            state = self.path.stat()
            if not stat.S_ISREG(state.st_mode):
                return []
            looked_at = (state.st_ino, state.st_size, state.st_mtime_ns)
            if looked_at == self._looked_at:
                return []
            with self.path.open("rb") as file:
                opened = os.fstat(file.fileno())
                self._place(file.read(_HEAD_BYTES), opened.st_ino, opened.st_size)
                file.seek(self.offset)
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]  # what follows is being written just now
        self.offset += len(whole)
        self._looked_at = looked_at
        return list(_events(whole.split(b"\n")))

    def _place(self, head: bytes, inode: int, size: int) -> None:
        """Move `offset` to where the events begin that were not read, if this is not the file as it was."""
        first_line = head.partition(b"\n")[0] if b"\n" in head or len(head) == _HEAD_BYTES else b""
        # One that was cut begins as it did, as far as it goes.
        is_same = inode == self._inode and self._head[: len(head)] == head[: len(self._head)]
        if self._inode is not None and not is_same:
            self.offset = 0
        elif size < self.offset:
            # Of a file that no call has seen before, only its size tells that it is another one.
            self.offset = size if is_same else 0
        self._inode, self._head = inode, first_line


class RunFollower:
    """Reads the files of all ranks of a run as they grow, also of ranks that come later."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._of_file: dict[Path, EventFollower] = {}

    def read(self) -> list[Event]:
        """What all ranks wrote since the last call; of a rank in its order, the ranks one after the other."""
        for path in self._run.all_events():
            self._of_file.setdefault(path, EventFollower(path))
        return [event for path in sorted(self._of_file) for event in self._of_file[path].read()]


def _events(lines: Iterable[bytes]) -> Iterator[Event]:
    for line in lines:
        if (event := parse_event(line)) is not None:
            yield event
