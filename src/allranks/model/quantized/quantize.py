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

    The output layer stays as it is, and so does whatever `wanted.skip` names. With `wanted.experts` the parameters of
    experts that lie in one tensor are packed as well, as Axolotl chooses them.

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
    experts = _fused_experts(model, skip)
    if wanted.experts:
        from allranks.model.quantized.experts import quantize_experts

        for name, parameters in experts.items():
            module = model.get_submodule(name)
            num_weights += sum(module.get_parameter(parameter).numel() for parameter in parameters)
            quantize_experts(module, parameters, name, wanted)
    marked: Any = model  # PEFT asks for these
    marked.is_loaded_in_4bit, marked.is_loaded_in_8bit = wanted.bits == 4, wanted.bits == 8
    return Packed(
        wanted.bits,
        num_weights,
        before - sum(parameter.numel() for parameter in model.parameters()),
        fused_experts=bool(experts),
        asked_for_experts=wanted.experts,
    )


def _linear_layers(model: nn.Module, skip: Iterable[str]) -> list[str]:
    patterns = list(skip)
    return [
        name
        for name, module in model.named_modules()
        if (type(module) is nn.Linear or isinstance(module, Conv1D)) and should_convert_module(name, patterns)
    ]


def _fused_experts(model: nn.Module, skip: Iterable[str]) -> dict[str, list[str]]:
    """Modules with parameters of all experts at once -> the names of these."""
    patterns = list(skip)
    found: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        for parameter, value in module.named_parameters(recurse=False):
            parts = f"{name}.{parameter}".split(".")
            if value.ndim < 3 or "expert" not in ".".join(parts).lower():
                continue
            if all(should_convert_module(".".join(parts[:end]), patterns) for end in range(1, len(parts) + 1)):
                found.setdefault(name, []).append(parameter)
    return found
