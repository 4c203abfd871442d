"""One file a launcher: the command that starts this node's ranks, the files it reads, the variables it needs.

To add a launcher, write `NAME.py` with `start_command(launch, program, place)` and enter it in options.LAUNCHERS."""

import importlib

from allranks.launch.options import Launch
from allranks.launch.program import Program
from allranks.launch.starters.starting import Place, Starting
from allranks.launch.starters.threads import thread_variables


def starting(launch: Launch, program: Program, place: Place) -> Starting:
    """How this node's ranks are started by the launcher that was asked for. Writes nothing. Raises UsageError."""
    starter = importlib.import_module(f"allranks.launch.starters.{launch.launcher}")
    found: Starting = starter.start_command(launch, program, place)
    return Starting(found.command, found.files, thread_variables(launch) | found.variables)


__all__ = ["Place", "Starting", "starting"]
