"""What the loop and the checkpoints ask of a strategy. One file a strategy; the loop knows none of them by name."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer


class State(Protocol):
    """The trained weights and the optimizer's state, under names that no strategy and no number of ranks changes."""

    def contents(self, *, only_model: bool) -> dict[str, Any]:
        """What torch.distributed.checkpoint saves, and loads into: `{"model": …, "optimizer": …}`."""
        ...

    def restore(self, contents: dict[str, Any]) -> None:
        """Take over what was loaded into `contents`; settings of the optimizer stay the config's."""
        ...


class Strategy(Protocol):
    """How gradients meet and become a step. All ranks call the same methods in the same order.

    `module`: what is called for a forward pass. `optimizer`: its groups carry the learning rates. `skips_overflows`:
    whether a step with gradients that are not finite leaves the weights alone (float16's loss scaling).
    """

    @property
    def module(self) -> nn.Module: ...

    @property
    def optimizer(self) -> Optimizer: ...

    @property
    def state(self) -> State: ...

    @property
    def skips_overflows(self) -> bool: ...

    @property
    def engine_settings(self) -> dict[str, Any] | None:
        """What another engine than PyTorch's was given, to be kept with the run."""
        ...

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """Around the forward and backward pass of a micro-batch; gradients travel with the last one of a step."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`; between ranks they are averaged."""
        ...

    def step(self) -> Tensor:
        """Clip, update the weights, drop the gradients; returns their norm before clipping, as a device scalar."""
        ...

    def scaler_state(self) -> dict[str, Any] | None:
        """Of the loss scaling, as JSON; None without any."""
        ...

    def load_scaler_state(self, state: dict[str, Any]) -> None: ...
