"""PyTorch's own strategies: one process, DDP, FSDP2 and HSDP. What differs between them, the wrapped module does."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

from allranks.model.train_model import TrainModel


class Native:
    """A `strategy.Strategy`. The learning rates, and everything else about the optimizer, are the caller's."""

    engine_settings = None

    def __init__(self, model: TrainModel, optimizer: torch.optim.Optimizer, *, max_grad_norm: float) -> None:
        self.model = model
        self.module = model.module
        self.optimizer = optimizer
        self.max_grad_norm = max_grad_norm
        self.state = NativeState(model.hf_model, optimizer, whole=model.peft_config is None)
        self._trained = [parameter for parameter in model.module.parameters() if parameter.requires_grad]
        needs_scale = model.precision.compute == torch.float16
        self._scaler = torch.amp.GradScaler(model.placement.device.type) if needs_scale else None
        # The scale finds its level by overflowing; the scaler skips those steps by itself.
        self.skips_overflows = needs_scale

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        return self.model.gradient_sync(last)

    def backward(self, loss: Tensor) -> None:
        (self._scaler.scale(loss) if self._scaler else loss).backward()

    def step(self) -> Tensor:
        if self._scaler:
            self._scaler.unscale_(self.optimizer)
        norm = clip(self._trained, self.max_grad_norm)
        if self._scaler:
            self._scaler.step(self.optimizer)
            self._scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def scaler_state(self) -> dict[str, Any] | None:
        return self._scaler.state_dict() if self._scaler else None

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        if self._scaler:
            # DeepSpeed's has the scale only.
            self._scaler.load_state_dict({**self._scaler.state_dict(), **state})


def clip(parameters: list[nn.Parameter], max_norm: float) -> Tensor:
    """Scale the gradients down to `max_norm` (0: leave them); returns their norm before, as a device scalar."""
    norm = nn.utils.clip_grad_norm_(parameters, max_norm or math.inf)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


class NativeState:
    """A `strategy.State` of a model whose parameters are tensors or DTensors.

    `whole`: frozen parameters are saved too (`unfrozen_parameters`), for a model is exported from a checkpoint alone.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, whole: bool = False) -> None:
        self.model = model
        self.optimizer = optimizer
        self.whole = whole

    def contents(self, *, only_model: bool) -> dict[str, Any]:
        contents: dict[str, Any] = {"model": trained_state(self.model, whole=self.whole)}
        if not only_model:
            contents["optimizer"] = get_optimizer_state_dict(self.model, self.optimizer, options=_options())
        return contents

    def restore(self, contents: dict[str, Any]) -> None:
        # Frozen parameters may not be in a checkpoint.
        set_model_state_dict(self.model, contents["model"], options=replace(_options(), strict=False))
        # The state goes on; the settings (weight decay, betas) are the config's, as for a fresh start.
        settings = [{key: group[key] for key in group if key != "params"} for group in self.optimizer.param_groups]
        set_optimizer_state_dict(self.model, self.optimizer, contents["optimizer"], options=_options())
        for group, configured in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(configured)


def trained_state(model: nn.Module, *, whole: bool) -> dict[str, Any]:
    """The tensors of `model` that a checkpoint holds, each under one name; frozen ones too, if `whole`."""
    state = get_model_state_dict(model, options=replace(_options(), ignore_frozen_params=not whole))
    # DCP's own filter keeps the second name of a tied weight, frozen or not.
    named = model.named_parameters(remove_duplicate=False)
    once = {name for name, parameter in model.named_parameters() if whole or parameter.requires_grad}
    for name in {name for name, _ in named} - once:
        state.pop(name, None)
    return state


def _options() -> StateDictOptions:
    return StateDictOptions(ignore_frozen_params=True, flatten_optimizer_state_dict=True)
