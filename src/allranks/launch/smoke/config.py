"""The config of a smoke run: the real one, but for its length, its folder and what it would tell the outside."""

from __future__ import annotations

from typing import Any

from allranks.cluster.smoke import NUM_STEPS
from allranks.config import RunConfig
from allranks.observe import RunDir

_CHANGED: dict[str, Any] = {
    "max_steps": NUM_STEPS,
    "save_strategy": "steps",
    "save_steps": NUM_STEPS,
    "save_first_step": False,
    "auto_resume_from_checkpoints": False,
    "load_best_model_at_end": False,
    "eval_strategy": "no",
    "eval_on_start": False,
    "logging_steps": 1,
    "use_tensorboard": False,
    "use_wandb": False,
    "use_mlflow": False,
    "use_trackio": False,
}
_LEFT_OUT = (
    "saves_per_epoch",
    "resume_from_checkpoint",
    "eval_steps",
    "evals_per_epoch",
    "early_stopping_patience",
    "profiler_steps",
    "loss_watchdog_threshold",
)


def smoke_config(cfg: RunConfig) -> RunConfig:
    """`cfg` for two steps from the start, in `smoke/` below its output_dir, without evaluation and trackers.

    A warm-up is cut to one step, which changes the learning rate of these steps only.
    """
    flat = {key: value for key, value in cfg.flat().items() if key not in _LEFT_OUT} | _CHANGED
    flat["output_dir"] = str(RunDir(cfg.checkpoint.output_dir).smoke)
    if (cfg.optimizer.warmup_steps or 0) > 1 or cfg.optimizer.warmup_ratio:
        flat.pop("warmup_ratio", None)
        flat["warmup_steps"] = 1
    made = RunConfig.from_resolved(flat, source=cfg.source)
    return RunConfig(**{**made.__dict__, "warnings": cfg.warnings, "notes": cfg.notes})
