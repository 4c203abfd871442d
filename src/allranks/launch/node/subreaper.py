"""Stands between us and a launcher, and ends all that the launcher has started: also when we are killed, and when the
launcher itself would leave its ranks behind or wait for them for too long.

Started as `python -m allranks.launch.node.subreaper PARENT_PID COMMAND…`. SIGTERM ends the command; the kernel sends
it when the parent dies."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from allranks.cluster.descendants import adopt_orphans, descendants, reap_orphans, send_signal
from allranks.entry_points import refuse_by_hand
from allranks.parent import die_with_parent

# Ranks that are cut off can save nothing; a single node's may. The whole run is to be gone within 15 s.
_GRACE_SECONDS = 8.0
_POLL_SECONDS = 0.1
_KILL_SECONDS = 5.0  # a process in uninterruptible sleep (a dead NFS server) does not even die of SIGKILL


def under_subreaper(command: Sequence[str], parent_pid: int) -> list[str]:
    """The command, held by a subreaper that ends it when the process `parent_pid`, which starts it, has died."""
    return [sys.executable, "-m", "allranks.launch.node.subreaper", str(parent_pid), *command]


def hold(command: Sequence[str], parent_pid: int) -> int:
    """Run the command until it has ended, with all below it; returns its exit code, or 128 + the signal's number."""
    adopt_orphans()
    awaited = {signal.SIGCHLD, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    # Here and not between fork and exec in the parent, which has threads whose locks a fork may catch held.
    die_with_parent(signal.SIGTERM, parent_pid=parent_pid)

    def in_child() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, awaited)
        die_with_parent(signal.SIGTERM)

    # Open descriptors are handed on: the lock of the node is held as long as anything of the run is there.
    child = subprocess.Popen(command, close_fds=False, preexec_fn=in_child)
    while child.poll() is None:
        if signal.sigwait(awaited) == signal.SIGTERM:
            child.terminate()
            _wait_for_the_end(child)
            break
        reap_orphans({child.pid})
    deadline = time.monotonic() + _KILL_SECONDS
    while (left := descendants()) and time.monotonic() < deadline:
        send_signal(signal.SIGKILL, left)
        time.sleep(_POLL_SECONDS)
        child.poll()
    code = child.poll()
    if code is None:
        return 128 + signal.SIGKILL
    return code if code >= 0 else 128 - code


def _wait_for_the_end(child: subprocess.Popen) -> None:
    deadline = time.monotonic() + _GRACE_SECONDS
    while descendants() and time.monotonic() < deadline:
        child.poll()
        time.sleep(_POLL_SECONDS)


if __name__ == "__main__":
    if len(sys.argv) < 3 or not sys.argv[1].isdecimal():
        refuse_by_hand("allranks.launch.node.subreaper", "`allranks train`")
    # Not sys.exit: nothing of ours is left to tidy up, and the exit must not be delayed.
    os._exit(hold(sys.argv[2:], int(sys.argv[1])))
