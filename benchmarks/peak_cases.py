"""Small models, each under every strategy and method: the cases of `benchmarks.plan_peaks`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from allranks.config import RunConfig
from allranks.config.load import resolve_mapping
from allranks.plan.memory import rank_memory
from allranks.plan.workloads import workloads

_SIZES = {"hidden_size": 256, "num_attention_heads": 8, "max_position_embeddings": 2048, "pad_token_id": 0}
_EIGHT_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 256}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 8, "intermediate_size": 704, "num_key_value_heads": 4, "vocab_size": 4096},
    "qwen3": {
        "num_hidden_layers": 6,
        "intermediate_size": 768,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 8192,
        "tie_word_embeddings": True,
    },
    "mixtral": {
        "num_hidden_layers": 4,
        "intermediate_size": 512,
        "num_key_value_heads": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "vocab_size": 4096,
    },
    "qwen3_moe": {
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_experts": 8,
        "vocab_size": 4096,
        **_EIGHT_EXPERTS,
    },
    # Latent attention; a first layer without experts, and an expert that each token goes to.
    "deepseek_v3": {
        "num_hidden_layers": 4,
        "intermediate_size": 704,
        "num_key_value_heads": 8,
        "q_lora_rank": 96,
        "kv_lora_rank": 64,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "vocab_size": 4096,
        **_EIGHT_EXPERTS,
    },
}
# DeepSpeed's buckets have gigabytes by default, beside which nothing else would be seen.
_SMALL = {"reduce_bucket_size": 1_000_000}


def _zero(stage: int, **settings: Any) -> dict[str, Any]:
    prefetch = {"stage3_prefetch_bucket_size": 1_000_000} if stage == 3 else {}
    return {"deepspeed": {"zero_optimization": {"stage": stage, **_SMALL, **prefetch, **settings}}}


STRATEGIES: dict[str, dict[str, Any]] = {
    "one process": {},
    "DDP": {},
    "FSDP2": {"fsdp_version": 2},
    "FSDP2 without resharding": {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": False}},
    "HSDP": {"fsdp_version": 2, "dp_shard_size": 2},
    "ZeRO-2": _zero(2),
    "ZeRO-3": _zero(3),
}
_NUM_RANKS = {"one process": 1, "HSDP": 4}
_LORA = {"adapter": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_linear": True}
VARIANTS: dict[str, dict[str, Any]] = {
    "full": {},
    "full, recomputed": {"gradient_checkpointing": True},
    "LoRA": _LORA,
}
# A CPU is slow in 16 bits.
_BF16 = {"bf16": True, "sequence_len": 64}
_QLORA = {**_LORA, "adapter": "qlora"}
# A parameter that is adapted as it is has a copy with the adapter in it, in each layer.
_OF_EXPERTS = {
    **_LORA,
    "lora_target_linear": False,
    "lora_target_modules": ["o_proj"],
    "lora_target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
}
_TWO = {"gradient_accumulation_steps": 2}
FURTHER: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("DDP", "Q-LoRA", _QLORA),
    ("FSDP2", "Q-LoRA", _QLORA),
    ("FSDP2", "full, two micro-batches", _TWO),
    ("ZeRO-2", "full, two micro-batches", _TWO),
    ("one process", "full, bf16", _BF16),
    ("FSDP2", "full, bf16", _BF16),
    ("ZeRO-2", "full, bf16", _BF16),
    ("ZeRO-3", "full, bf16", _BF16),
    ("FSDP2", "LoRA, bf16, recomputed", {**_BF16, **_LORA, "gradient_checkpointing": True}),
)
OPTIMIZERS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    *(
        ("one process", f"full, {name}", {"optimizer": name})
        for name in ("adamw_bnb_8bit", "paged_adamw_8bit", "lion_8bit", "rmsprop_bnb", "adamw_torch", "adagrad")
    ),
    *(
        (strategy, f"full, {name}", {"optimizer": name})
        for strategy in ("ZeRO-2", "ZeRO-3")
        for name in ("adamw_bnb_8bit", "adamw_torch")
    ),
)
EIGHT_BITS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("one process", "LoRA over 8 bits", {**_LORA, "load_in_8bit": True}),
    ("DDP", "LoRA over 8 bits", {**_LORA, "load_in_8bit": True}),
    ("one process", "Q-LoRA", _QLORA),
)
LONG: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("one process", "full, 8192 tokens", {"sequence_len": 8192}),
    ("one process", "full, recomputed, 8192 tokens", {"sequence_len": 8192, "gradient_checkpointing": True}),
    ("one process", "LoRA, 16384 tokens", {"sequence_len": 16384, **_LORA}),
    ("FSDP2", "full, recomputed, 8192 tokens", {"sequence_len": 8192, "gradient_checkpointing": True}),
)
EVALUATED: tuple[tuple[str, str, dict[str, Any]], ...] = tuple(
    ("one process", f"{variant}, evaluated on 16 rows", {**keys, "val_set_size": 0.1, "eval_batch_size": 16})
    for variant, keys in (("full", {}), ("LoRA", _LORA), ("full, all logits", {"chunked_cross_entropy": False}))
)
OF_EXPERTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("one process", "LoRA of experts", _OF_EXPERTS),
    ("FSDP2", "LoRA of experts", _OF_EXPERTS),
    ("FSDP2", "LoRA of experts, recomputed", {**_OF_EXPERTS, "gradient_checkpointing": True}),
)
_TOKENS = 256


@dataclass(frozen=True)
class Case:
    """One cell of the table: `keys` are of its config."""

    model: str
    strategy: str
    variant: str
    keys: dict[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        return f"{self.model}, {self.strategy}, {self.variant}"

    @property
    def num_ranks(self) -> int:
        return _NUM_RANKS.get(self.strategy, 2)

    @property
    def evaluates(self) -> bool:
        return "eval_batch_size" in self.keys

    def config(self, folder: Path) -> RunConfig:
        """As it is trained."""
        flat = {
            "base_model": str(folder / self.model),
            "datasets": [{"path": "none.jsonl", "type": "completion"}],
            "output_dir": str(folder / "out"),
            "learning_rate": 1e-3,
            "sequence_len": _TOKENS,
        }
        return resolve_mapping({**flat, **STRATEGIES[self.strategy], **self.keys})

    def described(self, folder: Path) -> dict[str, Any]:
        """The model's config.json."""
        read: dict[str, Any] = json.loads((folder / self.model / "config.json").read_text())
        return read

    def predicted(self, folder: Path) -> float:
        """Bytes of a rank, in closed form."""
        gpus = {"num_nodes": 1, "gpus_per_node": self.num_ranks}
        return rank_memory(workloads(self.config(folder), self.described(folder), **gpus, on_cpu=True)[0]).total


def cases() -> Iterator[Case]:
    """Each model under every strategy and variant."""
    for model in MODELS:
        for strategy in STRATEGIES:
            for variant, keys in VARIANTS.items():
                yield Case(model, strategy, variant, keys)
        has_experts = "num_experts_per_tok" in MODELS[model]
        further = (*OPTIMIZERS, *EIGHT_BITS, *LONG, *EVALUATED, *(OF_EXPERTS if has_experts else ()))
        for strategy, variant, keys in (*FURTHER, *further):
            if model == "deepseek_v3" and (keys.get("adapter") == "qlora" or keys.get("load_in_8bit")):
                continue  # refused: over quantized weights PEFT takes linear layers of these names for experts
            yield Case(model, strategy, variant, keys)


def write_models(folder: Path, only: str = "") -> None:
    """Random weights, with their config.json; of the model `only`, if it is given."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    for name, sizes in MODELS.items():
        if only and name != only:
            continue
        torch.manual_seed(0)
        config = AutoConfig.for_model(name, **{**_SIZES, **sizes})
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
