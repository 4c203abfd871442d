"""A command of ours as a child that may start ranks on other nodes: it gets the time to end them in order."""

from __future__ import annotations

import contextlib
import os
import subprocess

from allranks.demo.commands import Command, stop


def run_child(command: Command, *, seconds_to_end: float) -> int:
    """Run it, its output in its log, in place of what an earlier one left there; returns its exit code, below 0 for a
    signal.

    Should this process be interrupted, the child is asked to end what it has started, and killed after
    `seconds_to_end`.
    """
    command.log.parent.mkdir(parents=True, exist_ok=True)
    with command.log.open("wb") as log:
        child = subprocess.Popen(
            command.argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **command.env},
            # A session of its own: Ctrl-C in the terminal reaches us alone.
            start_new_session=True,
        )
    try:
        return child.wait()
    finally:
        if child.poll() is None:
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(seconds_to_end)
            stop([child])
