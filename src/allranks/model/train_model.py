"""The model that a rank trains, and all that the loop asks of it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from allranks.model.batch import TorchBatch
from allranks.model.head import LossHead
from allranks.model.loss import Losses, PackedKwargs, forward_losses, label_losses, packed_outputs
from allranks.model.noise import EmbeddingNoise
from allranks.model.parallel import reshard, set_gradient_sync
from allranks.model.placement import Placement
from allranks.model.precision import Precision
from allranks.model.quantized.settings import Packed
from allranks.model.router import RouterLoss

if TYPE_CHECKING:
    from peft import LoraConfig


@dataclass
class TrainModel:
    """A model ready to train.

    `module` is what is called (wrapped or sharded), `hf_model` the model of transformers inside it, whose parameter
    names are those of the checkpoint. `num_parameters` counts tied weights once, over all ranks. `compiled`: graphs are
    made for one length of the row; rows should be padded to it.
    """

    module: nn.Module
    hf_model: PreTrainedModel
    config: PreTrainedConfig
    placement: Placement
    precision: Precision
    layer_classes: tuple[str, ...]
    num_parameters: int
    num_trainable: int
    packed: Packed | None
    peft_config: "LoraConfig | None"
    sync_each_batch: bool
    packed_kwargs: PackedKwargs
    keeps_logits: bool
    head: LossHead | None
    router: RouterLoss | None
    compiled: bool
    probe: Callable[[], None] | None = None
    noise: EmbeddingNoise | None = None

    def forward_loss(self, batch: TorchBatch) -> Tensor:
        """Return the SUM of cross entropy over the batch's labels, float32. Without labels it is 0, with a graph."""
        return self._losses(batch, None).cross_entropy

    def forward_losses(self, batch: TorchBatch) -> Losses:
        """Return all that is trained on the batch: that sum, and the router loss's, where the model has one."""
        return self._losses(batch, self.router)

    def _losses(self, batch: TorchBatch, router: RouterLoss | None) -> Losses:
        with self._autocast(), self.noise.over(batch.lengths) if self.noise else nullcontext():
            return forward_losses(
                self.module,
                batch,
                head=self.head,
                keeps_logits=self.keeps_logits,
                packed_kwargs=self.packed_kwargs,
                dtype=self.precision.compute,
                router=router,
            )

    @torch.no_grad()
    def logits(self, batch: TorchBatch) -> Tensor:
        """Return the logits at every position, [1, T, vocabulary], without a graph. Every rank takes part."""
        try:
            with self._autocast():
                return packed_outputs(
                    self.module, batch, keep=None, packed_kwargs=self.packed_kwargs, dtype=self.precision.compute
                ).logits
        finally:
            self.reshard()

    def label_losses(self, batch: TorchBatch) -> Tensor:
        """Return the cross entropy of each label, float32 [L], without a graph. Every rank takes part; `reshard` when
        no more follow."""
        with self._autocast():
            return label_losses(
                self.module,
                batch,
                head=self.head,
                keeps_logits=self.keeps_logits,
                packed_kwargs=self.packed_kwargs,
                dtype=self.precision.compute,
            )

    def ways(self) -> str:
        """How attention and loss are computed, and whether layers are compiled: a line for the user."""
        attends = "each document by itself" if self.packed_kwargs == "documents" else self.config._attn_implementation
        loss = "from all logits of the labels" if self.head is None else self.head.way
        routes = f"; router loss x {self.router.coefficient:g}" if self.router else ""
        return f"attention: {attends}; loss: {loss}{routes}" + ("; layers compiled" if self.compiled else "")

    def reshard(self) -> None:
        """Make every parameter a shard again (FSDP) after forward passes that no backward pass followed."""
        reshard(self.module)

    @contextmanager
    def gradient_sync(self, enabled: bool) -> Iterator[None]:
        """Around the forward *and* backward pass of a micro-batch: False until the last of a step.

        Gradients are averaged over ranks, as DDP and FSDP do: scale the loss by the world size for a sum.
        """
        replicated = self.placement.mesh is not None and self.placement.mesh.ndim == 2
        set_gradient_sync(self.module, last=enabled, every_batch=self.sync_each_batch, replicated=replicated)
        yield

    def _autocast(self) -> AbstractContextManager[Any]:
        # FSDP casts by its own policy, parameter by parameter.
        if self.precision.mixed and self.placement.kind != "fsdp":
            return torch.autocast(self.placement.device.type, dtype=self.precision.compute)
        return nullcontext()
