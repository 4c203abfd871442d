"""Die when the parent dies: no rank may go on alone, holding its GPU, after its launcher was killed."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # prctl(2)


def die_with_parent(signum: int = signal.SIGKILL, *, parent_pid: int | None = None) -> None:
    """Have the kernel send `signum` to this process when its parent ends (Linux; elsewhere it does nothing).

    `parent_pid` is the parent to expect: if that one is gone already, the signal is sent at once, because the kernel
    only watches from now on.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signum), 0, 0, 0)
    if parent_pid is not None and os.getppid() != parent_pid:
        os.kill(os.getpid(), signum)
