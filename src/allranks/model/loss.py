"""The loss of a micro-batch: a sum over its labels, with logits only where there is a label."""

import inspect
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allranks.model.attention import Documents
from allranks.model.batch import TorchBatch

if TYPE_CHECKING:
    from allranks.model.head import LossHead

# How a model is told where documents begin, besides position_ids that restart: "documents" and "varlen" are for
# attention functions (ours, FlashAttention's), "mask" is an explicit mask, "" is for masks that transformers makes
# from position_ids.
PackedKwargs = Literal["documents", "varlen", "mask", ""]


def sum_cross_entropy(
    module: nn.Module,
    batch: TorchBatch,
    *,
    head: "LossHead | None",
    keeps_logits: bool,
    packed_kwargs: PackedKwargs,
    dtype: torch.dtype,
) -> Tensor:
    """Return the float32 sum of cross entropy over the labels of `batch`.

    The output layer runs only on positions that have a label: with a big vocabulary and masked prompts that is where
    the time and memory of a plain loop go. Without any label the sum is 0 and still hangs on every trainable parameter,
    so that ranks with less work than others take part in every collective.

    `head`: makes the loss without full logits, or None. `keeps_logits`: the model's forward takes `logits_to_keep`.
    `dtype`: what the model computes in.
    """
    keep = batch.label_positions if keeps_logits else None
    if head is not None:
        with head.targets(batch.label_positions, batch.labels):
            logits = packed_logits(module, batch, keep=keep, packed_kwargs=packed_kwargs, dtype=dtype)
        return head.loss_of(logits)
    # squeeze, not [0]: the gradient of an index is a zeroed copy of all the logits, of a squeeze it is a view.
    logits = packed_logits(module, batch, keep=keep, packed_kwargs=packed_kwargs, dtype=dtype).squeeze(0)
    if not keeps_logits:
        logits = logits[batch.label_positions]
    return F.cross_entropy(logits.float(), batch.labels, reduction="sum")


def packed_logits(
    module: nn.Module, batch: TorchBatch, *, keep: Tensor | None, packed_kwargs: PackedKwargs, dtype: torch.dtype
) -> Tensor:
    """Run the model on packed documents. Returns logits [1, positions, vocabulary], at `keep` or everywhere."""
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
    return module(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False, **kwargs).logits


def takes_logits_to_keep(model: nn.Module) -> bool:
    """Whether the model can compute logits at chosen positions only."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters
