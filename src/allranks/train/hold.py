"""One start at a time in a run's directory under a launcher of the user's own, which knows nothing of that directory.

Rank 0 holds the lock that node 0 of `allranks train` would hold, as long as it lives: such starts exclude each other,
too. The other ranks look before they write there.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping

from allranks.cluster.identity import Identity
from allranks.cluster.restarted import is_restarted
from allranks.disk import disk_told, refuse_unwritable
from allranks.observe import RunDir, say
from allranks.observe.lock import InUse, Twice, holder_of_other_ranks, in_use, lock_node
from allranks.observe.refused_starts import Listening, RefusedStart

_AFTER_RANK_0_SECONDS = 5.0
"""Launchers end all ranks at the first that fails: that is to be rank 0, which leaves word for the run that goes on."""

_LOOK_SECONDS = 0.25


@contextlib.contextmanager
def run_held(output_dir: str, identity: Identity, env: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Within, the run's directory is this process's (rank 0), or no other start had it. Raises AllranksError.

    Ranks that allranks started are let through: their launcher holds it.
    """
    if "ALLRANKS_RUN_ID" in env:
        yield
    elif identity.rank == 0:
        with _taken(RunDir(output_dir), identity, env):
            yield
    else:
        _refuse_another(RunDir(output_dir), identity, env)
        yield


@contextlib.contextmanager
def _taken(run: RunDir, identity: Identity, env: Mapping[str, str]) -> Iterator[None]:
    refuse_unwritable(run.path)
    logs, again = run.logs(0), is_restarted(env)
    with disk_told("the run's directory cannot be taken", run.path):
        lock = lock_node(
            logs,
            is_again=again,
            say=_say,
            twice=_twice(identity),
            ranks=_meeting(identity, env),
            tells_of_no_locks=True,
        )
    listening = Listening(logs / "lock", _hear)
    try:
        yield
    finally:
        listening.end()
        os.close(lock)


def _refuse_another(run: RunDir, identity: Identity, env: Mapping[str, str]) -> None:
    if is_restarted(env):  # rank 0 of before may be ending yet, on another node: rank 0 waits for it
        return
    end = time.monotonic() + _AFTER_RANK_0_SECONDS
    # Rank 0 of this start may be taking it just now, and has not yet put its name there.
    while holder := holder_of_other_ranks(run.logs(0), _meeting(identity, env)):
        if time.monotonic() >= end:
            raise InUse(in_use(run.logs(0) / "lock", holder, _twice(identity).remedy))
        time.sleep(_LOOK_SECONDS)


def _meeting(identity: Identity, env: Mapping[str, str]) -> str:
    """Where these ranks meet: the same for all of a start and its restarts, and for no other start at the same time,
    as the port is theirs. Ranks of one node may meet at its loopback."""
    names = [f"{identity.master_addr}:{identity.master_port}"]
    if identity.local_world_size == identity.world_size:
        names.append(f"on {socket.gethostname()}")
    if (job := env.get("TORCHELASTIC_RUN_ID", "none")) != "none":
        names.append(f"({job})")
    return " ".join(names)


def _twice(identity: Identity) -> Twice:
    if identity.local_world_size != identity.world_size:
        return Twice(
            lambda host: "stop that one, or choose another output_dir",
            "was started into this output_dir as well, and refused",
        )
    tell = f"tell {identity.source} on each how many there are and where they meet (torchrun --nnodes N --node-rank R "
    tell += "--master-addr HOST)"

    def remedy(host: str) -> str:
        here = socket.gethostname()
        one_run = f"if {host} and {here} are to be nodes of one run, {tell}; else " if host not in ("", here) else ""
        return f"{one_run}stop that one, or choose another output_dir"

    return Twice(
        remedy,
        f"was started into this output_dir as well, and refused: if both are to be nodes of one run, {tell}",
    )


def _say(text: str) -> None:
    say(text, file=sys.stderr)


def _hear(word: RefusedStart) -> None:
    if word.host != socket.gethostname():  # else its own terminal has it
        _say(f"warning: {word.text}")
