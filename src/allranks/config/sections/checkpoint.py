"""Keys of what is saved, when, and what a run starts again from."""

from typing import Literal

from pydantic import Field

from allranks.config.sections.section import FilePath, Interval, Section


class CheckpointConfig(Section):
    """The run directory and its checkpoints."""

    output_dir: FilePath = Field("./model-out", min_length=1)
    """The run directory."""
    save_strategy: Literal["steps", "epoch", "best", "no"] | None = None
    """When to save; `steps` if `save_steps` or `saves_per_epoch` is given, else `epoch`; `no`: nothing on the way."""
    save_steps: Interval | None = None
    """Save every so many steps; below 1, after every such fraction of the run."""
    saves_per_epoch: int | None = Field(None, ge=1)
    """Save so many times an epoch, evenly."""
    save_total_limit: int = Field(4, ge=0)
    """Keep only the newest checkpoints, this many (and the best, where one is asked for); 0 keeps all."""
    save_first_step: bool = False
    """Save after the first step too: finds a full disk early."""
    save_only_model: bool = False
    """Leave the optimizer out of checkpoints: smaller, but a run cannot go on from them."""
    save_async: bool | None = None
    """Write checkpoints while training goes on; where that is safe if not given."""
    save_safetensors: Literal[True] = True
    """Accepted: models are always written as safetensors."""
    resume_from_checkpoint: FilePath | None = None
    """Checkpoint folder to go on from."""
    auto_resume_from_checkpoints: bool = False
    """Go on from the newest complete checkpoint in `output_dir`, if there is one."""
    metric_for_best_model: Literal["eval_loss", "loss"] | None = None
    """What `save_strategy: best` and `load_best_model_at_end` look at: only the evaluation loss."""
    greater_is_better: Literal[False] | None = None
    """A smaller loss is better."""
    load_best_model_at_end: bool = False
    """Make the result from the checkpoint with the smallest evaluation loss; each new best is saved besides."""

    @property
    def num_kept(self) -> int | None:
        """`save_total_limit`; None for all."""
        return self.save_total_limit or None
