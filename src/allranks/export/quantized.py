"""Base models in 4 or 8 bits, as a user of an adapter loads them: by transformers and bitsandbytes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

from allranks.export.checkpoint import Checkpoint


def quantized_as_trained(checkpoint: Checkpoint, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """How the training held the base model's weights, where it quantized them; the adapter was made for that.

    `dtype`: what the run computed in.
    """
    config = checkpoint.config
    if not (config.get("load_in_4bit") or config.get("load_in_8bit")):
        return None
    own = config.get("bnb_config_kwargs") or {}
    known = {
        "bnb_4bit_quant_type": own.get("bnb_4bit_quant_type", "nf4"),
        "bnb_4bit_use_double_quant": own.get("bnb_4bit_use_double_quant", True),
        "bnb_4bit_compute_dtype": own.get("bnb_4bit_compute_dtype") or dtype,
        "llm_int8_threshold": own.get("llm_int8_threshold", 6.0),
        "llm_int8_skip_modules": own.get("llm_int8_skip_modules"),
    }
    bits = {"load_in_4bit": True} if config.get("load_in_4bit") else {"load_in_8bit": True}
    return BitsAndBytesConfig(**bits, **known)


def quantization_method(settings: Any) -> str | None:
    """The name of the method of a config's `quantization_config`, if it has one."""
    if not settings:
        return None
    return (settings if isinstance(settings, dict) else settings.to_dict()).get("quant_method")


def plainly_computing(model: nn.Module) -> None:
    """Let quantized layers compute in float32, with inputs as they are: so two models can be told apart by their
    logits to the last digits."""
    for module in model.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = torch.float32  # type: ignore[assignment]
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment] # it repacks the weights in place
        if _is_in_8_bits(module):
            module.training = True  # else bitsandbytes also cuts the inputs to 8 bits


def _is_in_8_bits(module: nn.Module) -> bool:
    """Whether it is bitsandbytes' own layer, or ours, which derives from it; asked without importing bitsandbytes."""
    return any(
        kind.__name__ == "Linear8bitLt" and kind.__module__.startswith("bitsandbytes") for kind in type(module).__mro__
    )
