"""The strategies of training: what wraps the model, how gradients meet, who holds which part of the state."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from allranks.cluster.identity import Identity
from allranks.config import RunConfig
from allranks.model.train_model import TrainModel
from allranks.plan.zero import WORTH_A_WARNING, slow_link_warning, traffic
from allranks.train.optimizer import make_optimizer
from allranks.train.strategies.native import Native
from allranks.train.strategies.strategy import State, Strategy


def make_strategy(cfg: RunConfig, model: TrainModel, *, num_micro_batches: int = 1) -> Strategy:
    """The strategy that `model` was built for, with its optimizer; call it on all ranks.

    `num_micro_batches`: of a rank in one step.
    """
    optimizer = make_optimizer(cfg, model.hf_model)
    if model.placement.kind != "zero":
        return Native(model, optimizer, max_grad_norm=cfg.optimizer.max_grad_norm)
    from allranks.model.zero import engine_settings
    from allranks.train.strategies.zero import Zero  # DeepSpeed takes seconds to import

    settings = engine_settings(cfg, model.placement, model.precision, model.config, num_micro_batches=num_micro_batches)
    return Zero(model, optimizer, settings)


def strategy_warnings(cfg: RunConfig, model: TrainModel, identity: Identity, num_micro_batches: int) -> Iterator[str]:
    """What the user should know of this strategy on these nodes."""
    local = identity.local_world_size
    if model.placement.zero_stage != 3 or local is None:  # not every launcher counts nodes
        return
    hpz = cfg.deepspeed.zero.get("zero_hpz_partition_size") or 1
    num_nodes = -(-identity.world_size // local)
    if hpz not in (1, local):
        yield (
            f"zero_hpz_partition_size is {hpz}, and a node has {local} processes: {local} would keep the gathering of "
            "parameters for the backward pass inside of the nodes"
        )
    width = model.precision.compute.itemsize
    moved = partial(
        traffic,
        parameter_bytes=model.num_parameters * width,
        gradient_bytes=model.num_trainable * width,
        num_ranks=identity.world_size,
        num_nodes=num_nodes,
        num_micro_batches=num_micro_batches,
        backend="nccl" if model.placement.device.type == "cuda" else "gloo",
    )
    found = moved(hpz=hpz)
    if found.zero3 > WORTH_A_WARNING:
        with_hpz = moved(hpz=local).zero3 if hpz == 1 and local > 1 else None
        yield slow_link_warning(found, num_nodes=num_nodes, local_ranks=local, with_hpz=with_hpz)


__all__ = ["State", "Strategy", "make_strategy", "strategy_warnings"]
