"""Liger's kernels: losses and gradient norms beside those of the model's own code."""

from __future__ import annotations

from collections.abc import Iterator

from allranks.errors import AllranksError
from benchmarks.parts.part import Place, Row, agreement
from benchmarks.parts.tiny import saved_model, trained

_KERNELS = ("liger_rope", "liger_rms_norm", "liger_glu_activation", "liger_fused_linear_cross_entropy")


def run(place: Place) -> Iterator[Row]:
    model = saved_model(place.scratch)
    for dtype, bf16, tolerance in (("float32", False, 1e-4), ("bfloat16", True, 1e-2)):
        plain = trained(model, place.device, bf16=bf16)
        for name, keys in {
            **{kernel: {kernel: True} for kernel in _KERNELS},
            "all of them": dict.fromkeys(_KERNELS, True),
        }.items():
            try:
                found = trained(model, place.device, bf16=bf16, **keys)
            except AllranksError as error:
                yield Row(f"{name}, {dtype}", str(error), "runs", False)
                continue
            # Liger's float32 products may go through TF32, as Triton's default is on Hopper.
            yield agreement(f"{name}, {dtype}", found.losses, plain.losses, max(tolerance, 2e-3))
