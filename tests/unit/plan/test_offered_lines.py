"""What a plan offers, training accepts: each row's lines, put into the config."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from allranks.config.load import resolve_mapping
from allranks.config.strategy import strategy
from allranks.errors import ConfigError
from allranks.model.adapter import add_adapter
from allranks.plan.config_lines import changed, deepspeed_changes
from allranks.plan.hardware import find_device
from allranks.plan.remedies import remedies
from allranks.plan.workloads import workloads
from tests.planned import TINY_CONFIG

_USUAL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
_USUAL |= {"intermediate_size": 96, "vocab_size": 1000}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
_DEEPSEEK = {**_LATENT, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1}
_DEEPSEEK |= {"moe_intermediate_size": 32, "first_k_dense_replace": 1, "topk_group": 1}
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "gemma2": {"head_dim": 16},
    "phi3": {"pad_token_id": 0},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 32},
    "qwen3_moe": _EXPERTS,
    "deepseek_v3": {**_DEEPSEEK, "num_key_value_heads": 4},
}
LORA = {"adapter": "lora", "lora_r": 8, "lora_alpha": 16}
OWN = {
    "full": {"fsdp_version": 2, "load_in_4bit": False, "load_in_8bit": False},
    "LoRA of all linear layers": {**LORA, "lora_target_linear": True},
    "LoRA by names": {**LORA, "lora_target_modules": ["o_proj"], "load_in_4bit": False},
    "8 bits": {**LORA, "lora_target_modules": ["o_proj"], "load_in_8bit": True},
    "a batch, ZeRO-3": {
        "gradient_accumulation_steps": None,
        "batch_size": 100,
        "deepspeed": {"zero_optimization": {"stage": 3}},
    },
    "ZeRO-2 with numbers for the batch": {
        "deepspeed": {
            "zero_optimization": {"stage": 2},
            "train_batch_size": 64,
            "train_micro_batch_size_per_gpu": 2,
            "gradient_accumulation_steps": 4,
        },
    },
    "FSDP2 that recomputes": {"fsdp_version": 2, "fsdp_config": {"activation_checkpointing": True}},
    "float32 with a larger evaluation": {"bf16": False, "eval_batch_size": 4, "val_set_size": 0.1},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("own", OWN)
def test_each_rows_lines_make_a_config_that_training_takes(family: str, own: str) -> None:
    model_config = {"model_type": family, **_USUAL, **FAMILIES[family]}
    given = {key: value for key, value in {**TINY_CONFIG, **OWN[own]}.items() if value is not None}
    cfg = resolve_mapping(given)
    rows = workloads(cfg, model_config, num_nodes=2, gpus_per_node=4)
    assert {row.method for row in rows} == {"full", "lora", "qlora"}
    adapters = {}
    for row in rows:
        made = resolve_mapping(changed(given, row.changes, deepspeed_changes(row, row.changes)))
        kind, _, num_shards = strategy(made, 8, 4)
        assert kind == row.layout.kind
        assert made.optimizer.micro_batch_size == row.micro_batch_size
        assert made.parallel.checkpoints_activations == row.recomputes
        if row.layout.kind == "fsdp":
            assert num_shards == row.layout.num_shards
        if made.adapter.adapter:
            adapters[made.adapter.model_dump_json()] = made, row
    for made, row in adapters.values():
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**model_config))
        add_adapter(model, made)
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        assert trained == row.num_trained


@pytest.mark.parametrize("keys", [{"adapter": "qlora"}, {"peft_use_dora": True}], ids=["qlora", "dora"])
def test_an_adapter_that_training_refuses_is_refused(keys: dict[str, object]) -> None:
    model_config = {"model_type": "deepseek_v3", **_USUAL, **FAMILIES["deepseek_v3"]}
    cfg = resolve_mapping({**TINY_CONFIG, **OWN["LoRA of all linear layers"], **keys})
    with pytest.raises(ConfigError, match=r"PEFT takes down_proj, gate_proj, up_proj for .*experts.*\[.*o_proj.*\]"):
        workloads(cfg, model_config, num_nodes=1, gpus_per_node=2)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**model_config))
    with pytest.raises(ConfigError, match="PEFT takes down_proj, gate_proj, up_proj"):
        add_adapter(model, cfg)


@pytest.mark.parametrize("own", ["a batch, ZeRO-3", "ZeRO-2 with numbers for the batch"])
def test_a_remedys_keys_make_a_config_that_training_takes(own: str) -> None:
    given = {key: value for key, value in {**TINY_CONFIG, **OWN[own]}.items() if value is not None}
    [mine, *_] = workloads(resolve_mapping(given), {"model_type": "llama", **_USUAL}, num_nodes=2, gpus_per_node=4)
    too_small = replace(find_device("h100-80gb"), memory_bytes=1.0)
    found = [one for one in remedies(mine, [], too_small, mine.tokens, 2) if "micro_batch_size" in one.keys]
    assert found
    for one in found:
        made = resolve_mapping(changed(given, one.keys, one.deepspeed))
        kind, _, _ = strategy(made, 8, 4)
        assert (kind, made.optimizer.micro_batch_size) == ("zero", 1)
