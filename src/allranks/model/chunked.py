"""Cross entropy of a linear layer's outputs without ever holding all of them.

Logits are the largest tensor of a fine-tune: 4096 labels over 150,000 tokens are 2.5 GB in float32, and the usual way
holds three or four tensors of that size. Here labels are taken in chunks: the logits of one become its loss and, in
the same buffer, its gradients, which are multiplied into those of the hidden states and of the weight at once.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# A chunk's logits: 2^24 float32 numbers are 64 MiB, enough rows for a matrix product to run at full speed.
_CHUNK_NUMBERS = 2**24
RECOMPUTED_COPIES = 3
"""Of a chunk's logits in `module_cross_entropy`: themselves, their softmax, their gradient."""
# And no more chunks than this: each adds to the weight's whole gradient, which costs memory traffic.
_MOST_CHUNKS = 20


@dataclass(frozen=True)
class Shaping:
    """What a model does to its logits: times `scale` (Cohere, Granite), then within `cap` by tanh (Gemma 2)."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        logits = logits if self.scale == 1.0 else logits * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


PLAIN = Shaping()


def rows_of_a_chunk(num_labels: int, vocabulary: int, num_chunks: int | None, *, copies: int = 1) -> int:
    """How many labels to take at once; `num_chunks` fixes the number of chunks.

    `copies`: how many tensors as large as a chunk's logits exist at a time.
    """
    if num_chunks is not None:
        return max(1, math.ceil(num_labels / num_chunks))
    return max(1, _CHUNK_NUMBERS // copies // vocabulary, math.ceil(num_labels / _MOST_CHUNKS / copies))


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, *, rows: int, shaping: Shaping = PLAIN
) -> Tensor:
    """The float32 sum of cross entropy of `hidden @ weight.T + bias` over `labels`, `rows` labels at a time.

    Shapes: `hidden` [L, H], `weight` [V, H], `bias` [V], `labels` [L]. The product is computed in the type that
    autocast says, or in the tensors' own; the softmax in float32. Gradients are made in the forward pass, so nothing is
    computed twice, and are summed over chunks in float32. Backward can run once.

    Where `torchs_covers` says so, PyTorch's own function makes it, with the same chunks.
    """
    if torchs_covers(hidden, weight, len(labels), shaping):
        options = nn.LinearCrossEntropyOptions(batch_chunk_size=rows)
        return F.linear_cross_entropy(hidden, weight, labels, linear_bias=bias, reduction="sum", options=options)
    return _LinearCrossEntropy.apply(hidden, weight, bias, labels, rows, shaping, torch.is_grad_enabled())


def torchs_covers(hidden: Tensor, weight: Tensor, num_labels: int, shaping: Shaping) -> bool:
    """Whether `torch.nn.functional.linear_cross_entropy` in chunks is as good here as the function below.

    It came with torch 2.13. In float32, with chunks of our size, it takes the same time and memory; its own, smaller
    ones take about twice the time (`benchmarks.loss_memory`). It is not taken

    - where the loss is computed in 16 bits: it returns the loss in the inputs' type, and a sum over thousands of labels
      has three digits then, and autocast does not reach into it;
    - where logits are scaled or capped, which it does not know;
    - where the weight is frozen, or nothing is trained: that was not measured, and ours makes only what is needed;
    - without a label: there is no chunk.

    An adapter's or a quantized layer has no weight to give to either: `module_cross_entropy`.
    """
    kind = hidden.device.type
    return (
        hasattr(nn, "LinearCrossEntropyOptions")
        and hidden.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled(kind)
        and shaping == PLAIN
        and weight.requires_grad
        and torch.is_grad_enabled()
        and num_labels > 0
    )


def module_cross_entropy(
    module: Callable[[Tensor], Tensor], hidden: Tensor, labels: Tensor, *, rows: int, shaping: Shaping = PLAIN
) -> Tensor:
    """The same for any output layer, called as `module(hidden)`: an adapter's, a quantized one.

    Each chunk's logits are computed again in the backward pass, instead of being kept.
    """

    def of_chunk(part: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(shaping(module(part).float()), targets, reduction="sum")

    if not len(labels):  # one empty chunk, for the sake of the graph
        return of_chunk(hidden, labels)
    total = torch.zeros((), device=hidden.device)
    for first in range(0, len(labels), rows):
        chunk = slice(first, first + rows)
        total = total + checkpoint(of_chunk, hidden[chunk], labels[chunk], use_reentrant=False)
    return total


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer and nothing more: neither quantized nor with an adapter."""
    weight: Any = getattr(module, "weight", None)
    return type(module).forward is nn.Linear.forward and weight.is_floating_point()


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        rows: int,
        shaping: Shaping,
        trains: bool,
    ) -> Tensor:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        wanted = [trains and needed for needed in ctx.needs_input_grad[:3]]
        of_hidden = torch.empty(hidden.shape, dtype=dtype, device=hidden.device) if wanted[0] else None
        of_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if wanted[1] else None
        of_bias = torch.zeros(len(weight), dtype=torch.float32, device=weight.device) if wanted[2] else None
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        with torch.autocast(kind, enabled=False):
            matrix = weight.detach().to(dtype)
            offset = None if bias is None else bias.detach().to(dtype)
            for first in range(0, len(labels), rows):
                chunk = slice(first, first + rows)
                part, targets = hidden.detach()[chunk].to(dtype), labels[chunk, None]
                part_loss, grad_logits = _chunk(F.linear(part, matrix, offset).float(), targets, shaping, any(wanted))
                loss += part_loss
                if grad_logits is None:
                    continue
                grad_logits = grad_logits.to(dtype)
                if of_hidden is not None:
                    torch.mm(grad_logits, matrix, out=of_hidden[chunk])
                if of_weight is not None and dtype == torch.float32:
                    of_weight.addmm_(grad_logits.T, part)
                elif of_weight is not None:
                    of_weight += grad_logits.T @ part
                if of_bias is not None:
                    of_bias += grad_logits.sum(0, dtype=torch.float32)
                del grad_logits  # or it would still be there while the next chunk's logits are made
        ctx.gradients = (of_hidden, of_weight, of_bias)
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        return loss

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError("the chunked cross entropy keeps its gradients for one backward pass only")
        # They are this graph's own: scaled where they lie, for a second copy would be as large as the output layer.
        gradients = [
            None if gradient is None else gradient.mul_(scale).to(dtype)
            for gradient, dtype in zip(ctx.gradients, ctx.dtypes, strict=True)
        ]
        ctx.gradients = None
        return (*gradients, None, None, None, None, None)


def _chunk(logits: Tensor, targets: Tensor, shaping: Shaping, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """The loss of one chunk and its gradient by the linear layer's outputs, made of `logits` in place."""
    if shaping.scale != 1.0:
        logits = logits.mul_(shaping.scale)
    tanh_grad = None
    if shaping.cap is not None:
        logits = logits.div_(shaping.cap).tanh_()
        tanh_grad = 1 - logits * logits if wanted else None
        logits = logits.mul_(shaping.cap)
    largest = logits.amax(dim=1, keepdim=True)
    of_target = logits.gather(1, targets)
    logits = logits.sub_(largest).exp_()
    total = logits.sum(dim=1, keepdim=True)
    loss = (total.log() + largest - of_target).sum()
    if not wanted:
        return loss, None
    grad_logits = logits.div_(total).scatter_add_(1, targets, torch.full_like(of_target, -1.0))
    if tanh_grad is not None:
        grad_logits = grad_logits.mul_(tanh_grad)
    return loss, grad_logits if shaping.scale == 1.0 else grad_logits.mul_(shaping.scale)
