"""Going on from a checkpoint: which one, and whether it belongs to this run."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from allranks import durable
from allranks.checkpoint import commit
from allranks.checkpoint.state import RunState
from allranks.cluster.restarted import is_restarted
from allranks.config import RunConfig
from allranks.config.batch import global_batch
from allranks.config.earlier import with_defaults
from allranks.config.sections.adapter import AdapterConfig
from allranks.config.sections.model import ModelConfig
from allranks.config.sections.optimizer import OptimizerConfig
from allranks.config.sections.precision import PrecisionConfig
from allranks.errors import CheckpointError
from allranks.observe import RunDir
from allranks.train.assemble import data_seed
from allranks.train.loop import Loop
from allranks.train.storage import Storage, committed_steps, latest_valid, replicate


def checkpoint_to_resume(cfg: RunConfig, run_dir: RunDir, storage: Storage, warn: Callable[[str], None]) -> Path | None:
    """The checkpoint to go on from, verified, or None for a fresh start; call it on all ranks, which choose the same.

    Raises CheckpointError if the one asked for is unfit, UsageError if there are checkpoints and no word about them.
    """
    restarted = is_restarted(os.environ)
    if restarted and (newest := latest_valid(run_dir.checkpoints, storage, warn)) is not None:
        return newest  # this run's own progress, whatever it was started from
    if wanted := cfg.checkpoint.resume_from_checkpoint:
        if lack := replicate(Path(wanted), storage, warn):
            raise CheckpointError(
                "resume_from_checkpoint names a checkpoint that cannot be used:\n  "
                + "\n  ".join(lack.problems)
                + "\nName another, or let --auto-resume-from-checkpoints true take the newest good one"
            )
        return Path(wanted)
    if cfg.checkpoint.auto_resume_from_checkpoints:
        return latest_valid(run_dir.checkpoints, storage, warn)
    if restarted:
        return None
    commit.refuse_earlier_run(run_dir.path, committed_steps(run_dir.checkpoints, storage))
    return None


def check_trajectory(
    checkpoint: Path, state: RunState, cfg: RunConfig, fingerprint: str, warn: Callable[[str], None]
) -> None:
    """Compare what `checkpoint` was made with to what is asked for now.

    Raises CheckpointError for another trajectory (other data, another order of it) or another adapter or optimizer;
    warns, key by key, of whatever else changes what the next steps compute.
    """
    for there, here, name in (
        (state.fingerprint, fingerprint, "the prepared data (data, tokenizer, template or sequence_len)"),
        (state.data_seed, data_seed(cfg), "the seed of the order of the data (data_seed, else seed)"),
    ):
        if there != here:
            raise _changed(checkpoint, name, here, there)
    now = json.loads(json.dumps(cfg.flat(), default=str))
    then = with_defaults(state.config, cfg)
    for key in sorted(_WATCHED):
        if now.get(key) != then.get(key):
            if key in _FIXED:
                raise _changed(checkpoint, key, now.get(key), then.get(key))
            warn(f"{key} is {now.get(key)} from here on; it was {then.get(key)} in {checkpoint.name}")


_ORDER = {"curriculum_sampling", "group_by_length"}
_RATES = {"loraplus_lr_ratio", "loraplus_lr_embedding"}
# Other shapes or meanings of the tensors in the checkpoint, or another order of the data.
_FIXED = {*AdapterConfig.model_fields, "optimizer", "unfrozen_parameters", *_ORDER} - _RATES
# Whatever else the next steps' numbers depend on. The batch sizes have a rule of their own (global_batch_size).
_WATCHED = (
    _FIXED
    | _RATES
    | (
        {*ModelConfig.model_fields, *OptimizerConfig.model_fields, *PrecisionConfig.model_fields}
        - {"batch_size", "micro_batch_size", "gradient_accumulation_steps", "attn_implementation"}
    )
)


def _changed(checkpoint: Path, name: str, here: Any, there: Any) -> CheckpointError:
    return CheckpointError(
        f"{checkpoint} was made with other settings: {name} is {here} here, {there} there. "
        "Undo the change, or start a new run in another --output-dir"
    )


def archive_newer(run_dir: RunDir, step: int, storage: Storage, say: Callable[[str], None]) -> bool:
    """Rename the run's checkpoints of later steps than `step`, which training starts again from; call it on all ranks.

    Returns whether there were any, on the ranks that lead a folder.

    They belong to a trajectory that was left. As they were, they would be taken for the newest, at the next resume or
    export, and would push the new ones out of `save_total_limit`.
    """
    if not storage.leads:
        return False
    found = False
    for path in commit.complete_checkpoints(run_dir.checkpoints):
        if commit.step_of(path) > step:
            aside = path.with_name(f"abandoned-{time.strftime('%Y%m%d-%H%M%S')}-{path.name}")
            durable.rename(path, aside)
            say(f"{path.name} is of a later step than the one resumed from: set aside as {aside.name}")
            found = True
    return found


def global_batch_size(cfg: RunConfig, world_size: int, state: RunState | None, warn: Callable[[str], None]) -> int:
    """Blocks per step. A resumed run (`state` is its checkpoint's) keeps its own, so that its losses go on as before.

    Raises CheckpointError if the config asks for another one in so many words.
    """
    settings = cfg.optimizer
    asked = global_batch(settings, world_size)
    kept = state.global_batch if state else None
    if kept is None or kept == asked:
        return asked
    if settings.batch_size:
        raise CheckpointError(
            f"batch_size is {asked}, but the checkpoint was made with a global batch of {kept} blocks: its steps "
            f"and learning rates would not match. Set batch_size: {kept}, or start a new run"
        )
    warn(
        f"on {world_size} ranks these keys would give a global batch of {asked} blocks; keeping the run's {kept}, "
        "so that its losses go on as they were"
    )
    return kept


def restore(loop: Loop, checkpoint: Path, state: RunState) -> None:
    """Put model, optimizer and the loop's own counters back to where `checkpoint` was saved; call it on all ranks."""
    loop.checkpointer.load(checkpoint)
    loop.step, loop.tokens = state.step, state.tokens
    loop.best_loss, loop.best_checkpoint = state.best_loss, state.best_checkpoint
    loop.evals_without_improvement = state.evals_without_improvement
    loop.last_loss = math.nan if state.loss is None else state.loss
    if loop.best_checkpoint:
        loop.checkpointer.protected = {loop.checkpointer.directory / loop.best_checkpoint}
    if state.scaler:
        loop.strategy.load_scaler_state(dict(state.scaler))
