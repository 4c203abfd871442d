"""Optimizers whose state takes less than AdamW's: that they learn alike, and what they hold."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from allranks.errors import AllranksError
from benchmarks.parts.part import Place, Row, agreement, is_installed, not_tried
from benchmarks.parts.tiny import Trained, saved_model, trained

# Name -> (package, of AdamW's kind). Those of another kind take other steps at the same rate: only that they learn is
# asked of them.
_OPTIMIZERS: dict[str, tuple[str, bool]] = {
    "adamw_bnb_8bit": ("bitsandbytes", True),
    "paged_adamw_8bit": ("bitsandbytes", True),
    "paged_adamw_32bit": ("bitsandbytes", True),
    "lion_8bit": ("bitsandbytes", False),
    "ademamix_8bit": ("bitsandbytes", False),
    "muon": ("torch", False),
    "adafactor": ("torch", False),
    # Last: torchao compiles their steps first.
    "adamw_torch_8bit": ("torchao", True),
    "adamw_torch_4bit": ("torchao", True),
    "ao_adamw_fp8": ("torchao", True),
}
# Shares of the loss after six steps. 8 bits of state change a step by some percent of itself.
_TOLERANCE = 2e-2
_STEPS = 6


def run(place: Place) -> Iterator[Row]:
    model = saved_model(place.scratch)
    plain = trained(model, place.device, steps=_STEPS)
    yield Row("adamw_torch_fused: state", f"{_state_bytes(plain):.2f} bytes a trained number", "8", _holds(plain, 8.0))
    for name, (package, is_adamw) in _OPTIMIZERS.items():
        if not is_installed(package):
            yield not_tried(name, f"needs the package {package}, which is not installed")
            continue
        # Lion's steps are as large as its rate in every number: a tenth of Adam's (arXiv 2302.06675).
        rate = 1e-4 if name.startswith("lion") else 1e-3
        try:
            found = trained(model, place.device, steps=_STEPS, optimizer=name, learning_rate=rate)
        except AllranksError as error:
            if place.device == "cpu":
                yield not_tried(name, error)
            else:
                yield Row(name, str(error), "runs", False)
            continue
        if is_adamw:
            yield agreement(name, found.losses, plain.losses, _TOLERANCE)
        else:
            is_lower = found.losses[-1] < found.losses[0]
            yield Row(name, f"{found.losses[0]:.4f} to {found.losses[-1]:.4f}", "the loss falls", is_lower)
        yield Row(f"{name}: state", f"{_state_bytes(found):.2f} bytes a trained number")


def _state_bytes(run: Trained) -> float:
    """Of the optimizer's tensors, on the device and on the host, for each number that is trained."""
    total = 0
    for state in run.strategy.optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor):
                total += _bytes(value)
    return total / run.model.num_trainable


def _bytes(tensor: torch.Tensor) -> int:
    """Of a tensor, or of the tensors that one of torchao's is made of."""
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return sum(_bytes(getattr(tensor, name)) for name in names)
    return tensor.numel() * tensor.element_size()


def _holds(run: Trained, expected: float) -> bool:
    return abs(_state_bytes(run) - expected) < 0.01
