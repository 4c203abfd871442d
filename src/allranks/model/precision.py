"""Which dtype parameters are held in, and which one the forward pass computes in."""

from dataclasses import dataclass

import torch
from torch import nn

from allranks.config import RunConfig
from allranks.config.sections.precision import ComputeType
from allranks.errors import ConfigError
from allranks.model.quantized import quantized_layers


@dataclass(frozen=True)
class Precision:
    """`trainable`, `frozen`: dtypes that parameters are held in. `compute`: dtype of the forward and backward pass.

    Gradients are reduced over ranks in float32 whenever the master weights are float32.
    """

    trainable: torch.dtype
    frozen: torch.dtype
    compute: torch.dtype

    @property
    def mixed(self) -> bool:
        """Whether the forward pass computes in another dtype than the one that is trained."""
        return self.compute != self.trainable


def resolve_precision(cfg: RunConfig, device: torch.device, kind: str) -> Precision:
    """Turn the config's `precision` section into dtypes.

    - nothing set: as `bf16: auto`;
    - `bf16: true` (or `auto` where the device can): float32 master weights, bfloat16 compute; frozen weights (the base
      model under LoRA) are held in bfloat16, for they are never updated;
    - `bfloat16: true` or `bf16: full`: bfloat16 throughout;
    - under DeepSpeed (`kind` "zero") the model itself is in the computed type: its optimizer holds the float32 master
      weights and steps on them;
    - `fp16: true`: as `bf16: true` with float16; needs loss scaling, which is there for one process and for DDP only.

    `bf16: auto` on a GPU without bfloat16 is `fp16: true`, as in Axolotl, or float32 with FSDP; on CPU it is float32.
    """
    asked = cfg.precision.compute
    if asked == "auto":
        asked = _of_device(device, kind)
    if asked == "float32":
        return Precision(torch.float32, torch.float32, torch.float32)
    dtype = getattr(torch, asked)
    if kind == "zero":
        return Precision(dtype, dtype, dtype)
    if dtype == torch.float16 and kind == "fsdp":
        raise ConfigError("fp16 does not work with FSDP here (its loss scaling is not sharded); set bf16: true instead")
    return Precision(dtype if cfg.precision.low_precision_weights else torch.float32, dtype, dtype)


def _of_device(device: torch.device, kind: str) -> ComputeType:
    if device.type != "cuda":
        return "float32"
    # Older GPUs can compute in bfloat16 too, by way of float32.
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return "bfloat16"
    return "float32" if kind == "fsdp" else "float16"


def set_dtypes(model: nn.Module, precision: Precision) -> None:
    """Give every floating-point parameter (on the meta device) the dtype that it will be held in."""
    packed = {id(layer.weight) for layer in quantized_layers(model)}  # may pretend to be floating-point
    for parameter in model.parameters():
        if parameter.is_floating_point() and id(parameter) not in packed:
            dtype = precision.trainable if parameter.requires_grad else precision.frozen
            parameter.data = parameter.data.to(dtype)
