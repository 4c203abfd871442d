"""A decoder layer on next to nothing: what its operations and the Python around them cost beside their work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

LAYERS = 4
LAYER_KERNELS = 40
"""Of such a layer forward, as plan/work.py counts them."""
_WIDTH, _HEADS, _TOKENS = 16, 2, 4


def layers_of_nothing(device: Any) -> Callable[[], None]:
    """`LAYERS` of them, forward and back, as Hugging Face writes Llama's: norms, rotated queries and keys, attention, a
    gated MLP, each a module of its own."""
    import torch
    from torch import Tensor, nn
    from torch.nn.functional import scaled_dot_product_attention

    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(_WIDTH))

        def forward(self, hidden: Tensor) -> Tensor:
            kind = hidden.dtype
            hidden = hidden.to(torch.float32)
            variance = hidden.pow(2).mean(-1, keepdim=True)
            return self.weight * (hidden * torch.rsqrt(variance + 1e-6)).to(kind)

    def rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        half = heads.shape[-1] // 2
        turned = torch.cat((-heads[..., half:], heads[..., :half]), dim=-1)
        return heads * cos + turned * sin

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList(Norm() for _ in range(2))
            self.linear = nn.ModuleList(nn.Linear(_WIDTH, _WIDTH, bias=False) for _ in range(7))
            self.activation = nn.SiLU()

        def forward(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
            before, (q, k, v, out, gate, up, down) = hidden, self.linear
            hidden = self.norms[0](hidden)
            size = (1, _TOKENS, _HEADS, _WIDTH // _HEADS)
            queries, keys, values = (one(hidden).view(size).transpose(1, 2) for one in (q, k, v))
            queries, keys = rotated(queries, cos, sin), rotated(keys, cos, sin)
            attended = scaled_dot_product_attention(queries, keys, values, is_causal=True)
            hidden = before + out(attended.transpose(1, 2).reshape(1, _TOKENS, _WIDTH).contiguous())
            before, hidden = hidden, self.norms[1](hidden)
            result: Tensor = before + down(self.activation(gate(hidden)) * up(hidden))
            return result

    layers = nn.ModuleList(Layer() for _ in range(LAYERS)).to(device)
    given = torch.ones(1, _TOKENS, _WIDTH, device=device)
    angle = torch.ones(_TOKENS, _WIDTH // _HEADS, device=device)

    def work() -> None:
        hidden = given
        for layer in layers:
            hidden = layer(hidden, angle, angle)
        hidden.sum().backward()

    return work
