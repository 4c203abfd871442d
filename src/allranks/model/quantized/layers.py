"""Linear layers with 4-bit and 8-bit weights: bitsandbytes' kernels over weights that any strategy may shard.

bitsandbytes keeps what belongs to a quantized weight (scales, and its 8-bit matrix itself) on a parameter class of its
own. DDP leaves that alone; FSDP and ZeRO-3 swap parameters for others, and it is lost. So here the packed weight is a
plain frozen parameter and the scales are the layer's. PEFT knows the layers by their base classes.
"""

import bitsandbytes
import torch
from bitsandbytes.functional import QuantState, int8_vectorwise_quant, quantize_4bit
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from allranks.model.quantized.settings import Quantization, elements
from allranks.model.sharding import filling


class Linear4bit(bitsandbytes.nn.Linear4bit):
    """Weights in 4 bits (NF4 or FP4), packed as [bytes / itemsize of `quant_storage`, 1].

    The scales are whole on every rank: about 0.13 bits a weight with double quantization, 0.5 without.
    """

    quant_state: QuantState | None

    def __init__(self, layer: nn.Linear | Conv1D, name: str, wanted: Quantization) -> None:
        outputs, inputs, self_transposed = _shape(layer)
        super().__init__(
            inputs,
            outputs,
            bias=layer.bias is not None,
            compute_dtype=wanted.compute,
            compress_statistics=wanted.double_quant,
            quant_type=wanted.quant_type,
            quant_storage=wanted.storage,
            device="meta",
        )
        self.wanted = wanted
        self.transposed = self_transposed
        # Two weights a byte; an odd last one has a byte of its own.
        size = elements(name, (outputs * inputs + 1) // 2, wanted)
        self.weight = _frozen((size, 1), wanted.storage)
        # PEFT reads these of a weight when it wraps the layer.
        self.weight.compress_statistics = wanted.double_quant  # type: ignore[attr-defined]
        self.weight.quant_type = wanted.quant_type  # type: ignore[attr-defined]

    @torch.no_grad()
    def take(self, value: Tensor) -> None:
        """Quantize the whole float weight `value` and keep this rank's part of it."""
        packed, self.quant_state = quantize_4bit(
            _prepared(value, self.transposed, self.wanted),
            compress_statistics=self.wanted.double_quant,
            quant_type=self.wanted.quant_type,
            quant_storage=self.wanted.storage,
        )
        _keep(packed, self.weight)

    @torch.no_grad()
    def take_packed(self, packed: Tensor, scales: dict[str, Tensor]) -> None:
        """Keep this rank's part of a weight that was quantized before; `scales` as bitsandbytes stores them."""
        self.quant_state = QuantState.from_dict(dict(scales), device=self.wanted.device)
        _keep(packed.view(self.wanted.storage), self.weight)

    def forward(self, x: Tensor) -> Tensor:
        # bitsandbytes' own forward pass does the same, and besides repacks the weight for some CPUs in eval mode, in
        # place: wrong for a weight that is gathered anew for every pass.
        assert self.quant_state is not None
        bias = None if self.bias is None else self.bias.to(self.compute_dtype)
        product = bitsandbytes.matmul_4bit(x.to(self.compute_dtype), self.weight, self.quant_state, bias=bias)
        return product.to(x.dtype)


class Linear8bit(bitsandbytes.nn.Linear8bitLt):
    """Weights in 8 bits (LLM.int8()) with a scale an output, held as [outputs, inputs / itemsize of the storage]."""

    def __init__(self, layer: nn.Linear | Conv1D, name: str, wanted: Quantization) -> None:
        outputs, inputs, self_transposed = _shape(layer)
        super().__init__(
            inputs,
            outputs,
            bias=layer.bias is not None,
            has_fp16_weights=False,
            threshold=wanted.threshold,
            device="meta",
        )
        self.wanted = wanted
        self.transposed = self_transposed
        self.weight = _frozen((outputs, elements(name, inputs, wanted)), wanted.storage)
        self.scales: Tensor | None = None

    @torch.no_grad()
    def take(self, value: Tensor) -> None:
        """Quantize the whole float weight `value` and keep this rank's rows of it."""
        rows, self.scales, _ = int8_vectorwise_quant(_prepared(value, self.transposed, self.wanted).to(torch.float16))
        _keep(rows.view(self.wanted.storage), self.weight)

    @torch.no_grad()
    def take_packed(self, packed: Tensor, scales: dict[str, Tensor]) -> None:
        """Keep this rank's rows of a weight that was quantized before."""
        self.scales = scales["SCB"].to(self.wanted.device)
        _keep(packed.view(self.wanted.storage), self.weight)

    def forward(self, x: Tensor) -> Tensor:
        # Anew in every pass: what is gathered is another tensor each time.
        state = self.state
        state.is_training, state.CB, state.SCB = self.training, self.weight.data.view(torch.int8), self.scales
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return bitsandbytes.matmul(x, state.CB, bias=bias, state=state)

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        # Without the scales: the base model is in no checkpoint.
        nn.Module._save_to_state_dict(self, destination, prefix, keep_vars)


def _shape(layer: nn.Linear | Conv1D) -> tuple[int, int, bool]:
    """(outputs, inputs, whether the weight is stored as inputs x outputs)."""
    first, second = layer.weight.shape
    return (second, first, True) if isinstance(layer, Conv1D) else (first, second, False)


def _prepared(value: Tensor, transposed: bool, wanted: Quantization) -> Tensor:
    moved = value.to(device=wanted.device, dtype=wanted.dtype)
    return (moved.T if transposed else moved).contiguous()


def _keep(packed: Tensor, weight: Tensor) -> None:
    with filling(weight) as (part, first):
        part.copy_(packed[first : first + len(part)])


def _frozen(shape: tuple[int, int], dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)
