"""Base models whose files hold what bitsandbytes quantized before: the folder that `save_pretrained` wrote of one."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from allranks.config import RunConfig
from allranks.config.stored_quantization import stored_quantization
from allranks.model.weights import StoredTensor, read_tensor


@dataclass(frozen=True)
class PackedTensor(StoredTensor):
    """A quantized weight in a file. `shape` is that of the float weight; `packed` is what lies there.

    `scales`: the tensors that belong to it, by bitsandbytes' names.
    """

    packed: StoredTensor
    scales: dict[str, StoredTensor]

    def read(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The packed weight, and what belongs to it."""
        return read_tensor(self.packed), {name: read_tensor(tensor) for name, tensor in self.scales.items()}


def stored_settings(config: PreTrainedConfig, cfg: RunConfig, folder: Path) -> dict[str, Any] | None:
    """The settings that the weights in `folder` were quantized with, taken out of the model's config, or None.

    None also for weights in MXFP4. Raises ConfigError for what `config.stored_quantization` refuses.
    """
    settings = getattr(config, "quantization_config", None)
    if not settings:
        return None
    found = stored_quantization(settings if isinstance(settings, dict) else settings.to_dict(), cfg, folder)
    del config.quantization_config  # the trained and merged model is a plain one
    return found


def gather_packed(stored: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint with each quantized weight and what belongs to it put together."""
    scales: dict[str, dict[str, StoredTensor]] = {}
    for name, tensor in stored.items():
        layer, _, last = name.rpartition(".")
        if ".weight." in name:  # 4 bits: LAYER.weight.absmax, LAYER.weight.quant_state.bitsandbytes__nf4
            layer, _, part = name.partition(".weight.")
            scales.setdefault(f"{layer}.weight", {})[part] = tensor
        elif last in ("SCB", "weight_format"):
            scales.setdefault(f"{layer}.weight", {})[last] = tensor
    belong = {tensor.name for parts in scales.values() for tensor in parts.values()}
    return {
        name: _packed(tensor, scales[name]) if name in scales else tensor
        for name, tensor in stored.items()
        if name not in belong
    }


def _packed(tensor: StoredTensor, scales: dict[str, StoredTensor]) -> PackedTensor:
    shape = tensor.shape
    for name, part in scales.items():
        if name.startswith("quant_state."):  # the numbers among them, as JSON
            shape = tuple(json.loads(bytes(read_tensor(part).tolist()))["shape"])
    return PackedTensor(tensor.file, tensor.name, tensor.dtype, shape, tensor.offset, replace(tensor), scales)
