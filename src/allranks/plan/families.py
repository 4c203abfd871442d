"""How the decoders of each family are built: what the code of transformers makes of a config.json, as data.

Each entry is what `modeling_FAMILY.py` of transformers 5 says (Qwen's first models: `modeling_qwen.py` beside their
weights); `tests/unit/plan/test_model_shape.py` compares the numbers of parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from allranks.config.sections.model import NUM_EXPERTS

TWO_NORMS = ("input_layernorm", "post_attention_layernorm")
FOUR_NORMS = (*TWO_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")

Flag = bool | str
"""A constant, or the key of config.json that says it (false where it is not there; `KEY=true`: true)."""

Windows = Literal[
    "",
    "all",
    "alternate",
    "but each fourth",
    "but each sixth",
    "from max_window_layers",
    "alternate, below max_window_layers",
    "without positions",
]
"""Which layers look back no further than a window. Of families whose layers differ `layer_types` says it, if there."""


@dataclass(frozen=True)
class Family:
    """`is_tied`, `head_dim`, `kv_heads`, `first_dense`, `window`: what holds where config.json does not say; None:
    head_dim is the width by the heads, keys have as many heads as queries, there is no window. Other numbers it has to
    say.

    `qk_norm`: norms of queries and keys, over one head, over all, or as long as all would be if a head were the width
    by the heads. `experts`: how a mixture's parts are named. `num_experts_keys`: where their number may stand; of two
    that are there the first counts: what is no field of transformers' config class, which sets it after its own.
    `expert_width_key`, `shared_key`: where the width of an expert stands, and the width (DeepSeek's: the number) of
    the shared ones. `says_dense_layers`: config.json may name layers without experts. `windows`: which layers have one;
    `says_windowed`: only where `use_sliding_window` is true.
    """

    qkv_bias: Flag = False
    o_bias: Flag = False
    mlp_bias: Flag = False
    norms: tuple[str, ...] = TWO_NORMS
    norm_bias: bool = False
    qk_norm: Literal["", "head", "all", "width"] = ""
    is_tied: bool = False
    head_dim: int | None = None
    kv_heads: int | None = None
    is_gated: bool = True
    packs_projections: bool = False
    is_latent: bool = False
    experts: Literal["", "mixtral", "qwen", "deepseek"] = ""
    num_experts_keys: tuple[str, ...] = NUM_EXPERTS
    expert_width_key: str = "intermediate_size"
    shared_key: str = ""
    says_dense_layers: bool = False
    first_dense: int = 0
    window: int | None = None
    windows: Windows = ""
    says_windowed: bool = False


_LLAMA = Family(qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias")
_GEMMA = Family(qkv_bias="attention_bias", o_bias="attention_bias", is_tied=True, head_dim=256, kv_heads=16)
_GEMMA2 = replace(_GEMMA, norms=FOUR_NORMS, kv_heads=4, window=4096, windows="alternate")
_OF_QWEN: Windows = "from max_window_layers"
_QWEN2 = Family(qkv_bias=True, kv_heads=32, window=4096, windows=_OF_QWEN, says_windowed=True)
_QWEN3 = Family(
    qkv_bias="attention_bias",
    o_bias="attention_bias",
    qk_norm="head",
    head_dim=128,
    kv_heads=32,
    window=4096,
    windows=_OF_QWEN,
    says_windowed=True,
)
_DEEPSEEK = Family(
    is_latent=True,
    experts="deepseek",
    num_experts_keys=("num_local_experts", "n_routed_experts"),
    expert_width_key="moe_intermediate_size",
    shared_key="n_shared_experts",
)
_OLMO2 = Family(qkv_bias="attention_bias", o_bias="attention_bias", qk_norm="all")
_OF_OLMO2 = ("post_attention_layernorm", "post_feedforward_layernorm")
_LOCAL_FIRST = ("num_local_experts", "num_experts")


def _of_qwen(dense: Family) -> Family:
    """Qwen's mixture of it."""
    return replace(
        dense,
        experts="qwen",
        num_experts_keys=("num_experts",),
        expert_width_key="moe_intermediate_size",
        says_dense_layers=True,
    )


FAMILIES: Mapping[str, Family] = {
    "llama": _LLAMA,
    "granite": _LLAMA,
    "smollm3": replace(_LLAMA, is_tied=True, kv_heads=4, windows="without positions", says_windowed=True),
    "mistral": Family(kv_heads=8, window=4096, windows="all"),
    "qwen2": _QWEN2,
    "qwen3": _QWEN3,
    "gemma": _GEMMA,
    "gemma2": _GEMMA2,
    "gemma3_text": replace(_GEMMA2, qk_norm="head", windows="but each sixth"),
    "olmo2": replace(_OLMO2, norms=_OF_OLMO2),
    "olmo3": replace(_OLMO2, norms=_OF_OLMO2, window=4096, windows="but each fourth"),
    "phi3": Family(packs_projections=True, windows="all"),
    "mixtral": Family(
        kv_heads=8, experts="mixtral", num_experts_keys=("num_experts", "num_local_experts"), windows="all"
    ),
    "qwen2_moe": replace(
        _of_qwen(_QWEN2),
        qkv_bias="qkv_bias=true",
        kv_heads=16,
        shared_key="shared_expert_intermediate_size",
        windows="alternate, below max_window_layers",
    ),
    "qwen3_moe": replace(_of_qwen(_QWEN3), num_experts_keys=_LOCAL_FIRST, head_dim=None, kv_heads=4, windows="all"),
    "olmoe": replace(_OLMO2, qk_norm="width", experts="qwen", num_experts_keys=_LOCAL_FIRST),
    "deepseek_v2": replace(_DEEPSEEK, num_experts_keys=("num_experts", "n_routed_experts"), mlp_bias="mlp_bias"),
    "deepseek_v3": replace(_DEEPSEEK, first_dense=3),
    "qwen": Family(),
}
