"""The only rank of a run, which trains in this very process, watched by threads beside it."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from functools import partial

import psutil

from allranks.config import RunConfig
from allranks.exit_codes import FAILED
from allranks.findings import printed
from allranks.launch.node.live import LiveNode
from allranks.launch.node.this_node import Node
from allranks.launch.peers import Peers
from allranks.launch.spec.options import Launch
from allranks.live.deadlines import limits_of
from allranks.live.live_file import write_end
from allranks.observe import say

_LOOK_SECONDS = 1.0


@contextlib.contextmanager
def watched_alone(launch: Launch, node: Node, cfg: RunConfig) -> Iterator[None]:
    """Within, live.json is kept, and a hang is noticed; with `on_hang: end` it ends this process with exit code 1."""
    live = LiveNode(
        Peers(node),
        limits=limits_of(cfg),
        ends=cfg.live.on_hang == "end",
        num_gpus=launch.num_gpus,
        say=partial(say, file=sys.stderr),
    )
    live.seen([psutil.Process()])
    over = threading.Event()

    def end_of_a_hang() -> None:
        while not over.wait(_LOOK_SECONDS):
            if (finding := live.hang()) is not None:
                say(printed(finding), file=sys.stderr)
                write_end(node.run, node.run_id, FAILED, finding)
                os._exit(FAILED)  # the thread that trains answers nothing any more

    threading.Thread(target=end_of_a_hang, name="live hang alone", daemon=True).start()
    try:
        with live:
            yield
    finally:
        over.set()
