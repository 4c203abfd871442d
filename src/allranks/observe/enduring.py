"""Output that may be lost but never ends a run: ssh sessions and terminals are closed, readers of pipes go away."""

import contextlib
import errno
import os
import sys
from collections import deque
from typing import Any, TextIO

from allranks.observe.folding import for_terminal

_NOBODY_READS = (errno.EIO, errno.EPIPE)
"""What writing fails with once a terminal (EIO) or the reader of a pipe (EPIPE) is gone for good."""


def say(text: str, *, file: TextIO | None = None) -> None:
    """Print a line to `file` (default: stdout) at once. If that cannot be done the line is lost; nothing is raised.

    On a terminal a line that is longer than it is wide is folded between words.
    """
    stream = Enduring(sys.stdout if file is None else file)
    stream.write(f"{for_terminal(text, stream.stream)}\n", flush=True)


def settle_output() -> None:
    """Write out what is buffered; if nobody can read it, drop it. Else the interpreter would exit with 120 for it."""
    for stream in (sys.stdout, sys.stderr):
        Enduring(stream).flush()


def unwritten() -> str:
    """Why a part of this process's output is nowhere, such as a full disk; empty where all was written, or where nobody
    reads any more."""
    return _unwritten[-1] if _unwritten else ""


_unwritten: deque[str] = deque(maxlen=1)


class Enduring:
    """A text stream that never raises OSError or ValueError. `gone` is True once nobody can read it any more."""

    def __init__(self, stream: TextIO | None) -> None:
        # What others print may be kept from the terminal (`libraries_aside`); what we say is for its stream.
        self.stream = getattr(stream, "ours", stream)
        self.gone = self.stream is None

    def write(self, text: str, *, flush: bool = False) -> int:
        if self.stream is not None and not self.gone:
            try:
                self.stream.write(_encodable(text, self.stream))
                if flush:
                    self.stream.flush()
            except (OSError, ValueError) as error:
                self._lost(error)
        return len(text)

    def flush(self) -> None:
        if self.stream is not None and not self.gone:
            try:
                self.stream.flush()
            except (OSError, ValueError) as error:
                self._lost(error)

    def __getattr__(self, name: str) -> Any:
        """`isatty`, `encoding` and all else of the stream itself."""
        return getattr(self.stream, name)

    def _lost(self, error: OSError | ValueError) -> None:
        # A full disk may be emptied again; a closed stream, terminal or pipe never comes back.
        self.gone = not isinstance(error, OSError) or error.errno in _NOBODY_READS
        if not self.gone:
            _unwritten.append(getattr(error, "strerror", None) or str(error))
        if self.gone:
            # Whatever else writes there, our buffer at exit or a library, must not fail either.
            with contextlib.suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())  # type: ignore[union-attr]
                os.close(nowhere)


def _encodable(text: str, stream: TextIO) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
