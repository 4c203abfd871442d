"""Signals to a command while no rank of a run listens for them: end at once and cleanly, and leave nothing behind."""

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

from allranks.observe import say

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
NO_RANK_LEFT = "no rank runs any more; checkpoints that are complete are kept"
"""What Ctrl-C means before and behind the time in which signals are handed on to the ranks."""


class Stopped(BaseException):
    """A signal asked to stop. Not an Exception, as KeyboardInterrupt is none: what cleans up sees it, nothing more."""

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(received.name)
        self.received = received


@contextlib.contextmanager
def stop_at_once() -> Iterator[Callable[[], None]]:
    """Within, SIGINT, SIGTERM, SIGHUP and SIGUSR1 raise `Stopped`. What is ignored (nohup) stays ignored.

    If an engine in this process has taken SIGTERM over, SIGINT and SIGHUP ask it to save; a second SIGINT interrupts.
    Yields a function that raises again what got lost, as in a callback of a library, where nobody can catch it.
    """
    received: list[signal.Signals] = []

    def stop(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if signal.getsignal(signal.SIGTERM) is not idle:
            _ask_engine(signal.Signals(number))
        elif not received:
            # Only the first: hanging up sends two at once, and the second would disturb what the first cleans up.
            received.append(signal.Signals(number))
            raise Stopped(received[0])

    before = {}
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, stop)
    idle = signal.getsignal(signal.SIGTERM)

    def check() -> None:
        if received:
            raise Stopped(received[0])

    try:
        yield check
        check()
    finally:
        for number, handler in before.items():
            # Once stopped, this process ends as soon as it has said so.
            signal.signal(number, signal.SIG_IGN if received and number != signal.SIGINT else handler)


@contextlib.contextmanager
def ended_in_order() -> Iterator[None]:
    """Within, a signal that ends this process ends its commands and removes its files first."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    is_first = True

    def leave(number: int, frame: FrameType | None) -> None:
        nonlocal is_first
        if is_first:  # a second one would disturb what the first cleans up
            is_first = False
            sys.exit(128 + number)

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ask_engine(received: signal.Signals) -> None:
    again = "; Ctrl-C again ends at once" if received == signal.SIGINT else ""
    say(f"\n{received.name}: the run was asked to save a checkpoint and stop after this step{again}")
    signal.raise_signal(signal.SIGTERM)
