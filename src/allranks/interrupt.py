"""Ctrl-C ends a program of ours with one line and exit code 130, from the first moment that Python lets us.

At first it ends the process at once: an exception amid an import may come out as anything, and there is nothing to
tidy up. Within `interruptible` it is a KeyboardInterrupt, so that what was begun is cleaned up; a second one ends the
process at once."""

from __future__ import annotations

# What `signal` is made of: that would first import enum and more, and leave Ctrl-C to Python for as long again.
import _signal as signal
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

# exit_codes.INTERRUPTED, which Ctrl-C would interrupt while it is imported.
EXIT_CODE = 130

_meaning = "nothing was started"
_received = False


def end_at_once() -> None:
    """From now on Ctrl-C writes its line and ends the process. What is ignored (`nohup`, `&`) stays ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _at_once)


class interruptible:
    """Within, Ctrl-C raises KeyboardInterrupt; nothing changes where somebody else answers it already."""

    def __enter__(self) -> None:
        global _received
        self._is_ours = signal.getsignal(signal.SIGINT) is _at_once
        if self._is_ours:
            _received = False
            signal.signal(signal.SIGINT, _raise)

    def __exit__(self, *_: object) -> None:
        if self._is_ours:
            signal.signal(signal.SIGINT, _at_once)


def means(undone: str) -> None:
    """What Ctrl-C leaves undone, and what is kept, from now on: the line says it."""
    global _meaning
    _meaning = undone


def ended(code: int) -> None:
    """The program has done its work and said so: Ctrl-C only spares it the interpreter's own tidying up."""
    if signal.getsignal(signal.SIGINT) in (_at_once, _raise, signal.default_int_handler):
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(code))


def line() -> str:
    return f"interrupted: {_meaning}"


def answered() -> None:
    """The Ctrl-C that was raised has had its effect, and the program goes on: what fails later fails by itself."""
    global _received
    _received = False


def was_interrupted(error: BaseException | None) -> bool:
    """Whether an error is what became of a KeyboardInterrupt on its way up."""
    while error is not None:
        if _received or isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _at_once(number: int, frame: FrameType | None) -> None:
    if os.environ.get("RANK", "0") == "0":  # a terminal sends it to all ranks of a launcher
        os.write(2, f"\n{line()}\n".encode())
    os._exit(EXIT_CODE)


def _raise(number: int, frame: FrameType | None) -> None:
    global _received
    _received = True
    signal.signal(signal.SIGINT, _at_once)
    raise KeyboardInterrupt
