"""A path by which rank 0, two processes away and in a session of its own, writes to the user's terminal."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from allranks.observe.enduring import Enduring

_MOST_BYTES = 2**16  # what a pipe of Linux holds (pipe(7)); so much of a line is held until it ends
SHOW_CURSOR = b"\x1b[?25h"  # DECTCEM of the VT220, which all terminals of today follow


@contextlib.contextmanager
def terminal_path(log: Path | None = None) -> Iterator[str]:
    """Yields a path to open for writing: what is written there appears on this process's stdout.

    On a terminal it is the terminal itself, so that its width and cursor control work. Otherwise (a file, a pipe, a
    notebook) it is a pipe that a thread copies from: opening a file a second time would overwrite what we print.
    With `log` it is always the pipe, and what comes is also appended to `log`.
    """
    Enduring(sys.stdout).flush()
    fd, path = _stdout_terminal() if log is None else (-1, None)
    if path is not None:
        try:
            yield path
        finally:
            # A rank that was killed could not show the cursor again.
            with contextlib.suppress(OSError):  # or the terminal has gone
                os.write(fd, SHOW_CURSOR)
        return
    reader, writer = os.pipe()
    pump = threading.Thread(target=_copy, args=(reader, log), daemon=True)
    pump.start()
    try:
        yield f"/proc/{os.getpid()}/fd/{writer}"
    finally:
        os.close(writer)
        # A rank that outlives its end would keep the pipe open: do not wait for it.
        pump.join(timeout=5)


def _copy(reader: int, log: Path | None) -> None:
    """Whole lines, as many as there are at a time: a rank that prints much waits for what reads it."""
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, reader)
        kept, held = None, b""
        while True:
            chunk = os.read(reader, _MOST_BYTES)
            held += chunk
            end = max(held.rfind(b"\n"), held.rfind(b"\r")) + 1
            if not chunk or (not end and len(held) >= _MOST_BYTES):
                end = len(held)
            if text := held[:end].decode("utf-8", "replace"):
                Enduring(sys.stdout).write(text, flush=True)
                if log is not None:
                    # Only now: on most nodes nothing ever comes.
                    kept = kept or Enduring(stack.enter_context(log.open("a", encoding="utf-8", newline="")))
                    kept.write(text, flush=True)
            held = held[end:]
            if not chunk:
                return


def _stdout_terminal() -> tuple[int, str | None]:
    """Descriptor and path of the terminal that is stdout; no path if it is something else, or gone."""
    try:
        fd = sys.stdout.fileno()
        return fd, os.ttyname(fd)
    except (OSError, ValueError, AttributeError):
        return -1, None
