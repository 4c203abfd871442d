"""This node's part of a run: its name, its folder, its lock."""

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from allranks.disk import refuse_unwritable
from allranks.errors import AllranksError
from allranks.launch.spec.options import Launch
from allranks.observe import RunDir
from allranks.observe.lock import Twice, forget_lock, lock_node


@dataclass(frozen=True)
class Node:
    """`name` is its rank, or its host name where the rendezvous deals ranks out.

    `run_id` is the run's, the same on all nodes once they have met; `launch_id` is this launcher's own.
    """

    name: int | str
    run: RunDir
    run_id: str
    launch_id: str
    locks: list[int]

    @property
    def writes_the_manifest(self) -> bool:
        """Whether it is this node that keeps the record of the run; several write it where none knows its rank."""
        return self.name == 0 or isinstance(self.name, str)


def this_node(directory: str | Path, launch: Launch) -> Node:
    """Make the run's directory and take this node's lock in it. Raises RefusedError."""
    node = unlocked_node(directory, launch)
    refuse_unwritable_run(node.run)
    if launch.node_rank is None:
        # Several nodes may share the host, and with it the name: nothing to lock.
        return node
    logs = node.run.logs(launch.node_rank)
    is_again, is_first = launch.num_restarts > 0, launch.node_rank == 0
    return replace(node, locks=[lock_node(logs, is_again=is_again, twice=_twice(launch), tells_of_no_locks=is_first)])


def _twice(launch: Launch) -> Twice:
    """What two starts with one lock are told."""
    if launch.max_nodes > 1:
        return Twice(
            lambda host: "stop that one, or choose another --output-dir; two nodes of one run need two --node-rank",
            f"was given --node-rank {launch.node_rank} too, as this node was: give every node its own",
        )
    each = "start each with --nnodes N --node-rank R --master-addr HOST: without them each would train alone"

    def remedy(host: str) -> str:
        one_run = f"if {host} and this node are to be nodes of one run, {each}; else "
        return f"{one_run if host != socket.gethostname() else ''}stop that one, or choose another --output-dir"

    return Twice(
        remedy,
        f"was started into this output_dir as well: if both are to be nodes of one run, {each}; for two runs choose "
        "two --output-dir, and --nnodes 1 to train on this node alone",
    )


def refuse_unwritable_run(run: RunDir) -> None:
    """Raises RefusedError where the run's directory cannot be written, or the folder of its checkpoints, which may be a
    mount or a link of its own."""
    refuse_unwritable(run.path)
    if run.checkpoints.exists():
        refuse_unwritable(run.checkpoints)


def unlocked_node(directory: str | Path, launch: Launch) -> Node:
    """The same for what starts no rank: nothing is made, and a run that goes on there is left alone."""
    run_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
    name = socket.gethostname() if launch.node_rank is None else launch.node_rank
    return Node(name, RunDir(directory), run_id, run_id, [])


def give_up_locks(node: Node) -> None:
    """All that was started is gone: this process, should it go on, can start another run in the same directory."""
    while node.locks:
        os.close(node.locks.pop())


@contextlib.contextmanager
def refusals_leave_nothing(node: Node) -> Iterator[None]:
    """Within, a run that is refused (AllranksError) before its ranks started leaves no lock of `node` behind."""
    try:
        yield
    except AllranksError:
        forget_lock(node.run.logs(node.name), node.locks)
        raise
