"""A second process that outlives the first: whichever of the two is killed, the other ends all that they started."""

import os
import signal
import time
from types import FrameType

from allranks.cluster.descendants import adopt_orphans, descendants, send_signal
from allranks.parent import die_with_parent

_PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1)
_KILL_SECONDS = 5.0


def guard() -> None:
    """Fork. The child returns and goes on; the parent waits for its end, however it comes (the kernel kills when memory
    runs out), kills what it left, and exits with its status.

    Should the parent be killed, the child gets SIGTERM from the kernel, and `has_lost_guardian` is True from then on.
    """
    adopt_orphans()
    child = os.fork()
    if child == 0:
        adopt_orphans()  # not inherited
        die_with_parent(signal.SIGTERM)
        return
    _pass_signals_on(child)
    _, status = os.waitpid(child, 0)
    deadline = time.monotonic() + _KILL_SECONDS
    while (left := descendants()) and time.monotonic() < deadline:
        send_signal(signal.SIGKILL, left)
        time.sleep(0.02)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def has_lost_guardian(parent: int) -> bool:
    """`parent`: os.getppid() as it was right after `guard`."""
    return os.getppid() != parent


def _pass_signals_on(child: int) -> None:
    def pass_on(number: int, frame: FrameType | None) -> None:
        send_signal(number, [child])

    for number in _PASSED_ON:
        signal.signal(number, pass_on)
