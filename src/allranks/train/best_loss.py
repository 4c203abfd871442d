"""Evaluations while training goes on: which loss is the best, and whether it still becomes better."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from allranks.checkpoint.commit import checkpoint_path
from allranks.observe.events import EvalEvent, PhaseEvent
from allranks.train.evaluate import evaluate
from allranks.train.record_steps import record_steps
from allranks.train.saving import save

if TYPE_CHECKING:
    from allranks.train.loop import Loop


def evaluate_and_compare(loop: Loop) -> bool:
    """Evaluate, save if this is the best and bests are saved; True if training should stop improving in vain."""
    record_steps(loop, loop.stats.flush())
    loss = measure(loop)
    improved = _is_better(loss, loop.best_loss)
    if improved:
        loop.best_loss, loop.evals_without_improvement = loss, 0
    else:
        loop.evals_without_improvement += 1
    if loop.save_best and improved:
        # Before the save, because the checkpoint's own state tells a resumed run which one to keep.
        best = checkpoint_path(loop.checkpointer.directory, loop.step)
        loop.best_checkpoint = best.name
        loop.checkpointer.protected = {best}
        save(loop)
    loop.last_read = time.perf_counter()  # none of this is part of the next step's time
    patience = loop.limits.eval_patience
    return patience is not None and loop.evals_without_improvement >= patience


def measure(loop: Loop) -> float:
    """The evaluation loss of the present step, recorded."""
    assert loop.eval_plan is not None
    loop.events.write(PhaseEvent(phase="evaluation", step=loop.step))
    started = time.perf_counter()
    pad_blocks = loop.pad_blocks_to is not None
    with loop.garbage.let_go():
        loss = evaluate(loop.model, loop.eval_plan, pad_blocks=pad_blocks, pad_token_id=loop.pad_token_id)
    seconds = time.perf_counter() - started
    loop.events.write(EvalEvent(step=loop.step, eval_loss=loss, seconds=round(seconds, 6)))
    if loop.progress is not None:
        loop.progress.note(f"step {loop.step}: eval_loss {loss:.4f} ({seconds:.1f} s)")
    return loss


def _is_better(loss: float, best: float | None) -> bool:
    """Whether an evaluation's loss is a new best: a loss that is not finite never is, and any other beats it."""
    return math.isfinite(loss) and (best is None or not math.isfinite(best) or loss < best)
