"""A run watched until it ends: redrawn on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from types import FrameType
from typing import TextIO

from allranks import interrupt
from allranks.errors import UsageError
from allranks.live.look import Look, look
from allranks.live.picture import line, picture
from allranks.observe import RunDir, say
from allranks.observe.enduring import Enduring

_EVERY_SECONDS = 1.0  # as often as node 0 writes
# xterm's: another screen, whose leaving brings back what stood there; the cursor hidden; no line wraps.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?1049l"
_HOME, _END_OF_LINE, _REST = "\x1b[H", "\x1b[K", "\x1b[J"
_MOST_NOTES = 4
_AROUND_ROWS = 12  # lines that may stand around those of the ranks

_Wait = Callable[[], None]


def watch_run(run: RunDir, *, as_json: bool = False) -> None:
    """Show a run until it ends, or Ctrl-C comes: both return. Raises UsageError where there is no run."""
    seen = look(run)
    redraws = not as_json and sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in ("", "dumb")
    try:
        with interrupt.interruptible(), _woken(redraws) as wait:
            seen = _on_screen(run, seen, wait) if redraws else _in_lines(run, seen, wait, as_json)
    except KeyboardInterrupt:
        interrupt.answered()
        return
    if redraws:
        say(picture(seen.table, width=_columns_and_lines()[0], notes=seen.notes))


def _on_screen(run: RunDir, seen: Look, wait: _Wait) -> Look:
    out = Enduring(sys.stdout)
    try:
        out.write(_ENTER)
        while seen.table.ended is None and not out.gone:
            columns, lines = _columns_and_lines()
            text = picture(seen.table, width=columns, max_rows=max(3, lines - _AROUND_ROWS), notes=seen.notes)
            shown = text.split("\n")[: max(1, lines - 1)]
            out.write(_HOME + "".join(f"{one}{_END_OF_LINE}\r\n" for one in shown) + _REST, flush=True)
            wait()
            seen = _again(run, seen)
    finally:
        out.write(_LEAVE, flush=True)
    return seen


def _in_lines(run: RunDir, seen: Look, wait: _Wait, as_json: bool) -> Look:
    """A line each time that there is news; how old it is and how long it lasts is none."""
    out, said = Enduring(sys.stdout), ""
    while True:
        news = line(replace(seen.table, eta_seconds=None), seen.notes[:1])
        if as_json:
            news = json.dumps(seen.table.to_message(), allow_nan=False)
        if news != said:
            said = news
            shown = json.dumps(seen.to_message(), allow_nan=False) if as_json else line(seen.table, seen.notes)
            out.write(f"{shown}\n", flush=True)
        if seen.table.ended is not None or out.gone:
            return seen
        wait()
        if _is_unread(out.stream):
            return seen
        seen = _again(run, seen)


def _again(run: RunDir, before: Look) -> Look:
    """The next look; a run whose folder cannot be seen just now keeps its last one."""
    try:
        return look(run)
    except (UsageError, OSError) as error:
        return replace(before, notes=tuple(dict.fromkeys((str(error), *before.notes)))[:_MOST_NOTES])


@contextlib.contextmanager
def _woken(is_screen: bool) -> Iterator[_Wait]:
    """A function that waits for the next look; a terminal of another size ends the waiting, SIGTERM the program."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    os.set_blocking(reader, False)

    def resized(number: int, frame: FrameType | None) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(writer, b".")

    def ended(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    def suspended(number: int, frame: FrameType | None) -> None:
        os.write(1, _LEAVE.encode())
        signal.raise_signal(signal.SIGSTOP)  # goes on with SIGCONT
        os.write(1, _ENTER.encode())
        resized(number, frame)

    handlers = {signal.SIGTERM: ended, signal.SIGHUP: ended}
    if is_screen:
        handlers |= {signal.SIGWINCH: resized, signal.SIGTSTP: suspended}
    # What is ignored, as by nohup and shells without job control, stays so.
    before = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        if number == signal.SIGWINCH or before[number] is not signal.SIG_IGN:
            signal.signal(number, handler)

    def wait() -> None:
        if select.select([reader], [], [], _EVERY_SECONDS)[0]:
            os.read(reader, 4096)

    try:
        yield wait
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
        os.close(reader)
        os.close(writer)


def _is_unread(stream: TextIO | None) -> bool:
    """Whether our pipe has no reader any more, as after `| head -1`: the next line may be hours off."""
    poll = select.poll()
    try:
        poll.register(stream, 0)  # type: ignore[arg-type]
        return any(events & select.POLLERR for _, events in poll.poll(0))
    except (OSError, ValueError, TypeError):  # nothing with a descriptor
        return False


def _columns_and_lines() -> tuple[int, int]:
    try:
        size = os.get_terminal_size(sys.stdout.fileno())
    except (OSError, ValueError):
        return 80, 24
    return size.columns or 80, size.lines or 24
