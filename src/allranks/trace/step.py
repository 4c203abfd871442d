"""Two steps of the engine, as the loop takes them, while what they hold is recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from allranks.config import RunConfig
from allranks.model.batch import TorchBatch
from allranks.model.train_model import TrainModel
from allranks.trace.recorder import Phase, Recorder
from allranks.train.groups import trained_parameters
from allranks.train.strategies import Strategy, make_strategy

PEAKS_SINCE = "steady"
"""From the second step on all is there that a step leaves: the optimizer's state, DDP's final buckets."""


def peaks_of_steps(
    cfg: RunConfig, model: TrainModel, recorder: Recorder, batch: TorchBatch, *, num_micro_batches: int
) -> dict[Phase, Counter[str]]:
    """Train two steps of `num_micro_batches` times `batch`, and return what was held in each phase of the second.

    `recorder` may have been on while the model was made, and is not on now. The kinds are `RankMemory`'s parts, and
    `adapter`.
    """
    with recorder, _phases(model, recorder):
        recorder.mark((*model.hf_model.parameters(), *model.hf_model.buffers()), "parameters")
        if model.peft_config is not None:
            recorder.mark((one.parameter for one in trained_parameters(model.hf_model)), "adapter")
        strategy = make_strategy(cfg, model, num_micro_batches=num_micro_batches)
        model.module.train()
        for name in ("first", PEAKS_SINCE):
            recorder.phase = (name, 0)
            for index in range(num_micro_batches):
                _micro_batch(model, strategy, batch, last=index == num_micro_batches - 1)
                recorder.mark(_gradients(model.hf_model), "gradients")
                recorder.mark_left("gradients")
            recorder.phase = ("step", 0)
            strategy.step()
            recorder.mark(_states(strategy), "optimizer")
    return recorder.peaks(PEAKS_SINCE)


def _micro_batch(model: TrainModel, strategy: Strategy, batch: TorchBatch, *, last: bool) -> None:
    with strategy.micro_batch(last=last):
        losses = model.forward_losses(batch)
        loss = losses.cross_entropy * 1.0
        if model.router is not None and losses.router is not None:
            loss = loss + losses.router * model.router.coefficient
        strategy.backward(loss)


def _gradients(model: nn.Module) -> Iterator[Tensor]:
    yield from (parameter.grad for parameter in model.parameters() if parameter.grad is not None)
    # Between micro-batches FSDP keeps them unsharded, where it reduces them once a step.
    for part in model.modules():
        group = getattr(part._get_fsdp_state(), "_fsdp_param_group", None) if isinstance(part, FSDPModule) else None
        for parameter in group.fsdp_params if group is not None else ():
            if parameter.unsharded_accumulated_grad is not None:
                yield parameter.unsharded_accumulated_grad


def _states(strategy: Strategy) -> Iterator[Tensor]:
    for state in strategy.optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


@contextmanager
def _phases(model: TrainModel, recorder: Recorder) -> Iterator[None]:
    """Tell the recorder where a step is: in which layer on the way forward, at the loss, in which layer on the way
    back. Hooks on a layer's outputs run before its own backward pass, and keep nothing."""
    # FSDP makes each a class of its own.
    layers = [
        layer for layer in model.hf_model.modules() if type(layer).__name__.removeprefix("FSDP") in model.layer_classes
    ]

    def enter(name: str, number: int) -> None:
        recorder.phase = (name, number)

    def hooks(number: int, layer: nn.Module) -> Iterator[Any]:
        def before(*_: Any) -> None:
            if recorder.phase[0] != "backward":  # there it is recomputed
                enter("forward", number)

        def after(_: nn.Module, __: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            if recorder.phase[0] == "backward":
                return
            if number == len(layers) - 1:
                enter("head", 0)
            if hidden.requires_grad:
                hidden.register_hook(lambda _: enter("backward", number))

        yield layer.register_forward_pre_hook(before)
        yield layer.register_forward_hook(after)

    with ExitStack() as stack:
        for number, layer in enumerate(layers):
            for handle in hooks(number, layer):
                stack.callback(handle.remove)
        yield


def batch_of(lengths: tuple[int, ...], labelled: float) -> TorchBatch:
    """A row of documents of these lengths, of which the last part is `labelled`; the tokens mean nothing."""
    num_tokens = sum(lengths)
    num_labels = max(1, min(num_tokens - 1, round(labelled * num_tokens)))
    return TorchBatch(
        torch.zeros(1, num_tokens, dtype=torch.int64),
        torch.cat([torch.arange(length) for length in lengths])[None],
        lengths,
        torch.arange(num_tokens - 1 - num_labels, num_tokens - 1),
        torch.zeros(num_labels, dtype=torch.int64),
        num_tokens,
        lengths,
    )
