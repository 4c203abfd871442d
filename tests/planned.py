"""Workloads of a known model, for tests of what is predicted."""

from __future__ import annotations

from typing import Any

from allranks.config.load import resolve_mapping
from allranks.plan.config_workload import own_workload
from allranks.plan.fit import Expected

MODEL = {
    "model_type": "qwen3",
    "hidden_size": 4096,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 12288,
    "vocab_size": 151936,
}
"""Qwen3-8B's config.json, as far as memory and time depend on it."""
CONFIG: dict[str, Any] = {
    "base_model": "Qwen/Qwen3-8B",
    "datasets": [{"path": "d.jsonl", "type": "chat_template"}],
    "learning_rate": 1e-5,
    "sample_packing": True,
    "sequence_len": 4096,
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 4,
}
TINY_CONFIG: dict[str, Any] = {
    "base_model": "model",
    "datasets": [{"path": "data.jsonl", "type": "completion"}],
    "output_dir": "out",
    "learning_rate": 0.1,
    "sequence_len": 512,
    "micro_batch_size": 2,
    "gradient_accumulation_steps": 4,
}
FSDP2 = {"fsdp_version": 2}
LORA = {"adapter": "lora", "lora_r": 16, "lora_alpha": 32, "lora_target_linear": True}
SMALL = {"num_hidden_layers": 4, "vocab_size": 32000}
"""What makes the model one of a billion parameters."""


def expected(
    num_nodes: int = 2, ranks_per_node: int = 8, *, on_cpu: bool = False, model: Any = None, **keys: Any
) -> Expected:
    """What a rank of the model will do under a config with these keys."""
    own = own_workload(
        resolve_mapping({**CONFIG, **keys}),
        {**MODEL, **(model or {})},
        num_nodes=num_nodes,
        gpus_per_node=ranks_per_node,
        on_cpu=on_cpu,
    )
    return Expected(own, own.tokens)
