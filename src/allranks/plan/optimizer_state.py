"""How large an optimizer's state will be: what memory and checkpoints have to hold besides the weights."""

from __future__ import annotations

from dataclasses import dataclass

from allranks.config.optimizers import OF_BITSANDBYTES

_FLOAT = 4
_OWN_TYPE = 0.0  # torch's own keep the parameter's
# A byte, and a float32 scale for each 256 of them (bitsandbytes, torchao); half a byte with one for each 128.
_8_BIT, _4_BIT = 1 + 4 / 256, 0.5 + 4 / 128
# optimizer -> numbers kept for each trained element, and the bytes of one. Adafactor keeps rows and columns only.
_STATES = {
    "adamw_torch": (2, _OWN_TYPE),
    "adamw_torch_fused": (2, _OWN_TYPE),
    "adagrad": (1, _OWN_TYPE),
    "rmsprop": (1, _OWN_TYPE),
    "sgd": (0, _OWN_TYPE),
    "adafactor": (0, _OWN_TYPE),
    "came_pytorch": (1, _OWN_TYPE),
    "lion_pytorch": (1, _OWN_TYPE),
    "adamw_torch_8bit": (2, _8_BIT),
    "adamw_torch_4bit": (2, _4_BIT),
    "ao_adamw_fp8": (2, _8_BIT),
    "adamw_bnb_8bit": (2, _8_BIT),
    "paged_adamw_8bit": (2, _8_BIT),
    "paged_adamw_32bit": (2, 4.0),
    "lion_8bit": (1, _8_BIT),
    "paged_lion_8bit": (1, _8_BIT),
    "lion_32bit": (1, 4.0),
    "paged_lion_32bit": (1, 4.0),
    "ademamix": (3, 4.0),
    "paged_ademamix_32bit": (3, 4.0),
    "ademamix_8bit": (3, _8_BIT),
    "paged_ademamix_8bit": (3, _8_BIT),
    "rmsprop_bnb": (1, 4.0),
    "rmsprop_bnb_8bit": (1, _8_BIT),
}
# Copies of a tensor that bitsandbytes makes on CPUs, where it steps with float32 (bitsandbytes/backends/cpu/ops.py):
# state that is in 8 bits, the scaled gradient, what is added. AdEMAMix has no form for them. On GPUs all is in place.
_OF_EACH_ON_CPU = {
    **dict.fromkeys(("adamw_bnb_8bit", "paged_adamw_8bit", "lion_8bit", "paged_lion_8bit"), 5),
    **dict.fromkeys(("paged_adamw_32bit", "lion_32bit", "paged_lion_32bit"), 3),
    "rmsprop_bnb_8bit": 3,
    "rmsprop_bnb": 3,
}
_WITH_MOMENTUM = {"sgd", "rmsprop"}


@dataclass(frozen=True)
class StepCopies:
    """Copies that a step makes for itself: of all that is trained (`of_all`), and of one tensor at a time (`of_each`),
    in float32 whatever that is (`in_float32`)."""

    of_all: int = 0
    of_each: int = 0
    in_float32: bool = False

    def each_bytes(self, element_bytes: float) -> float:
        """For each element of a tensor of so many bytes an element."""
        if self.in_float32 and element_bytes < _FLOAT:
            return _FLOAT * (self.of_each + 1)  # the weight, too
        return self.of_each * element_bytes


def step_copies(optimizer: str, *, decays: bool, on_cpu: bool) -> StepCopies:
    """What torch's optimizers that are not fused make: on a GPU, where they step over all parameters at once
    (torch/optim, `_multi_tensor_…`), the decayed gradient, a denominator, what is added; on a CPU of each in turn.

    AdamW without a fused step goes one by one on both, since `fused` is given (torch/optim/adam.py). An optimizer that
    is not known counts one copy of all.
    """
    if optimizer in OF_BITSANDBYTES:
        # In 32 bits the decayed gradient is one more; in 8 it is added in place.
        decayed = int(decays and optimizer == "rmsprop_bnb")
        number = _OF_EACH_ON_CPU.get(optimizer, 0) + decayed
        return StepCopies(of_each=number, in_float32=True) if on_cpu else StepCopies()
    if optimizer == "adamw_torch":
        return StepCopies(of_each=2)  # a denominator, and the root that it is made of
    at_once = {"adamw_torch_fused": 0, "adagrad": 2, "rmsprop": 1 + decays, "sgd": int(decays)}
    if optimizer not in at_once:
        return StepCopies(of_all=1)
    if not on_cpu:
        return StepCopies(of_all=at_once[optimizer])
    return StepCopies(of_each=1 + decays if optimizer == "adagrad" else at_once[optimizer])


def state_bytes(optimizer: str, element_bytes: int, *, is_matrix: bool = False, momentum: bool = False) -> float:
    """Bytes of state for one trained element that takes `element_bytes` itself.

    `is_matrix`: of a hidden layer, for which Muon keeps one number and not AdamW's two. `momentum`: `optim_args`
    ask for it. An optimizer that is not known here counts as AdamW.
    """
    if optimizer == "muon":
        return element_bytes * (1 if is_matrix else 2)
    numbers, size = _STATES.get(optimizer, (2, _OWN_TYPE))
    return (numbers + (momentum and optimizer in _WITH_MOMENTUM)) * (size or element_bytes)
