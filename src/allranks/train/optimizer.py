"""Optimizers by name: torch's own, and those of libraries."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from allranks.config import RunConfig
from allranks.config.sections.optimizer import OptimizerConfig
from allranks.errors import ConfigError
from allranks.train.groups import Trained, parameter_groups, trained_parameters
from allranks.train.muon import MuonAndAdamW, split_for_muon


def make_optimizer(cfg: RunConfig, module: nn.Module) -> torch.optim.Optimizer:
    """The configured optimizer over the trainable parameters of `module`; see groups.py for their rates and decay.

    Raises ConfigError for an unknown name, or one whose library is not installed.
    """
    settings = cfg.optimizer
    name = settings.optimizer
    try:
        build = _OPTIMIZERS[name]
    except KeyError:
        raise ConfigError(f"optimizer: {name!r} is unknown; one of {', '.join(sorted(_OPTIMIZERS))}") from None
    wanted = Wanted(name, parameter_groups(cfg, module), trained_parameters(module), settings)
    if "ademamix" in name and wanted.trained[0].parameter.device.type == "cpu":
        raise ConfigError(
            f"optimizer: {name} of bitsandbytes works on GPUs only (its CPU form raises); use adamw_torch"
        )
    try:
        return build(wanted)
    except TypeError as error:
        raise ConfigError(f"optim_args: optimizer {name} does not take them: {error}") from None


@dataclass(frozen=True)
class Wanted:
    """What an optimizer is made of."""

    name: str
    groups: list[dict[str, Any]]
    trained: list[Trained]
    settings: OptimizerConfig

    @property
    def options(self) -> dict[str, Any]:
        """`optim_args`, which win."""
        return self.settings.optim_args or {}

    @property
    def rate(self) -> float:
        return self.settings.learning_rate

    @property
    def betas(self) -> tuple[float, float]:
        return self.settings.adam_beta1, self.settings.adam_beta2

    @property
    def three_betas(self) -> tuple[float, float, float]:
        # Both papers' third: AdEMAMix (https://arxiv.org/abs/2409.03137), CAME (https://arxiv.org/abs/2307.02047).
        return (*self.betas, 0.9999 if self.settings.adam_beta3 is None else self.settings.adam_beta3)


Build = Callable[[Wanted], torch.optim.Optimizer]


def _adamw(wanted: Wanted, *, fused: bool) -> torch.optim.Optimizer:
    own = {"lr": wanted.rate, "betas": wanted.betas, "eps": wanted.settings.adam_epsilon, "fused": fused}
    return torch.optim.AdamW(wanted.groups, **{**own, **wanted.options})


def _muon(wanted: Wanted) -> torch.optim.Optimizer:
    adamw = {"betas": wanted.betas, "eps": wanted.settings.adam_epsilon}
    muon = {"adjust_lr_fn": "match_rms_adamw", **wanted.options}
    return MuonAndAdamW(split_for_muon(wanted.groups, wanted.trained), muon=muon, adamw=adamw, lr=wanted.rate)


def _of_torch(kind: type[torch.optim.Optimizer]) -> Build:
    """An optimizer without betas; its own epsilon is not Adam's."""
    return lambda wanted: kind(wanted.groups, **{"lr": wanted.rate, **wanted.options})


def _came(wanted: Wanted) -> torch.optim.Optimizer:
    settings = wanted.settings
    # CAME's two are of another size than Adam's, whose default `adam_epsilon` has.
    is_default = settings.adam_epsilon == type(settings).model_fields["adam_epsilon"].default
    first = 1e-30 if is_default else settings.adam_epsilon
    own = {"lr": wanted.rate, "betas": wanted.three_betas, "eps": (first, settings.adam_epsilon2 or 1e-16)}
    return _imported("came_pytorch", "CAME", "came-pytorch")(wanted.groups, **{**own, **wanted.options})


def _library(module: str, name: str, package: str, *, uses: tuple[str, ...] = ("betas", "eps")) -> Build:
    """An optimizer of another library; `uses`: which of Adam's settings it has besides the rate."""

    def build(wanted: Wanted) -> torch.optim.Optimizer:
        kind = _imported(module, name, package)
        there = {"betas": wanted.betas, "three_betas": wanted.three_betas, "eps": wanted.settings.adam_epsilon}
        own = {use.removeprefix("three_"): there[use] for use in uses}
        optimizer = kind(wanted.groups, **{"lr": wanted.rate, **own, **wanted.options})
        if module == _BNB:
            # bitsandbytes hides its quantized tensors one level deeper, so that FSDP1 does not gather them; there DCP
            # does not find them, and a checkpoint could not be resumed. Its own `load_state_dict` takes both forms.
            plain = functools.partial(torch.optim.Optimizer.state_dict, optimizer)
            optimizer.state_dict = plain
        return optimizer

    return build


def _imported(module: str, name: str, package: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise ConfigError(f"optimizer: this one needs {package}: pip install {package}") from None


_BNB, _AO = "bitsandbytes.optim", "torchao.optim"


def _bnb(name: str, *uses: str) -> Build:
    return _library(_BNB, name, "bitsandbytes", uses=uses)


_ADAM, _LION, _ADEMAMIX = ("betas", "eps"), ("betas",), ("three_betas", "eps")
_OF_BNB: dict[str, Build] = {
    "adamw_bnb_8bit": _bnb("AdamW8bit", *_ADAM),
    "paged_adamw_32bit": _bnb("PagedAdamW32bit", *_ADAM),
    "paged_adamw_8bit": _bnb("PagedAdamW8bit", *_ADAM),
    "lion_32bit": _bnb("Lion32bit", *_LION),
    "lion_8bit": _bnb("Lion8bit", *_LION),
    "paged_lion_32bit": _bnb("PagedLion32bit", *_LION),
    "paged_lion_8bit": _bnb("PagedLion8bit", *_LION),
    "ademamix": _bnb("AdEMAMix32bit", *_ADEMAMIX),
    "ademamix_8bit": _bnb("AdEMAMix8bit", *_ADEMAMIX),
    "paged_ademamix_32bit": _bnb("PagedAdEMAMix32bit", *_ADEMAMIX),
    "paged_ademamix_8bit": _bnb("PagedAdEMAMix8bit", *_ADEMAMIX),
    "rmsprop_bnb": _bnb("RMSprop32bit"),
    "rmsprop_bnb_8bit": _bnb("RMSprop8bit"),
}
_OPTIMIZERS: dict[str, Build] = {
    "adamw_torch": functools.partial(_adamw, fused=False),
    "adamw_torch_fused": functools.partial(_adamw, fused=True),
    "muon": _muon,
    "sgd": _of_torch(torch.optim.SGD),
    "adafactor": _of_torch(torch.optim.Adafactor),
    "adagrad": _of_torch(torch.optim.Adagrad),
    "rmsprop": _of_torch(torch.optim.RMSprop),
    **_OF_BNB,
    "lion_pytorch": _library("lion_pytorch", "Lion", "lion-pytorch", uses=_LION),
    "adamw_torch_8bit": _library(_AO, "AdamW8bit", "torchao"),
    "adamw_torch_4bit": _library(_AO, "AdamW4bit", "torchao"),
    "ao_adamw_fp8": _library(_AO, "AdamWFp8", "torchao"),
    "came_pytorch": _came,
}
