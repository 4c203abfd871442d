"""The config of a smoke run: the real one, but for its length, its folder and what it would tell the outside."""

from __future__ import annotations

from allranks.cluster.smoke import NUM_STEPS
from allranks.config import RunConfig
from allranks.launch.short_run import short_run
from allranks.observe import RunDir


def smoke_config(cfg: RunConfig) -> RunConfig:
    """`cfg` for two steps from the start, in `smoke/` below its output_dir, without evaluation and trackers."""
    return short_run(
        cfg,
        max_steps=NUM_STEPS,
        output_dir=str(RunDir(cfg.checkpoint.output_dir).smoke),
        save_strategy="steps",
        save_steps=NUM_STEPS,
    )
