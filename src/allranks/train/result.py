"""The adapter or model that a run ends with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from allranks.checkpoint import commit
from allranks.config import RunConfig
from allranks.observe import RunDir
from allranks.train.loop import Loop
from allranks.train.step_schedule import wants_result


def result_checkpoint(cfg: RunConfig, run_dir: RunDir, loop: Loop) -> Path | None:
    """The checkpoint that the run's result is made from, or None where none is wanted: the best if bests were saved,
    else the last. Rank 0's folder counts."""
    if not wants_result(cfg):
        return None
    if loop.save_best and loop.best_checkpoint:
        return run_dir.checkpoints / loop.best_checkpoint
    return next(iter(commit.complete_checkpoints(run_dir.checkpoints)), None)


def write_result(cfg: RunConfig, run_dir: RunDir, checkpoint: Path, *, say: Callable[[str], None]) -> Path:
    """Write the adapter or model of `checkpoint`, tensor by tensor: it is whole in nobody's memory. Rank 0 alone.

    Each tensor is compared with the checkpoint's, and `say` gets what was found. No logits are compared: that would
    take a model's memory beside the training's.
    """
    from allranks.export.export import export

    out = run_dir.path / ("adapter" if cfg.adapter.adapter else "model")
    # This run made it, or checked it when it resumed; whoever started it consented in its config.
    export(
        checkpoint,
        out,
        replace=True,
        verified=True,
        trust_remote_code=cfg.model.trust_remote_code,
        compare_logits=False,
        report=say,
    )
    return out
