"""When a state of the training is saved, and what is told of it; how is checkpoint.py's."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from allranks.checkpoint.commit import step_of
from allranks.observe.events import CheckpointEvent, PhaseEvent
from allranks.train.record_steps import record_steps

if TYPE_CHECKING:
    from allranks.train.loop import Loop


def save(loop: Loop) -> Path:
    """Start saving the present step; all ranks call it. Refuses to save a state made from a bad loss."""
    record_steps(loop, loop.stats.flush())
    if loop.proof is not None:
        loop.proof.before_save(loop.step)
    loop.events.write(PhaseEvent(phase="checkpoint", step=loop.step))
    started = time.perf_counter()
    finish_saving(loop)  # the one before, so that it is told of, too: the next save would wait for it unseen
    checkpoint = loop.checkpointer.save(loop.step, loop.describe_state(loop))
    blocked = time.perf_counter() - started
    loop.events.write(CheckpointEvent(step=loop.step, state="started", path=str(checkpoint), blocked_seconds=blocked))
    if not loop.checkpointer.asynchronous:
        _saved(loop, checkpoint)
    loop.last_read = time.perf_counter()  # none of this is part of the next step's time
    return checkpoint


def save_before_leaving(loop: Loop) -> None:
    """Save the present step, unless it is or nothing is to be kept, and wait for what is being saved."""
    if loop.saves and not is_saved(loop):
        save(loop)
    finish_saving(loop)


def finish_saving(loop: Loop) -> None:
    """Wait for what is being saved, and tell of it. Raises what saving it failed with."""
    if (committed := loop.checkpointer.wait()) is not None:
        _saved(loop, committed)


def is_saved(loop: Loop) -> bool:
    """Whether the newest checkpoint is of the present step."""
    newest = loop.checkpointer.newest
    return newest is not None and step_of(newest) == loop.step


def _saved(loop: Loop, checkpoint: Path) -> None:
    loop.events.write(CheckpointEvent(step=step_of(checkpoint), state="committed", path=str(checkpoint)))
    if loop.progress is not None:
        loop.progress.note(f"step {step_of(checkpoint)}: checkpoint {checkpoint}")
