"""The same few steps on this device and on the CPU: the losses must be the same, up to how numbers are rounded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.parts.part import Place, Row, agreement
from benchmarks.parts.tiny import saved_model, trained

# Name -> keys, and how far from the CPU's float32 the losses may be, as a share. float32 differs by the order of its
# sums; bfloat16 has 8 bits, and the losses here are means over some 170 labels.
PRECISIONS: dict[str, tuple[dict[str, Any], float]] = {
    "float32": ({"bf16": False}, 1e-4),
    "bfloat16 over float32 weights": ({"bf16": True}, 1e-2),
    "bfloat16 throughout": ({"bf16": "full"}, 2e-2),
}
_WAYS: dict[str, dict[str, Any]] = {
    "recomputed activations": {"gradient_checkpointing": True},
    "logits in one piece": {"chunked_cross_entropy": False},
}


def run(place: Place) -> Iterator[Row]:
    model = saved_model(place.scratch)
    exact = trained(model, "cpu")
    yield Row(
        "the loss falls on the CPU",
        f"{exact.losses[0]:.4f} to {exact.losses[-1]:.4f}",
        "by a tenth at least",
        exact.losses[-1] < 0.9 * exact.losses[0],
    )
    for name, (keys, tolerance) in PRECISIONS.items():
        found = trained(model, place.device, **keys)
        yield agreement(f"losses, {name}", found.losses, exact.losses, tolerance)
        yield agreement(f"gradient norms, {name}", found.grad_norms, exact.grad_norms, 5 * tolerance)
    for name, keys in _WAYS.items():
        found = trained(model, place.device, bf16=False, **keys)
        yield agreement(f"losses, float32, {name}", found.losses, exact.losses, 1e-4)
