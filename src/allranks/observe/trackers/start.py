"""Rank 0's side of the trackers: start a process for each, say so if one ends early, and end them in bounded time."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from allranks.config import RunConfig
from allranks.observe.enduring import say
from allranks.observe.event_log import EventLog
from allranks.observe.rundir import RunDir
from allranks.observe.trackers.choice import chosen_trackers
from allranks.observe.trackers.forward import begin_memory
from allranks.secrets import known_secrets, without_secret_values

DRAIN_SECONDS = 10
"""So long may a tracker send what is left after the run's end; then it is ended."""

_KILL_AFTER_SECONDS = 1.0  # more: it ends itself first, and leaves in its log where it hung


class Trackers:
    """The trackers of a run. Make one on rank 0 when training begins, `close` it after the `exit` event.

    `start_step`: steps done before. `log_every`: steps between two points of a curve. `fresh`: what trackers have got
    of this run directory so far belongs to another course of training; they begin a run of their own.
    """

    def __init__(
        self,
        cfg: RunConfig,
        run_dir: RunDir,
        events: EventLog,
        *,
        start_step: int,
        num_steps: int,
        log_every: int,
        fresh: bool,
        warn: Callable[[str], None],
    ) -> None:
        self._closing = False
        self._warn = warn
        self._running: list[_Process] = []
        names = chosen_trackers(cfg)
        if not names:
            return
        folder = run_dir.trackers.absolute()
        spec = {
            "folder": str(folder),
            "events": str(events.path.absolute()),
            "start_step": start_step,
            "num_steps": num_steps,
            "log_every": log_every,
            "settings": cfg.tracking.model_dump(mode="json"),
            "config": without_secret_values(cfg.flat(), known_secrets()),
            "run_name": run_dir.path.absolute().name,
        }
        for name in names:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                if fresh or not (folder / f"{name}.json").is_file():
                    begin_memory(folder / f"{name}.json", events.start_offset)
                self._running.append(_Process(name, {"tracker": name, **spec}, folder, self._ended))
            except OSError as error:
                warn(f"tracker {name} could not be started: {error}; training goes on without it")

    def close(self) -> None:
        """Tell all that the run has ended, and wait until they have sent everything: DRAIN_SECONDS at most."""
        self._closing = True
        for process in self._running:
            process.tell_the_end()
        deadline = time.monotonic() + DRAIN_SECONDS + _KILL_AFTER_SECONDS
        for process in self._running:
            if not process.wait(deadline):
                say(
                    f"warning: tracker {process.name} had not sent everything {DRAIN_SECONDS} s after the end and was "
                    f"stopped; the run's own events are complete. Its log: {process.log}",
                    file=sys.stderr,
                )
        self._running = []

    def _ended(self, process: _Process, code: int) -> None:
        if not self._closing:
            self._warn(
                f"tracker {process.name} ended early ({_last_line(process.log) or f'exit code {code}'}); training goes "
                f"on without it. Its log: {process.log}"
            )


class _Process:
    """One tracker: `python -m allranks.observe.trackers`, which reads what it needs from stdin.

    The run's end reaches it as the end of a pipe, so that it also notices when rank 0 is killed.
    """

    def __init__(self, name: str, spec: dict[str, Any], folder: Path, ended: Callable[[_Process, int], None]) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._complete = False
        read_end, self._write_end = os.pipe()
        try:
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "allranks.observe.trackers", str(read_end), str(DRAIN_SECONDS)],
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    pass_fds=[read_end],
                    # Out of the reach of Ctrl-C and of a closed terminal: it ends when the run has ended.
                    start_new_session=True,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )
        except OSError:
            os.close(self._write_end)
            raise
        finally:
            os.close(read_end)
        # A thread for what may block: a process that hangs does not even read its input.
        self._thread = threading.Thread(target=self._watch, args=(json.dumps(spec), ended), daemon=True)
        self._thread.start()

    def tell_the_end(self) -> None:
        os.close(self._write_end)

    def wait(self, deadline: float) -> bool:
        """Whether it had sent everything when it ended; kills it at the deadline (of `time.monotonic`)."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._process.kill()
        return self._complete

    def _watch(self, spec: str, ended: Callable[[_Process, int], None]) -> None:
        with contextlib.suppress(OSError):
            self._process.communicate(spec.encode())
        code = self._process.wait()
        self._complete = code == 0
        if code:
            ended(self, code)


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")
