"""Put quantized layers in the place of a model's linear ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from allranks.errors import ConfigError
from allranks.model.quantized.settings import Packed, Quantization


def quantize_layers(model: PreTrainedModel, wanted: Quantization) -> Packed:
    """Put quantized layers, still without values, in the place of linear ones, in place, as transformers would.

    The output layer stays as it is, and so does whatever `wanted.skip` names.

    Raises:
        ConfigError: no layer can be quantized, or one has a size that does not pack.
    """
    from allranks.model.quantized.layers import Linear4bit, Linear8bit

    before = sum(parameter.numel() for parameter in model.parameters())
    skip = [*get_keys_to_not_convert(model), *wanted.skip, *(model._keep_in_fp32_modules or ())]
    names = _linear_layers(model, skip)
    if not names:
        raise ConfigError(
            f"load_in_{wanted.bits}bit: {type(model).__name__} has no linear layer to quantize; use `adapter: lora`"
        )
    kind = Linear4bit if wanted.bits == 4 else Linear8bit
    num_weights = 0
    for name in names:
        layer: Any = model.get_submodule(name)
        num_weights += layer.weight.numel()
        model.set_submodule(name, kind(layer, name, wanted))
    marked: Any = model  # PEFT asks for these
    marked.is_loaded_in_4bit, marked.is_loaded_in_8bit = wanted.bits == 4, wanted.bits == 8
    return Packed(wanted.bits, num_weights, before - sum(parameter.numel() for parameter in model.parameters()))


def _linear_layers(model: nn.Module, skip: Iterable[str]) -> list[str]:
    patterns = list(skip)
    return [
        name
        for name, module in model.named_modules()
        if (type(module) is nn.Linear or isinstance(module, Conv1D)) and should_convert_module(name, patterns)
    ]
