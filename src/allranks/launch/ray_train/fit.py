"""Ray Train's part of a run, as the driver starts it."""

from __future__ import annotations

from allranks.launch.ray_train.plan import Fitted, Plan


def fit(plan: Plan) -> Fitted:
    """Runs as a Ray task: the trainer imports ray.train, which this process, the driver, does without."""
    from allranks.launch.ray_train.trainer import fit_trainer

    return fit_trainer(plan)
