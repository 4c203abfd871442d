"""Which trackers a config asks for."""

import importlib.util

from allranks.config import RunConfig
from allranks.errors import RefusedError

PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
"""Tracker -> the package that it needs, under which it is also an extra of allranks."""


def chosen_trackers(cfg: RunConfig) -> list[str]:
    """Names of the trackers that the config switches on, by `use_…` or, as in Axolotl, by naming a project."""
    tracking = cfg.tracking
    asked = {
        "tensorboard": tracking.use_tensorboard,
        "wandb": _asked(tracking.use_wandb, tracking.wandb_project) and tracking.wandb_mode != "disabled",
        "mlflow": _asked(tracking.use_mlflow, tracking.mlflow_experiment_name),
        "trackio": _asked(tracking.use_trackio, tracking.trackio_project_name),
    }
    return [name for name, wanted in asked.items() if wanted]


def refuse_missing_packages(cfg: RunConfig) -> None:
    """Raise RefusedError if a tracker's package is not installed: before data and model are loaded, not after."""
    missing = [name for name in chosen_trackers(cfg) if not _is_installed(PACKAGES[name])]
    if missing:
        packages = " ".join(PACKAGES[name] for name in missing)
        raise RefusedError(
            f"{' and '.join(f'use_{name}' for name in missing)}: not installed: {packages}; pip install {packages}, or "
            f"switch it off with {' '.join(f'--no-use-{name}' for name in missing)}"
        )


def _asked(switch: bool | None, project: str | None) -> bool:
    return bool(project) if switch is None else switch


def _is_installed(package: str) -> bool:
    # A folder of that name in the working directory (wandb makes one) is found too, as a package without a file.
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None
