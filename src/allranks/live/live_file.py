"""live.json, and what is added to rank 0's events, written by a thread of its own: a disk that is full, slow or gone
holds nobody who watches the run."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace

from allranks.findings import Finding
from allranks.live.from_events import read_live
from allranks.live.state import LiveEnd, LiveTable
from allranks.observe import EventLog, RunDir
from allranks.observe.events import Event

_CLOSE_SECONDS = 2.0


class LiveFile:
    """Writes the newest table, and all events, that it was given; a failure is told by `say`, once."""

    def __init__(self, run: RunDir, say: Callable[[str], None]) -> None:
        self._run, self._say = run, say
        self._changed = threading.Condition()
        self._next: LiveTable | None = None
        self._events: list[Event] = []
        self._log: EventLog | None = None
        self._run_id = ""
        self._over = self._failed = False
        self._thread = threading.Thread(target=self._write_all, name="live.json", daemon=True)
        self._thread.start()

    def write(self, table: LiveTable) -> None:
        """Returns at once; a table that has not been written yet is given up for this one."""
        with self._changed:
            self._next = table
            self._changed.notify()

    def note(self, event: Event, run_id: str) -> None:
        """Append an event to the file of rank 0, where there is one. Returns at once."""
        with self._changed:
            self._events.append(event)
            self._run_id = run_id
            self._changed.notify()

    def close(self) -> None:
        """Write the last table, if the disk takes it within a moment."""
        with self._changed:
            self._over = True
            self._changed.notify()
        self._thread.join(_CLOSE_SECONDS)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                while self._next is None and not self._events and not self._over:
                    self._changed.wait()
                table, self._next = self._next, None
                events, self._events = self._events, []
            if table is None and not events:
                return
            try:
                if table is not None:
                    write_live(self._run, table)
                if events and self._run.events(0).is_file():
                    self._log = self._log or EventLog(self._run.events(0), 0, run_id=self._run_id)
                    for event in events:
                        self._log.write(event)
            except OSError as error:
                if not self._failed:
                    self._failed = True
                    self._say(f"warning: {self._run.live}: {error.strerror or error}: no live view; the run goes on")


def write_live(run: RunDir, table: LiveTable) -> None:
    """Put the table where readers see it or the one before. It is not worth waiting for the disk. Raises OSError."""
    text = json.dumps(table.to_message(), allow_nan=False, ensure_ascii=False)
    temporary = run.live.with_name(f".{run.live.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8", errors="replace")
        temporary.replace(run.live)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_end(run: RunDir, run_id: str, exit_code: int, finding: Finding | None) -> None:
    """Put into the last table of a start how it ended; where there is none of it, or no disk, nothing is written."""
    table = read_live(run)
    if table is None or table.run_id != run_id:
        return
    with contextlib.suppress(OSError):
        write_live(run, replace(table, eta_seconds=None, ended=LiveEnd(exit_code=exit_code, finding=finding)))


def write_own_end(run: RunDir, node: int | str, run_id: str, exit_code: int, finding: Finding) -> None:
    """Why the start failed, as this node knows it: the one that keeps the table may be what was lost."""
    told = {"run": run_id, "exit_code": exit_code, "finding": finding.to_message()}
    with contextlib.suppress(OSError):
        run.end(node).write_text(json.dumps(told))
