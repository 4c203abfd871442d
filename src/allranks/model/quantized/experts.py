"""Experts that lie in one tensor a layer ([experts, rows, columns]), in 4 or 8 bits (`quantize_moe_experts`).

bitsandbytes has no product with such a tensor. So the packed one is the frozen parameter, which any strategy may shard,
and transformers' own code reads from the attribute of its name what it always was, made anew for each pass: one layer's
experts at a time are whole, and none is kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from bitsandbytes.functional import (
    QuantState,
    dequantize_4bit,
    int8_vectorwise_dequant,
    int8_vectorwise_quant,
    quantize_4bit,
)
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from allranks.model.quantized.settings import Quantization, elements
from allranks.model.sharding import filling


class PackedExperts:
    """One packed tensor of the module `owner`, whose parameter of that name it is."""

    def __init__(self, owner: nn.Module, name: str, where: str, wanted: Quantization) -> None:
        whole: nn.Parameter = owner._parameters[name]  # type: ignore[assignment]
        self.owner, self.name, self.wanted = owner, name, wanted
        self.shape, self.dtype = whole.shape, wanted.dtype
        self.scales: QuantState | Tensor | None = None
        if wanted.bits == 4:
            shape = (elements(where, (whole.numel() + 1) // 2, wanted), 1)
        else:
            shape = (whole.numel() // whole.shape[-1], elements(where, whole.shape[-1], wanted))
        owner._parameters[name] = nn.Parameter(
            torch.empty(shape, dtype=wanted.storage, device="meta"), requires_grad=False
        )

    @property
    def weight(self) -> nn.Parameter:
        """The packed parameter; FSDP and ZeRO-3 put others in its place."""
        return self.owner._parameters[self.name]  # type: ignore[return-value]

    @torch.no_grad()
    def take(self, value: Tensor) -> None:
        """Quantize the whole float tensor `value` and keep this rank's part of it."""
        moved = value.to(device=self.wanted.device, dtype=self.dtype).contiguous()
        if self.wanted.bits == 4:
            packed, self.scales = quantize_4bit(
                moved,
                compress_statistics=self.wanted.double_quant,
                quant_type=self.wanted.quant_type,
                quant_storage=self.wanted.storage,
            )
        else:
            rows, self.scales, _ = int8_vectorwise_quant(moved.view(-1, moved.shape[-1]).to(torch.float16))
            packed = rows.view(self.wanted.storage)
        with filling(self.weight) as (part, first):
            part.copy_(packed[first : first + len(part)])

    def take_packed(self, packed: Tensor, scales: dict[str, Tensor]) -> None:
        """Only linear layers are stored packed."""
        raise NotImplementedError(f"{self.name}: experts are not stored in {self.wanted.bits} bits")

    @torch.no_grad()
    def whole(self) -> Tensor:
        """The experts as they were before they were packed, but for what the bits could not hold."""
        packed = self.weight.detach()
        if self.scales is None or packed.is_meta:  # nothing is loaded yet: for its shape and dtype
            return torch.empty(self.shape, dtype=self.dtype, device="meta")
        if isinstance(self.scales, QuantState):
            return dequantize_4bit(packed.view(torch.uint8), self.scales).to(self.dtype)
        return int8_vectorwise_dequant(packed.view(torch.int8), self.scales).to(self.dtype).view(self.shape)


class QuantizedExperts(nn.Module):
    """Beside a model's own class of experts, whose forward pass reads packed parameters as whole ones."""

    packed_parameters: dict[str, PackedExperts]
    recomputes: bool

    @torch.compiler.disable
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        changes = dict(self.__dict__["_changes"])

        def run(*args: Any, **kwargs: Any) -> Any:
            with _reading(self, changes):
                return super(QuantizedExperts, self).forward(*args, **kwargs)

        if self.recomputes and torch.is_grad_enabled():
            # Without it the backward pass would keep the whole experts of every layer.
            return checkpoint(run, *args, use_reentrant=False, **kwargs)
        return run(*args, **kwargs)


class QuantizedParamWrapper(ParamWrapper):
    """LoRA on a packed parameter. PEFT's own puts a parametrization in the place of the parameter for each pass."""

    def get_param(self) -> Tensor:
        """What PEFT asks for the shape, the dtype and the device of: nothing is unpacked."""
        packed = self._packed()
        return torch.empty((), dtype=packed.dtype, device=packed.weight.device).expand(packed.shape)

    @contextmanager
    def _activate_lora(self, active_adapters: list[str]) -> Iterator[None]:
        changes = self.get_base_layer().__dict__["_changes"]
        for adapter in active_adapters:
            if adapter in self.lora_A:
                changes[self.parameter_name] = self.get_delta_factors(adapter)
        try:
            yield
        finally:
            changes.pop(self.parameter_name, None)

    def _packed(self) -> PackedExperts:
        experts: Any = self.get_base_layer()
        return experts.packed_parameters[self.parameter_name]


def quantize_experts(module: nn.Module, names: list[str], where: str, wanted: Quantization) -> None:
    """Put packed parameters, still without values, in the place of the parameters `names` of the module at `where`.

    Until `wrap_packed` they look as they did before, for PEFT.
    """
    own = type(module)
    attributes: dict[str, Any] = {name: property(_reader(name)) for name in names}
    packed = {name: PackedExperts(module, name, f"{where}.{name}", wanted) for name in names}
    # In __dict__: they are no modules or parameters.
    module.__dict__.update(packed_parameters=packed, recomputes=wanted.recompute_experts)
    module.__dict__.update(_changes={}, _now={}, _read={})
    module.__class__ = type(own.__name__, (QuantizedExperts, own), attributes)


def wrap_packed(model: nn.Module) -> None:
    """Let PEFT's wrappers of parameters know of those that are packed, and show these as what they are."""
    for module in model.modules():
        if isinstance(module, QuantizedExperts):
            module.__dict__["_read"] = None
        if type(module) is not ParamWrapper:
            continue
        experts = module.get_base_layer()
        if isinstance(experts, QuantizedExperts) and module.parameter_name in experts.__dict__["packed_parameters"]:
            module.__class__ = QuantizedParamWrapper


def _reader(name: str) -> Any:
    def read(module: QuantizedExperts) -> Tensor:
        held, packed = module.__dict__["_read"], module.packed_parameters[name]
        if held is None:  # outside of its forward pass, where FSDP, DeepSpeed and torch look for their parameters
            return packed.weight
        if name not in held:
            held[name] = packed.whole()
            if name in module.__dict__["_now"]:
                left, right, scaling = module.__dict__["_now"][name]
                with torch.autocast(held[name].device.type, enabled=False):  # as PEFT adds them
                    held[name] = torch.baddbmm(held[name], left, right, alpha=scaling)
        return held[name]

    return read


@contextmanager
def _reading(module: QuantizedExperts, changes: dict[str, Any]) -> Iterator[None]:
    """Within it each parameter is unpacked once, at its first use, and has what an adapter adds to it."""
    module.__dict__.update(_read={}, _now=changes)
    try:
        yield
    finally:
        module.__dict__.update(_read=None, _now={})
