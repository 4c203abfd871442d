"""Optimizers by name, with weight decay where it belongs."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from allranks.config import RunConfig
from allranks.errors import ConfigError
from allranks.model.sharding import full_shape


def make_optimizer(cfg: RunConfig, module: nn.Module) -> torch.optim.Optimizer:
    """The configured optimizer over the trainable parameters of `module`.

    Matrices decay; biases, norms and other vectors do not, as in transformers' Trainer. Raises ConfigError for an
    unknown name or one whose library is not installed.
    """
    settings = cfg.optimizer
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    if not named:
        raise ConfigError("nothing to train: no parameter of the model requires a gradient; check the adapter's keys")
    decaying = [parameter for _, parameter in named if len(full_shape(parameter)) >= 2]
    others = [parameter for _, parameter in named if len(full_shape(parameter)) < 2]
    groups = [
        {"params": parameters, "weight_decay": decay}
        for parameters, decay in ((decaying, settings.weight_decay), (others, 0.0))
        if parameters
    ]
    name = settings.optimizer
    try:
        build = _OPTIMIZERS[name]
    except KeyError:
        raise ConfigError(f"optimizer: {name!r} is unknown; one of {', '.join(sorted(_OPTIMIZERS))}") from None
    betas = (
        settings.adam_beta1 if settings.adam_beta1 is not None else 0.9,
        settings.adam_beta2 if settings.adam_beta2 is not None else 0.999,
    )
    defaults = {"lr": settings.learning_rate, "betas": betas, "eps": settings.adam_epsilon or 1e-8}
    try:
        return build(groups, defaults, settings.optim_args or {})
    except TypeError as error:
        raise ConfigError(f"optim_args: optimizer {name} does not take them: {error}") from None


Groups = Iterable[dict[str, Any]]
Build = Callable[[Groups, dict[str, Any], dict[str, Any]], torch.optim.Optimizer]
"""From parameter groups, the config's lr, betas and eps, and `optim_args`, which win, to an optimizer."""


def _adamw(*, fused: bool) -> Build:
    def build(groups: Groups, defaults: dict[str, Any], options: dict[str, Any]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, **{**defaults, "fused": fused, **options})

    return build


def _of_torch(kind: type[torch.optim.Optimizer]) -> Build:
    """An optimizer without betas; its own epsilon is not Adam's."""

    def build(groups: Groups, defaults: dict[str, Any], options: dict[str, Any]) -> torch.optim.Optimizer:
        return kind(groups, **{"lr": defaults["lr"], **options})

    return build


def _from_library(module: str, name: str, package: str, *, uses: tuple[str, ...] = ("lr", "betas", "eps")) -> Build:
    def build(groups: Groups, defaults: dict[str, Any], options: dict[str, Any]) -> torch.optim.Optimizer:
        try:
            kind = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            raise ConfigError(f"optimizer: this one needs {package}: pip install {package}") from None
        optimizer = kind(groups, **{key: defaults[key] for key in uses}, **options)
        if module == _BNB:
            _keep_state_plain(optimizer)
        return optimizer

    return build


def _keep_state_plain(optimizer: torch.optim.Optimizer) -> None:
    """Make `state_dict` of a bitsandbytes optimizer list its tensors like any other.

    bitsandbytes hides its quantized tensors one level deeper, so that FSDP1 does not gather them; there DCP does not
    find them, and a checkpoint could not be resumed. Its own `load_state_dict` takes both forms.
    """
    if any(isinstance(parameter, DTensor) for group in optimizer.param_groups for parameter in group["params"]):
        raise ConfigError(
            "optimizer: bitsandbytes keeps its state per rank under equal names, which a sharded checkpoint cannot "
            "tell apart; with FSDP use adamw_torch_fused or adamw_torch_8bit (torchao)"
        )
    optimizer.state_dict = functools.partial(torch.optim.Optimizer.state_dict, optimizer)  # type: ignore[method-assign]


_BNB = "bitsandbytes.optim"
_LION = ("lr", "betas")
_OPTIMIZERS: dict[str, Build] = {
    "adamw_torch": _adamw(fused=False),
    "adamw_torch_fused": _adamw(fused=True),
    "sgd": _of_torch(torch.optim.SGD),
    "adafactor": _of_torch(torch.optim.Adafactor),
    "adamw_8bit": _from_library(_BNB, "AdamW8bit", "bitsandbytes"),
    "adamw_bnb_8bit": _from_library(_BNB, "AdamW8bit", "bitsandbytes"),
    "paged_adamw_32bit": _from_library(_BNB, "PagedAdamW32bit", "bitsandbytes"),
    "paged_adamw_8bit": _from_library(_BNB, "PagedAdamW8bit", "bitsandbytes"),
    "lion_32bit": _from_library(_BNB, "Lion32bit", "bitsandbytes", uses=_LION),
    "lion_8bit": _from_library(_BNB, "Lion8bit", "bitsandbytes", uses=_LION),
    "paged_lion_8bit": _from_library(_BNB, "PagedLion8bit", "bitsandbytes", uses=_LION),
    "lion_pytorch": _from_library("lion_pytorch", "Lion", "lion-pytorch", uses=_LION),
    "adamw_torch_8bit": _from_library("torchao.optim", "AdamW8bit", "torchao"),
    "adamw_torch_4bit": _from_library("torchao.optim", "AdamW4bit", "torchao"),
}
