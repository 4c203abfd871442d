"""Whether autograd would add two gradients in place. It does not under a mode, whose tensors may be a user's own.

Where a tensor is used twice, its second gradient is added to the first. Nothing new is made for the sum where nothing
else refers to the first (torch/csrc/autograd/input_buffer.cpp, `can_accumulate_inplace`): with a shared embedding that
is a tensor as large as the embedding.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_SUM = torch.ops.aten.add.Tensor
IN_PLACE = torch.ops.aten.add_.Tensor
# What lies between an operation's caller and a mode.
_OF_MODES = (
    *("/torch/_dynamo/eval_frame.py", "/torch/_compile.py"),
    *("/allranks/trace/recorder.py", "/allranks/trace/gradient_sums.py"),
)


def is_in_place(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether this operation, as a mode sees it, is such a sum."""
    return (
        func is _SUM
        and _is_of_engine()
        and bool(torch.ops.aten.is_non_overlapping_and_dense(args[0]))
        and _num_uses(args[0]) == uses_of_one()
    )


@cache
def uses_of_one() -> tuple[int, ...]:
    """What `_num_uses` is of a gradient that nothing but autograd has, which differs between versions of torch. To be
    called first where no mode is on."""
    one = torch.ones(2, requires_grad=True)
    twice = one * 1
    with _Counting() as counting:
        (twice.sin() + twice.cos()).sum().backward()
    return counting.uses


class _Counting(TorchDispatchMode):
    uses: tuple[int, ...] = ()

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is _SUM and _is_of_engine():
            self.uses = _num_uses(args[0])
        return func(*args, **(kwargs or {}))


def _num_uses(gradient: Any) -> tuple[int, ...]:
    """References to a tensor and to its storage."""
    return gradient._use_count(), torch._C._storage_Use_Count(gradient.untyped_storage()._cdata)


def _is_of_engine() -> bool:
    """Whether it was called by autograd's engine itself, and not by code in Python."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.endswith(_OF_MODES):
        frame = frame.f_back
    return frame.f_code.co_filename.endswith("/torch/autograd/graph.py")
