"""Combinations with quantized base weights that are refused, and why: one entry each, checked before anything loads."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from allranks.config.run import RunConfig
from allranks.config.yaml_lines import KeyPath

# Keys of bnb_config_kwargs -> the bits that they are about.
_OF_BITS = {
    "bnb_4bit_quant_type": 4,
    "bnb_4bit_use_double_quant": 4,
    "bnb_4bit_compute_dtype": 4,
    "bnb_4bit_quant_storage": 4,
    "llm_int8_threshold": 8,
}


@dataclass(frozen=True)
class Refusal:
    """`applies`: to which configs (and keys as they were given); `key`: what the message is about."""

    key: str | KeyPath | Callable[[RunConfig], str]
    applies: Callable[[RunConfig, dict[str, Any]], bool]
    reason: str


def _bits(config: RunConfig) -> str:
    return "load_in_8bit" if config.adapter.load_in_8bit else "load_in_4bit"


def _is_quantized(config: RunConfig) -> bool:
    return config.adapter.quantized_bits is not None or config.adapter.adapter == "qlora"


def _dequantizes(config: RunConfig) -> bool:
    how = config.model.model_quantization_config_kwargs
    return how is not None and how.dequantize


def _converts_storage(config: RunConfig) -> bool:
    """Whether packed weights would be converted to what the run computes in, as far as that is known without a GPU."""
    storage, compute = config.adapter.bnb_settings.bnb_4bit_quant_storage, config.precision.compute
    if storage in (None, compute) or compute == "auto":
        return False
    if config.deepspeed.settings:
        return storage != "uint8" or config.deepspeed.stage == 3
    return config.parallel.uses_fsdp and compute != "float32" and not config.precision.low_precision_weights


REFUSALS = [
    Refusal(
        _bits,
        lambda config, given: config.adapter.quantized_bits is not None and config.adapter.adapter is None,
        "quantized weights cannot be trained, only an adapter over them: add `adapter: qlora` (4 bits) or "
        "`adapter: lora`, or remove this key to train the whole model",
    ),
    Refusal(
        "load_in_8bit",
        lambda config, given: config.adapter.load_in_8bit and config.adapter.adapter == "qlora",
        "`adapter: qlora` is an adapter over 4-bit weights; with 8-bit ones write `adapter: lora`",
    ),
    Refusal(
        "load_in_4bit",
        lambda config, given: given.get("load_in_4bit") is False and config.adapter.adapter == "qlora",
        "contradicts `adapter: qlora`, an adapter over 4-bit weights; remove this key, or write `adapter: lora`",
    ),
    Refusal(
        "peft_use_dora",
        lambda config, given: config.adapter.peft_use_dora and _is_quantized(config),
        "PEFT reads the norms of quantized weights only where they are bitsandbytes' own parameters, which no sharded "
        "strategy leaves them; remove this key, or use `adapter: lora` without load_in_4bit and load_in_8bit",
    ),
    Refusal(
        "bnb_config_kwargs",
        lambda config, given: config.adapter.bnb_config_kwargs is not None and not _is_quantized(config),
        "has no effect without `load_in_4bit: true` or `load_in_8bit: true`; add one, or remove this key",
    ),
    Refusal(
        "quantize_moe_experts",
        lambda config, given: config.adapter.quantize_moe_experts and not _is_quantized(config),
        "says how experts are held beside quantized linear layers: add `load_in_4bit: true` (or `adapter: qlora`) or "
        "`load_in_8bit: true`, or remove this key",
    ),
    Refusal(
        "model_quantization_config",
        lambda config, given: config.model.model_quantization_config is not None and not _dequantizes(config),
        "weights that stay in MXFP4 cannot be trained, and their kernels know no backward pass; add "
        "`model_quantization_config_kwargs: {dequantize: true}`",
    ),
    Refusal(
        "model_quantization_config_kwargs",
        lambda config, given: config.model.model_quantization_config is None and _dequantizes(config),
        "says what is done with quantized weights: add `model_quantization_config: Mxfp4Config`, or remove this key",
    ),
    Refusal(
        "model_quantization_config",
        lambda config, given: config.model.model_quantization_config is not None and _is_quantized(config),
        "weights in MXFP4 would be rounded a second time to 4 or 8 bits; use `adapter: lora` without load_in_4bit and "
        "load_in_8bit, or a model that is stored in bfloat16",
    ),
    Refusal(
        ("bnb_config_kwargs", "bnb_4bit_quant_storage"),
        lambda config, given: _is_quantized(config) and _converts_storage(config),
        "differs from what the run computes in (bf16, fp16), and FSDP and DeepSpeed convert weights to that when they "
        "gather them, which destroys packed ones; remove the key",
    ),
]
"""In the order in which they are told."""


def refusals(config: RunConfig, given: dict[str, Any]) -> list[tuple[str | KeyPath, str]]:
    """Key (or path) and reason of every refusal that applies. `given`: the flat keys as they were written."""
    found: list[tuple[str | KeyPath, str]] = [
        (entry.key(config) if callable(entry.key) else entry.key, entry.reason)
        for entry in REFUSALS
        if entry.applies(config, given)
    ]
    bits = config.adapter.quantized_bits or (4 if config.adapter.adapter == "qlora" else None)
    settings = config.adapter.bnb_settings
    # Not "given": a resolved config, which the ranks read, gives every key.
    changed = [key for key, field in type(settings).model_fields.items() if getattr(settings, key) != field.default]
    for key in changed:
        if bits is not None and _OF_BITS.get(key, bits) != bits:
            found.append((("bnb_config_kwargs", key), f"is about {_OF_BITS[key]}-bit weights, and these have {bits}"))
    return found
