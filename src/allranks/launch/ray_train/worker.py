"""What runs in each of Ray Train's workers: one rank."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from allranks.exit_codes import PREEMPTED
from allranks.launch.ray_train.coordinator import NAMESPACE, Placement, RankExit, RankSpec, coordinator_name
from allranks.launch.ray_train.engine import Engine
from allranks.launch.ray_train.reporting import Reporter
from allranks.launch.ray_train.tail import Tail

_BEAT_SECONDS = 0.5
LONGEST_MESSAGE = 500
# One actor answers all workers: with so many a second it is still idle most of the time.
_BEATS_PER_SECOND = 250


def run_rank(config: dict[str, Any]) -> None:
    """Train as one rank of run `config["run_id"]`. Raises RuntimeError where the engine failed, for Ray to restart."""
    import ray
    from ray.train import get_context

    context = get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    coordinator = ray.get_actor(coordinator_name(config["run_id"]), namespace=NAMESPACE)
    placement = Placement(socket.gethostname(), context.get_node_rank(), context.get_local_rank())
    spec: RankSpec = ray.get(coordinator.enlist.remote(rank, placement))  # type: ignore[assignment]
    if not Path(spec.directory).is_dir():
        problem = (
            f"there is no folder {spec.directory} on this node, where relative paths of the config would begin: "
            "start from a folder that all nodes have, such as a shared one"
        )
        ray.get(coordinator.exited.remote(RankExit(spec.attempt, rank, placement.host, 2, problem)))
        raise RuntimeError(problem)
    with Engine(spec, rank, placement, context.get_local_world_size()) as engine:
        tail = Tail(engine.events, engine.start_of_events)
        reporter = Reporter(coordinator, rank, Path(spec.ray_directory), spec.attempt, tail)
        reporter.start()
        ended = False
        while not ended:
            ended = engine.wait(max(_BEAT_SECONDS, world_size / _BEATS_PER_SECOND))
            stopped = () if ended else engine.stopped()
            command = ray.get(coordinator.beat.remote(rank, engine.take_lines(), stopped, engine.state()))
            reporter.hear(command)
            if command.stop and not ended:
                engine.ask_to_stop()
            elif command.hangs and not ended:
                engine.end_hung()
        end = engine.end()
        ray.get([coordinator.exited.remote(end), coordinator.beat.remote(rank, engine.take_lines())])
        if end.code not in (0, PREEMPTED) and not command.stop:
            raise RuntimeError(described(end))
        reporter.finish()
        while reporter.is_alive():
            reporter.join(_BEAT_SECONDS)
            reporter.hear(ray.get(coordinator.beat.remote(rank, [])))
        if reporter.note:
            ray.get(coordinator.beat.remote(rank, [f"warning: {reporter.note}"]))


def described(end: RankExit) -> str:
    """How a rank ended, in words."""
    rank = f"rank {end.rank} on {end.host}"
    if end.is_shown:
        return f"{rank} failed: its message is above"
    how = f"failed: {end.message[:LONGEST_MESSAGE]}" if end.message else f"ended with exit code {end.code}"
    return f"{rank} {how}; its log: {end.log}" if end.log else f"{rank} {how}"
