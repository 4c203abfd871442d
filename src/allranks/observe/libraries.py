"""What libraries print, apart from what we say: it goes to the log, and the terminal keeps what its user asked for.

Libraries tell of accelerators that they do not find, of what they will remove one day, and draw bars. They write to
`sys.stdout` and `sys.stderr`, or hand these to a logger; so within `libraries_aside` other streams stand there. What we
say goes through `Enduring`, which knows the streams behind them.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TextIO

from allranks.errors import AllranksError
from allranks.observe.enduring import Enduring

# Of what comes before there is a log, or where there is none: the last, which an error follows.
_MOST_CHARACTERS = 2**16


@dataclass
class Place:
    """Where it goes: into `log` once there is one, else it is held."""

    log: TextIO | None = None
    held: str = field(default="", repr=False)

    def write(self, text: str) -> None:
        if self.log is not None:
            Enduring(self.log).write(text)
        else:
            self.held = (self.held + text)[-_MOST_CHARACTERS:]

    def attach(self, log: TextIO) -> None:
        """From now on write into `log`, and first what was held."""
        self.log = log
        held, self.held = self.held, ""
        self.write(held)


class Aside(io.TextIOBase):
    """Stands for `ours`, a stream of the terminal; what is written here does not reach it."""

    def __init__(self, ours: TextIO, place: Place) -> None:
        self.ours = ours
        self.place = place

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self.ours, "encoding", None) or "utf-8"

    def fileno(self) -> int:
        return self.ours.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.place.write(text)
        return len(text)


@contextlib.contextmanager
def libraries_aside() -> Iterator[Place]:
    """Within it, what is printed by others than us is held, or goes into the log that the place is given.

    What was held is shown where an error that is not ours ends it, for it may be the reason; else it is dropped.
    """
    place, before = Place(), (sys.stdout, sys.stderr)
    sys.stdout, sys.stderr = (Aside(stream, place) for stream in before)
    try:
        yield place
    except Exception as error:
        if place.held and not isinstance(error, AllranksError):
            Enduring(before[1]).write(place.held, flush=True)
        raise
    finally:
        sys.stdout, sys.stderr = before


def log_libraries(log: TextIO) -> None:
    """Within `libraries_aside`, let its place be `log`; else nothing."""
    if isinstance(sys.stderr, Aside):
        sys.stderr.place.attach(log)


@contextlib.contextmanager
def shown() -> Iterator[None]:
    """Within it, libraries write to the terminal all the same: a download's bar is no noise."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (getattr(stream, "ours", stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
