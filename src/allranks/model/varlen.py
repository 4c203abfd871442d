"""FlashAttention's kernel for rows of documents that torch itself brings, where it is and where it can do the job.

Only CUDA has it. `torch.nn.attention.varlen` appeared in torch 2.10 and its arguments still change, so what is needed
is looked for by name; without it every document runs through `scaled_dot_product_attention` by itself.
"""

import inspect
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from allranks.model.attention import Documents

# FlashAttention 2 takes heads of at most 256 channels.
_LARGEST_HEAD = 256

DEVICE = "cuda"
"""The kind of device that has it; a trace on fake tensors, which are on the CPU, says otherwise."""


@lru_cache
def _kernel() -> tuple[Any, frozenset[str]]:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None, frozenset()
    return varlen_attn, frozenset(inspect.signature(varlen_attn).parameters)


def is_there() -> bool:
    """Whether this torch has the kernel, with the arguments that are needed."""
    kernel, arguments = _kernel()
    return kernel is not None and {"window_size", "scale"} <= arguments


def can_run(query: Tensor, value: Tensor, dropout: float, softcap: float | None, sinks: Tensor | None) -> bool:
    """Whether this call may go to the kernel: half precision on CUDA, and nothing that the kernel does not know."""
    if query.device.type != DEVICE or query.dtype not in (torch.bfloat16, torch.float16):
        return False
    if dropout or softcap is not None or sinks is not None:
        return False
    if query.shape[-1] != value.shape[-1] or query.shape[-1] > _LARGEST_HEAD or query.shape[-1] % 8:
        return False
    return is_there()


def run(
    query: Tensor, key: Tensor, value: Tensor, documents: "Documents", scaling: float | None, window: int | None
) -> Tensor:
    """Attention of each document to itself; shapes as in `attention.packed_attention`, result [1, T, heads, D]."""
    kernel, arguments = _kernel()
    if query.shape[1] != key.shape[1] and "enable_gqa" not in arguments:
        key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value))
    options: dict[str, Any] = {"scale": scaling, "window_size": (-1 if window is None else window - 1, 0)}
    if "enable_gqa" in arguments:
        options["enable_gqa"] = query.shape[1] != key.shape[1]
    q, k, v = (t[0].transpose(0, 1).contiguous() for t in (query, key, value))
    boundaries = documents.boundaries(query.device)
    return kernel(q, k, v, boundaries, boundaries, documents.longest, documents.longest, **options)[None]
