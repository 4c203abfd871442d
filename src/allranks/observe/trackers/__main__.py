"""The process of one tracker: `python -m allranks.observe.trackers FD SECONDS`, with a JSON mapping on stdin.

FD is a pipe whose end is the run's end; after that it has so many SECONDS left. start.py starts it.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from allranks.entry_points import refuse_by_hand
from allranks.observe.events import ExitEvent, PhaseEvent
from allranks.observe.follow import EventFollower
from allranks.observe.trackers.forward import Memory, forward

# A curve that is a second old is fresh to the eye.
_POLL_SECONDS = 1.0


def main(end_of_run: int, drain_seconds: float) -> None:
    # Batch systems send these to every process of a job. The run's end is what ends this one.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    ended = threading.Event()
    threading.Thread(target=_wait_for_the_end, args=(end_of_run, drain_seconds, ended), daemon=True).start()
    spec: dict[str, Any] = json.load(sys.stdin.buffer)
    name = spec["tracker"]
    # The service's last word, what the run's rank 0 shows if this fails, is one line.
    sys.excepthook = _in_one_line_at_the_end
    memory = Memory(Path(spec["folder"]) / f"{name}.json")
    tracker = importlib.import_module(f"allranks.observe.trackers.to_{name}").open_tracker(spec, memory)
    memory.write()
    following = EventFollower(spec["events"], memory.offset)
    end: ExitEvent | None = None
    while True:
        last = ended.is_set()  # asked before reading: all that was written before the end is read after it
        events, memory.offset = following.read(), following.offset
        for event in events:
            forward(tracker, event, memory, log_every=spec["log_every"], num_steps=spec["num_steps"])
            if isinstance(event, ExitEvent):
                end = event
            elif isinstance(event, PhaseEvent):  # there was another start after that exit
                end = None
        if events:
            tracker.flush()
            memory.write()
        if last:
            break
        ended.wait(_POLL_SECONDS)
    tracker.finish(*((end.code, end.reason) if end else (None, "rank 0 was killed, or its machine went down")))


def _wait_for_the_end(pipe: int, drain_seconds: float, ended: threading.Event) -> None:
    os.read(pipe, 1)
    # In C, so that it also ends a process that hangs outside of Python. Leaves in the log where that was.
    faulthandler.dump_traceback_later(drain_seconds, exit=True)
    ended.set()


def _in_one_line_at_the_end(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    sys.__excepthook__(kind, error, trace)
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {kind.__name__}: {' '.join(str(error).split())}", file=sys.stderr)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        refuse_by_hand("allranks.observe.trackers", "a run with a tracker")
    main(int(sys.argv[1]), float(sys.argv[2]))
