"""Recomputed layers whose inputs wait for the backward pass in host memory."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from allranks.errors import ConfigError


def offload_layer_inputs(model: PreTrainedModel) -> None:
    """Have every layer of `model` that is recomputed keep its input on the host; call it after that was switched on.

    With recomputation a layer's input is all that it keeps: for each token, one vector a layer.
    """
    recomputed = [module for module in model.modules() if hasattr(module, "_gradient_checkpointing_func")]
    if not recomputed:
        raise ConfigError(f"activation_offloading: {type(model).__name__} recomputes its layers in a way of its own")
    for module in recomputed:
        vars(module)["_gradient_checkpointing_func"] = recompute_from_host


def recompute_from_host(function: Callable[..., Any], hidden_states: Tensor, *rest: Any) -> Any:
    """As `torch.utils.checkpoint`, but of the first argument it holds a copy on the host."""
    host = _to_host(hidden_states)
    back = partial(_to_device, host, hidden_states.device, hidden_states.requires_grad)
    # The first call takes the tensor itself, for the graph; the checkpoint must not keep it alive.
    once = [hidden_states]

    def run(_: Tensor) -> Any:
        return function(once.pop() if once else back(), *rest)

    # An argument on the device, for checkpoint() saves the random state of its arguments' devices (for dropout).
    return checkpoint(run, hidden_states.new_empty(0), use_reentrant=False)


def _to_host(tensor: Tensor) -> Tensor:
    # Pinned, so that the copy runs behind the computation. The allocators keep both ends until it is done.
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
    return host.copy_(tensor.detach(), non_blocking=True)


def _to_device(host: Tensor, device: torch.device, requires_grad: bool) -> Tensor:
    return host.to(device, non_blocking=True).requires_grad_(requires_grad)
