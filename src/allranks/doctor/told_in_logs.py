"""What ranks of anyone's program do not tell in events: how far they came, and which of them lost another one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from allranks.doctor import causes
from allranks.doctor.attempt import Started
from allranks.doctor.log_tail import TRACEBACK
from allranks.doctor.read_logs import step_of_text
from allranks.observe.events import ErrorEvent, StepEvent

_TAIL_BYTES = 2**16
_LOG = re.compile(r"rank-(\d{5,})\.log")
_PREFIX = re.compile(r"^\[rank\d+\]: ?", re.MULTILINE)  # as torch writes what nobody caught, where it knows the rank
_ERROR = re.compile(r"^[\w.]+(?:: .*)?$")


def told_in_logs(started: Started) -> list[ErrorEvent | StepEvent]:
    """Of all ranks of this start whose logs lie on this node's disk: the newest step that each has printed, and the
    error of a connection that another rank left, where that ended it. Then what other nodes told of theirs."""
    here = list(_told(started))
    seen = {event.rank for event in here}
    return [*here, *(event for one in started.others if one.rank not in seen for event in one.events())]


def _told(started: Started) -> Iterator[ErrorEvent | StepEvent]:
    for log in sorted(started.run.path.glob("logs/node-*/rank-*.log")):
        named = _LOG.fullmatch(log.name)
        if named is None or not started.has_written(log):
            continue
        text = _tail(log, started.log_start(log))
        if (step := step_of_text(text)) is not None:
            yield StepEvent(rank=int(named[1]), step=step)
        traceback = last_traceback(text)
        message = traceback.rstrip().rpartition("\n")[2]
        if traceback and causes.code_of_error(message) == causes.PEER_GONE:
            node = log.parent.name.removeprefix("node-")
            yield ErrorEvent(
                rank=int(named[1]), node=int(node) if node.isdecimal() else None, message=message, traceback=traceback
            )


def last_traceback(log: str) -> str:
    """The last one in a log, to the line that has the exception; "" where there is none, or other lines end the log."""
    lines = _PREFIX.sub("", log).splitlines()
    start = max((number for number, line in enumerate(lines) if line.startswith(TRACEBACK)), default=None)
    if start is None:
        return ""
    end = next((at for at in range(start + 1, len(lines)) if _ERROR.match(lines[at])), None)
    return "\n".join(lines[start : end + 1]) if end is not None else ""


def _tail(log: Path, start: int) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(start, file.seek(0, 2) - _TAIL_BYTES))
            return file.read(_TAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
