"""Starts of a rehearsal: the same command on several nodes of this machine, and what its ranks recorded."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from allranks.cluster.cores import usable_cores
from allranks.demo.commands import Command, first_error, run
from allranks.errors import AllranksError
from allranks.exit_codes import FAILED
from allranks.observe import RunDir, read_events
from allranks.observe.events import CheckpointEvent, StepEvent

_TIMEOUT_SECONDS = 1800.0


class PhaseError(AllranksError):
    """A phase that failed; `exit_code` is the failing part's."""


def run_phase(commands: Sequence[Command]) -> None:
    """Run the commands together. Raises PhaseError with the words of the one that failed first."""
    try:
        run(commands, timeout_seconds=_TIMEOUT_SECONDS)
    except AllranksError as error:
        failed = PhaseError(first_error(commands) or str(error))
        failed.exit_code = error.exit_code if error.exit_code > 0 else FAILED
        raise failed from None


def train_commands(
    config: Path, folder: Path, title: str, *, num_nodes: int, words: Sequence[str], nproc_per_node: int
) -> list[Command]:
    """`allranks train` as each of the nodes, which share 127.0.0.1 as those of the demo do."""
    env = rehearsal_environment(num_nodes * nproc_per_node)
    if num_nodes == 1 and "--rdzv-backend" in words:  # one node, which a run goes on with, has nobody to meet
        place = list(words).index("--rdzv-backend")
        words = [*words[:place], *words[place + 2 :]]
    same = ["allranks", "train", str(config), "--nproc-per-node", str(nproc_per_node), *words]
    if num_nodes == 1:
        return [Command(title, tuple(same), folder / "logs" / f"{title}.log", env)]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    same += ["--nnodes", str(num_nodes)]
    if "--rdzv-backend" in words:
        places = [["--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "rehearsal"]] * num_nodes
    else:
        where = ["--master-addr", "127.0.0.1", "--master-port", str(port)]
        places = [[*where, "--node-rank", str(node)] for node in range(num_nodes)]
    return [
        Command(f"node {node}", (*same, *place), folder / "logs" / f"{title}-node-{node}.log", env)
        for node, place in enumerate(places)
    ]


def rehearsal_environment(num_ranks: int) -> dict[str, str]:
    """For all that is started: the CPU, and not more threads than it has cores."""
    threads = max(1, min(4, usable_cores() // num_ranks))
    return {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(threads), "TERM": "dumb", "COLUMNS": "200"}


def proved_steps(run_dir: RunDir, num_ranks: int, steps: Sequence[int]) -> str:
    """What the ranks recorded of these steps. Raises PhaseError for one that is missing or not alike on all ranks."""
    told: dict[int, dict[int, float]] = {}
    for rank in range(num_ranks):
        events = [event for event in read_events(run_dir.events(rank)) if isinstance(event, StepEvent)]
        told[rank] = {event.step: event.loss for event in events}
    for step in steps:
        losses = {rank: found.get(step, math.nan) for rank, found in told.items()}
        wrong = [rank for rank, loss in losses.items() if not math.isfinite(loss)]
        if wrong:
            raise PhaseError(f"step {step} has no finite loss on rank {wrong[0]}: {losses[wrong[0]]}")
        if not all(math.isclose(loss, losses[0], rel_tol=1e-5) for loss in losses.values()):
            raise PhaseError(f"the ranks have not the same loss at step {step}: {losses}")
    return ", ".join(f"step {step} loss {told[0][step]:.4f}" for step in steps)


def is_saved(run_dir: RunDir, step: int) -> bool:
    """Whether rank 0 says that the checkpoint of that step is complete."""
    events = read_events(run_dir.events(0))
    return any(isinstance(one, CheckpointEvent) and one.step == step and one.state == "committed" for one in events)


def inherited(env: dict[str, str]) -> None:
    """Take over for this process what its commands get, before torch is imported."""
    os.environ.update({key: env[key] for key in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")})
