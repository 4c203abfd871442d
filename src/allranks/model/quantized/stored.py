"""Base models whose files hold what bitsandbytes quantized before: the folder that `save_pretrained` wrote of one."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from allranks.config import RunConfig
from allranks.errors import ConfigError
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

    None also for weights in MXFP4, which are read as what they say (`gather_blocks`).

    Raises:
        ConfigError: not bitsandbytes quantized them, no adapter is trained, or the run's config asks for other bits.
    """
    settings = getattr(config, "quantization_config", None)
    if not settings:
        return None
    settings = settings if isinstance(settings, dict) else settings.to_dict()
    if settings.get("quant_method") == "mxfp4":
        if cfg.adapter.quantized_bits:
            raise ConfigError(
                f"load_in_{cfg.adapter.quantized_bits}bit: {folder} holds weights in MXFP4, which would be rounded a "
                "second time; use `adapter: lora`, which reads them in full, or a model that is stored in bfloat16"
            )
        del config.quantization_config
        return None
    bits = 4 if settings.get("load_in_4bit") else 8 if settings.get("load_in_8bit") else None
    method = settings.get("quant_method")
    if bits is None or method not in (None, "bitsandbytes"):
        raise ConfigError(
            f"base_model: {folder} holds weights quantized by {method}, over which no adapter can be trained here; use "
            "the model that it was made from with `adapter: qlora`, which quantizes that while it reads it"
        )
    adapter = cfg.adapter
    if adapter.adapter is None:
        raise ConfigError(
            f"base_model: {folder} holds weights in {bits} bits, which cannot be trained: add `adapter: "
            f"{'qlora' if bits == 4 else 'lora'}`, or use the model that it was made from"
        )
    if adapter.quantized_bits not in (None, bits):
        raise ConfigError(f"load_in_{adapter.quantized_bits}bit: {folder} holds weights in {bits} bits; remove the key")
    fixed = ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "llm_int8_skip_modules", "llm_int8_threshold")
    changed = [key for key in fixed if getattr(adapter.bnb_settings, key) != _default(adapter.bnb_settings, key)]
    if changed or adapter.peft_use_dora:
        key = f"bnb_config_kwargs.{changed[0]}" if changed else "peft_use_dora"
        raise ConfigError(f"{key}: {folder} holds weights that are quantized already; remove the key")
    del config.quantization_config  # the trained and merged model is a plain one
    return {**settings, "bits": bits}


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


def _default(settings: Any, key: str) -> Any:
    return type(settings).model_fields[key].default
