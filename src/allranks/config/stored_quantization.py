"""Base models whose weights lie quantized, by their config.json: what may be trained over them, and what not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from allranks.config.run import RunConfig
from allranks.config.sections.adapter import BnbConfig
from allranks.errors import ConfigError

_FIXED = ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "llm_int8_skip_modules", "llm_int8_threshold")
"""What was decided when the weights were stored."""
_OF_SIZE = {4: ("bnb_4bit_use_double_quant", "llm_int8_skip_modules"), 8: ("llm_int8_skip_modules",)}
"""Bits -> what of it a rank's memory depends on."""


def stored_quantization(settings: Mapping[str, Any], cfg: RunConfig, where: Path | str) -> dict[str, Any] | None:
    """bitsandbytes' settings and `bits` of weights that it quantized. `settings`: the model's `quantization_config`,
    empty where it has none; `where` the model is.

    None also for weights in MXFP4, which are read as what they say (`model.quantized.mxfp4`).

    Raises:
        ConfigError: not bitsandbytes quantized them, no adapter is trained, or the run's config asks for other bits.
    """
    if not settings:
        return None
    adapter, method = cfg.adapter, settings.get("quant_method")
    if method == "mxfp4":
        if adapter.quantized_bits:
            raise ConfigError(
                f"load_in_{adapter.quantized_bits}bit: {where} holds weights in MXFP4, which would be rounded a "
                "second time; use `adapter: lora`, which reads them in full, or a model that is stored in bfloat16"
            )
        return None
    bits = 4 if settings.get("load_in_4bit") else 8 if settings.get("load_in_8bit") else None
    if bits is None or method not in (None, "bitsandbytes"):
        raise ConfigError(
            f"base_model: {where} holds weights quantized by {method}, over which no adapter can be trained here; use "
            "the model that it was made from with `adapter: qlora`, which quantizes that while it reads it"
        )
    if adapter.adapter is None:
        raise ConfigError(
            f"base_model: {where} holds weights in {bits} bits, which cannot be trained: add `adapter: "
            f"{'qlora' if bits == 4 else 'lora'}`, or use the model that it was made from"
        )
    if adapter.quantized_bits not in (None, bits):
        raise ConfigError(f"load_in_{adapter.quantized_bits}bit: {where} holds weights in {bits} bits; remove the key")
    default = BnbConfig.model_fields
    changed = [key for key in _FIXED if getattr(adapter.bnb_settings, key) != default[key].default]
    if changed or adapter.peft_use_dora:
        key = f"bnb_config_kwargs.{changed[0]}" if changed else "peft_use_dora"
        raise ConfigError(f"{key}: {where} holds weights that are quantized already; remove the key")
    return {**settings, "bits": bits}


def as_stored(cfg: RunConfig, model_config: Mapping[str, Any]) -> RunConfig:
    """The config with the bits that the weights of its base model are stored in, where they are quantized: as a run
    holds them.

    `model_config`: the contents of the model's config.json. Raises ConfigError for what `stored_quantization` refuses.
    """
    stored = model_config.get("quantization_config")
    found = stored_quantization(stored if isinstance(stored, Mapping) else {}, cfg, cfg.model.base_model)
    if found is None:
        return cfg
    told = {key: found[key] for key in _OF_SIZE[found["bits"]] if key in found}
    adapter = cfg.adapter.model_copy(
        update={
            f"load_in_{found['bits']}bit": True,
            "bnb_config_kwargs": cfg.adapter.bnb_settings.model_copy(update=told),
        }
    )
    return replace(cfg, adapter=adapter)
