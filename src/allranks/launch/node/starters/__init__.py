"""One file a launcher: the command that starts this node's ranks, the files it reads, the variables it needs.

To add a launcher, write `NAME.py` with `start_command(launch, program, place)` and enter it in options.LAUNCHERS."""

import importlib

from allranks.launch.node.starters.memory import allocator_variables
from allranks.launch.node.starters.starting import Place, Starting
from allranks.launch.node.starters.threads import thread_variables
from allranks.launch.spec.options import Launch
from allranks.launch.spec.program import Program


def starting(launch: Launch, program: Program, place: Place) -> Starting:
    """How this node's ranks are started by the launcher that was asked for. Writes nothing. Raises UsageError."""
    starter = importlib.import_module(f"allranks.launch.node.starters.{launch.launcher}")
    found: Starting = starter.start_command(launch, program, place)
    ours = thread_variables(launch) | (allocator_variables(launch.num_gpus) if program.is_engine else {})
    return Starting(found.command, found.files, ours | found.variables)


__all__ = ["Place", "Starting", "starting"]
