"""The loss of a micro-batch: a sum over its labels, with logits only where there is a label."""

import inspect
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allranks.model.attention import Documents
from allranks.model.batch import TorchBatch

if TYPE_CHECKING:
    from allranks.model.head import LossHead
    from allranks.model.router import RouterLoss

# How a model is told where documents begin, besides position_ids that restart: "documents" and "varlen" are for
# attention functions (ours, FlashAttention's), "mask" is an explicit mask, "" is for masks that transformers makes
# from position_ids.
PackedKwargs = Literal["documents", "varlen", "mask", ""]


@dataclass(frozen=True)
class Losses:
    """Of a micro-batch, float32 with a graph: the sum of cross entropy over its labels, and that of the router loss
    over its blocks, without its coefficient, where the model trains one."""

    cross_entropy: Tensor
    router: Tensor | None = None


def forward_losses(
    module: nn.Module,
    batch: TorchBatch,
    *,
    head: "LossHead | None",
    keeps_logits: bool,
    packed_kwargs: PackedKwargs,
    dtype: torch.dtype,
    router: "RouterLoss | None" = None,
) -> Losses:
    """Run the model on `batch` for its losses.

    The output layer runs only on positions that have a label: with a big vocabulary and masked prompts that is where
    the time and memory of a plain loop go. Without any label the sum is 0 and still hangs on every trainable parameter,
    so that ranks with less work than others take part in every collective.

    `head`: makes the loss without full logits, or None. `keeps_logits`: the model's forward takes `logits_to_keep`.
    `dtype`: what the model computes in. `router`: what the model trains besides.
    """
    keep = batch.label_positions if keeps_logits else None
    with head.targets(batch.label_positions, batch.labels) if head is not None else nullcontext():
        outputs = packed_outputs(module, batch, keep=keep, packed_kwargs=packed_kwargs, dtype=dtype)
    if head is not None:
        cross_entropy = head.loss_of(outputs.logits)
    else:
        logits = _at_labels(outputs.logits, batch, keeps_logits)
        cross_entropy = F.cross_entropy(logits, batch.labels, reduction="sum")
    balance = router.of_blocks(outputs.router_logits, batch.block_lengths) if router else None
    return Losses(cross_entropy, balance)


@torch.no_grad()
def label_losses(
    module: nn.Module,
    batch: TorchBatch,
    *,
    head: "LossHead | None",
    keeps_logits: bool,
    packed_kwargs: PackedKwargs,
    dtype: torch.dtype,
) -> Tensor:
    """The cross entropy of each label of `batch`, float32 [L], without a graph; arguments as for `forward_losses`."""
    keep = batch.label_positions if keeps_logits else None
    with head.targets(batch.label_positions, batch.labels, each=True) if head is not None else nullcontext():
        outputs = packed_outputs(module, batch, keep=keep, packed_kwargs=packed_kwargs, dtype=dtype)
    if head is not None:
        return head.losses_of(outputs.logits)
    return F.cross_entropy(_at_labels(outputs.logits, batch, keeps_logits), batch.labels, reduction="none")


def _at_labels(logits: Tensor, batch: TorchBatch, keeps_logits: bool) -> Tensor:
    """The logits of the batch's labels, float32 [L, vocabulary]."""
    # squeeze, not [0]: the gradient of an index is a zeroed copy of all the logits, of a squeeze it is a view.
    logits = logits.squeeze(0)
    return (logits if keeps_logits else logits[batch.label_positions]).float()


def packed_outputs(
    module: nn.Module, batch: TorchBatch, *, keep: Tensor | None, packed_kwargs: PackedKwargs, dtype: torch.dtype
) -> Any:
    """Run the model on packed documents. Its logits are [1, positions, vocabulary], at `keep` or everywhere."""
    documents = Documents(batch.lengths)
    kwargs: dict[str, Any] = {"attention_mask": None}
    if packed_kwargs == "documents":
        kwargs["documents"] = documents
    elif packed_kwargs == "varlen":
        boundaries = documents.boundaries(batch.input_ids.device)
        kwargs.update(cu_seq_lens_q=boundaries, cu_seq_lens_k=boundaries)
        kwargs.update(max_length_q=documents.longest, max_length_k=documents.longest)
    elif packed_kwargs == "mask":
        kwargs["attention_mask"] = documents.mask(batch.input_ids.device, dtype)
    if keep is not None:
        kwargs["logits_to_keep"] = keep
    # Neither a mask of ones nor a cache: given one (use_cache=True is most configs' default), transformers does not
    # look for restarts in position_ids, and documents would see each other.
    return module(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, **kwargs)


def takes_logits_to_keep(model: nn.Module) -> bool:
    """Whether the model can compute logits at chosen positions only."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters
