"""What this rank holds in memory, by what for; and a failed allocation told with it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import psutil
import torch
from torch import Tensor

from allranks.cluster.identity import Identity
from allranks.cluster.memory import memory_limit
from allranks.config import RunConfig
from allranks.config.strategy import strategy
from allranks.doctor.memory import Held, account, gib, shortage, told
from allranks.doctor.memory_remedies import Ranks, remedies
from allranks.errors import OutOfMemoryError
from allranks.model.train_model import TrainModel
from allranks.observe.events import MemoryEvent
from allranks.plan.optimizer_state import state_bytes
from allranks.train.groups import trained_parameters
from allranks.train.saved_size import held_here, num_bytes
from allranks.train.strategies import Strategy


def out_of_memory(
    error: BaseException,
    cfg: RunConfig,
    identity: Identity,
    model: TrainModel | None = None,
    trained: Strategy | None = None,
) -> OutOfMemoryError | None:
    """The error to tell of an allocation that failed, on this host or on a GPU; None if `error` is none.

    `model` and `trained` as far as they were made.
    """
    short = shortage(error)
    if short is None:
        return None
    on_gpu = short.where != "host"
    held = held_now(model, trained, on_gpu=on_gpu)
    total = (short.held or _allocated()) if on_gpu else psutil.Process().memory_info().rss
    held = replace(held, rest=max(total - held.states, 0))
    limit = None if on_gpu else memory_limit()
    where = f"of which {limit.source} allows {gib(limit.num_bytes)}" if limit else ""
    kind, _, _ = strategy(cfg, identity.world_size)
    # Before the first backward pass and step, what these will need has to fit as well.
    coming = held_later(cfg, model, on_gpu=on_gpu)
    needed = replace(
        held,
        gradients=max(held.gradients, coming.gradients),
        optimizer=max(held.optimizer, coming.optimizer),
    )
    ranks = Ranks(kind, identity.world_size, identity.local_world_size or 1)
    return OutOfMemoryError(told(short, where), account(held, short), remedies(cfg, needed, ranks, short))


def held_now(model: TrainModel | None, trained: Strategy | None, *, on_gpu: bool) -> Held:
    """What parameters, gradients and optimizer states take on the device that is asked for."""
    if model is None:
        return Held()
    parameters = [*model.hf_model.parameters()]
    # ZeRO-3 keeps a parameter's piece beside the parameter, which is empty between layers.
    pieces = [piece for one in parameters if (piece := getattr(one, "ds_tensor", None)) is not None]
    return Held(
        parameters=_sum([*parameters, *pieces], on_gpu=on_gpu),
        gradients=_sum([one.grad for one in parameters if one.grad is not None], on_gpu=on_gpu),
        optimizer=_sum(_states(trained), on_gpu=on_gpu) if trained is not None else 0,
    )


def held_later(cfg: RunConfig, model: TrainModel | None, *, on_gpu: bool) -> Held:
    """The same once the first step is done, as far as it is known before it."""
    if model is None:
        return Held()
    settings = cfg.optimizer
    momentum = bool((settings.optim_args or {}).get("momentum"))
    gradients, optimizer = 0, 0.0
    for one in trained_parameters(model.hf_model):
        here = held_here(one.parameter.data)
        if here is not None and (here.device.type == "cuda") == on_gpu:
            size = here.element_size()
            each = state_bytes(settings.optimizer, size, is_matrix=one.is_matrix, momentum=momentum)
            gradients += num_bytes(one.parameter.data)
            optimizer += here.numel() * each
    return replace(held_now(model, None, on_gpu=on_gpu), gradients=gradients, optimizer=int(optimizer))


def memory_event(cfg: RunConfig, model: TrainModel) -> MemoryEvent:
    """What this rank will hold on its host: a rank that the kernel kills can say nothing itself."""
    held = held_later(cfg, model, on_gpu=False)
    return MemoryEvent(
        device=model.placement.device.type,
        parameters_bytes=held.parameters,
        gradients_bytes=held.gradients,
        optimizer_bytes=held.optimizer,
    )


def _states(trained: Strategy) -> Iterable[Tensor]:
    """States of the optimizer, and the float32 weights that ZeRO's keeps."""
    for state in trained.optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))
    yield from (piece.flat for piece in getattr(trained.state, "pieces", ()))


def _sum(tensors: Iterable[Tensor], *, on_gpu: bool) -> int:
    found = {}
    for tensor in tensors:
        here = held_here(tensor)
        if here is not None and (here.device.type == "cuda") == on_gpu:
            found[here.data_ptr(), here.numel()] = num_bytes(here)
    return sum(found.values())


def _allocated() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
