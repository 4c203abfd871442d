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
from allranks.exit_codes import FAILED, REFUSED
from allranks.findings import Finding, printed
from allranks.launch.node.live import LiveNode
from allranks.launch.peers import Peers
from allranks.launch.spec.options import Launch
from allranks.live.deadlines import limits_of
from allranks.live.live_file import write_end
from allranks.observe import say

_LOOK_SECONDS = 1.0


@contextlib.contextmanager
def watched_alone(launch: Launch, peers: Peers, cfg: RunConfig) -> Iterator[None]:
    """Within, live.json is kept, and a hang is noticed; with `on_hang: end` it ends this process with exit code 1.

    What refuses a start, while it has done no step, ends it with 3.
    """
    node = peers.node
    live = LiveNode(
        peers,
        limits=limits_of(cfg),
        ends=cfg.live.on_hang == "end",
        num_gpus=launch.num_gpus,
        say=partial(say, file=sys.stderr),
    )
    live.seen([psutil.Process()])
    over = threading.Event()

    def end_at_once(code: int, finding: Finding) -> None:
        say(printed(finding), file=sys.stderr)
        write_end(node.run, node.run_id, code, finding)
        os._exit(code)  # the thread that trains answers nothing any more, or is to do no step

    def watch() -> None:
        while not over.wait(_LOOK_SECONDS):
            if (refused := peers.lost()) is not None:
                end_at_once(REFUSED, refused)
            if (hang := live.hang()) is not None:
                end_at_once(FAILED, hang)

    threading.Thread(target=watch, name="live hang alone", daemon=True).start()
    try:
        with live:
            yield
    finally:
        over.set()
