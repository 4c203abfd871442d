"""How the decoders of each family are built: what the code of transformers makes of a config.json, as data.

Each entry is what `modeling_FAMILY.py` of transformers 5 says (Qwen's first models: `modeling_qwen.py` beside their
weights); `tests/unit/plan/test_model_shape.py` compares the numbers of parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

TWO_NORMS = ("input_layernorm", "post_attention_layernorm")
FOUR_NORMS = (*TWO_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")

Flag = bool | str
"""A constant, or the key of config.json that says it (false where it is not there)."""


@dataclass(frozen=True)
class Family:
    """`is_tied`, `head_dim`, `kv_heads`: what holds where config.json does not say; None: head_dim is the width by the
    heads, and keys have as many heads as queries.

    `qk_norm`: norms of queries and keys, over one head or over all. `experts`: how a mixture's parts are named.
    """

    qkv_bias: Flag = False
    o_bias: Flag = False
    mlp_bias: Flag = False
    norms: tuple[str, ...] = TWO_NORMS
    norm_bias: bool = False
    qk_norm: Literal["", "head", "all"] = ""
    is_tied: bool = False
    head_dim: int | None = None
    kv_heads: int | None = None
    is_gated: bool = True
    packs_projections: bool = False
    is_latent: bool = False
    experts: Literal["", "mixtral", "qwen", "deepseek"] = ""
    num_experts_key: str = ""


_LLAMA = Family(qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias")
_GEMMA = Family(qkv_bias="attention_bias", o_bias="attention_bias", is_tied=True, head_dim=256)
_QWEN3 = Family(qkv_bias="attention_bias", o_bias="attention_bias", qk_norm="head", head_dim=128)
_DEEPSEEK = Family(is_latent=True, experts="deepseek", num_experts_key="n_routed_experts")
_OLMO2 = Family(qkv_bias="attention_bias", o_bias="attention_bias", qk_norm="all")

FAMILIES: Mapping[str, Family] = {
    "llama": _LLAMA,
    "granite": _LLAMA,
    "smollm3": replace(_LLAMA, is_tied=True),
    "mistral": Family(kv_heads=8),
    "qwen2": Family(qkv_bias=True),
    "qwen3": _QWEN3,
    "gemma": _GEMMA,
    "gemma2": replace(_GEMMA, norms=FOUR_NORMS),
    "gemma3_text": replace(_GEMMA, norms=FOUR_NORMS, qk_norm="head"),
    "olmo2": replace(_OLMO2, norms=("post_attention_layernorm", "post_feedforward_layernorm")),
    "olmo3": replace(_OLMO2, norms=("post_attention_layernorm", "post_feedforward_layernorm")),
    "phi3": Family(packs_projections=True),
    "mixtral": Family(kv_heads=8, experts="mixtral", num_experts_key="num_local_experts"),
    "qwen2_moe": Family(qkv_bias=True, experts="qwen", num_experts_key="num_experts"),
    "qwen3_moe": replace(_QWEN3, head_dim=None, experts="qwen", num_experts_key="num_experts"),
    "olmoe": replace(_OLMO2, experts="qwen", num_experts_key="num_experts"),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "qwen": Family(),
}
