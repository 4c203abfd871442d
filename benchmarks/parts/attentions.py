"""Every way to compute attention, on architectures that ask different things of it: loss, gradient, and whether packed
documents see each other.

FlexAttention, which compiles for each model, is a part of its own (argument `flex`).
"""

from __future__ import annotations

from collections.abc import Iterator

from allranks.errors import AllranksError
from allranks.model.isolation import probe_isolation
from benchmarks.parts.part import Place, Row, agreement, not_tried
from benchmarks.parts.tiny import ARCHITECTURES, saved_model, trained

_ALONE = "each document by itself"  # where the config names no attention
_KERNELS = {"": (_ALONE, "sdpa", "eager", "flash_attention_2", "flash_attention_3"), "flex": ("flex_attention",)}
TOLERANCES = {"float32": 1e-4, "bfloat16": 1e-2}


def run(place: Place) -> Iterator[Row]:
    told: set[str] = set()
    for architecture in ARCHITECTURES:
        model = saved_model(place.scratch, architecture)
        exact = trained(model, "cpu", steps=2)
        for kernel in _KERNELS[place.argument]:
            for dtype, tolerance in TOLERANCES.items():
                if kernel.startswith("flash") and dtype == "float32":
                    continue  # these kernels know 16 bits only
                name = f"{architecture}, {kernel}, {dtype}"
                keys = {} if kernel == _ALONE else {"attn_implementation": kernel}
                try:
                    found = trained(model, place.device, steps=2, bf16=dtype == "bfloat16", **keys)
                    probe_isolation(found.model)
                except (AllranksError, ImportError) as error:
                    if kernel == _ALONE:
                        yield Row(name, str(error), "runs", False)
                    elif str(error) not in told:  # a kernel that is not there is not there for any model
                        yield not_tried(name, error)
                    told.add(str(error))
                    continue
                except RuntimeError as error:  # of a kernel: the others are still worth trying
                    yield Row(name, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", "runs", False)
                    continue
                # The second loss was computed with weights that the first step's gradients have moved.
                numbers = [*found.losses, found.grad_norms[0]]
                yield agreement(name, numbers, [*exact.losses, exact.grad_norms[0]], tolerance)
