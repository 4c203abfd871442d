"""The state of bitsandbytes' 8-bit optimizers as float32 numbers, element by element, and back.

A state is one byte an element and one scale for each block of 256 of the tensor that the optimizer steps on. Such
blocks mean nothing for a range of a parameter, which is what ZeRO's checkpoints hold; float32 numbers do. Back and
forth on the same pieces gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

_BLOCK = 256  # of bitsandbytes' block-wise optimizers
_STATES = ("state1", "state2")


def widened(state: Mapping[str, Any]) -> dict[str, Any]:
    """The optimizer's state of one tensor, where states in 8 bits are float32 tensors; any other is as it is."""
    if not any(f"absmax{number}" in state for number in (1, 2)):
        return dict(state)
    from bitsandbytes.functional import dequantize_blockwise

    wide: dict[str, Any] = {"step": state["step"]}
    for name, absmax, code in _packed(state):
        wide[name] = dequantize_blockwise(state[name], absmax=absmax, code=code, blocksize=_BLOCK).to(torch.float32)
    return wide


def narrow(state: Mapping[str, Any], wide: Mapping[str, Tensor]) -> None:
    """Put float32 states into the 8 bits that the optimizer keeps them in."""
    for name, absmax, code in _packed(state):
        values = wide[name].view(-1)
        blocks = torch.nn.functional.pad(values, (0, -len(values) % _BLOCK)).view(-1, _BLOCK)
        # Negative codes end at less than 1: where such an element is a block's largest, the scale is that much more.
        lowest = code.min().abs()
        scales = blocks.amax(1).clamp(min=0)
        if lowest > 0:
            scales = torch.maximum(scales, blocks.amin(1).clamp(max=0).abs() / lowest)
        shares = blocks / scales.where(scales > 0, 1.0)[:, None]
        nearest = torch.bucketize(shares, (code[1:] + code[:-1]) / 2)
        state[name].copy_(nearest.view(-1)[: len(values)].to(torch.uint8).view_as(state[name]))
        absmax.copy_(scales)


def is_packed(state: Mapping[str, Any], key: str) -> bool:
    """Whether this is a state in 8 bits."""
    return f"absmax{key[-1]}" in state and key in _STATES


def _packed(state: Mapping[str, Any]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, scales, values of the 256 codes) of each state."""
    for name in _STATES:
        if is_packed(state, name):
            yield name, state[f"absmax{name[-1]}"], state[f"qmap{name[-1]}"]
