"""The config of a run that is made for what it shows: the user's own, but for its length and what it leaves behind."""

from __future__ import annotations

from typing import Any

from allranks.config import RunConfig

_CHANGED: dict[str, Any] = {
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
    "on_hang": "end",
}
_LEFT_OUT = (
    "save_steps",
    "saves_per_epoch",
    "metric_for_best_model",
    "greater_is_better",
    "resume_from_checkpoint",
    "eval_steps",
    "evals_per_epoch",
    "early_stopping_patience",
    "profiler_steps",
    "loss_watchdog_threshold",
)


def short_run(cfg: RunConfig, **keys: Any) -> RunConfig:
    """`cfg` from its start, without evaluation and trackers, and with `keys`: its folder, its length, when it saves.

    A warm-up is cut to one step, which changes the learning rate of these steps only. Raises ConfigError for `keys`
    that do not fit the config.
    """
    flat = {key: value for key, value in cfg.flat().items() if key not in _LEFT_OUT} | _CHANGED | keys
    if (cfg.optimizer.warmup_steps or 0) > 1 or cfg.optimizer.warmup_ratio:
        flat.pop("warmup_ratio", None)
        flat["warmup_steps"] = 1
    made = RunConfig.from_resolved(flat, source=cfg.source)
    return RunConfig(**{**made.__dict__, "warnings": cfg.warnings, "notes": cfg.notes})
