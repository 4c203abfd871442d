"""Where a command starts: on all nodes from here, or on this one; nothing of what it starts there is known yet."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from allranks.cluster.identity import identify
from allranks.errors import AllranksError, UsageError
from allranks.launch.spec.everywhere import Everywhere
from allranks.launch.spec.from_environment import tell, with_environment
from allranks.launch.spec.options import Launch, LaunchOptions, resolve
from allranks.launch.spec.where import NodeOptions, find_nodes


def where_to_start(
    nodes: NodeOptions, asked: LaunchOptions, argv: Sequence[str], token: str
) -> tuple[Everywhere | None, Launch | None, list[str]]:
    """All nodes or this one, and what to tell of it once it is known that Ray does not decide."""
    options, notes = with_environment(asked, nodes)
    try:
        everywhere = find_nodes(nodes, options, argv)
        return everywhere, replace(resolve(options), token=token) if everywhere is None else None, notes
    except AllranksError:
        tell(notes)  # what is refused may have come from there
        raise


def refuse_nested_launch(launch: Launch, instead: str) -> None:
    """Under `srun -n 4 allranks train` each task would train alone, four times the same. Raises UsageError."""
    if launch.max_nodes > 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    _refuse_numbered_nodes(os.environ)
    identity = identify(os.environ)
    if not identity.alone:
        raise UsageError(
            f"this process is rank {identity.rank} of {identity.world_size} (from {identity.source}): inside a "
            f"launcher of your own start {instead} starts the ranks itself"
        )


def _refuse_numbered_nodes(env: Mapping[str, str]) -> None:
    """Some platforms number nodes by the variables of ranks, and start one process on each."""
    rank, size = env.get("RANK"), env.get("WORLD_SIZE")
    if rank and size not in (None, "", "1") and not env.get("LOCAL_RANK"):
        address = env.get("MASTER_ADDR") or "HOST"
        raise UsageError(
            f"RANK={rank} and WORLD_SIZE={size} are set: where they count nodes, give --nnodes {size} --node-rank "
            f"{rank} --master-addr {address}; where they count processes, their launcher starts `python -m "
            "allranks.train CONFIG`; unset both to train on this node alone"
        )
