"""Whether a base model is stored as the config says: `model_quantization_config` against its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from allranks.config import RunConfig
from allranks.errors import ConfigError


def stored_kind_warning(config: Mapping[str, Any], cfg: RunConfig) -> str | None:
    """What to tell of `model_quantization_config: Mxfp4Config` for a model that holds nothing in MXFP4, if it does not.

    `config`: the model's config.json, as it is stored; empty where it is not known yet. Raises ConfigError where
    something else quantized the weights.
    """
    key = "model_quantization_config"
    asked = cfg.model.model_quantization_config
    if asked is None or not config:
        return None
    settings = config.get("quantization_config")
    if not settings:
        return (
            f"{key}: {asked} is without effect: {cfg.model.base_model} holds no weights in MXFP4 (its config.json has "
            f"no quantization_config), and is read as it is; remove the key, or see that it is the model you mean"
        )
    method = settings.get("quant_method") if isinstance(settings, Mapping) else None
    if method != "mxfp4":
        raise ConfigError(
            f"{key}: the weights of {cfg.model.base_model} are not in MXFP4, its config.json says "
            f"quant_method: {method}; remove the key"
        )
    return None
