"""What goes on beside a run's steps: a line of progress, counted traffic, a bounded log of NCCL, the run's proof."""

from __future__ import annotations

import os
from collections.abc import Callable

from allranks.cluster.identity import Identity
from allranks.config import RunConfig
from allranks.model.comm_hooks import compression_starts, compression_warnings
from allranks.observe import EventLog, Progress, RunDir
from allranks.train.loop import Loop
from allranks.train.nccl_log_size import BoundedLog
from allranks.train.network import nccl_log_file
from allranks.train.proof import Proving
from allranks.train.traffic import TrafficCounter, steps_to_count


def put_beside(
    loop: Loop,
    cfg: RunConfig,
    identity: Identity,
    run_dir: RunDir,
    events: EventLog,
    *,
    say: Callable[[str], None],
    warn: Callable[[str], None],
) -> None:
    """Give `loop` what is to go on beside its steps. `say` and `warn` are for before there is a line of progress."""
    first, last = loop.step + 1, loop.step_schedule.num_steps
    if identity.rank == 0:
        loop.progress = Progress(
            last,
            start_step=loop.step,
            logging_steps=loop.step_schedule.log_every,
            full_speed=loop.full_speed,
        )
    note = loop.progress.note if loop.progress is not None else say
    if not identity.alone:
        for line in compression_warnings(cfg, loop.step, last):
            warn(line)
        counted = steps_to_count(first, last, compression_starts(cfg))
        loop.traffic = TrafficCounter(identity.rank, loop.model.placement.nodes, counted, events, say=note)
    if loop.model.placement.device.type == "cuda" and (file := nccl_log_file(os.environ)) is not None:
        loop.after_step = (*loop.after_step, BoundedLog(file))
    loop.proof = Proving(cfg, identity, run_dir, loop.model, events, step=first, say=note, warn=warn)
