"""The strategies of training: what wraps the model, how gradients meet, who holds which part of the state."""

from __future__ import annotations

from allranks.config import RunConfig
from allranks.model.build import TrainModel
from allranks.train.optimizer import make_optimizer
from allranks.train.strategies.native import Native
from allranks.train.strategies.strategy import State, Strategy


def make_strategy(cfg: RunConfig, model: TrainModel) -> Strategy:
    """The strategy that `model` was built for, with its optimizer; call it on all ranks."""
    return Native(model, make_optimizer(cfg, model.module), max_grad_norm=cfg.optimizer.max_grad_norm)


__all__ = ["State", "Strategy", "make_strategy"]
