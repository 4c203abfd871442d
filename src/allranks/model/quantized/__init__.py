"""Frozen weights in 4 or 8 bits (Q-LoRA). `settings` decides, `layers` computes; only `layers` imports bitsandbytes."""

import logging
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

# It tells of every 8-bit product that its input is cast to float16, and of an optional kernel that is not installed;
# PEFT imports it wherever it is installed.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@runtime_checkable
class QuantizedLayer(Protocol):
    """A layer whose `weight` is packed and cannot be read or cast as numbers."""

    weight: nn.Parameter

    def take(self, value: Tensor) -> None:
        """Quantize the whole float weight `value` and keep this rank's part of it."""
        ...

    def take_packed(self, packed: Tensor, scales: dict[str, Tensor]) -> None:
        """Keep this rank's part of a weight that was quantized before."""
        ...


def quantized_layers(model: nn.Module) -> Iterator[QuantizedLayer]:
    """Whatever holds a packed `weight` in a model, without importing bitsandbytes to find none."""
    for module in model.modules():
        if isinstance(module, QuantizedLayer):
            yield module
        yield from module.__dict__.get("packed_parameters", {}).values()  # experts
