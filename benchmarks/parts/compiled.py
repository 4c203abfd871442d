"""Compiled layers: the same losses, how long the compilation takes, and what a step gains."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.parts.part import Place, Row, agreement, not_tried
from benchmarks.parts.tiny import saved_model, trained


def run(place: Place) -> Iterator[Row]:
    model = saved_model(place.scratch)
    for dtype, bf16, tolerance in (("float32", False, 1e-4), ("bfloat16", True, 1e-2)):
        plain = trained(model, place.device, bf16=bf16)
        found = trained(model, place.device, bf16=bf16, torch_compile="auto")
        if not found.model.compiled:
            yield not_tried(f"compiled layers, {dtype}", "torch_compile: auto finds no compiler for this device")
            return
        yield agreement(f"losses, {dtype}", found.losses, plain.losses, tolerance)
        yield Row(f"first step, {dtype}", f"{found.first_seconds:.1f} s, {plain.first_seconds:.2f} s without")
        yield Row(f"each later step, {dtype}", f"{plain.seconds / found.seconds:.2f} times as fast as without")
