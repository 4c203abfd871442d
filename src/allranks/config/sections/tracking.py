"""Keys of what is reported while a run goes on."""

from typing import Literal

from pydantic import Field

from allranks.config.sections.section import FilePath, Section


class TrackingConfig(Section):
    """Progress, watchdogs and trackers."""

    logging_steps: int = Field(1, ge=1)
    """Report every so many steps."""
    loss_watchdog_threshold: float | None = Field(None, gt=0)
    """Stop when the loss stays above this …"""
    loss_watchdog_patience: int | None = Field(None, ge=1)
    """… for so many steps in a row (3)."""
    profiler_steps: int | None = Field(None, ge=1)
    """Record so many steps with torch's profiler, into `profiles/` of the run directory."""
    profiler_steps_start: int = Field(0, ge=0)
    """Steps done before the profile begins."""
    gc_steps: int | None = Field(None, ge=-1)
    """Collect Python's garbage, and empty the GPU's cache, every so many steps; -1: at the end of each epoch and before
    each evaluation. Without it (or 0) garbage is collected every 50 steps, and the cache left alone."""
    use_tensorboard: bool | None = None
    """Write event files for TensorBoard into `trackers/tensorboard` of the run directory."""
    use_wandb: bool | None = None
    """Report to Weights & Biases; `wandb_project` switches it on too, unless this is `false`."""
    wandb_project: str | None = None
    """Project of Weights & Biases."""
    wandb_entity: str | None = None
    """User or team of Weights & Biases that the project belongs to."""
    wandb_name: str | None = None
    """Name of the run there."""
    wandb_run_id: str | None = None
    """Id of the run there; made, and kept for resuming, if not given."""
    wandb_mode: Literal["online", "offline", "disabled"] | None = None
    """`offline` writes into `trackers/wandb` of the run directory, for `wandb sync`; `disabled` switches it off."""
    use_mlflow: bool | None = None
    """Report to MLflow; `mlflow_experiment_name` switches it on too, unless this is `false`."""
    mlflow_tracking_uri: FilePath | None = None
    """Server or database, such as `http://host:5000` or `sqlite:///a.db`; a file of the run directory if not given."""
    mlflow_experiment_name: str | None = None
    """Experiment of MLflow."""
    mlflow_run_name: str | None = None
    """Name of the run there; the run directory's if not given."""
    use_trackio: bool | None = None
    """Report to Trackio; `trackio_project_name` switches it on too, unless this is `false`."""
    trackio_project_name: str | None = None
    """Project of Trackio."""
    trackio_run_name: str | None = None
    """Name of the run there."""
    trackio_space_id: str | None = None
    """Space of the Hugging Face Hub to report to; on this machine if not given."""
