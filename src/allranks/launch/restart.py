"""All ranks started again after a hang (`on_hang: restart`), by further attempts of the same launchers.

Node 0 decides, while all nodes still hear of each other; each then ends its ranks and makes the next attempt, in which
the nodes meet, are checked and load the newest checkpoint as at any start. So it works under every launcher that ends
with its ranks, and over ssh, Slurm and PBS alike. Ray restarts by itself (ray_train/).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

from allranks.config import RunConfig
from allranks.errors import RefusedError, UsageError
from allranks.findings import printed
from allranks.launch.attempt import Work, attempt, tell_end
from allranks.launch.between_starts import BetweenStarts
from allranks.launch.spec.options import Launch
from allranks.observe import say

_MEET_AGAIN_SECONDS = 120.0
"""All nodes were there when node 0 asked for it: one that does not come has died since, and the others cost money while
they wait. Ending ranks and checking the config again takes some ten seconds."""


def refuse_restart(cfg: RunConfig, launch: Launch) -> None:
    """Raises UsageError where `on_hang: restart` is asked for and this launch cannot do it."""
    if cfg.live.on_hang != "restart":
        return
    if launch.backend == "c10d" and launch.max_nodes > 1:
        raise UsageError(
            "on_hang: restart needs nodes that watch over each other: with --rdzv-backend c10d and restarts torchrun "
            "alone does. Give each node its --node-rank and --master-addr, or set on_hang: end"
        )
    if launch.launcher == "deepspeed":
        raise UsageError("on_hang: restart needs --launcher torchrun or accelerate; deepspeed restarts nothing")
    if not launch.max_restarts:
        raise UsageError("on_hang: restart needs --max-restarts N: how often all ranks may be started again")


def told_restarts(launch: Launch, work_of: Callable[[Launch], Work]) -> int:
    """Attempts at `work_of(launch)` until one does not end in a hang after which all nodes start again; the end is told
    on this terminal. Returns the exit code."""
    with BetweenStarts() as between:
        verdict = attempt(launch, work_of(launch), between)
        while verdict.restarts is not None and verdict.reason is not None:
            join_seconds = min(launch.join_seconds, _MEET_AGAIN_SECONDS)
            launch = replace(launch, num_restarts=verdict.restarts, join_seconds=join_seconds)
            say(printed(verdict.reason), file=sys.stderr)
            times = f"{verdict.restarts} of {launch.max_restarts} times"
            say(f"on_hang: restart: all nodes start their ranks again, {times}")
            try:
                verdict = attempt(launch, work_of(launch), between)
            except RefusedError:
                if (gone := between.verdict()) is None:
                    raise
                verdict = gone
    if launch.num_restarts and verdict.reason is not None:
        told = f"all ranks had been started again {launch.num_restarts} of {launch.max_restarts} times (--max-restarts)"
        verdict = replace(verdict, message="\n  ".join(filter(None, [verdict.message, told])))
    return tell_end(launch, verdict)
