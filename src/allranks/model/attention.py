"""Attention over packed documents, each by itself, as an attention function of transformers.

A micro-batch is one row of several documents. `allranks_packed` gets their lengths on the host and runs every document
alone, so that no mask over the whole row is ever built (its size would grow with the square of the row).
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from allranks.errors import ConfigError
from allranks.model import varlen

NAME = "allranks_packed"

# Arguments that models hand on to every attention function and that do not change what is computed here.
_HARMLESS = {
    "position_ids",
    "position_embeddings",
    "past_key_values",
    "past_key_value",
    "cache_position",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "return_dict",
    "layer_idx",
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "max_length_q",
    "max_length_k",
}


class Documents:
    """The lengths of a row's documents. An object of its own, neither tuple nor tensor: DDP and FSDP would copy a
    tensor to the GPU, and `torch.compile` would recompile for every new tuple."""

    def __init__(self, lengths: tuple[int, ...]) -> None:
        self.lengths = lengths
        self.longest = max(lengths)
        self._boundaries: Tensor | None = None

    def boundaries(self, device: torch.device) -> Tensor:
        """Cumulative lengths, int32 [documents + 1], starting with 0."""
        if self._boundaries is None or self._boundaries.device != device:
            ends = torch.tensor((0, *self.lengths), dtype=torch.int32).cumsum(0, dtype=torch.int32)
            if device.type == "cuda":  # only from pinned memory does a copy not wait
                ends = ends.pin_memory()
            self._boundaries = ends.to(device, non_blocking=True)
        return self._boundaries

    def mask(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The block-diagonal causal mask that is added to scores, [1, 1, T, T]: for models that make their own."""
        document = torch.repeat_interleave(torch.tensor(self.lengths))
        document = document.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else document
        seen = (document[:, None] == document[None, :]).tril()
        return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, torch.finfo(dtype).min)[
            None, None
        ]


def register() -> None:
    """Make `attn_implementation="allranks_packed"` known to transformers. No mask function is registered with it, so
    that transformers builds no mask."""
    AttentionInterface.register(NAME, packed_attention)


@torch.compiler.disable
def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    documents: Documents | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each document to itself.

    Shapes: `query` [1, heads, T, D], `key` and `value` [1, key-value heads, T, D or Dv]; `documents` sum to T.
    `sliding_window` W: a position sees itself and the W - 1 before it. `softcap` c: scores become c * tanh(score / c)
    (Gemma 2). `s_aux` [heads]: a learned logit per head that takes part in the softmax and adds nothing (gpt-oss).
    Returns [1, T, heads, Dv] and None, as transformers expects.

    Raises:
        ConfigError: the model wants something else of its attention, which must not be ignored.
    """
    unknown = sorted(name for name, given in others.items() if given is not None and name not in _HARMLESS)
    if attention_mask is not None:
        unknown.append("attention_mask")
    if is_causal is False or getattr(module, "is_causal", True) is False:
        unknown.append("is_causal=False")
    if unknown or documents is None:
        reason = f"gives its attention {', '.join(unknown)}" if unknown else "does not pass on where documents begin"
        raise ConfigError(
            f"{type(module).__name__} {reason}, which packed attention does not know; set attn_implementation: eager"
        )
    if query.shape[0] != 1 or query.shape[2] != sum(documents.lengths):
        raise ConfigError(
            f"{type(module).__name__} calls its attention on {tuple(query.shape)}, not on the packed row of "
            f"{sum(documents.lengths)} tokens; set attn_implementation: eager"
        )
    if sliding_window is None and (masked := _window_of_mask(module)) is not None and documents.longest > masked:
        # The model may put its window into the mask only, and there is no mask here.
        raise ConfigError(
            f"{type(module).__name__} does not tell its attention about the sliding_window of {masked} in its config, "
            f"and there is a document of {documents.longest} tokens; set attn_implementation: sdpa"
        )
    if sliding_window is not None and documents.longest <= sliding_window:
        sliding_window = None
    if softcap is None and s_aux is None:
        query, key, value = _as_autocast_says(query, key, value)
    if varlen.can_run(query, value, dropout, softcap, s_aux):
        return varlen.run(query, key, value, documents, scaling, sliding_window), None

    outputs = []
    # split, not slices: in the backward pass each slice would fill and add a gradient as long as the whole row.
    for q, k, v in zip(*(tensor.split(documents.lengths, dim=2) for tensor in (query, key, value)), strict=True):
        if softcap is None and s_aux is None:
            outputs.append(_sdpa(q, k, v, dropout, scaling, sliding_window))
        else:
            outputs.append(_by_hand(q, k, v, dropout, scaling, sliding_window, softcap, s_aux))
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _as_autocast_says(*tensors: Tensor) -> tuple[Tensor, ...]:
    """In the type in which autocast lets attention compute: rotary positions, kept in float32, have widened queries and
    keys, and FlashAttention's kernel takes no such."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(kind)) for tensor in tensors)


def _window_of_mask(module: nn.Module) -> int | None:
    """The window that transformers may mask for this layer, going by the model's config."""
    config = getattr(module, "config", None)
    types = getattr(config, "layer_types", None)
    index = getattr(module, "layer_idx", None)
    if types and index is not None and types[index] == "full_attention":
        return None
    return getattr(config, "sliding_window", None)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, dropout: float, scaling: float | None, window: int | None) -> Tensor:
    length = q.shape[2]
    if window is not None and length <= window:
        window = None
    grouped = q.shape[1] != k.shape[1]
    if grouped and q.device.type == "cuda" and (window is not None or q.dtype == torch.float32):
        # There, only the kernel without a mask and in half precision takes fewer key heads; else one that keeps all
        # scores in memory would run.
        k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
        grouped = False
    if window is None:
        return F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, scale=scaling, is_causal=length > 1, enable_gqa=grouped
        )
    # Window by window: the mask is [W, 2W - 1] at most, and keys out of reach are never multiplied.
    outputs = []
    for first, last, begin, mask in _windows(length, window, q.device):
        outputs.append(
            F.scaled_dot_product_attention(
                q[:, :, first:last],
                k[:, :, begin:last],
                v[:, :, begin:last],
                attn_mask=mask,
                dropout_p=dropout,
                scale=scaling,
                enable_gqa=grouped,
            )
        )
    return torch.cat(outputs, dim=2)


def _by_hand(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout: float,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """What no fused kernel of torch computes: capped scores and sinks. The softmax is in float32."""
    group = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(group, dim=1) for t in (k, v))
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    outputs = []
    for first, last, begin, mask in _windows(q.shape[2], window or q.shape[2], q.device):
        scores = q[:, :, first:last] @ k[:, :, begin:last].transpose(2, 3) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(~mask, -torch.inf)
        if sinks is not None:
            column = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(1, -1, last - first, 1)
            scores = torch.cat([scores, column], dim=-1)
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(q.dtype)[..., : last - begin]
        outputs.append(F.dropout(weights, dropout) @ v[:, :, begin:last])
    return torch.cat(outputs, dim=2)


def _windows(length: int, window: int, device: torch.device) -> Iterator[tuple[int, int, int, Tensor]]:
    """Cut the queries into pieces of `window`: yield first query, end, first key in reach, mask [queries, keys]."""
    for first in range(0, length, window):
        last = min(first + window, length)
        begin = max(0, first - window + 1)
        queries = torch.arange(first, last, device=device)[:, None]
        keys = torch.arange(begin, last, device=device)[None, :]
        yield first, last, begin, (keys <= queries) & (queries - keys < window)
