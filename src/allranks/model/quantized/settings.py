"""What the config asks of quantized base weights, and which layers of a model get them."""

import importlib.util
from dataclasses import dataclass
from typing import Any, Literal

import torch

from allranks.config import RunConfig
from allranks.errors import ConfigError
from allranks.model.placement import Placement
from allranks.model.precision import Precision


@dataclass(frozen=True)
class Quantization:
    """How weights are quantized. `device` and `dtype`: where and in which dtype a weight is when that happens.

    `storage`: dtype that packed weights are held as. `compute`: dtype of the product with a 4-bit weight.
    `threshold`: 8-bit only: columns of the input with larger values are multiplied in 16 bits.
    `experts`: quantize those that lie in one tensor a layer too.
    `recompute_experts`: their forward pass is not recomputed with that of their layer.
    """

    bits: Literal[4, 8]
    device: torch.device
    dtype: torch.dtype
    compute: torch.dtype
    storage: torch.dtype
    quant_type: str
    double_quant: bool
    threshold: float
    skip: tuple[str, ...]
    experts: bool
    recompute_experts: bool


@dataclass(frozen=True)
class Packed:
    """What became of a model: `num_weights` of it are held in `bits` bits; `num_packed_away` elements are gone.

    `fused_experts`: it has experts in one tensor a layer. `asked_for_experts`: the config wants them in `bits` bits.
    """

    bits: int
    num_weights: int
    num_packed_away: int
    fused_experts: bool
    asked_for_experts: bool

    def report(self, num_parameters: int) -> str:
        """Which share of the parameters is quantized, in words."""
        return f"{self.num_weights / num_parameters:.0%} of them in {self.bits} bits"

    def warning(self, num_parameters: int) -> str | None:
        """What to say where most parameters are not quantized, and memory is not saved as the user may expect."""
        if self.asked_for_experts and not self.fused_experts:
            return "quantize_moe_experts: the model has no experts that lie in one tensor a layer, so it has no effect"
        if self.num_weights > num_parameters / 2:
            return None
        left = "embeddings and the output layer stay"
        if self.fused_experts and not self.asked_for_experts:
            left = "embeddings, the output layer and experts that are fused into one tensor stay"
        return (
            f"only {self.num_weights / num_parameters:.0%} of the parameters are in {self.bits} bits: bitsandbytes "
            f"quantizes linear layers, so {left} as they are, and so does the memory that they take"
            + ("; `quantize_moe_experts: true` quantizes the experts" if "experts" in left else "")
        )


def quantization(
    cfg: RunConfig, placement: Placement, precision: Precision, stored: dict[str, Any] | None = None
) -> Quantization | None:
    """The quantization of the base model, or None: `stored`, where its files are quantized, else the config's.

    Raises:
        ConfigError: bitsandbytes is missing, or FSDP would convert the packed weights to another dtype.
    """
    adapter, options = cfg.adapter, cfg.adapter.bnb_settings
    bits = stored["bits"] if stored else adapter.quantized_bits
    if not bits:
        return None
    require_library(cfg, bits)
    compute = _dtype(options.bnb_4bit_compute_dtype, precision.compute)
    # Under mixed precision FSDP converts what it gathers, and torch before 2.13 integers too: that would destroy packed
    # weights that were not of the dtype it converts to. DeepSpeed does so to floating-point parameters.
    gathers = placement.kind == "fsdp" or placement.zero_stage == 3
    storage = _dtype(options.bnb_4bit_quant_storage, precision.compute if gathers else torch.uint8)
    kept = {precision.compute} if gathers else {precision.compute, torch.uint8}
    if storage not in kept and (placement.kind == "zero" or (placement.kind == "fsdp" and precision.mixed)):
        raise ConfigError(
            f"bnb_config_kwargs.bnb_4bit_quant_storage: {options.bnb_4bit_quant_storage}, but the run computes in "
            f"{_name(precision.compute)}, and {'FSDP' if placement.kind == 'fsdp' else 'DeepSpeed'} converts weights "
            "to that, which destroys packed ones; remove the key"
        )
    there = stored or options.model_dump()
    return Quantization(
        bits=bits,
        device=placement.device,
        dtype=precision.frozen,
        compute=compute,
        storage=storage,
        quant_type=there["bnb_4bit_quant_type"],
        double_quant=there["bnb_4bit_use_double_quant"],
        threshold=there["llm_int8_threshold"],
        # A module that is trained whole must stay what it is.
        skip=(*(there.get("llm_int8_skip_modules") or ()), *(adapter.lora_modules_to_save or ())),
        experts=adapter.quantize_moe_experts,
        recompute_experts=not cfg.parallel.checkpoints_activations,
    )


def require_library(cfg: RunConfig, bits: int | None = None) -> None:
    """Raise ConfigError where bitsandbytes is needed (or for `bits`) and missing; quick, for it imports nothing."""
    bits = bits or cfg.adapter.quantized_bits
    if bits and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(f"load_in_{bits}bit needs bitsandbytes: pip install 'bitsandbytes>=0.50' on every node")


def elements(layer: str, num_bytes: int, wanted: Quantization) -> int:
    """How many elements of `wanted.storage` so many bytes of packed weights fill.

    Raises:
        ConfigError: they do not fill whole ones.
    """
    if num_bytes % wanted.storage.itemsize:
        raise ConfigError(
            f"load_in_{wanted.bits}bit: the rows of {layer} do not fill whole elements of {_name(wanted.storage)}; add "
            "it to bnb_config_kwargs.llm_int8_skip_modules"
        )
    return num_bytes // wanted.storage.itemsize


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: str | None, default: torch.dtype) -> torch.dtype:
    return default if name is None else getattr(torch, name)
