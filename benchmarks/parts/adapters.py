"""Adapters: over plain weights, and over weights in 4 and 8 bits, here and on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from allranks.errors import AllranksError
from benchmarks.parts.part import Place, Row, agreement, is_installed, not_tried
from benchmarks.parts.tiny import saved_model, trained

_LORA: dict[str, Any] = {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True}
_NF4 = {**_LORA, "adapter": "qlora"}
# What is packed, keys, and how far from the CPU's losses they may be. Weights are rounded to the same 4 bits on both
# but for ties; products with 8-bit weights round their inputs to 8 bits on a GPU, and not on a CPU.
_WAYS: dict[str, tuple[bool, dict[str, Any], float]] = {
    "LoRA": (False, _LORA, 1e-4),
    "DoRA": (False, {**_LORA, "peft_use_dora": True}, 1e-4),
    "Q-LoRA (NF4, doubly quantized)": (True, _NF4, 1e-3),
    "Q-LoRA (FP4)": (True, {**_NF4, "bnb_config_kwargs": {"bnb_4bit_quant_type": "fp4"}}, 1e-3),
    "LoRA over 8-bit weights": (True, {**_LORA, "load_in_8bit": True}, 2e-2),
}


def run(place: Place) -> Iterator[Row]:
    model = saved_model(place.scratch)
    for name, (is_packed, keys, tolerance) in _WAYS.items():
        if is_packed and not is_installed("bitsandbytes"):
            yield not_tried(name, "needs the package bitsandbytes, which is not installed")
            continue
        rates = {"learning_rate": 5e-3, **keys}
        try:
            exact = trained(model, "cpu", **rates)
            for dtype, allowed in (("float32", tolerance), ("bfloat16", max(tolerance, 1e-2))):
                found = trained(model, place.device, **rates, bf16=dtype == "bfloat16")
                yield agreement(f"{name}, {dtype}", found.losses, exact.losses, allowed)
        except AllranksError as error:
            yield Row(name, str(error), "runs", False)
            continue
        if packed := found.model.packed:
            share = packed.num_weights / found.model.num_parameters
            yield Row(f"{name}: weights that are packed", f"{share:.0%}")
