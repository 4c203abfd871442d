"""Die when the parent dies: nothing of a run may go on alone, holding its GPU, after what started it was killed."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # prctl(2)
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # before any fork: a forked child must not load it


def die_with_parent(signum: int = signal.SIGKILL, *, parent_pid: int | None = None) -> None:
    """Have the kernel send `signum` to this process when its parent ends (Linux; elsewhere it does nothing).

    `parent_pid` is the parent to expect: if that one is gone already, the signal is sent at once, because the kernel
    only watches from now on. It serves as a `preexec_fn` too.
    """
    if _LIBC is None:
        return
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0)
    if parent_pid is not None and os.getppid() != parent_pid:
        os.kill(os.getpid(), signum)
