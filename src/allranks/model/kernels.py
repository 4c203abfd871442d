"""Kernels of other libraries, applied when they are asked for, installed, and on CUDA; else refused with the reason."""

import importlib.util
import inspect

import torch
from torch import Tensor
from transformers import PreTrainedModel

from allranks.config import RunConfig
from allranks.errors import ConfigError
from allranks.model.chunked import Shaping
from allranks.model.head import Kernel

# What a key's kernel is called in the arguments of Liger's functions, which differ from model to model.
_LIGER_ARGUMENTS = {
    "liger_rope": ("rope",),
    "liger_rms_norm": ("rms_norm",),
    "liger_layer_norm": ("layer_norm",),
    "liger_glu_activation": ("swiglu", "geglu", "glu"),
}
_NO_LOSS_KERNEL = "remove it: the loss is made in chunks without full logits anyway (`chunked_cross_entropy`)"


def loss_kernel(cfg: RunConfig, device: torch.device) -> Kernel | None:
    """The library function that makes the loss, where the config asks for one.

    Raises:
        ConfigError: it cannot run here.
    """
    if cfg.kernels.cut_cross_entropy:
        _require("cut_cross_entropy", "cut_cross_entropy", "cut-cross-entropy", device, _NO_LOSS_KERNEL)
        return Kernel("cut-cross-entropy", _cut_cross_entropy)
    if cfg.kernels.liger_fused_linear_cross_entropy:
        _require("liger_fused_linear_cross_entropy", "liger_kernel", "liger-kernel", device, _NO_LOSS_KERNEL)
        return Kernel("liger-kernel", _liger_cross_entropy)
    return None


def apply_liger(model: PreTrainedModel, cfg: RunConfig, device: torch.device) -> None:
    """Let Liger compute the parts of `model` that the config names, in place. Call it before adapters are added.

    Raises:
        ConfigError: Liger cannot run here, or has no such kernel for this model.
    """
    asked = [key for key in _LIGER_ARGUMENTS if getattr(cfg.kernels, key)]
    if not asked:
        return
    for key in asked:
        _require(key, "liger_kernel", "liger-kernel", device, "remove it; `torch_compile: auto` fuses the same parts")
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    apply = MODEL_TYPE_TO_APPLY_LIGER_FN.get(model.config.model_type)
    if apply is None:
        raise ConfigError(f"{asked[0]}: Liger has no kernels for {type(model).__name__}; remove the liger keys")
    known = inspect.signature(apply).parameters
    # Everything that is not asked for is switched off by name: Liger's own defaults switch most of it on.
    switches = {name: False for name, parameter in known.items() if isinstance(parameter.default, bool)}
    for key in asked:
        names = [name for name in _LIGER_ARGUMENTS[key] if name in known]
        if not names:
            raise ConfigError(f"{key}: Liger has no such kernel for {type(model).__name__}; remove it")
        switches |= dict.fromkeys(names, True)
    apply(model=model, **switches)


def _require(key: str, module: str, package: str, device: torch.device, way_out: str) -> None:
    if device.type != "cuda":
        raise ConfigError(f"{key}: {package} runs on CUDA only, and this rank computes on the {device.type}; {way_out}")
    if importlib.util.find_spec(module) is None:
        raise ConfigError(f"{key}: {package} is not installed; `pip install {package}`, or {way_out}")


def _cut_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, shaping: Shaping) -> Tensor:
    """https://github.com/apple/ml-cross-entropy"""
    from cut_cross_entropy import linear_cross_entropy

    if bias is not None:
        raise ConfigError(
            f"cut_cross_entropy: it knows no bias, and this model's output layer has one; {_NO_LOSS_KERNEL}"
        )
    hidden, weight, _ = _computed_in(hidden, weight, None)
    # It knows no scale of logits; of the hidden states it is the same.
    return linear_cross_entropy(hidden * shaping.scale, weight, labels, softcap=shaping.cap, reduction="sum").float()


def _liger_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, shaping: Shaping
) -> Tensor:
    """https://github.com/linkedin/Liger-Kernel"""
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

    hidden, weight, bias = _computed_in(hidden, weight, bias)
    if shaping.scale != 1.0:
        hidden, bias = hidden * shaping.scale, None if bias is None else bias * shaping.scale
    loss = LigerFusedLinearCrossEntropyLoss(reduction="sum", softcap=shaping.cap, accum_dtype=torch.float32)
    return loss(weight, hidden, labels, bias).float()


def _computed_in(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """In the type that autocast says: it does not reach into other libraries' kernels."""
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    return hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
