"""DeepSpeed's settings with everything filled in that the config tells, and what they tell the config."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from allranks.config.foreign.deepspeed.keys import AUTO, NO_EFFECT, REFUSED, says_nothing
from allranks.config.foreign.deepspeed.rules import SCHEDULERS

if TYPE_CHECKING:
    from allranks.config.run import RunConfig


def resolved(config: RunConfig, written: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(settings, precision, optimizer): the settings without `auto`, and keys of the config that only they give.

    What depends on the model (three sizes of ZeRO) or on the number of ranks stays `auto` until a rank knows it.
    `written`: the config's own keys, as they were given.
    """
    settings = _without_silence(config.deepspeed.settings)
    precision: dict[str, Any] = {}
    if config.precision.compute == "auto" and written.get("bf16") is None:
        precision = {name: True for name in ("bf16", "fp16") if _enabled(settings, name) is True}
        if not precision and _enabled(settings, "bf16") is False and _enabled(settings, "fp16") in (False, None):
            precision = {"bf16": False}
    optimizer: dict[str, Any] = {}
    kind = (settings.pop("scheduler", None) or {}).get("type")
    if kind in SCHEDULERS and not written.get("lr_scheduler"):
        optimizer["lr_scheduler"] = SCHEDULERS[kind]

    ours = config.optimizer
    batch: tuple[tuple[str, Any], ...] = (
        ("train_micro_batch_size_per_gpu", ours.micro_batch_size),
        ("gradient_accumulation_steps", None if ours.batch_size else ours.gradient_accumulation_steps),
        ("train_batch_size", ours.batch_size),
        ("gradient_clipping", ours.max_grad_norm),
    )
    for key, value in batch:
        if settings.get(key) == AUTO and value is not None:
            settings[key] = value
    parameters = (settings.get("optimizer") or {}).get("params") or {}
    numbers: tuple[tuple[str, Any], ...] = (
        ("lr", ours.learning_rate),
        ("betas", [ours.adam_beta1, ours.adam_beta2]),
        ("eps", ours.adam_epsilon),
        ("weight_decay", ours.weight_decay),
    )
    for key, value in numbers:
        if parameters.get(key) == AUTO:
            parameters[key] = value
    compute = {"bf16": "bfloat16", "fp16": "float16"}
    chosen = config.precision.compute
    for name, dtype in compute.items():
        if _enabled(settings, name) == AUTO and (chosen != "auto" or precision):
            settings[name]["enabled"] = precision.get(name, False) if precision else chosen == dtype
    return settings, precision, optimizer


def _without_silence(settings: dict[str, Any], above: str = "") -> dict[str, Any]:
    """A copy, without the settings that are not taken and say nothing."""
    kept: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{above}{key}"
        if name in NO_EFFECT or (name in REFUSED and says_nothing(value)):
            continue
        kept[key] = _without_silence(value, f"{name}.") if isinstance(value, dict) else value
    return kept


def _enabled(settings: dict[str, Any], name: str) -> Any:
    return (settings.get(name) or {}).get("enabled")
