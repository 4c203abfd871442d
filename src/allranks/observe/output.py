"""Where the output of a rank goes: rank 0's to the user's terminal, every other rank's to its own log file."""

import contextlib
import faulthandler
import os
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import TextIO

from allranks.observe.enduring import Enduring
from allranks.observe.libraries import log_libraries


def redirect_rank_output(rank: int) -> TextIO | None:
    """Send this process's stdout and stderr where the launcher asked; returns the rank's log, open for appending.

    Reads the launcher's ALLRANKS_LOG_DIR (the node's log folder) and ALLRANKS_TERMINAL (a path that leads to the user's
    terminal). Without the first, as under somebody's own torchrun, nothing is changed and None is returned.

    File descriptors are replaced, not only `sys.stdout`, so that output of C++ libraries and child processes follows.
    Rank 0 stays on the terminal, and its uncaught exceptions and fatal signals are written to its log as well. What
    libraries print there goes to its log only, within `libraries_aside`.
    """
    folder = os.environ.get("ALLRANKS_LOG_DIR")
    if not folder:
        return None
    path = Path(folder) / f"rank-{rank:05d}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    log = path.open("a", buffering=1, encoding="utf-8", errors="replace")
    if rank == 0:
        _redirect_to_terminal(os.environ.get("ALLRANKS_TERMINAL"))
        log_libraries(log)
        _tee_uncaught_exceptions(log)
    else:
        _replace_output(log.fileno())
    faulthandler.enable(file=log)
    return log


def _redirect_to_terminal(terminal: str | None) -> None:
    if not terminal:
        return
    # If the terminal has gone (a closed ssh session), the output stays in the agent's log.
    with contextlib.suppress(OSError):
        fd = os.open(terminal, os.O_WRONLY | os.O_NOCTTY)
        _replace_output(fd)
        os.close(fd)


def _replace_output(fd: int) -> None:
    for given, number in ((sys.stdout, 1), (sys.stderr, 2)):
        stream = getattr(given, "ours", given)
        Enduring(stream).flush()
        os.dup2(fd, number)
        # Python chose block buffering for a file; a log that lags behind hides the last words of a killed rank.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)


def _tee_uncaught_exceptions(log: TextIO) -> None:
    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        text = "".join(traceback.format_exception(kind, error, trace))
        Enduring(log).write(text, flush=True)
        Enduring(sys.stderr).write(text, flush=True)

    sys.excepthook = hook
