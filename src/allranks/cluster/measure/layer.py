"""A decoder layer without its products, or on next to nothing: what its small operations cost beside them, and what
their starts and the Python around them cost beside all work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

LAYERS = 4
LAYER_KERNELS = 40
"""Of such a layer forward, as plan/work.py counts them."""
SMALL_BYTES = 676
"""Read and written forward and back for each number of a tensor by a layer's small operations in float32, as
plan/moved.py counts them: two norms, two residual sums, rotated queries and keys, three gates of a tensor's width."""
_WIDTH, _HEADS, _TOKENS = 16, 2, 4
_SMALL_WIDTH, _SMALL_HEADS = 256, 4
_GATES = 3


def layers_of_nothing(device: Any) -> Callable[[], None]:
    """`LAYERS` of them, forward and back, as Hugging Face writes Llama's: norms, rotated queries and keys, attention, a
    gated MLP, each a module of its own."""
    ahead, back = _passes(_layer_kinds()[0], _WIDTH, _HEADS, _TOKENS, LAYERS, device)

    def work() -> None:
        ahead()
        back()

    return work


def small_operations(num_numbers: int, num_layers: int, device: Any) -> Sequence[Callable[[], None]]:
    """Those of `num_layers` layers, forward and then back, each on tensors of so many float32 numbers: norms, residual
    sums, rotated queries and keys, and `_GATES` gates, for an MLP is usually about three times as wide."""
    tokens = max(1, num_numbers // _SMALL_WIDTH)
    return _passes(_layer_kinds()[1], _SMALL_WIDTH, _SMALL_HEADS, tokens, num_layers, device)


def _passes(
    kind: Any, width: int, heads: int, tokens: int, num_layers: int, device: Any
) -> Sequence[Callable[[], None]]:
    import torch

    layers = torch.nn.ModuleList(kind(width, heads, tokens) for _ in range(num_layers)).to(device)
    given = torch.ones(1, tokens, width, device=device, requires_grad=True)
    angle = torch.ones(tokens, width // heads, device=device)
    ahead = torch.ones_like(given)

    made: list[Any] = []

    def forward() -> None:
        hidden = given
        for layer in layers:
            hidden = layer(hidden, angle, angle)
        made.append(hidden)

    def back() -> None:
        made.pop().backward(ahead)
        given.grad = None

    return forward, back


def _layer_kinds() -> tuple[Any, Any]:
    """The layer, and the same without products and attention; torch is imported only now."""
    import torch
    from torch import Tensor, nn
    from torch.nn.functional import scaled_dot_product_attention

    class Norm(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(width))

        def forward(self, hidden: Tensor) -> Tensor:
            kind = hidden.dtype
            hidden = hidden.to(torch.float32)
            variance = hidden.pow(2).mean(-1, keepdim=True)
            return self.weight * (hidden * torch.rsqrt(variance + 1e-6)).to(kind)

    def rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = heads.shape[-1] // 2
        turned = torch.cat((-heads[..., half:], heads[..., :half]), dim=-1)
        return heads * cos + turned * sin

    class Small(nn.Module):
        def __init__(self, width: int, heads: int, tokens: int) -> None:
            super().__init__()
            self.norms = nn.ModuleList(Norm(width) for _ in range(2))
            self.activation = nn.SiLU()
            self.size = (1, tokens, heads, width // heads)

        def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            before, hidden = hidden, self.norms[0](hidden)
            heads = hidden.view(self.size).transpose(1, 2)
            queries, keys = rotated(heads, cos, sin), rotated(heads, cos, sin)
            # In the place of attention: what comes of it has its order.
            attended = _Chosen.apply(queries, keys)
            hidden = before + attended.transpose(1, 2).reshape(before.shape)
            before, hidden = hidden, self.norms[1](hidden)
            for _ in range(_GATES):
                hidden = self.activation(hidden) * hidden
            return before + hidden

    class _Chosen(torch.autograd.Function):
        """The first of two, whose gradient both get."""

        @staticmethod
        def forward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
            return first.view_as(first)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
            return gradient, gradient

    class Layer(nn.Module):
        def __init__(self, width: int, heads: int, tokens: int) -> None:
            super().__init__()
            self.norms = nn.ModuleList(Norm(width) for _ in range(2))
            self.linear = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(7))
            self.activation = nn.SiLU()
            self.size = (1, tokens, heads, width // heads)

        def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            before, (q, k, v, out, gate, up, down) = hidden, self.linear
            hidden = self.norms[0](hidden)
            queries, keys, values = (one(hidden).view(self.size).transpose(1, 2) for one in (q, k, v))
            queries, keys = rotated(queries, cos, sin), rotated(keys, cos, sin)
            attended = scaled_dot_product_attention(queries, keys, values, is_causal=True)
            hidden = before + out(attended.transpose(1, 2).reshape(before.shape).contiguous())
            before, hidden = hidden, self.norms[1](hidden)
            result: Tensor = before + down(self.activation(gate(hidden)) * up(hidden))
            return result

    return Layer, Small
