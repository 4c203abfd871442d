"""Whether an adapter is whole: what several ranks trained in parts, and something may have lost on the way."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from allranks.model.sharding import local_part

# More of them do not help anybody to see what is wrong.
_SHOWN = 4


def adapter_problems(
    tensors: Mapping[str, Any], squares: Mapping[str, Tensor] | None = None, *, random_start: bool = True
) -> list[str]:
    """What shows that rows of an adapter are missing, one line each; for a sharded tensor, of this rank's rows.

    `tensors`: by their names in training; what is no tensor (ZeRO's flat ranges) is passed over. `squares`: an Adam's
    running means of squared gradients, by the same names. `random_start`: the adapter began here, with `lora_A` random:
    none of its rows is zero then, and training does not make it so. `lora_B` begins as zero and a row stays so while
    its gradient is zero: it is missing where other rows have moved and its own gradient was not zero.
    """
    problems = []
    for name, tensor in tensors.items():
        if ".lora_" not in name or not isinstance(tensor, Tensor):
            continue
        part, first = local_part(tensor)
        if part.numel() == 0:
            continue
        if not torch.isfinite(part).all():
            problems.append(f"{name} holds numbers that are not finite")
        if part.ndim != 2:
            continue
        zero = ~part.any(dim=1)
        if ".lora_A." in name:
            missing = zero if random_start else torch.zeros_like(zero)
        elif squares is not None and name in squares and not zero.all():
            missing = zero & local_part(squares[name])[0].to(part.device).any(dim=1)
        else:
            continue
        if missing.any():
            problems.append(f"{name}: {_rows(missing, first)} of {tensor.shape[0]} are zero, though they were trained")
    return problems


def shape_problems(have: Mapping[str, tuple[int, ...]], want: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Tensors by name and shape that are missing from `have`, too many in it, or of another shape."""
    lacking, surplus = sorted(want.keys() - have.keys()), sorted(have.keys() - want.keys())
    problems = [f"lacks {json.dumps(lacking[:_SHOWN])}"] if lacking else []
    problems += [f"has besides {json.dumps(surplus[:_SHOWN])}"] if surplus else []
    problems += [
        f"{name} is {list(have[name])}, the model's is {list(want[name])}"
        for name in sorted(have.keys() & want.keys())
        if tuple(have[name]) != tuple(want[name])
    ]
    return problems


def _rows(missing: Tensor, first: int) -> str:
    rows = (missing.nonzero()[:, 0] + first).tolist()
    if len(rows) == 1:
        return f"row {rows[0]}"
    return f"{len(rows)} rows ({rows[0]} to {rows[-1]})"
