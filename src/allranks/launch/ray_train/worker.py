"""What runs in each of Ray Train's workers: one rank."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from allranks.launch.ray_train.board import NAMESPACE, End, Orders, Seat, board_name
from allranks.launch.ray_train.engine import PREEMPTED, Engine
from allranks.launch.ray_train.reporting import Reporter
from allranks.launch.ray_train.tail import Tail

_BEAT_SECONDS = 0.5
_LONGEST_MESSAGE = 500
# One actor answers all workers: with so many a second it is still idle most of the time.
_BEATS_PER_SECOND = 250


def run_rank(config: dict[str, Any]) -> None:
    """Train as one rank of run `config["run_id"]`. Raises RuntimeError where the engine failed, for Ray to restart."""
    import ray
    from ray.train import get_context

    context = get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    board = ray.get_actor(board_name(config["run_id"]), namespace=NAMESPACE)
    seat = Seat(socket.gethostname(), context.get_node_rank(), context.get_local_rank())
    orders: Orders = ray.get(board.enlist.remote(rank, seat))  # type: ignore[assignment]
    if not Path(orders.directory).is_dir():
        problem = (
            f"there is no folder {orders.directory} on this node, where relative paths of the config would begin: "
            "start from a folder that all nodes have, such as a shared one"
        )
        ray.get(board.end.remote(End(orders.attempt, rank, seat.host, 2, problem)))
        raise RuntimeError(problem)
    with Engine(orders, rank, seat, context.get_local_world_size()) as engine:
        tail = Tail(engine.events, engine.start_of_events)
        reporter = Reporter(board, rank, Path(orders.ray_directory), orders.attempt, tail)
        reporter.start()
        ended = False
        while not ended:
            ended = engine.wait(max(_BEAT_SECONDS, world_size / _BEATS_PER_SECOND))
            word = ray.get(board.beat.remote(rank, engine.take_lines()))
            reporter.hear(word)
            if word.stop and not ended:
                engine.ask_to_stop()
        end = engine.end()
        ray.get([board.end.remote(end), board.beat.remote(rank, engine.take_lines())])
        if end.code not in (0, PREEMPTED) and not word.stop:
            raise RuntimeError(described(end))
        reporter.finish()
        while reporter.is_alive():
            reporter.join(_BEAT_SECONDS)
            reporter.hear(ray.get(board.beat.remote(rank, [])))
        if reporter.note:
            ray.get(board.beat.remote(rank, [f"warning: {reporter.note}"]))


def described(end: End) -> str:
    """How a rank ended, in words."""
    rank = f"rank {end.rank} on {end.host}"
    if end.is_shown:
        return f"{rank} failed: its message is above"
    how = f"failed: {end.message[:_LONGEST_MESSAGE]}" if end.message else f"ended with exit code {end.code}"
    return f"{rank} {how}; its log: {end.log}" if end.log else f"{rank} {how}"
