"""How large an optimizer's state will be: what memory and checkpoints have to hold besides the weights."""

from __future__ import annotations

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
_OF_BITSANDBYTES = {
    *("adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "lion_8bit", "paged_lion_8bit", "lion_32bit"),
    *("paged_lion_32bit", "ademamix", "paged_ademamix_32bit", "ademamix_8bit", "paged_ademamix_8bit"),
    *("rmsprop_bnb", "rmsprop_bnb_8bit"),
}
_WITH_MOMENTUM = {"sgd", "rmsprop"}


def step_copies(optimizer: str, *, decays: bool) -> int:
    """Copies of all that is trained which a step makes for itself on a GPU, where torch steps over all parameters at
    once (torch/optim, `_multi_tensor_…`): the decayed gradient, a denominator, what is added.

    AdamW without a fused step goes one by one here, since `fused` is given (torch/optim/adam.py), and bitsandbytes' do
    so in place (bitsandbytes/optim/optimizer.py). An optimizer that is not known counts one.
    """
    if optimizer in _OF_BITSANDBYTES:
        return 0
    return {"adamw_torch_fused": 0, "adamw_torch": 0, "adagrad": 2, "rmsprop": 1 + decays, "sgd": int(decays)}.get(
        optimizer, 1
    )


def state_bytes(optimizer: str, element_bytes: int, *, is_matrix: bool = False, momentum: bool = False) -> float:
    """Bytes of state for one trained element that takes `element_bytes` itself.

    `is_matrix`: of a hidden layer, for which Muon keeps one number and not AdamW's two. `momentum`: `optim_args`
    ask for it. An optimizer that is not known here counts as AdamW.
    """
    if optimizer == "muon":
        return element_bytes * (1 if is_matrix else 2)
    numbers, size = _STATES.get(optimizer, (2, _OWN_TYPE))
    return (numbers + (momentum and optimizer in _WITH_MOMENTUM)) * (size or element_bytes)
